//! The programs that the guest runs: hostvmm and `lab-init` as static arm64 programs, and the firmware.
//!
//! With the musl target that rustup brings nothing else is needed, since no dependency has C code and Rust has a linker.
//! Where rustup has no server, the packaged compiler builds the standard library from its sources, for glibc.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::error::Error;
use crate::progress::Progress;

const MUSL: &str = "aarch64-unknown-linux-musl";
const GNU: &str = "aarch64-unknown-linux-gnu";
const FIRMWARE: &str = "aarch64-unknown-none-softfloat";
const PROFILE: &str = "lab";

/// Where cargo puts what is built for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Programs {
    pub(crate) init: PathBuf,
    pub(crate) hostvmm: PathBuf,
    pub(crate) firmware: PathBuf,
}

/// The programs of `checkout`: built now, or, without `build`, as they were built last.
///
/// # Errors
/// [`Error::NotCached`] if they must not be built and are not there.
pub(crate) fn programs(checkout: &Path, build: bool, progress: Progress) -> Result<Programs, Error> {
    let output = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => checkout.join(directory),
        None => checkout.join("target"),
    };
    // scripts/setup leaves this where rustup cannot bring targets.
    let target = if checkout.join(".tidemark/cargo.toml").exists() { GNU } else { MUSL };
    let host = output.join(target).join(PROFILE);
    let programs = Programs {
        init: host.join("lab-init"),
        hostvmm: host.join("hostvmm"),
        firmware: output.join(FIRMWARE).join("release").join("firmware"),
    };
    if build {
        if target == MUSL && !has_target(MUSL) {
            return Err(Error::NoTarget { target: MUSL });
        }
        progress.step(format_args!("building hostvmm for {target} and the firmware"));
        let mut firmware = cargo(checkout);
        firmware.args(["build", "--quiet", "--release", "--package", "firmware", "--target", FIRMWARE]);
        // They have no crate in common, and the end of one build leaves CPUs to the other.
        let firmware = command::start(&mut firmware, "cargo", "cargo")?;
        let host = command::visibly(&mut host_build(checkout, target), "cargo", "cargo");
        firmware.wait()?;
        host?;
    } else if let Some(missing) =
        [&programs.init, &programs.hostvmm, &programs.firmware].into_iter().find(|path| !path.is_file())
    {
        let what = missing.display().to_string();
        return Err(Error::NotCached { what, remedy: "run -- hostvmm probe".to_owned() });
    }
    Ok(programs)
}

/// Whether the compiler that `cargo` uses here has the target's standard library.
fn has_target(target: &str) -> bool {
    let Ok(root) = command::output(Command::new("rustc").args(["--print", "sysroot"]), "rustc", "rustc") else {
        return false;
    };
    Path::new(root.trim()).join("lib/rustlib").join(target).join("lib").is_dir()
}

fn host_build(checkout: &Path, target: &str) -> Command {
    let mut build = if target == GNU { Command::new("/usr/bin/cargo") } else { cargo(checkout) };
    build.current_dir(checkout).args(["build", "--quiet", "--profile", PROFILE, "--target", target]);
    build.args(["--package", "hostvmm", "--package", "lab-init"]);
    if target == GNU {
        build.arg("-Zbuild-std=std,panic_unwind").env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        build.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
        build.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    } else {
        build.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld");
    }
    build
}

fn cargo(checkout: &Path) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(checkout);
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_must_not_be_built_are_asked_for() {
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(programs(empty.path(), false, Progress::new(true)), Err(Error::NotCached { .. })));
    }

    #[test]
    fn the_musl_build_needs_no_c_compiler() {
        let build = host_build(Path::new("/"), MUSL);
        let linker = build.get_envs().find(|(name, _)| name.to_string_lossy().ends_with("_LINKER"));
        assert_eq!(linker.and_then(|(_, value)| value), Some("rust-lld".as_ref()));
    }
}
