//! `--kernel`, `--initrd` and `--append` of `run`, `verify migrate` and `verify cross`: a Linux kernel in the firmware's place ([`KernelArgs`]).

use std::path::PathBuf;

use clap::Args;

use super::common::{Clock, CommonArgs, Mode, OutputArg, RegionMap, Transport};
use super::ending::Ending;
use crate::machine::KernelFiles;

/// Scenarios that a guest without a plan can be in.
const SCENARIOS: [&str; 3] = ["run", "migrate", "cross"];

/// Which kernel is to run.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct KernelArgs {
    /// Of run, verify migrate and verify cross: boot this arm64 Linux Image, plain or gzipped, instead of the firmware (docs/linux-guest.md).
    #[arg(long, value_name = "IMAGE", conflicts_with = "firmware")]
    pub(crate) kernel: Option<PathBuf>,
    /// The kernel's initramfs.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel", allow_hyphen_values = true)]
    pub(crate) append: Option<String>,
}

impl KernelArgs {
    /// Whether a kernel is to run.
    pub(crate) fn is_asked(&self) -> bool {
        self.kernel.is_some()
    }

    /// What is to run, if it is a kernel.
    pub(crate) fn files(&self) -> Option<KernelFiles> {
        let image = self.kernel.clone()?;
        Some(KernelFiles { image, initrd: self.initrd.clone(), append: self.append.clone().unwrap_or_default() })
    }

    /// Refuses a kernel where `common` asks for what only the firmware does, and in a `scenario` that needs the firmware.
    ///
    /// # Errors
    /// An [`Ending`] with status 2.
    pub(super) fn check(&self, common: &CommonArgs, scenario: &str) -> Result<(), Ending> {
        if !self.is_asked() {
            return Ok(());
        }
        if !SCENARIOS.contains(&scenario) {
            return Err(Ending::usage(format!(
                "--kernel: verify {scenario} needs the firmware, whose memory a plan foretells; a kernel can be in run, verify migrate and verify cross"
            )));
        }
        let given = [
            ("--arch armv7", common.arch == Some(super::common::Arch::Armv7)),
            ("--tables", common.tables.is_some()),
            ("--granule", common.granule.is_some()),
            ("--va-bits", common.va_bits.is_some()),
            ("--heartbeat", common.heartbeat.is_some()),
            ("--clock-line", common.clock_line),
            ("--guest-output", common.guest_output != OutputArg::Off),
            ("--workload", common.workload.is_some()),
            ("--mode lockstep", common.mode == Some(Mode::Lockstep)),
            ("--clock icount", common.clock == Clock::Icount),
            ("--region-map", common.region_map != RegionMap::Pages),
            ("--hypercall", common.hypercall != Transport::Mmio),
            ("--share", common.share.is_some()),
            ("--dest", common.dest.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Ending::usage(format!(
                "{option} is for the firmware, and a kernel runs in its place: leave out one of {option} and --kernel"
            ))),
            None => Ok(()),
        }
    }
}
