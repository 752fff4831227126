//! The guest's initramfs: its programs where hostvmm looks for them, the modules, the command, and files of the caller.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use lab_init::{COMMAND, MODULES, OUT, newc};

use crate::cross::Programs;
use crate::error::Error;

/// hostvmm finds the firmware from its own place, as in a checkout.
const HOSTVMM: &str = "target/release/hostvmm";
const FIRMWARE: &str = "target/aarch64-unknown-none-softfloat/release/firmware";
const DIRECTORIES: [&str; 13] = [
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
    "files",
];
/// What a command line in the guest is likely to use; `busybox --list` has more.
const APPLETS: [&str; 24] = [
    "sh", "cat", "ls", "cp", "mv", "rm", "mkdir", "echo", "head", "tail", "grep", "sed", "awk", "dmesg", "mount", "ps",
    "sleep", "sort", "time", "timeout", "truncate", "uname", "vi", "wc",
];

/// What goes into an initramfs.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    pub(crate) programs: &'a Programs,
    /// In the order of insertion.
    pub(crate) modules: &'a [PathBuf],
    pub(crate) busybox: Option<&'a Path>,
    /// The caller's, each to `/files/NAME`.
    pub(crate) files: &'a [PathBuf],
    /// Empty: an interactive shell.
    pub(crate) command: &'a [OsString],
}

/// Writes the initramfs to `path`.
pub(crate) fn write(contents: &Contents<'_>, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { action: "write", path: path.to_owned(), source };
    let file = fs::File::create(path).map_err(Error::file("create", path))?;
    let mut archive = newc::Writer::new(std::io::BufWriter::new(file));
    for directory in DIRECTORIES {
        archive.directory(directory).map_err(failed)?;
    }
    // Without it PID 1 begins with no standard streams.
    archive.device("dev/console", 5, 1).map_err(failed)?;
    let mut programs = vec![
        ("init".to_owned(), contents.programs.init.as_path()),
        (HOSTVMM.to_owned(), &contents.programs.hostvmm),
        (FIRMWARE.to_owned(), &contents.programs.firmware),
    ];
    programs.extend(contents.busybox.map(|busybox| ("bin/busybox".to_owned(), busybox)));
    programs.extend(contents.modules.iter().map(|module| (format!("{MODULES}/{}", file_name(module)), &**module)));
    programs.extend(contents.files.iter().map(|file| (format!("files/{}", file_name(file)), &**file)));
    for (name, from) in programs {
        let bytes = fs::read(from).map_err(Error::file("read", from))?;
        archive.file(&name, true, &bytes).map_err(failed)?;
    }
    if contents.busybox.is_some() {
        for applet in APPLETS {
            archive.link(&format!("bin/{applet}"), "busybox").map_err(failed)?;
        }
    }
    archive.file(COMMAND, false, &command_line(contents.command)).map_err(failed)?;
    archive.finish().and_then(|mut file| file.flush()).map_err(failed)
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
        let programs = Programs { init: file("i"), hostvmm: file("h"), firmware: file("f") };
        let (modules, files) = ([file("0-virtio.ko")], [file("image.elf")]);
        let path = directory.path().join("initramfs");
        let command = ["hostvmm".into()];
        let contents =
            Contents { programs: &programs, modules: &modules, busybox: None, files: &files, command: &command };
        write(&contents, &path).unwrap();
        let archive = fs::read(&path).unwrap();
        let names: Vec<_> = newc::read(&archive).unwrap().iter().map(|file| file.name).collect();
        assert_eq!(names, ["init", HOSTVMM, FIRMWARE, "lab/modules/0-virtio.ko", "files/image.elf", "lab/command"]);
    }
}
