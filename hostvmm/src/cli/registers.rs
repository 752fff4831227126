//! `--unknown-registers` and `--missing-features`: what becomes of registers where the table of rules does not say; `--cpu`: what the
//! guest is shown.

use clap::ValueEnum;

use crate::cpustate::{MissingFeatures, Policy, UnknownRegisters};
use crate::machine::CpuModel;

/// `--cpu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CpuArg {
    /// All that the accelerator has: the default.
    #[default]
    Host,
    /// What KVM and the emulator both have.
    Baseline,
}

impl From<CpuArg> for CpuModel {
    fn from(arg: CpuArg) -> Self {
        match arg {
            CpuArg::Host => Self::Host,
            CpuArg::Baseline => Self::Baseline,
        }
    }
}

/// `--unknown-registers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum UnknownArg {
    /// The move is refused, by default.
    #[default]
    Refuse,
    /// They are left behind while they are zero, or the same on both sides.
    IgnoreZero,
    /// They are left behind.
    Ignore,
}

/// `--missing-features`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum MissingArg {
    /// The move is refused, by default.
    #[default]
    Refuse,
    /// They are named, and the guest is moved.
    Name,
}

/// Both.
pub(crate) fn policy(unknown: UnknownArg, missing: MissingArg) -> Policy {
    Policy {
        unknown: match unknown {
            UnknownArg::Refuse => UnknownRegisters::Refuse,
            UnknownArg::IgnoreZero => UnknownRegisters::IgnoreZero,
            UnknownArg::Ignore => UnknownRegisters::Ignore,
        },
        features: match missing {
            MissingArg::Refuse => MissingFeatures::Refuse,
            MissingArg::Name => MissingFeatures::Name,
        },
    }
}
