//! What becomes of a register: [`Entry`] says what one id is, [`Rule`] what happens to it where both sides have it, [`Absent`] and
//! [`Surplus`] where only one has. Neighbours: [`super::table()`] lists the entries, `translate` follows them.

use abi::Arch;

/// What the kernel puts into a register that the architecture leaves UNKNOWN at reset (`reset_unknown`): nobody has written it yet.
pub(super) const NEVER_WRITTEN: u64 = 0x1de7_ec7e_dbad_c0de;

/// What happens to a register that both sides have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// The destination gets the source's value.
    Copy,
    /// The destination gets these bits of the source's value and keeps its own others.
    Mask {
        /// Which.
        bits: u64,
        /// What the others are.
        why: &'static str,
    },
    /// Bits by counter of the PMU: those of counters that the destination has (PMCR_EL0.N, and the cycle counter), the others zero.
    Counters,
    /// A view of another register, its generator: never written where the destination has the generator, and made from it where not.
    Derive {
        /// The generator's id.
        generator: u64,
        /// The lowest bit of the generator that it shows. It shows as many as it has.
        low: u32,
    },
    /// A view of `generator`, whose writes clear its bits: all are cleared before the generator is written, whose writes set.
    Clears {
        /// The generator's id.
        generator: u64,
    },
    /// A constant that must be the same.
    ConstantEqual,
    /// A constant that may differ and is written only where the destination lets software choose it.
    ConstantIgnore {
        /// Why it may differ.
        why: &'static str,
    },
    /// A constant that tells what the guest may use: each field compared ([`super::features`]), written where the destination lets
    /// software choose it.
    Features {
        /// Whether the destination always does, as a firmware's pseudo-register.
        settable: bool,
    },
    /// Left as it is at the destination.
    Ignore {
        /// Why.
        why: &'static str,
    },
    /// Cannot be moved.
    Refuse {
        /// Why.
        why: &'static str,
    },
}

/// A register that the destination has and the source has not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absent {
    /// It gets its reset value.
    Reset(u64),
    /// It stays as it is.
    Keep(&'static str),
}

/// A register that the source has and the destination has not: when it may be left behind. Otherwise the move is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Surplus {
    /// While it has its reset value, or was never written.
    AtReset,
    /// Always.
    Always(&'static str),
    /// While the control register of this id is not enabled (its bit 0), or was never written.
    Disabled {
        /// DBGBCRn_EL1, DBGWCRn_EL1, or a timer's control.
        control: u64,
    },
    /// While event counter `counter` does not count: its event was never chosen, or PMCR_EL0.E or its bit in PMCNTENSET_EL0 is 0.
    NotCounting {
        /// Which.
        counter: u8,
    },
    /// While SVE was never used: CPACR_EL1.ZEN traps it, and predicates, FFR and the vectors' upper parts are zero.
    SveUnused,
    /// If this value in its place lacks nothing: what a machine without the register offers.
    Offers(u64),
}

/// One register id: what it is and what becomes of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// KVM's id.
    pub id: u64,
    /// The manual's name, the kernel's where the manual has none.
    pub name: String,
    /// What it holds.
    pub meaning: &'static str,
    /// The rule for AArch64 guests, and for AArch32 guests unless those have their own.
    pub rule: Rule,
    /// The rule for AArch32 guests where it is another.
    pub aarch32: Option<Rule>,
    /// Where the source has none.
    pub absent: Absent,
    /// Where the destination has none.
    pub surplus: Surplus,
    /// When it is written: lower ones first.
    pub stage: Stage,
}

/// The order of a restore. PSTATE decides what other registers are; a counter is set up before it counts, a timer before it is enabled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// What KVM takes only before the vCPU first runs.
    Identity,
    /// PSTATE.
    Mode,
    /// General, vector and system registers.
    State,
    /// The clearing views of the PMU.
    CountersCleared,
    /// Counters, events and filters.
    Counters,
    /// What makes them count.
    CountersEnabled,
    /// Compare values.
    Timers,
    /// What makes them fire.
    TimersEnabled,
}

impl Entry {
    /// The rule for guests of `arch`.
    pub fn rule(&self, arch: Arch) -> Rule {
        match arch {
            Arch::Armv7 => self.aarch32.unwrap_or(self.rule),
            Arch::Aarch64 => self.rule,
        }
    }

    pub(super) fn aarch32(mut self, rule: Rule) -> Self {
        self.aarch32 = Some(rule);
        self
    }

    /// State of AArch32 guests alone, `reset` after reset.
    pub(super) fn of_aarch32(self, reset: u64) -> Self {
        self.aarch32(Rule::Copy).reset(reset).surplus(Surplus::AtReset)
    }

    pub(super) fn absent(mut self, absent: Absent) -> Self {
        self.absent = absent;
        self
    }

    pub(super) fn reset(self, value: u64) -> Self {
        self.absent(Absent::Reset(value))
    }

    pub(super) fn surplus(mut self, surplus: Surplus) -> Self {
        self.surplus = surplus;
        self
    }

    pub(super) fn stage(mut self, stage: Stage) -> Self {
        self.stage = stage;
        self
    }
}

/// A register that is copied, is zero after reset, and may be left behind while it is.
pub(super) fn entry(id: u64, name: impl Into<String>, meaning: &'static str, rule: Rule) -> Entry {
    let (absent, surplus) = match rule {
        Rule::ConstantEqual | Rule::ConstantIgnore { .. } => {
            (Absent::Keep("a constant of the destination"), Surplus::Always("a constant, and the destination has none"))
        }
        Rule::Features { .. } => (Absent::Keep("a constant of the destination"), Surplus::Offers(0)),
        Rule::Ignore { why } => (Absent::Keep(why), Surplus::Always(why)),
        _ => (Absent::Reset(0), Surplus::AtReset),
    };
    Entry { id, name: name.into(), meaning, rule, aarch32: None, absent, surplus, stage: Stage::State }
}
