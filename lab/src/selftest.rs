//! One of the kernel's own selftests, built from Debian's kernel source for the guest: [`dirty_log_perf_test`], which the
//! dirty log's cost is measured beside.

use std::path::PathBuf;
use std::process::Command;

use crate::cache::{Cache, Item};
use crate::command;
use crate::error::Error;
use crate::kernel::{self, Configuration};
use crate::progress::Progress;

/// Its name: of the item, of the file, of make's goal.
pub(crate) const NAME: &str = "dirty_log_perf_test";
/// What the build needs of the source: unpacking all of it takes longer than the build.
const PARTS: [&str; 6] = ["Makefile", "arch/arm64", "include", "scripts", "tools", "usr"];
const PACKAGES: &str = "make gcc-aarch64-linux-gnu libc6-dev-arm64-cross rsync";

/// The test as a static program, and what it was built from: the source of the kernels that the lab builds, since a later
/// series' selftests refuse to run on an earlier one's kernel. Built unless the cache has it.
///
/// # Errors
/// If the source cannot be fetched or built.
pub(crate) fn dirty_log_perf_test(cache: &Cache, progress: Progress) -> Result<(Item, PathBuf), Error> {
    let _making = cache.maker(NAME)?;
    let (source, archive) = kernel::source(cache, Configuration::K4V48, progress)?;
    if let Ok(Some((item, directory))) = cache.reader()?.get(NAME, "")
        && item.version == source.version
    {
        return Ok((item, directory.join(NAME)));
    }
    let work = kernel::work_directory(cache)?;
    progress.step(format_args!("building {NAME} of {} {}", source.package, source.version));
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(work.path());
    tar.args(PARTS.map(|part| format!("{}/{part}", source.package)));
    command::output(&mut tar, "tar", "tar xz-utils")?;
    let (tree, out) = (work.path().join(&source.package), work.path().join("out"));
    let program = out.join(NAME);
    let make = || -> Command {
        let mut make = Command::new("make");
        make.current_dir(&tree).args(["--silent", "ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"]);
        make
    };
    command::output(make().arg("headers"), "make", PACKAGES)?;
    let mut tests = make();
    tests.args(["-C", "tools/testing/selftests/kvm", "LDFLAGS=-static"]);
    tests.arg(format!("OUTPUT={}", out.display())).arg(&program);
    command::output(&mut tests, "make", PACKAGES)?;
    let item = cache.put(NAME, &source.package, &source.version, &source.sha256, &[(NAME.to_owned(), program)])?;
    Ok((item, cache.directory().join(NAME).join(NAME)))
}
