//! The VMM that hostvmm's migration is measured beside: Debian's QEMU for arm64, with each library that its program loads as it
//! starts, and nothing else of its packages.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use goblin::elf::Elf;

use crate::apt::{Apt, Unpacked};
use crate::cache::Cache;
use crate::error::Error;
use crate::guest::{FIRMWARE, HOSTVMM};
use crate::kernel::work_directory;
use crate::progress::Progress;
use crate::qemu::{Clock, PACKAGE, PROGRAM};

/// Its name in the cache.
const NAME: &str = "qemu-arm64";
/// The item's file that says which packages its other files are from: name, version and SHA-256 of each.
const PACKAGES: &str = "packages";
/// Where Debian's loader finds libraries by itself, and the program's place.
const PLACES: [&str; 6] = ["lib", "usr/lib", "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu", "bin", "usr/bin"];
/// Small enough for a guest whose host is itself translated: 32 MiB written at first, one measured round.
const SIZE: [&str; 6] = ["--pages", "8192", "--rounds", "1", "--hops", "20"];

/// The program and its libraries, fetched with `may_fetch` unless the cache has them.
///
/// # Errors
/// [`Error::NotCached`] where they must not be fetched; [`Error::Bench`] if a library is in none of the packages.
pub(crate) fn files(cache: &Cache, may_fetch: bool, progress: Progress) -> Result<Vec<PathBuf>, Error> {
    let _making = cache.maker(NAME)?;
    let cached = cache.reader()?.get(NAME, "bench-migrate");
    let item = match cached {
        Ok(Some((item, _))) => item,
        _ if !may_fetch => {
            let what = format!("{PACKAGE} for arm64");
            return Err(Error::NotCached { what, remedy: "bench-migrate".to_owned() });
        }
        _ => {
            let apt = Apt::update(cache, progress)?;
            let packages = apt.closure(PACKAGE)?;
            progress.step(format_args!("fetching {PACKAGE} for arm64, {} packages", packages.len()));
            let work = work_directory(cache)?;
            let packages = apt.unpack_all(&packages, work.path())?;
            let Some(own) = packages.iter().find(|unpacked| unpacked.package == PACKAGE) else {
                return Err(Error::NotInArchive { what: PACKAGE.to_owned() });
            };
            let list = work.path().join(PACKAGES);
            fs::write(&list, listing(&packages)).map_err(Error::file("write", &list))?;
            let trees: Vec<&Path> = packages.iter().map(|unpacked| unpacked.tree.as_path()).collect();
            let mut files = needed(&trees)?;
            files.push((PACKAGES.to_owned(), list));
            cache.put(NAME, PACKAGE, &own.version, &own.sha256, &files)?
        }
    };
    let directory = cache.directory().join(NAME);
    Ok(item.files.keys().filter(|name| *name != PACKAGES).map(|name| directory.join(name)).collect())
}

/// What the guest runs: `bench`, with the loader and the libraries, which are in /files, where they are looked for.
pub(crate) fn command(clock: Clock, arguments: &[OsString]) -> Vec<OsString> {
    let clock = match clock {
        Clock::Wall => "wall clock",
        Clock::Icount => "instruction clock",
    };
    let script = format!("ln -s files /lib && echo \"Linux $(uname -r), {clock}\" && exec /files/bench \"$@\"");
    let (hostvmm, firmware, qemu) = (format!("/{HOSTVMM}"), format!("/{FIRMWARE}"), format!("/files/{PROGRAM}"));
    let fixed = ["sh", "-c", &script, "bench", "migrate", "--accel", "kvm", "--hostvmm", &hostvmm];
    let fixed = fixed.into_iter().chain(["--firmware", &firmware, "--qemu", &qemu]).chain(SIZE);
    fixed.map(OsString::from).chain(arguments.iter().cloned()).collect()
}

fn listing(packages: &[Unpacked]) -> String {
    let line = |from: &Unpacked| format!("{} {} {}\n", from.package, from.version, from.sha256);
    packages.iter().map(line).collect()
}

/// The program, its loader and every library that they name, with where each is in `trees`.
fn needed(trees: &[&Path]) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut found = BTreeMap::new();
    let mut open = vec![PROGRAM.to_owned()];
    while let Some(name) = open.pop() {
        if found.contains_key(&name) {
            continue;
        }
        let mut candidates = trees.iter().flat_map(|tree| PLACES.map(|place| tree.join(place).join(&name)));
        let Some(path) = candidates.find(|path| path.is_file()) else {
            return Err(Error::Bench { what: format!("{name}, which {PROGRAM} needs, is in none of its packages") });
        };
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        let elf = Elf::parse(&bytes)
            .map_err(|error| Error::Bench { what: format!("{} is no program: {error}", path.display()) })?;
        let loader = elf.interpreter.and_then(|path| path.rsplit('/').next());
        open.extend(elf.libraries.iter().copied().chain(loader).map(str::to_owned));
        found.insert(name, path);
    }
    Ok(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_comes_with_its_loader_and_every_library_and_nothing_else() {
        // A dynamically linked program that is certainly there, as the program and as each of the libraries that it names.
        let own = std::env::current_exe().unwrap();
        let bytes = fs::read(&own).unwrap();
        let elf = Elf::parse(&bytes).unwrap();
        let loader = elf.interpreter.unwrap().rsplit('/').next().unwrap();
        let mut names: Vec<&str> = elf.libraries.iter().copied().chain([loader, PROGRAM]).collect();
        names.sort_unstable();
        names.dedup();
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for place in [first.path().join("usr/bin"), second.path().join("usr/lib")] {
            fs::create_dir_all(place).unwrap();
        }
        let place = |name: &str| match name {
            PROGRAM => first.path().join("usr/bin").join(name),
            _ => second.path().join("usr/lib").join(name),
        };
        for name in names.iter().chain(&["liblonely.so.1"]) {
            std::os::unix::fs::symlink(&own, place(name)).unwrap();
        }
        let trees = [first.path(), second.path()];
        let found = needed(&trees).unwrap();
        assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
        fs::remove_file(place(loader)).unwrap();
        assert!(needed(&trees).unwrap_err().to_string().contains(loader));
    }

    #[test]
    fn later_arguments_are_the_callers() {
        let command = command(Clock::Icount, &["--pages".into(), "4096".into()]);
        assert_eq!(command[command.len() - 2..], ["--pages", "4096"]);
        assert!(command.iter().any(|argument| argument == "/files/qemu-system-aarch64"));
    }
}
