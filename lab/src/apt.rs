//! Packages for arm64 from the machine's own Debian sources, by a private apt state: the machine gets no foreign
//! architecture, and apt checks signatures and hashes as ever.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Maker, sha256, sha256_of};
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

    /// Downloads `package` and unpacks it below `directory`.
    pub(crate) fn unpack(&self, package: &str, directory: &Path) -> Result<Unpacked, Error> {
        let shown = command::output(
            self.command("apt-cache").args(["show", "--no-all-versions", package]),
            "apt-cache",
            "apt",
        )?;
        let field =
            |name: &str| shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned);
        let (Some(version), Some(expected)) = (field("Version"), field("SHA256")) else {
            return Err(Error::NotInArchive { what: package.to_owned() });
        };
        let download = directory.join("download");
        let tree = directory.join(sha256(package.as_bytes()));
        fs::create_dir_all(&download).map_err(Error::file("create", &download))?;
        let mut get = self.command("apt-get");
        get.args(["--quiet", "download", package]).current_dir(&download);
        command::output(&mut get, "apt-get", "apt").map_err(offline)?;
        let file = only_file(&download)?;
        if sha256_of(&file)? != expected {
            return Err(Error::BadDownload { package: package.to_owned() });
        }
        command::output(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&tree), "dpkg-deb", "dpkg")?;
        fs::remove_file(&file).map_err(Error::file("remove", &file))?;
        Ok(Unpacked { package: package.to_owned(), version, sha256: expected, tree })
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

fn only_file(directory: &Path) -> Result<PathBuf, Error> {
    let mut entries = fs::read_dir(directory).map_err(Error::file("read", directory))?;
    match (entries.next(), entries.next()) {
        (Some(Ok(entry)), None) => Ok(entry.path()),
        _ => Err(Error::NotInArchive { what: format!("single package in {}", directory.display()) }),
    }
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
}
