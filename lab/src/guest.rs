//! The guest's initramfs: its programs where hostvmm looks for them, the modules, the command, and files of the caller.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use lab_init::{COMMAND, MODULES, OUT, newc};

use crate::cache::Reader;
use crate::cross::Programs;
use crate::error::Error;
use crate::kernel::{self, KernelChoice};

/// hostvmm finds the firmware from its own place, as in a checkout.
pub(crate) const HOSTVMM: &str = "target/release/hostvmm";
/// Where the guest has its way to a shell outside.
pub(crate) const OUTSIDE: &str = "bin/outside";
pub(crate) const FIRMWARE: &str = "target/aarch64-unknown-none-softfloat/release/firmware";
const FIRMWARE_ARMV7: &str = "target/armv7a-none-eabi/release/firmware";
/// Where a Linux guest's kernel and its initramfs are.
const LINUX_IMAGE: &str = "linux/Image";
const LINUX_INITRAMFS: &str = "linux/initramfs.cpio";
const DIRECTORIES: [&str; 16] = [
    "proc",
    "sys",
    "dev",
    "tmp",
    "bin",
    "lab",
    MODULES,
    OUT,
    "target",
    "target/release",
    "target/aarch64-unknown-none-softfloat",
    "target/aarch64-unknown-none-softfloat/release",
    "target/armv7a-none-eabi",
    "target/armv7a-none-eabi/release",
    "files",
    "linux",
];
/// What a command line in the guest is likely to use; `busybox --list` has more.
const APPLETS: [&str; 24] = [
    "sh", "cat", "ls", "cp", "mv", "rm", "mkdir", "echo", "head", "tail", "grep", "sed", "awk", "dmesg", "mount", "ps",
    "sleep", "sort", "time", "timeout", "truncate", "uname", "vi", "wc",
];

/// What goes into an initramfs beside what the kernel needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contents<'a> {
    pub(crate) programs: &'a Programs,
    /// A kernel for a guest of hostvmm's, to [`LINUX_IMAGE`], with an initramfs beside it.
    pub(crate) linux: Option<&'a Path>,
    /// The caller's, each to `/files/NAME`.
    pub(crate) files: &'a [PathBuf],
    /// Empty: an interactive shell.
    pub(crate) command: &'a [OsString],
}

/// Copies the kernel out of the cache and writes its initramfs, both to `directory`: what the guest needs stays as it is
/// there, whatever others fetch meanwhile.
///
/// # Returns
/// The paths of the two.
pub(crate) fn pack(
    cache: &Reader<'_>,
    checkout: &Path,
    choice: &KernelChoice,
    contents: &Contents<'_>,
    directory: &Path,
) -> Result<(PathBuf, PathBuf), Error> {
    let kernel = kernel::find(cache, checkout, choice)?;
    let Some(busybox) = kernel::busybox(cache)? else {
        return Err(Error::NotCached { what: "busybox".to_owned(), remedy: "fetch".to_owned() });
    };
    let (image, initramfs) = (directory.join("Image"), directory.join("initramfs.cpio"));
    fs::copy(&kernel.image, &image).map_err(Error::file("copy", &kernel.image))?;
    write(contents, &kernel.modules, &busybox, &initramfs)?;
    Ok((image, initramfs))
}

/// Writes the initramfs to `path`; `modules` in the order of insertion.
fn write(contents: &Contents<'_>, modules: &[PathBuf], busybox: &Path, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { action: "write", path: path.to_owned(), source };
    let file = fs::File::create(path).map_err(Error::file("create", path))?;
    let mut archive = newc::Writer::new(std::io::BufWriter::new(file));
    for directory in DIRECTORIES {
        archive.directory(directory).map_err(failed)?;
    }
    // Without it PID 1 begins with no standard streams.
    archive.device("dev/console", 5, 1).map_err(failed)?;
    let own = contents.programs;
    let mut programs = vec![
        ("init".to_owned(), own.init.as_path()),
        (OUTSIDE.to_owned(), &own.outside),
        (HOSTVMM.to_owned(), &own.hostvmm),
        (FIRMWARE.to_owned(), &own.firmware),
        ("bin/busybox".to_owned(), busybox),
    ];
    programs.extend(own.firmware_armv7.iter().map(|firmware| (FIRMWARE_ARMV7.to_owned(), &**firmware)));
    programs.extend(own.unit_tests.iter().map(|tests| ("files/hostvmm-tests".to_owned(), &**tests)));
    programs.extend(modules.iter().map(|module| (format!("{MODULES}/{}", file_name(module)), &**module)));
    programs.extend(contents.files.iter().map(|file| (format!("files/{}", file_name(file)), &**file)));
    for (name, from) in programs {
        let bytes = fs::read(from).map_err(Error::file("read", from))?;
        archive.file(&name, true, &bytes).map_err(failed)?;
    }
    if let Some(image) = contents.linux {
        let bytes = fs::read(image).map_err(Error::file("read", image))?;
        archive.file(LINUX_IMAGE, false, &bytes).map_err(failed)?;
        archive.file(LINUX_INITRAMFS, false, &linux_initramfs(&own.dirtyram)?).map_err(failed)?;
    }
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox").map_err(failed)?;
    }
    archive.file(COMMAND, false, &command_line(contents.command)).map_err(failed)?;
    archive.finish().and_then(|mut file| file.flush()).map_err(failed)
}

/// The initramfs of a Linux guest whose only program is `dirtyram`.
pub(crate) fn linux_initramfs(dirtyram: &Path) -> Result<Vec<u8>, Error> {
    let program = fs::read(dirtyram).map_err(Error::file("read", dirtyram))?;
    let failed = |source| Error::File { action: "pack", path: dirtyram.to_owned(), source };
    let mut archive = newc::Writer::new(Vec::new());
    archive.directory("dev").map_err(failed)?;
    archive.device("dev/console", 5, 1).map_err(failed)?;
    archive.file("init", true, &program).map_err(failed)?;
    archive.finish().map_err(failed)
}

/// Each argument ended by a NUL byte, as [`COMMAND`] says.
fn command_line(command: &[OsString]) -> Vec<u8> {
    command.iter().flat_map(|argument| argument.as_bytes().iter().copied().chain([0])).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_with_spaces_and_empty_ones() {
        let command: Vec<OsString> = ["sh", "-c", "a b", ""].map(OsString::from).into();
        assert_eq!(command_line(&command), b"sh\0-c\0a b\0\0");
        assert_eq!(command_line(&[]), b"");
    }

    #[test]
    fn the_initramfs_has_the_programs_the_modules_and_the_callers_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        let programs = Programs {
            init: file("i"),
            dirtyram: file("d"),
            outside: file("o"),
            hostvmm: file("h"),
            firmware: file("f"),
            firmware_armv7: Some(file("v7")),
            unit_tests: None,
        };
        let (modules, files) = ([file("0-virtio.ko")], [file("image.elf")]);
        let path = directory.path().join("initramfs");
        let command = ["hostvmm".into()];
        let linux = file("kernel");
        let contents = Contents { programs: &programs, linux: Some(&linux), files: &files, command: &command };
        write(&contents, &modules, &file("busybox"), &path).unwrap();
        let archive = fs::read(&path).unwrap();
        let entries = newc::read(&archive).unwrap();
        let names: Vec<_> = entries.iter().map(|file| file.name).collect();
        let content = |name: &str| entries.iter().find(|file| file.name == name).unwrap().bytes;
        assert_eq!(content(LINUX_IMAGE), b"kernel");
        let inner: Vec<_> =
            newc::read(content(LINUX_INITRAMFS)).unwrap().iter().map(|file| (file.name, file.bytes)).collect();
        assert_eq!(inner, [("init", &b"d"[..])]);
        let own = ["init", OUTSIDE, HOSTVMM, FIRMWARE, "bin/busybox", FIRMWARE_ARMV7];
        let others = ["lab/modules/0-virtio.ko", "files/image.elf"];
        assert_eq!(names[..8], [&own[..], &others].concat());
        assert_eq!(names.last(), Some(&"lab/command"));
    }
}
