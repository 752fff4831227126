//! Packages for arm64 from the machine's own Debian sources, by a private apt state: the machine gets no foreign
//! architecture, and apt checks signatures and hashes as ever.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Maker, sha256_of};
use crate::command;
use crate::error::Error;
use crate::progress::Progress;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A private apt, with the package lists of now; one process has it at a time.
#[derive(Debug)]
pub(crate) struct Apt {
    directory: PathBuf,
    _alone: Maker,
}

/// A package, downloaded and unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) package: String,
    pub(crate) version: String,
    /// Of the package file.
    pub(crate) sha256: String,
    /// The tree of its files.
    pub(crate) tree: PathBuf,
}

impl Apt {
    /// Fetches the package lists into the cache's directory.
    pub(crate) fn update(cache: &Cache, progress: Progress) -> Result<Self, Error> {
        progress.step(format_args!("fetching Debian's package lists"));
        let apt = Self { _alone: cache.maker("apt")?, directory: cache.directory().join("apt") };
        for part in ["state/lists/partial", "cache/archives/partial", "sources"] {
            let path = apt.directory.join(part);
            fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        }
        apt.write("status", "")?;
        let listed = command::output(
            Command::new("apt-get").args([
                "indextargets",
                "--format",
                "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)",
            ]),
            "apt-get",
            "apt",
        )?;
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let sources = sources(&listed, &release, Path::new(KEYRING).exists());
        if sources.is_empty() {
            return Err(Error::NoKeyring { path: KEYRING });
        }
        apt.write("sources/debian.list", &sources)?;
        let mut update = apt.command("apt-get");
        update.args(["-o", "APT::Update::Error-Mode=any", "--quiet", "update"]);
        command::output(&mut update, "apt-get", "apt").map_err(offline)?;
        Ok(apt)
    }

    /// The newest package called `prefix`, numbers joined by `.`, `-`, `+deb`, and `suffix`.
    pub(crate) fn newest(&self, prefix: &str, suffix: &str) -> Result<String, Error> {
        let pattern = format!("^{}.*{suffix}$", prefix.replace('.', "\\."));
        let found =
            command::output(self.command("apt-cache").args(["search", "--names-only", &pattern]), "apt-cache", "apt")?;
        newest(&found, prefix, suffix).ok_or_else(|| Error::NotInArchive { what: format!("{prefix}*{suffix}") })
    }

    /// The packages for arm64 that `package` needs, with their own needs and with itself; none that is only recommended.
    pub(crate) fn closure(&self, package: &str) -> Result<Vec<String>, Error> {
        let mut simulate = self.command("apt-get");
        simulate.args(["--simulate", "--no-install-recommends", "install", package]);
        Ok(installed(&command::output(&mut simulate, "apt-get", "apt")?))
    }

    /// Downloads `package` and unpacks it below `directory`.
    pub(crate) fn unpack(&self, package: &str, directory: &Path) -> Result<Unpacked, Error> {
        let unpacked = self.unpack_all(&[package.to_owned()], directory)?;
        unpacked.into_iter().next().ok_or_else(|| Error::NotInArchive { what: package.to_owned() })
    }

    /// Downloads `packages` and unpacks each into a tree of its own below `directory`.
    pub(crate) fn unpack_all(&self, packages: &[String], directory: &Path) -> Result<Vec<Unpacked>, Error> {
        let mut show = self.command("apt-cache");
        show.args(["show", "--no-all-versions"]).args(packages);
        let listed = listed(&command::output(&mut show, "apt-cache", "apt")?);
        let download = directory.join("download");
        fs::create_dir_all(&download).map_err(Error::file("create", &download))?;
        let mut get = self.command("apt-get");
        get.args(["--quiet", "download"]).args(packages).current_dir(&download);
        command::output(&mut get, "apt-get", "apt").map_err(offline)?;
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&download).map_err(Error::file("read", &download))? {
            let path = entry.map_err(Error::file("read", &download))?.path();
            files.insert(sha256_of(&path)?, path);
        }
        let mut unpacked = Vec::new();
        for package in packages {
            let Some((version, sha256)) = listed.get(package) else {
                return Err(Error::NotInArchive { what: package.clone() });
            };
            let Some(file) = files.remove(sha256) else {
                return Err(Error::BadDownload { package: package.clone() });
            };
            let tree = directory.join(sha256);
            command::output(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&tree), "dpkg-deb", "dpkg")?;
            fs::remove_file(&file).map_err(Error::file("remove", &file))?;
            unpacked.push(Unpacked {
                package: package.clone(),
                version: version.clone(),
                sha256: sha256.clone(),
                tree,
            });
        }
        Ok(unpacked)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let place = |option: &str, part: &str| format!("{option}={}", self.directory.join(part).display());
        let options = [
            "APT::Architecture=arm64".to_owned(),
            "APT::Architectures=arm64".to_owned(),
            // A machine without a network should say so soon.
            "Acquire::Retries=1".to_owned(),
            "Acquire::http::Timeout=30".to_owned(),
            // Root's downloads by another user would need the checkout to be readable for it.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            place("Dir::Etc::sourceparts", "sources"),
            place("Dir::State", "state"),
            place("Dir::State::status", "status"),
            place("Dir::Cache", "cache"),
        ];
        for option in options {
            command.args(["-o", &option]);
        }
        command
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        fs::write(&path, text).map_err(Error::file("write", &path))
    }
}

/// apt source lines for Debian's own archive: on Debian, of the targets that apt lists for this machine; other vendors'
/// sources are left alone. Without downloaded lists apt does not know the origin, hence the suite's name must be this
/// release's. Elsewhere Debian 12's public archive, if its keys are there to check it by.
fn sources(targets: &str, os_release: &str, has_keyring: bool) -> String {
    let option = if has_keyring { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let codename = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.map(|name| name.trim_matches('"')).unwrap_or_default();
    if codename.is_empty() || !os_release.lines().any(|line| line == "ID=debian") {
        let public = [("debian", "bookworm"), ("debian", "bookworm-updates"), ("debian-security", "bookworm-security")];
        let line = |(archive, suite)| format!("deb {option}http://deb.debian.org/{archive} {suite} main\n");
        return if has_keyring { public.map(line).concat() } else { String::new() };
    }
    let mut lines: Vec<String> = targets
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split('|').collect();
            let ["Packages", uri, suite, component, origin] = fields[..] else { return None };
            let ours = suite.strip_prefix(codename).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
            (ours && (origin == "Debian" || origin.starts_with('$')))
                .then(|| format!("deb {option}{uri} {suite} {component}\n"))
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

/// Of lines `NAME - DESCRIPTION`, the name with the highest numbers between `prefix` and `suffix`.
fn newest(found: &str, prefix: &str, suffix: &str) -> Option<String> {
    let numbers = |name: &str| {
        let middle = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
        middle
            .split(['.', '-', '+'])
            .map(|part| part.trim_start_matches("deb").parse::<u32>().ok())
            .collect::<Option<Vec<_>>>()
    };
    found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| Some((numbers(name)?, name)))
        .max()
        .map(|(_, name)| name.to_owned())
}

/// apt checks what it fetches; what it says of a failure is about the network or the archive.
fn offline(error: Error) -> Error {
    match error {
        Error::Program { status, output, .. } => Error::Offline { status, output },
        other => other,
    }
}

/// Of what `apt-get --simulate install` prints, the packages for arm64; those for all architectures have no programs.
fn installed(simulated: &str) -> Vec<String> {
    let package = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        rest.contains("[arm64])").then(|| name.to_owned())
    };
    simulated.lines().filter_map(package).collect()
}

/// Of what `apt-cache show` prints, a paragraph a package, each one's version and SHA-256 by name.
fn listed(shown: &str) -> BTreeMap<String, (String, String)> {
    let package = |paragraph: &str| {
        let field = |name: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
        };
        Some((field("Package")?, (field("Version")?, field("SHA256")?)))
    };
    shown.split("\n\n").filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str = "ID=debian\nVERSION_CODENAME=bookworm\n";

    #[test]
    fn only_debians_own_sources_are_taken() {
        let targets = "DEP-11|u|bookworm|main|Debian\nPackages|u|bookworm|main|Debian\nPackages|u|bookworm|main|Debian\n\
                       Packages|s|bookworm-security|main|Debian\nPackages|v|cloud-bookworm|main|Vendor\n\
                       Packages|w|bookworm|main|Vendor\n";
        assert_eq!(sources(targets, BOOKWORM, false), "deb s bookworm-security main\ndeb u bookworm main\n");
    }

    #[test]
    fn elsewhere_debians_public_archive_is_used_if_its_keys_are_there() {
        let targets = "Packages|w|noble|main|Vendor\n";
        let release = "ID=ubuntu\nVERSION_CODENAME=noble\n";
        assert!(
            sources(targets, release, true).contains(&format!("[signed-by={KEYRING}] http://deb.debian.org/debian "))
        );
        assert_eq!(sources(targets, release, false), "");
    }

    #[test]
    fn sources_are_known_before_any_list_was_downloaded() {
        let targets = "Packages|u|bookworm|main|$(ORIGIN)\nPackages|v|nodistro|main|$(ORIGIN)\n";
        assert_eq!(sources(targets, BOOKWORM, true), format!("deb [signed-by={KEYRING}] u bookworm main\n"));
    }

    #[test]
    fn the_newest_package_is_that_with_the_highest_number_not_the_last_name() {
        let found = "linux-image-6.12.9+deb12-cloud-arm64 - a\nlinux-image-6.12.117+deb12-cloud-arm64 - b\n\
                     linux-image-6.12.20+deb12-cloud-arm64 - c\nlinux-image-6.12.200-rt+deb12-cloud-arm64 - d\n";
        let name = newest(found, "linux-image-6.12.", "-cloud-arm64");
        assert_eq!(name.as_deref(), Some("linux-image-6.12.117+deb12-cloud-arm64"));
        assert_eq!(newest(found, "linux-image-6.1.0-", "-cloud-arm64"), None);
    }
    #[test]
    fn a_package_s_needs_are_those_with_programs_for_arm64() {
        let simulated = "NOTE: This is only a simulation!\nInst libc6 (2.36-9 Debian:12.15/oldstable [arm64])\n\
                         Inst libgcc-s1 (12.2.0-14 Debian:12.15/oldstable, Debian-Security:12 [arm64]) []\n\
                         Inst iso-codes (4.15.0-1 Debian:12.15/oldstable [all])\nConf libc6 (2.36-9 Debian [arm64])\n";
        assert_eq!(installed(simulated), ["libc6", "libgcc-s1"]);
    }

    #[test]
    fn versions_and_hashes_are_listed_by_package() {
        let shown = "Package: a\nVersion: 1:2-3\nDepends: b\nSHA256: 0a\n\nPackage: b\nSHA256: 0b\nVersion: 4\n\n";
        let pair = |version: &str, sha256: &str| (version.to_owned(), sha256.to_owned());
        let expected = [("a".to_owned(), pair("1:2-3", "0a")), ("b".to_owned(), pair("4", "0b"))];
        assert_eq!(listed(shown), expected.into());
    }
}
