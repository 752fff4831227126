//! The guest's kernel: one of Debian's, one built from Debian's source with a configuration of `lab/kernels`, or a file.
//!
//! All use virtio over MMIO for what comes back, so that small kernels need no PCI; Debian's have that as modules.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use crate::apt::{Apt, Unpacked};
use crate::cache::{Cache, Item, Reader, sha256};
use crate::command;
use crate::error::Error;
use crate::progress::Progress;

const BUSYBOX: &str = "busybox";
const IMAGE: &str = "Image";
/// In the order in which they must be inserted. Which of them a kernel has built in differs.
const MODULES: [&str; 4] = [
    "kernel/drivers/virtio/virtio_ring",
    "kernel/drivers/virtio/virtio",
    "kernel/drivers/virtio/virtio_mmio",
    "kernel/drivers/char/virtio_console",
];

/// Which kernel is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KernelChoice {
    /// One of Debian's.
    Packaged(Packaged),
    /// One built with `lab/kernels/NAME.frag`.
    Built(Configuration),
    /// A file.
    Image(PathBuf),
}

/// A kernel that Debian has as a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Packaged {
    /// The cloud kernel of 6.1, Debian 12's own series.
    #[value(name = "6.1")]
    V6_1,
    /// The cloud kernel of 6.12, which has the dirty ring.
    #[value(name = "6.12")]
    V6_12,
    /// 6.12 with pages of 16 KiB.
    #[value(name = "16k")]
    K16,
}

/// What Debian has no package of: host page size, virtual address width, debugging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "verbatim")]
pub(crate) enum Configuration {
    #[value(name = "4k39")]
    K4V39,
    #[value(name = "4k48")]
    K4V48,
    #[value(name = "64k42")]
    K64V42,
    #[value(name = "64k48")]
    K64V48,
    /// 6.12, which shows its stage-2 tables in debugfs.
    #[value(name = "4k48p")]
    K4V48P,
}

/// A kernel that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// Modules in the order of insertion.
    pub(crate) modules: Vec<PathBuf>,
}

impl Packaged {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::K16 => "16k",
        }
    }

    /// What the names of its packages begin and end with.
    fn packages(self) -> (&'static str, &'static str) {
        match self {
            Self::V6_1 => ("linux-image-6.1.0-", "-cloud-arm64"),
            Self::V6_12 => ("linux-image-6.12.", "-cloud-arm64"),
            Self::K16 => ("linux-image-6.12.", "-arm64-16k"),
        }
    }
}

impl Configuration {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::K4V39 => "4k39",
            Self::K4V48 => "4k48",
            Self::K64V42 => "64k42",
            Self::K64V48 => "64k48",
            Self::K4V48P => "4k48p",
        }
    }

    /// The source package that it is for.
    fn source(self) -> &'static str {
        match self {
            Self::K4V39 | Self::K4V48 | Self::K64V42 | Self::K64V48 => "linux-source-6.1",
            Self::K4V48P => "linux-source-6.12",
        }
    }

    fn fragments(self, checkout: &Path) -> Result<String, Error> {
        let mut text = String::new();
        for name in ["common", self.name()] {
            let path = checkout.join("lab/kernels").join(name).with_extension("frag");
            text += &fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        }
        Ok(text)
    }
}

impl FromStr for KernelChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use clap::ValueEnum;
        if let Ok(packaged) = Packaged::from_str(text, false) {
            Ok(Self::Packaged(packaged))
        } else if let Ok(configuration) = Configuration::from_str(text, false) {
            Ok(Self::Built(configuration))
        } else if text.contains('/') || Path::new(text).is_file() {
            Ok(Self::Image(text.into()))
        } else {
            Err("not 6.1, 6.12, 16k, 4k39, 4k48, 64k42, 64k48, 4k48p or the path of a file".to_owned())
        }
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packaged(packaged) => f.write_str(packaged.name()),
            Self::Built(configuration) => f.write_str(configuration.name()),
            Self::Image(path) => path.display().fmt(f),
        }
    }
}

/// The kernel asked for, from the cache or as the file it is.
///
/// # Errors
/// [`Error::NotCached`] says by which subcommand it comes there; [`Error::BadImage`].
pub(crate) fn find(cache: &Reader<'_>, checkout: &Path, choice: &KernelChoice) -> Result<Kernel, Error> {
    let (name, remedy) = match choice {
        KernelChoice::Image(path) => {
            check_image(path)?;
            return Ok(Kernel { image: path.clone(), modules: Vec::new() });
        }
        KernelChoice::Packaged(packaged) => (packaged.name(), format!("fetch --kernel {choice}")),
        KernelChoice::Built(configuration) => (configuration.name(), format!("kernel {choice}")),
    };
    let Some((item, directory)) = cache.get(name, &remedy)? else {
        return Err(Error::NotCached { what: format!("kernel {name}"), remedy });
    };
    if let KernelChoice::Built(configuration) = choice
        && item.sha256 != sha256(configuration.fragments(checkout)?.as_bytes())
    {
        return Err(Error::NotCached { what: format!("kernel {name} of this configuration"), remedy });
    }
    let modules = item.files.keys().filter(|file| *file != IMAGE).map(|file| directory.join(file)).collect();
    Ok(Kernel { image: directory.join(IMAGE), modules })
}

/// Brings the kernel asked for, and busybox, into the cache unless they are there.
pub(crate) fn ensure(cache: &Cache, checkout: &Path, choice: &KernelChoice, progress: Progress) -> Result<(), Error> {
    // A reader that lived through the match would keep the item from being put.
    let found = find(&cache.reader()?, checkout, choice);
    match (found, choice) {
        (Err(Error::NotCached { .. }), KernelChoice::Packaged(packaged)) => {
            fetch_missing(cache, checkout, *packaged, progress)?;
        }
        (Err(Error::NotCached { .. }), KernelChoice::Built(configuration)) => {
            build(cache, checkout, *configuration, progress)?;
        }
        (found, _) => drop(found?),
    }
    if busybox(&cache.reader()?)?.is_none() {
        fetch_busybox(cache, &Apt::update(cache, progress)?, progress)?;
    }
    Ok(())
}

/// Busybox for the guest, if it has been fetched.
pub(crate) fn busybox(cache: &Reader<'_>) -> Result<Option<PathBuf>, Error> {
    Ok(cache.get(BUSYBOX, "fetch")?.map(|(_, directory)| directory.join(BUSYBOX)))
}

/// Fetches the newest of a kernel's packages, and busybox.
pub(crate) fn fetch(cache: &Cache, packaged: Packaged, progress: Progress) -> Result<[Item; 2], Error> {
    let _making = cache.maker(packaged.name())?;
    fetch_alone(cache, packaged, progress)
}

fn fetch_missing(cache: &Cache, checkout: &Path, packaged: Packaged, progress: Progress) -> Result<(), Error> {
    let _making = cache.maker(packaged.name())?;
    // Whoever was waited for may have brought it.
    if let Ok(_there) = find(&cache.reader()?, checkout, &KernelChoice::Packaged(packaged)) {
        return Ok(());
    }
    fetch_alone(cache, packaged, progress).map(drop)
}

fn fetch_alone(cache: &Cache, packaged: Packaged, progress: Progress) -> Result<[Item; 2], Error> {
    let apt = Apt::update(cache, progress)?;
    let work = work_directory(cache)?;
    let (prefix, suffix) = packaged.packages();
    let package = apt.newest(prefix, suffix)?;
    progress.step(format_args!("fetching {package}"));
    let kernel = apt.unpack(&package, work.path())?;
    let release = package.trim_start_matches("linux-image-");
    let mut files = vec![(IMAGE.to_owned(), kernel.tree.join("boot").join(format!("vmlinuz-{release}")))];
    files.extend(modules(&kernel.tree.join("lib/modules").join(release)));
    Ok([put(cache, packaged.name(), &kernel, &files)?, fetch_busybox(cache, &apt, progress)?])
}

fn fetch_busybox(cache: &Cache, apt: &Apt, progress: Progress) -> Result<Item, Error> {
    progress.step(format_args!("fetching busybox"));
    let work = work_directory(cache)?;
    let busybox = apt.unpack("busybox-static", work.path())?;
    put(cache, BUSYBOX, &busybox, &[(BUSYBOX.to_owned(), busybox.tree.join("bin/busybox"))])
}

/// Builds a configuration from Debian's kernel source, unless the cache has it; takes minutes.
pub(crate) fn build(
    cache: &Cache,
    checkout: &Path,
    configuration: Configuration,
    progress: Progress,
) -> Result<Item, Error> {
    let name = configuration.name();
    let _making = cache.maker(name)?;
    let fragments = configuration.fragments(checkout)?;
    let key = sha256(fragments.as_bytes());
    if let Ok(Some((item, _))) = cache.reader()?.get(name, "")
        && item.sha256 == key
        && source_in_cache(cache, configuration).is_none_or(|(source, _)| source.version == item.version)
    {
        return Ok(item);
    }
    let (source, archive) = source(cache, configuration, progress)?;
    let work = work_directory(cache)?;
    progress.step(format_args!("unpacking {} {}", source.package, source.version));
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(work.path());
    command::output(&mut tar, "tar", "tar xz-utils")?;
    let tree = work.path().join(&source.package);
    let all = work.path().join("all.frag");
    fs::write(&all, &fragments).map_err(Error::file("write", &all))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    progress.step(format_args!("building kernel {name} with {jobs} jobs: about 10 minutes of two CPUs"));
    for goals in [["allnoconfig"].as_slice(), &["Image"]] {
        let mut make = Command::new("make");
        make.current_dir(&tree).env("KCONFIG_ALLCONFIG", &all);
        make.args(["--silent", "ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", &format!("--jobs={jobs}")]);
        command::output(make.args(goals), "make", "make gcc-aarch64-linux-gnu flex bison bc libelf-dev libssl-dev")?;
    }
    let image = tree.join("arch/arm64/boot/Image");
    cache.put(name, &source.package, &source.version, &key, &[(IMAGE.to_owned(), image)])
}

/// A kernel's source as an archive in the cache: the kernels of one checkout are built from one version.
pub(crate) fn source(
    cache: &Cache,
    configuration: Configuration,
    progress: Progress,
) -> Result<(Item, PathBuf), Error> {
    let package = configuration.source();
    let _making = cache.maker(package)?;
    if let Some(found) = source_in_cache(cache, configuration) {
        return Ok(found);
    }
    let apt = Apt::update(cache, progress)?;
    let work = work_directory(cache)?;
    progress.step(format_args!("fetching {package}"));
    let source = apt.unpack(package, work.path())?;
    let archive = format!("{package}.tar.xz");
    let files = [(archive.clone(), source.tree.join("usr/src").join(&archive))];
    Ok((put(cache, package, &source, &files)?, cache.directory().join(package).join(archive)))
}

fn source_in_cache(cache: &Cache, configuration: Configuration) -> Option<(Item, PathBuf)> {
    let package = configuration.source();
    let (item, directory) = cache.reader().ok()?.get(package, "").ok()??;
    Some((item, directory.join(format!("{package}.tar.xz"))))
}

/// Whether QEMU will boot the file: an arm64 Image by its magic number (arm64/booting.rst), as it is or gzipped.
fn check_image(path: &Path) -> Result<(), Error> {
    use std::io::Read;
    let bad = |why: String| Error::BadImage { path: path.to_owned(), why };
    let mut header = Vec::new();
    let opened = fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    opened.take(64).read_to_end(&mut header).map_err(|error| bad(error.to_string()))?;
    if header.get(56..60) == Some(b"ARM\x64") || header.starts_with(&[0x1f, 0x8b]) {
        return Ok(());
    }
    if header.get(4..8) == Some(b"zimg") {
        return Err(bad("an EFI zboot image, not the Image inside: take arch/arm64/boot/Image".to_owned()));
    }
    Err(bad("no arm64 Image: the magic number is missing at byte 56".to_owned()))
}

/// What the guest must insert of a tree of modules, with names in the order of insertion.
fn modules(tree: &Path) -> Vec<(String, PathBuf)> {
    let found = |(index, stem): (usize, &&str)| {
        let candidates = ["ko", "ko.xz"].map(|suffix| tree.join(format!("{stem}.{suffix}")));
        let path = candidates.into_iter().find(|path| path.is_file())?;
        let name = path.file_name()?.to_str()?.to_owned();
        Some((format!("{index}-{name}"), path))
    };
    MODULES.iter().enumerate().filter_map(found).collect()
}

fn put(cache: &Cache, name: &str, from: &Unpacked, files: &[(String, PathBuf)]) -> Result<Item, Error> {
    cache.put(name, &from.package, &from.version, &from.sha256, files)
}

/// On the cache's own disk: a kernel's source tree is too large for a /tmp in memory.
pub(crate) fn work_directory(cache: &Cache) -> Result<tempfile::TempDir, Error> {
    let directory = cache.directory();
    tempfile::Builder::new().prefix("work-").tempdir_in(directory).map_err(Error::file("write to", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        assert_eq!("6.12".parse(), Ok(KernelChoice::Packaged(Packaged::V6_12)));
        assert_eq!("64k42".parse(), Ok(KernelChoice::Built(Configuration::K64V42)));
        assert_eq!("./Image".parse(), Ok(KernelChoice::Image("./Image".into())));
        assert!("6.13".parse::<KernelChoice>().is_err());
    }

    #[test]
    fn modules_keep_their_order_and_built_in_ones_are_left_out() {
        let tree = tempfile::tempdir().unwrap();
        for module in ["kernel/drivers/virtio/virtio_mmio.ko.xz", "kernel/drivers/virtio/virtio.ko"] {
            fs::create_dir_all(tree.path().join(module).parent().unwrap()).unwrap();
            fs::write(tree.path().join(module), "").unwrap();
        }
        let names: Vec<_> = modules(tree.path()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["1-virtio.ko", "2-virtio_mmio.ko.xz"]);
    }

    #[test]
    fn every_configuration_has_its_fragment() {
        use clap::ValueEnum;
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for configuration in Configuration::value_variants() {
            let text = configuration.fragments(checkout).unwrap();
            assert!(text.contains("CONFIG_KVM=y") && text.contains(&format!("-lab{}", configuration.name())));
        }
    }

    #[test]
    fn a_file_that_is_no_image_is_refused_with_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let why = |bytes: &[u8]| {
            let path = directory.path().join("Image");
            fs::write(&path, bytes).unwrap();
            check_image(&path).map_err(|error| error.to_string())
        };
        let mut image = [0; 64];
        image[56..60].copy_from_slice(b"ARM\x64");
        assert_eq!(why(&image), Ok(()));
        assert_eq!(why(&[0x1f, 0x8b, 8]), Ok(()));
        assert!(why(b"MZ\0\0zimg").unwrap_err().contains("zboot"));
        assert!(why(b"\x7fELF").unwrap_err().contains("no arm64 Image"));
        assert!(why(b"").unwrap_err().contains("no arm64 Image"));
        let missing = check_image(&directory.path().join("missing")).unwrap_err();
        assert!(missing.to_string().contains("No such file"), "{missing}");
        assert_eq!(missing.status(), 2);
    }

    #[test]
    fn a_kernel_that_is_not_cached_says_how_to_get_it() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let error =
            find(&cache.reader().unwrap(), directory.path(), &KernelChoice::Packaged(Packaged::V6_1)).unwrap_err();
        assert!(error.to_string().contains("scripts/lab fetch --kernel 6.1"), "{error}");
    }
}
