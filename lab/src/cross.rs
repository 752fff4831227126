//! The programs that the guest runs: hostvmm, `lab-init` and `dirtyram` as static arm64 programs, and the firmware.
//!
//! With the musl target that rustup brings, Rust's own linker does; the C code of two dependencies (TLS's primitives, zstd)
//! needs a C compiler for arm64 besides. They use nothing of the C library that musl's does not have.
//! Where rustup has no server, the packaged compiler builds the standard library from its sources, for glibc.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command;
use crate::error::Error;
use crate::progress::Progress;

const MUSL: &str = "aarch64-unknown-linux-musl";
const GNU: &str = "aarch64-unknown-linux-gnu";
const FIRMWARE: &str = "aarch64-unknown-none-softfloat";
const FIRMWARE_ARMV7: &str = "armv7a-none-eabi";
const PROFILE: &str = "lab";
/// For the C code of dependencies.
const C_COMPILER: &str = "aarch64-linux-gnu-gcc";
const C_PACKAGES: &str = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross";

/// Where cargo puts what is built for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Programs {
    pub(crate) init: PathBuf,
    /// The program of a Linux guest that hostvmm runs.
    pub(crate) dirtyram: PathBuf,
    pub(crate) outside: PathBuf,
    pub(crate) hostvmm: PathBuf,
    pub(crate) firmware: PathBuf,
    /// None where the compiler has no such target.
    pub(crate) firmware_armv7: Option<PathBuf>,
    /// hostvmm's unit tests, where they were asked for.
    pub(crate) unit_tests: Option<PathBuf>,
}

/// The programs of `checkout`: built now, or, without `build`, as they were built last.
///
/// # Errors
/// [`Error::NotCached`] if they must not be built and are not there; [`Error::NoTarget`]; [`Error::NoProgram`] without a C
/// compiler for the guest.
pub(crate) fn programs(checkout: &Path, build: bool, progress: Progress) -> Result<Programs, Error> {
    let output = output(checkout);
    let target = target(checkout);
    let host = output.join(target).join(PROFILE);
    let firmware = |target: &str| output.join(target).join("release").join("firmware");
    let has_armv7 = has_target(checkout, FIRMWARE_ARMV7);
    let mut programs = Programs {
        init: host.join("lab-init"),
        dirtyram: host.join("dirtyram"),
        outside: host.join("lab-outside"),
        hostvmm: host.join("hostvmm"),
        firmware: firmware(FIRMWARE),
        firmware_armv7: has_armv7.then(|| firmware(FIRMWARE_ARMV7)),
        unit_tests: None,
    };
    if build {
        if target == MUSL && !has_target(checkout, MUSL) {
            return Err(Error::NoTarget { target: MUSL });
        }
        check_c_compiler()?;
        progress.step(format_args!("building hostvmm for {target} and the firmware"));
        let firmware = |target: &str| {
            let mut build = cargo(checkout);
            build.args(["build", "--quiet", "--release", "--package", "firmware", "--target", target]);
            build
        };
        // They have no crate in common, and the end of one build leaves CPUs to the other.
        let first = command::start(&mut firmware(FIRMWARE), "cargo", "cargo")?;
        let mut host = host_command(checkout, target, "build");
        host.args(["--package", "hostvmm", "--package", "lab-init"]);
        let host = command::visibly(&mut host, "cargo", "cargo");
        first.wait()?;
        host?;
        if has_armv7 {
            // A build of its own: in one for both targets, each gets the features that the other asks of a crate.
            command::visibly(&mut firmware(FIRMWARE_ARMV7), "cargo", "cargo")?;
        }
    } else {
        programs.firmware_armv7 = programs.firmware_armv7.filter(|path| path.is_file());
        if let Some(missing) =
            [&programs.init, &programs.dirtyram, &programs.outside, &programs.hostvmm, &programs.firmware]
                .into_iter()
                .find(|path| !path.is_file())
        {
            let what = missing.display().to_string();
            return Err(Error::NotCached { what, remedy: "prepare".to_owned() });
        }
    }
    Ok(programs)
}

/// hostvmm's unit tests as one program, built now.
///
/// # Errors
/// [`Error::NoProgram`] without a C compiler for the guest.
pub(crate) fn unit_tests(checkout: &Path, progress: Progress) -> Result<PathBuf, Error> {
    check_c_compiler()?;
    progress.step(format_args!("building hostvmm's unit tests"));
    let mut build = host_command(checkout, target(checkout), "test");
    build.args(["--package", "hostvmm", "--lib", "--no-run", "--message-format=json-render-diagnostics"]);
    build.stderr(Stdio::inherit());
    let messages = command::output(&mut build, "cargo", "cargo")?;
    let executable = |line: &str| -> Option<PathBuf> {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(message["executable"].as_str()?.into())
    };
    messages.lines().find_map(executable).ok_or_else(|| Error::Program {
        program: "cargo test --no-run".to_owned(),
        status: "no executable".to_owned(),
        output: String::new(),
    })
}

/// hostvmm for this machine: built now, or, without `build`, as it was built last.
///
/// # Errors
/// As [`programs`].
pub(crate) fn own_hostvmm(checkout: &Path, build: bool, progress: Progress) -> Result<PathBuf, Error> {
    let path = output(checkout).join("debug").join("hostvmm");
    if build {
        progress.step(format_args!("building hostvmm for this machine"));
        command::visibly(cargo(checkout).args(["build", "--quiet", "--package", "hostvmm"]), "cargo", "cargo")?;
    } else if !path.is_file() {
        return Err(Error::NotCached { what: path.display().to_string(), remedy: "cross".to_owned() });
    }
    Ok(path)
}

/// The program that measures migrations: built now, or, without `build`, as it was built last.
///
/// # Errors
/// As [`programs`].
pub(crate) fn bench(checkout: &Path, build: bool, progress: Progress) -> Result<PathBuf, Error> {
    let target = target(checkout);
    let path = output(checkout).join(target).join(PROFILE).join("bench");
    if build {
        check_c_compiler()?;
        progress.step(format_args!("building what measures migrations"));
        command::visibly(host_command(checkout, target, "build").args(["--package", "bench"]), "cargo", "cargo")?;
    } else if !path.is_file() {
        return Err(Error::NotCached { what: path.display().to_string(), remedy: "bench-migrate".to_owned() });
    }
    Ok(path)
}

fn check_c_compiler() -> Result<(), Error> {
    command::output(Command::new(C_COMPILER).arg("--version"), C_COMPILER, C_PACKAGES).map(drop)
}

/// Where cargo puts what it builds.
fn output(checkout: &Path) -> PathBuf {
    checkout.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// What the guest's programs are built for. scripts/setup leaves that file where rustup cannot bring targets.
fn target(checkout: &Path) -> &'static str {
    if checkout.join(".tidemark/cargo.toml").exists() { GNU } else { MUSL }
}

/// Whether there are libraries for the target: those of the compiler that `cargo` uses here, or those of scripts/setup.
fn has_target(checkout: &Path, target: &str) -> bool {
    let own = checkout.join(".tidemark/sysroot");
    let compilers = command::output(Command::new("rustc").args(["--print", "sysroot"]), "rustc", "rustc");
    let roots = [Some(own), compilers.ok().map(|root| root.trim().into())];
    roots.iter().flatten().any(|root: &PathBuf| root.join("lib/rustlib").join(target).join("lib").is_dir())
}

/// A cargo command that builds for the guest.
fn host_command(checkout: &Path, target: &str, subcommand: &str) -> Command {
    let mut build = if target == GNU { Command::new("/usr/bin/cargo") } else { cargo(checkout) };
    build.current_dir(checkout).args([subcommand, "--quiet", "--profile", PROFILE, "--target", target]);
    if target == GNU {
        build.arg("-Zbuild-std=std,panic_unwind").env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        build.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
        build.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    } else {
        build.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld");
        build.env("CC_aarch64_unknown_linux_musl", C_COMPILER);
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
    fn the_musl_build_has_rust_s_linker_and_a_c_compiler() {
        let build = host_command(Path::new("/"), MUSL, "build");
        let variable = |part: &str| build.get_envs().find(|(name, _)| name.to_string_lossy().contains(part))?.1;
        assert_eq!(variable("_LINKER"), Some("rust-lld".as_ref()));
        assert_eq!(variable("CC_"), Some(C_COMPILER.as_ref()));
    }
}
