//! The guest's kernel: one of Debian's, one built from Debian's source with a configuration of `lab/kernels`, or a file.
//!
//! All use virtio over MMIO for what comes back, so that small kernels need no PCI; Debian's have that as modules.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use crate::apt::{Apt, Unpacked};
use crate::cache::{Cache, Item, sha256};
use crate::command;
use crate::error::Error;

const BUSYBOX: &str = "busybox";
const IMAGE: &str = "Image";
/// In the order in which they must be inserted. Which of them a kernel has built in differs.
const MODULES: [&str; 4] = [
    "kernel/drivers/virtio/virtio_ring",
    "kernel/drivers/virtio/virtio",
    "kernel/drivers/virtio/virtio_mmio",
    "kernel/drivers/char/virtio_console",
];
/// The source package that configurations are for.
const SOURCE: &str = "linux-source-6.1";

/// Which kernel is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KernelChoice {
    /// Debian's cloud kernel of this series.
    Debian(Series),
    /// One built with `lab/kernels/NAME.frag`.
    Built(Configuration),
    /// A file.
    Image(PathBuf),
}

/// A series of Debian's cloud kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// 6.1, Debian 12's own.
    #[value(name = "6.1")]
    V6_1,
    /// 6.12, which has the dirty ring.
    #[value(name = "6.12")]
    V6_12,
}

/// A host page size and virtual address width to build a kernel with.
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
}

/// A kernel that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// Modules in the order of insertion.
    pub(crate) modules: Vec<PathBuf>,
}

impl Series {
    fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// What the names of its packages begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-6.1.0-",
            Self::V6_12 => "linux-image-6.12.",
        }
    }
}

impl Configuration {
    fn name(self) -> &'static str {
        match self {
            Self::K4V39 => "4k39",
            Self::K4V48 => "4k48",
            Self::K64V42 => "64k42",
            Self::K64V48 => "64k48",
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
        if let Ok(series) = Series::from_str(text, false) {
            Ok(Self::Debian(series))
        } else if let Ok(configuration) = Configuration::from_str(text, false) {
            Ok(Self::Built(configuration))
        } else if text.contains('/') || Path::new(text).is_file() {
            Ok(Self::Image(text.into()))
        } else {
            Err("not 6.1, 6.12, 4k39, 4k48, 64k42, 64k48 or a path".to_owned())
        }
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian(series) => f.write_str(series.name()),
            Self::Built(configuration) => f.write_str(configuration.name()),
            Self::Image(path) => path.display().fmt(f),
        }
    }
}

/// The kernel asked for, from the cache or as the file it is.
///
/// # Errors
/// [`Error::NotCached`] says by which subcommand it comes there.
pub(crate) fn find(cache: &Cache, checkout: &Path, choice: &KernelChoice) -> Result<Kernel, Error> {
    let (name, remedy) = match choice {
        KernelChoice::Image(path) => {
            // Reading it here says what is wrong before QEMU does.
            fs::File::open(path).map_err(Error::file("read", path))?;
            return Ok(Kernel { image: path.clone(), modules: Vec::new() });
        }
        KernelChoice::Debian(series) => (series.name(), format!("fetch --kernel {choice}")),
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

/// Busybox for the guest, if it has been fetched.
pub(crate) fn busybox(cache: &Cache) -> Result<Option<PathBuf>, Error> {
    Ok(cache.get(BUSYBOX, "fetch")?.map(|(_, directory)| directory.join(BUSYBOX)))
}

/// Fetches the newest kernel of a series, and busybox.
pub(crate) fn fetch(cache: &Cache, series: Series) -> Result<[Item; 2], Error> {
    let apt = Apt::update(&cache.directory().join("apt"))?;
    let work = work_directory(cache)?;
    let package = apt.newest(series.prefix(), "-cloud-arm64")?;
    let kernel = apt.unpack(&package, work.path())?;
    let busybox = apt.unpack("busybox-static", work.path())?;
    let release = package.trim_start_matches("linux-image-");
    let mut files = vec![(IMAGE.to_owned(), kernel.tree.join("boot").join(format!("vmlinuz-{release}")))];
    files.extend(modules(&kernel.tree.join("lib/modules").join(release)));
    Ok([
        put(cache, series.name(), &kernel, &files)?,
        put(cache, BUSYBOX, &busybox, &[(BUSYBOX.to_owned(), busybox.tree.join("bin/busybox"))])?,
    ])
}

/// Builds a configuration from Debian's kernel source, unless the cache has it; takes minutes.
pub(crate) fn build(cache: &Cache, checkout: &Path, configuration: Configuration) -> Result<Item, Error> {
    let fragments = configuration.fragments(checkout)?;
    let key = sha256(fragments.as_bytes());
    let remedy = format!("kernel {}", configuration.name());
    if let Ok(Some((item, _))) = cache.get(configuration.name(), &remedy)
        && item.sha256 == key
    {
        return Ok(item);
    }
    let apt = Apt::update(&cache.directory().join("apt"))?;
    let work = work_directory(cache)?;
    let source = apt.unpack(SOURCE, work.path())?;
    let archive = source.tree.join("usr/src").join(format!("{SOURCE}.tar.xz"));
    let unpack = || -> Command {
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(work.path());
        tar
    };
    command::output(&mut unpack(), "tar", "tar xz-utils")?;
    let tree = work.path().join(SOURCE);
    let all = work.path().join("all.frag");
    fs::write(&all, &fragments).map_err(Error::file("write", &all))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    for goals in [["allnoconfig"].as_slice(), &["Image"]] {
        let mut make = Command::new("make");
        make.current_dir(&tree).env("KCONFIG_ALLCONFIG", &all);
        make.args(["--silent", "ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", &format!("--jobs={jobs}")]);
        command::output(make.args(goals), "make", "make gcc-aarch64-linux-gnu flex bison bc libelf-dev libssl-dev")?;
    }
    let image = tree.join("arch/arm64/boot/Image");
    cache.put(configuration.name(), &source.package, &source.version, &key, &[(IMAGE.to_owned(), image)])
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
fn work_directory(cache: &Cache) -> Result<tempfile::TempDir, Error> {
    let directory = cache.directory();
    tempfile::Builder::new().prefix("work-").tempdir_in(directory).map_err(Error::file("write to", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        assert_eq!("6.12".parse(), Ok(KernelChoice::Debian(Series::V6_12)));
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
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for configuration in [Configuration::K4V39, Configuration::K4V48, Configuration::K64V42, Configuration::K64V48]
        {
            let text = configuration.fragments(checkout).unwrap();
            assert!(text.contains("CONFIG_KVM=y") && text.contains(&format!("-lab{}", configuration.name())));
        }
    }

    #[test]
    fn a_kernel_that_is_not_cached_says_how_to_get_it() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let error = find(&cache, directory.path(), &KernelChoice::Debian(Series::V6_1)).unwrap_err();
        assert!(error.to_string().contains("scripts/lab fetch --kernel 6.1"), "{error}");
    }
}
