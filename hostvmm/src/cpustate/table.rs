//! The table: every id that KVM and the emulator list for guests of either architecture, the views of CP15 that 32-bit hosts list,
//! and SVE's. Names and meanings: DDI 0487 D24 and G8; pseudo-registers: the kernel's `Documentation/virt/kvm/arm/fw-pseudo-registers.rst`.
//! docs/registers.md is made from it.

use std::sync::LazyLock;

use super::id::{self, cache, core, cp15, cp15_wide, firmware, services, sve_p, sve_z, sysreg, vector};
use super::rule::{Absent, Entry, Rule, Stage, Surplus, entry};

static TABLE: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let parts = [
        core_registers,
        pseudo_registers,
        timers,
        debug,
        identification,
        system_registers,
        performance,
        sve,
        cp15_views,
    ];
    let mut table: Vec<_> = parts.into_iter().flat_map(|part| part()).collect();
    table.sort_by_key(|entry| entry.id);
    table
});

/// PSCI's version that a machine without KVM_REG_ARM_PSCI_VERSION has: the emulator's, 1.1.
const PSCI_1_1: u64 = 0x1_0001;
/// PSTATE after reset: EL1h, all exceptions masked.
const PSTATE_RESET: u64 = 0x3c5;
/// SCTLR_EL1 after reset: what is RES1 without later extensions.
const SCTLR_RESET: u64 = 0x30d0_0980;
/// FPEXC after reset, as KVM and the emulator have it.
const FPEXC_RESET: u64 = 0x700;

const OF_AARCH32: Rule = Rule::Ignore { why: "AArch32's at EL1, out of an AArch64 guest's reach" };
const CACHES: &str =
    "the geometry of caches serves maintenance by set and way alone, which no running guest may rely on";
const IMPLEMENTATION: &str = "names the implementation, which differs between hosts and accelerators";
const COUNTER: Rule = Rule::Ignore { why: "the machine's counter is set once, last, by the rule for its time" };

/// Every register known, by id.
pub fn table() -> &'static [Entry] {
    &TABLE
}

/// What is known of `id`.
pub fn lookup(id: u64) -> Option<&'static Entry> {
    let table = table();
    table.binary_search_by_key(&id, |entry| entry.id).ok().map(|at| &table[at])
}

/// What a machine without the register of `id` offers in its place.
pub(super) fn offered_without(id: u64) -> u64 {
    match lookup(id).map(|entry| entry.surplus) {
        Some(Surplus::Offers(offered)) => offered,
        _ => 0,
    }
}

fn core_registers() -> Vec<Entry> {
    let general = (0..31).map(|n| {
        let meaning = "general register; of AArch32 guests those of all modes, by the architecture's mapping";
        entry(core(n), format!("X{n}"), meaning, Rule::Copy)
    });
    let vectors = (0..32).map(|n| {
        let rule = Rule::Derive { generator: sve_z(n), low: 0 };
        entry(
            vector(n),
            format!("V{n}"),
            "SIMD and floating-point register; where the vCPU has SVE, a view of Zn",
            rule,
        )
    });
    let saved = ["SPSR_abt", "SPSR_und", "SPSR_irq", "SPSR_fiq"]
        .into_iter()
        .zip(37..)
        .map(|(name, word)| entry(core(word), name, "saved status of an AArch32 mode", OF_AARCH32).of_aarch32(0));
    general
        .chain(vectors)
        .chain(saved)
        .chain([
            entry(id::SP_EL0, "SP_EL0", "stack pointer of EL0", Rule::Copy),
            entry(id::PC, "PC", "next instruction", Rule::Copy),
            entry(id::PSTATE, "PSTATE", "processor state; of AArch32 guests the CPSR", Rule::Copy)
                .reset(PSTATE_RESET)
                .stage(Stage::Mode),
            entry(id::SP_EL1, "SP_EL1", "stack pointer of EL1", Rule::Copy),
            entry(id::ELR_EL1, "ELR_EL1", "where an exception returns to", Rule::Copy),
            entry(core(36), "SPSR_EL1", "saved status; of AArch32 guests SPSR_svc", Rule::Copy),
            entry(id::FPSR, "FPSR", "floating-point status", Rule::Copy),
            entry(id::FPCR, "FPCR", "floating-point control", Rule::Copy),
        ])
        .collect()
}

/// The firmware that KVM is to its guests (KVM_REG_ARM_FW), and its services (KVM_REG_ARM_FW_FEAT_BMAP).
fn pseudo_registers() -> Vec<Entry> {
    let settable = Rule::Features { settable: true };
    let level = |number, name: &str, not_required| {
        // A guest that was offered nothing relies on nothing; an emulator speculates on nothing, so it needs no workaround.
        entry(firmware(number), name, "how far the host needs and has a workaround", Rule::Features { settable: false })
            .absent(Absent::Keep("the guest was offered no workaround and uses none"))
            .surplus(Surplus::Offers(not_required))
            .stage(Stage::Identity)
    };
    let bitmap =
        |number, name: &str, meaning| entry(services(number), name, meaning, settable).reset(0).stage(Stage::Identity);
    vec![
        entry(firmware(0), "PSCI_VERSION", "the version of PSCI that the guest sees", settable)
            .reset(PSCI_1_1)
            .surplus(Surplus::Offers(PSCI_1_1))
            .stage(Stage::Identity),
        level(1, "SMCCC_ARCH_WORKAROUND_1", 2),
        level(2, "SMCCC_ARCH_WORKAROUND_2", 3),
        level(3, "SMCCC_ARCH_WORKAROUND_3", 2),
        bitmap(0, "STD_BMAP", "standard secure services offered by HVC"),
        bitmap(1, "STD_HYP_BMAP", "standard hypervisor services offered by HVC"),
        bitmap(2, "VENDOR_HYP_BMAP", "KVM's own services offered by HVC"),
    ]
}

fn timers() -> Vec<Entry> {
    let control = Rule::Mask { bits: 0b11, why: "ISTATUS follows from the counter" };
    let timer = |id, name: &str, meaning, control_id| {
        entry(id, name, meaning, Rule::Copy).surplus(Surplus::Disabled { control: control_id }).stage(Stage::Timers)
    };
    let enable = |id, name: &str, meaning| {
        entry(id, name, meaning, control).surplus(Surplus::Disabled { control: id }).stage(Stage::TimersEnabled)
    };
    vec![
        entry(id::TIMER_CNT, "TIMER_CNT", "virtual counter, under the id that encodes CNTV_CVAL_EL0", COUNTER),
        timer(
            id::TIMER_CVAL,
            "TIMER_CVAL",
            "virtual timer's compare value, under the id that encodes CNTVCT_EL0",
            id::TIMER_CTL,
        ),
        enable(id::TIMER_CTL, "CNTV_CTL_EL0", "virtual timer's control"),
        entry(id::PTIMER_CNT, "PTIMER_CNT", "physical counter", COUNTER),
        timer(id::PTIMER_CVAL, "CNTP_CVAL_EL0", "physical timer's compare value", id::PTIMER_CTL),
        enable(id::PTIMER_CTL, "CNTP_CTL_EL0", "physical timer's control"),
    ]
}

fn debug() -> Vec<Entry> {
    let units = (0..16).flat_map(|n| {
        let unit = |op2, name: &str, meaning, control| {
            let surplus = Surplus::Disabled { control: sysreg(2, 0, 0, n, control) };
            entry(sysreg(2, 0, 0, n, op2), format!("{name}{n}_EL1"), meaning, Rule::Copy).surplus(surplus)
        };
        [
            unit(4, "DBGBVR", "breakpoint's value", 5),
            unit(5, "DBGBCR", "breakpoint's control", 5),
            unit(6, "DBGWVR", "watchpoint's value", 7),
            unit(7, "DBGWCR", "watchpoint's control", 7),
        ]
    });
    let lock = Rule::Mask { bits: 1 << 1, why: "OSLM says how the lock is built" };
    units
        .chain([
            entry(sysreg(2, 0, 0, 2, 0), "MDCCINT_EL1", "debug channel's interrupts", Rule::Copy),
            entry(sysreg(2, 0, 0, 2, 2), "MDSCR_EL1", "debug control", Rule::Copy),
            entry(sysreg(2, 0, 1, 1, 4), "OSLSR_EL1", "OS lock", lock).absent(Absent::Keep("the lock as after reset")),
            entry(sysreg(2, 4, 0, 7, 0), "DBGVCR32_EL2", "AArch32's vector catch", OF_AARCH32).of_aarch32(0),
        ])
        .collect()
}

/// Names of the space of feature registers by CRm (from 1) and op2; what has none is reserved and reads as zero.
const FEATURE_REGISTERS: [[&str; 8]; 7] = [
    ["ID_PFR0", "ID_PFR1", "ID_DFR0", "ID_AFR0", "ID_MMFR0", "ID_MMFR1", "ID_MMFR2", "ID_MMFR3"],
    ["ID_ISAR0", "ID_ISAR1", "ID_ISAR2", "ID_ISAR3", "ID_ISAR4", "ID_ISAR5", "ID_MMFR4", "ID_ISAR6"],
    ["MVFR0", "MVFR1", "MVFR2", "", "ID_PFR2", "ID_DFR1", "ID_MMFR5", ""],
    ["ID_AA64PFR0", "ID_AA64PFR1", "ID_AA64PFR2", "", "ID_AA64ZFR0", "ID_AA64SMFR0", "", "ID_AA64FPFR0"],
    ["ID_AA64DFR0", "ID_AA64DFR1", "ID_AA64DFR2", "", "ID_AA64AFR0", "ID_AA64AFR1", "", ""],
    ["ID_AA64ISAR0", "ID_AA64ISAR1", "ID_AA64ISAR2", "ID_AA64ISAR3", "", "", "", ""],
    ["ID_AA64MMFR0", "ID_AA64MMFR1", "ID_AA64MMFR2", "ID_AA64MMFR3", "ID_AA64MMFR4", "", "", ""],
];

fn identification() -> Vec<Entry> {
    let features = FEATURE_REGISTERS.iter().zip(1..).flat_map(|(names, crm)| {
        names.iter().zip(0..).map(move |(name, op2)| {
            let name = if name.is_empty() { format!("S3_0_C0_C{crm}_{op2}") } else { format!("{name}_EL1") };
            let of_aarch32 = crm <= 3;
            let meaning = match (name.as_str(), of_aarch32) {
                (name, _) if name.starts_with('S') => "reserved for feature registers",
                (_, true) => "features of AArch32",
                (_, false) => "features of AArch64",
            };
            let rule = match name.as_str() {
                "ID_AFR0_EL1" | "ID_AA64AFR0_EL1" | "ID_AA64AFR1_EL1" => Rule::ConstantIgnore { why: IMPLEMENTATION },
                _ => Rule::Features { settable: false },
            };
            let entry = entry(sysreg(3, 0, 0, crm, op2), name, meaning, rule).stage(Stage::Identity);
            if of_aarch32 {
                entry
            } else {
                entry.aarch32(Rule::ConstantIgnore { why: "an AArch32 guest cannot read it" })
            }
        })
    });
    let implementation = Rule::ConstantIgnore { why: IMPLEMENTATION };
    let caches = Rule::ConstantIgnore { why: CACHES };
    let constant = |id, name: &str, meaning, rule| entry(id, name, meaning, rule).stage(Stage::Identity);
    let geometry = (0..14)
        .map(|select| entry(cache(select), format!("CCSIDR[{select}]"), "a cache's geometry, by CSSELR_EL1", caches));
    features
        .chain(geometry)
        .chain([
            constant(sysreg(3, 0, 0, 0, 0), "MIDR_EL1", "the processor's name", implementation),
            constant(sysreg(3, 0, 0, 0, 5), "MPIDR_EL1", "the vCPU's affinity", Rule::ConstantEqual),
            constant(sysreg(3, 0, 0, 0, 6), "REVIDR_EL1", "the processor's revision", implementation),
            constant(sysreg(3, 1, 0, 0, 1), "CLIDR_EL1", "levels of caches", caches),
            constant(sysreg(3, 1, 0, 0, 7), "AIDR_EL1", "implementation-defined identification", implementation),
            constant(
                id::CTR_EL0,
                "CTR_EL0",
                "cache lines and what maintenance instruction fetch needs",
                Rule::Features { settable: false },
            ),
            entry(
                sysreg(3, 2, 0, 0, 0),
                "CSSELR_EL1",
                "which CCSIDR_EL1 is seen",
                Rule::Mask { bits: 0xf, why: "reserved, and whatever KVM has put there at reset" },
            ),
        ])
        .collect()
}

fn system_registers() -> Vec<Entry> {
    let copy =
        |(op1, crn, crm, op2), name: &str, meaning| entry(sysreg(3, op1, crn, crm, op2), name, meaning, Rule::Copy);
    vec![
        copy((0, 1, 0, 0), "SCTLR_EL1", "system control").reset(SCTLR_RESET),
        entry(
            sysreg(3, 0, 1, 0, 1),
            "ACTLR_EL1",
            "auxiliary control",
            Rule::ConstantIgnore {
                why: "implementation-defined; KVM shows the host's and takes no write of the guest's",
            },
        ),
        copy((0, 1, 0, 2), "CPACR_EL1", "access to SIMD, floating point and SVE"),
        copy((0, 2, 0, 0), "TTBR0_EL1", "lower translation table"),
        copy((0, 2, 0, 1), "TTBR1_EL1", "upper translation table"),
        copy((0, 2, 0, 2), "TCR_EL1", "translation control; of AArch32 guests TTBCR and TTBCR2"),
        copy((0, 2, 0, 3), "TCR2_EL1", "extended translation control (FEAT_TCR2)"),
        copy((0, 5, 1, 0), "AFSR0_EL1", "auxiliary fault status"),
        copy((0, 5, 1, 1), "AFSR1_EL1", "auxiliary fault status"),
        copy((0, 5, 2, 0), "ESR_EL1", "syndrome; of AArch32 guests DFSR"),
        copy((0, 6, 0, 0), "FAR_EL1", "fault address; of AArch32 guests DFAR and IFAR"),
        copy((0, 7, 4, 0), "PAR_EL1", "translated address"),
        copy((0, 10, 2, 0), "MAIR_EL1", "memory attributes; of AArch32 guests PRRR and NMRR, or MAIR0 and MAIR1"),
        copy((0, 10, 2, 2), "PIRE0_EL1", "permissions of EL0 (FEAT_S1PIE)"),
        copy((0, 10, 2, 3), "PIR_EL1", "permissions of EL1 (FEAT_S1PIE)"),
        copy((0, 10, 3, 0), "AMAIR_EL1", "auxiliary memory attributes"),
        copy((0, 12, 0, 0), "VBAR_EL1", "exception vectors"),
        copy((0, 12, 1, 1), "DISR_EL1", "deferred SError (FEAT_RAS)"),
        copy((0, 13, 0, 1), "CONTEXTIDR_EL1", "context"),
        copy((0, 13, 0, 4), "TPIDR_EL1", "thread pointer of EL1"),
        copy((3, 13, 0, 2), "TPIDR_EL0", "thread pointer of EL0"),
        copy((3, 13, 0, 3), "TPIDRRO_EL0", "thread pointer that EL0 only reads"),
        copy((0, 14, 1, 0), "CNTKCTL_EL1", "what EL0 sees of the timers"),
        entry(sysreg(3, 4, 3, 0, 0), "DACR32_EL2", "AArch32's domain access", OF_AARCH32).of_aarch32(0),
        entry(sysreg(3, 4, 5, 0, 1), "IFSR32_EL2", "AArch32's fault status of fetches", OF_AARCH32).of_aarch32(0),
        entry(sysreg(3, 4, 5, 3, 0), "FPEXC32_EL2", "AArch32's floating-point enable", OF_AARCH32)
            .of_aarch32(FPEXC_RESET),
    ]
}

fn performance() -> Vec<Entry> {
    let events = (0..31).flat_map(|n| {
        let event = |crm, name: &str, meaning| {
            let surplus = Surplus::NotCounting { counter: n as u8 };
            let id = sysreg(3, 3, 14, crm + (n >> 3), n & 7);
            entry(id, format!("{name}{n}_EL0"), meaning, Rule::Copy).surplus(surplus).stage(Stage::Counters)
        };
        [event(8, "PMEVCNTR", "event counter"), event(12, "PMEVTYPER", "what an event counter counts")]
    });
    let counters = |op1, crm, op2, name: &str, meaning| {
        entry(sysreg(3, op1, 9, crm, op2), name, meaning, Rule::Copy).stage(Stage::Counters)
    };
    let sets = |op1, crm, op2, name: &str, meaning| {
        entry(sysreg(3, op1, 9, crm, op2), name, meaning, Rule::Counters).stage(Stage::CountersEnabled)
    };
    let clears = |op1, crm, op2, name: &str, generator| {
        let rule = Rule::Clears { generator };
        entry(sysreg(3, op1, 9, crm, op2), name, "the view that clears", rule).stage(Stage::CountersCleared)
    };
    events
        .chain([
            entry(
                id::PMCR_EL0,
                "PMCR_EL0",
                "control of the counters",
                Rule::Mask {
                    // E, D, X, DP, LC, LP, FZO.
                    bits: 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9,
                    why: "N and the implementer's bits are constants; C and P are commands",
                },
            )
            .stage(Stage::CountersEnabled),
            sets(3, 12, 1, "PMCNTENSET_EL0", "which counters count"),
            sets(0, 14, 1, "PMINTENSET_EL1", "whose overflows interrupt"),
            sets(3, 14, 3, "PMOVSSET_EL0", "which counters have overflown"),
            clears(3, 12, 2, "PMCNTENCLR_EL0", id::PMCNTENSET_EL0),
            clears(0, 14, 2, "PMINTENCLR_EL1", sysreg(3, 0, 9, 14, 1)),
            clears(3, 12, 3, "PMOVSCLR_EL0", sysreg(3, 3, 9, 14, 3)),
            entry(
                sysreg(3, 3, 9, 12, 4),
                "PMSWINC_EL0",
                "counts a software event",
                Rule::Ignore { why: "a command; it holds nothing" },
            ),
            counters(3, 12, 5, "PMSELR_EL0", "which event counter is selected"),
            counters(3, 13, 0, "PMCCNTR_EL0", "cycle counter"),
            counters(3, 14, 0, "PMUSERENR_EL0", "what EL0 may use"),
            entry(sysreg(3, 3, 14, 15, 7), "PMCCFILTR_EL0", "where cycles count", Rule::Copy).stage(Stage::Counters),
        ])
        .collect()
}

fn sve() -> Vec<Entry> {
    let refuse = Rule::Refuse { why: "SVE state is not moved; make the vCPU without SVE" };
    let register = |id, name: String, meaning| entry(id, name, meaning, refuse).surplus(Surplus::SveUnused);
    let z = (0..32).map(|n| register(sve_z(n), format!("Z{n}"), "scalable vector"));
    let p = (0..16).map(|n| register(sve_p(n), format!("P{n}"), "scalable predicate"));
    z.chain(p)
        .chain([
            register(sve_p(16), "FFR".into(), "first fault of scalable loads"),
            register(id::SVE_VLS, "SVE_VLS".into(), "the lengths of scalable vectors"),
            register(sysreg(3, 0, 1, 2, 0), "ZCR_EL1".into(), "length of scalable vectors at EL1"),
        ])
        .collect()
}

/// CP15 as KVM on 32-bit hosts lists it: views of the registers to which the architecture maps them (DDI 0487 D24.1, "architecturally
/// mapped"), and under which KVM on 64-bit hosts and the emulator list the state of AArch32 guests.
fn cp15_views() -> Vec<Entry> {
    let of = |op1, crn, crm, op2| sysreg(3, op1, crn, crm, op2);
    let narrow = [
        ((0, 1, 0, 0), "SCTLR", of(0, 1, 0, 0), 0),
        ((0, 1, 0, 2), "CPACR", of(0, 1, 0, 2), 0),
        ((0, 2, 0, 2), "TTBCR", of(0, 2, 0, 2), 0),
        ((0, 2, 0, 3), "TTBCR2", of(0, 2, 0, 2), 32),
        ((0, 3, 0, 0), "DACR", of(4, 3, 0, 0), 0),
        ((0, 5, 0, 0), "DFSR", of(0, 5, 2, 0), 0),
        ((0, 5, 0, 1), "IFSR", of(4, 5, 0, 1), 0),
        ((0, 5, 1, 0), "ADFSR", of(0, 5, 1, 0), 0),
        ((0, 5, 1, 1), "AIFSR", of(0, 5, 1, 1), 0),
        ((0, 6, 0, 0), "DFAR", of(0, 6, 0, 0), 0),
        ((0, 6, 0, 2), "IFAR", of(0, 6, 0, 0), 32),
        ((0, 10, 2, 0), "PRRR (MAIR0)", of(0, 10, 2, 0), 0),
        ((0, 10, 2, 1), "NMRR (MAIR1)", of(0, 10, 2, 0), 32),
        ((0, 10, 3, 0), "AMAIR0", of(0, 10, 3, 0), 0),
        ((0, 10, 3, 1), "AMAIR1", of(0, 10, 3, 0), 32),
        ((0, 12, 0, 0), "VBAR", of(0, 12, 0, 0), 0),
        ((0, 13, 0, 1), "CONTEXTIDR", of(0, 13, 0, 1), 0),
        ((0, 13, 0, 2), "TPIDRURW", of(3, 13, 0, 2), 0),
        ((0, 13, 0, 3), "TPIDRURO", of(3, 13, 0, 3), 0),
        ((0, 13, 0, 4), "TPIDRPRW", of(0, 13, 0, 4), 0),
        ((0, 14, 1, 0), "CNTKCTL", of(0, 14, 1, 0), 0),
        ((2, 0, 0, 0), "CSSELR", of(2, 0, 0, 0), 0),
    ];
    let wide = [((0, 2), "TTBR0", of(0, 2, 0, 0)), ((1, 2), "TTBR1", of(0, 2, 0, 1)), ((0, 7), "PAR", of(0, 7, 4, 0))];
    let view = |id, name, generator, low| entry(id, name, "a view of CP15's", Rule::Derive { generator, low });
    let narrow = narrow
        .into_iter()
        .map(|((opc1, crn, crm, opc2), name, generator, low)| view(cp15(opc1, crn, crm, opc2), name, generator, low));
    narrow
        .chain(wide.into_iter().map(|((opc1, crm), name, generator)| view(cp15_wide(opc1, crm), name, generator, 0)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpustate::fixtures;

    #[test]
    fn ids_are_unique_and_generators_are_no_views() {
        let table = table();
        assert!(table.windows(2).all(|pair| pair[0].id < pair[1].id), "sorted, each id once");
        for entry in table {
            if let Rule::Derive { generator, .. } | Rule::Clears { generator } = entry.rule {
                let of = lookup(generator).unwrap_or_else(|| panic!("{} has no generator in the table", entry.name));
                assert!(!matches!(of.rule, Rule::Derive { .. } | Rule::Clears { .. }), "{}", entry.name);
            }
        }
    }

    #[test]
    fn every_register_that_kvm_or_the_emulator_lists_is_known() {
        for snapshot in fixtures::kvm() {
            for (id, _) in &snapshot.registers {
                assert!(lookup(*id).is_some(), "{}: {id:#018x} is not in the table", snapshot.origin);
            }
        }
        for id in emulator::Vcpu::reg_ids() {
            assert!(lookup(id).is_some(), "the emulator's {id:#018x} is not in the table");
        }
    }

    #[test]
    fn kvm_lists_as_many_as_it_did_with_and_without_a_pmu() {
        let is_pmu =
            |id: u64| lookup(id).is_some_and(|entry| entry.name.starts_with("PM") && !entry.name.starts_with("PMU_"));
        for (name, without, with) in
            [("6.1-aarch64", 242, 316), ("6.1-armv7", 242, 316), ("6.12-aarch64", 259, 333), ("6.12-armv7", 259, 333)]
        {
            let snapshot = fixtures::named(name);
            assert_eq!(snapshot.registers.len(), with, "{name}");
            assert_eq!(snapshot.registers.iter().filter(|(id, _)| !is_pmu(*id)).count(), without, "{name}");
        }
    }
}
