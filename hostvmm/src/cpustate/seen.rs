//! What a guest itself has read before a move and after it, held against the table: [`unexplained_to_guest`].
//!
//! A guest sees registers that are in no list of KVM's, as they are views of PSTATE or state of the GIC: [`GUEST_ONLY`] has the rules for
//! those. All others go by the table. Counters go on, and what follows from them may change.

use std::collections::BTreeMap;

use abi::Arch;

use super::judge::unexplained;
use super::{id, lookup};

/// A register that a guest reads and KVM does not list: its name, the bits in which it must be the same, and what the others are.
struct Seen {
    id: u64,
    name: &'static str,
    bits: u64,
    why: &'static str,
}

const fn seen(id: u64, name: &'static str, bits: u64, why: &'static str) -> Seen {
    Seen { id, name, bits, why }
}

const ALL: u64 = u64::MAX;
const PENDING: &str = "follows from which interrupts are pending, as time passes";
const CONSTANT: &str = "constants of the GIC's CPU interface";

const GUEST_ONLY: [Seen; 22] = [
    seen(id::sysreg(3, 0, 4, 2, 2), "CurrentEL", ALL, ""),
    seen(id::sysreg(3, 0, 4, 2, 0), "SPSel", ALL, ""),
    seen(id::sysreg(3, 3, 4, 2, 0), "NZCV", ALL, ""),
    seen(id::sysreg(3, 3, 4, 2, 1), "DAIF", ALL, ""),
    seen(id::sysreg(3, 0, 12, 1, 0), "ISR_EL1", 0, PENDING),
    seen(id::sysreg(3, 1, 0, 0, 0), "CCSIDR_EL1", 0, "a cache's geometry, which no running guest may rely on"),
    // A guest reads it once and clears blocks of that size for good.
    seen(id::sysreg(3, 3, 0, 0, 7), "DCZID_EL0", ALL, ""),
    seen(id::sysreg(3, 3, 14, 0, 0), "CNTFRQ_EL0", ALL, ""),
    seen(id::sysreg(3, 3, 9, 12, 6), "PMCEID0_EL0", 0, "which events there are"),
    seen(id::sysreg(3, 3, 9, 12, 7), "PMCEID1_EL0", 0, "which events there are"),
    seen(id::sysreg(3, 0, 4, 6, 0), "ICC_PMR_EL1", ALL, ""),
    seen(id::sysreg(3, 0, 12, 8, 2), "ICC_HPPIR0_EL1", 0, PENDING),
    seen(id::sysreg(3, 0, 12, 8, 3), "ICC_BPR0_EL1", ALL, ""),
    seen(id::sysreg(3, 0, 12, 8, 4), "ICC_AP0R0_EL1", ALL, ""),
    seen(id::sysreg(3, 0, 12, 9, 0), "ICC_AP1R0_EL1", ALL, ""),
    seen(id::sysreg(3, 0, 12, 11, 3), "ICC_RPR_EL1", ALL, ""),
    seen(id::sysreg(3, 0, 12, 12, 2), "ICC_HPPIR1_EL1", 0, PENDING),
    seen(id::sysreg(3, 0, 12, 12, 3), "ICC_BPR1_EL1", ALL, ""),
    // CBPR, EOImode, PMHE.
    seen(id::sysreg(3, 0, 12, 12, 4), "ICC_CTLR_EL1", 1 | 1 << 1 | 1 << 6, CONSTANT),
    seen(id::sysreg(3, 0, 12, 12, 5), "ICC_SRE_EL1", 1, CONSTANT),
    seen(id::sysreg(3, 0, 12, 12, 6), "ICC_IGRPEN0_EL1", ALL, ""),
    seen(id::sysreg(3, 0, 12, 12, 7), "ICC_IGRPEN1_EL1", ALL, ""),
];

/// What an AArch32 guest reads otherwise than its state is, whoever is to blame. The state itself is compared from outside.
const NOT_SHOWN_TO_AARCH32: [u64; 2] = [
    // KVM's table of CP15 names no register for CLIDR's handler since Linux 6.3, which then shows another's place (arm64/kvm/sys_regs.c).
    id::sysreg(3, 1, 0, 0, 1),
    // QEMU's DBGVCR and DBGVCR32_EL2 hold nothing, and a load of them by a kernel that it emulates, or by that one's guest, changes no
    // register (target/arm/debug_helper.c: ARM_CP_NOP).
    id::sysreg(2, 4, 0, 7, 0),
];

/// Counters, which go on from one reading to the next.
const COUNTERS: [u64; 3] = [id::TIMER_CNT, id::PTIMER_CNT, id::sysreg(3, 3, 9, 13, 0)];

/// What a guest of `arch` read of its registers `before` a move and `after` it, by KVM's ids: the differences that neither a rule lets pass
/// nor one of `lines`, notes of the move and what it left unheld, names; and registers that no rule is for.
pub fn unexplained_to_guest(
    before: &[(u64, u128)],
    after: &[(u64, u128)],
    arch: Arch,
    lines: &[String],
) -> Vec<String> {
    let is_shown = |id: &u64| arch == Arch::Aarch64 || !NOT_SHOWN_TO_AARCH32.contains(id);
    let is_listed = |(id, _): &&(u64, u128)| lookup(*id).is_some() && !COUNTERS.contains(id) && is_shown(id);
    let listed = |registers: &[(u64, u128)]| registers.iter().filter(is_listed).copied().collect::<Vec<_>>();
    let mut found = unexplained(&listed(before), &listed(after), arch, lines);
    let values = |registers: &[(u64, u128)]| registers.iter().copied().collect::<BTreeMap<_, _>>();
    let (from, to) = (values(before), values(after));
    for only in &GUEST_ONLY {
        match (from.get(&only.id), to.get(&only.id)) {
            (None, None) => {}
            (Some(from), Some(to)) if (from ^ to) & u128::from(only.bits) == 0 => {}
            (from, to) => {
                let value = |value: Option<&u128>| value.map_or("none".to_owned(), |value| format!("{value:#x}"));
                let but = if only.why.is_empty() { String::new() } else { format!(" ({})", only.why) };
                found.push(format!("{}{but}: {} before, {} after", only.name, value(from), value(to)));
            }
        }
    }
    let is_known = |id: &u64| lookup(*id).is_some() || GUEST_ONLY.iter().any(|only| only.id == *id);
    let mut unknown: Vec<u64> = from.keys().chain(to.keys()).copied().filter(|id| !is_known(id)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    found.extend(unknown.into_iter().map(|id| format!("register {id:#018x}: there is no rule for it")));
    found
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    /// What a guest of 6.12's KVM might read: what KVM lists and what only guests see.
    fn read() -> Vec<(u64, u128)> {
        let mut registers = fixtures::named("6.12-aarch64").registers;
        registers.extend(GUEST_ONLY.iter().map(|only| (only.id, 0x55)));
        registers
    }

    #[test]
    fn a_guest_that_sees_the_same_has_nothing_to_explain() {
        assert_eq!(unexplained_to_guest(&read(), &read(), Arch::Aarch64, &[]), [""; 0]);
    }

    #[test]
    fn every_register_that_changes_without_a_rule_or_a_word_is_named() {
        use super::super::Rule;
        let before = read();
        let mut silent = Vec::new();
        for index in 0..before.len() {
            let mut after = before.clone();
            after[index].1 ^= 1;
            let id = before[index].0;
            match unexplained_to_guest(&before, &after, Arch::Aarch64, &[]).as_slice() {
                [line] => {
                    let name = lookup(id).map_or_else(
                        || GUEST_ONLY.iter().find(|only| only.id == id).unwrap().name.to_owned(),
                        |entry| entry.name.clone(),
                    );
                    assert!(line.starts_with(&name), "{line}: {name}");
                    assert_eq!(
                        unexplained_to_guest(&before, &after, Arch::Aarch64, &[format!("{name}: told")]).len(),
                        usize::from(lookup(id).is_none()),
                        "{name}"
                    );
                }
                [] => silent.push(id),
                lines => panic!("{id:#x}: {lines:?}"),
            }
        }
        for id in silent {
            let by_table = lookup(id).map(|entry| entry.rule(Arch::Aarch64));
            let by_rule = match by_table {
                Some(Rule::Mask { bits, .. }) => bits & 1 == 0,
                Some(Rule::Clears { .. }) => true,
                Some(_) => COUNTERS.contains(&id),
                None => GUEST_ONLY.iter().any(|only| only.id == id && only.bits & 1 == 0 && !only.why.is_empty()),
            };
            assert!(by_rule, "{id:#x}");
        }
    }

    #[test]
    fn a_register_that_comes_goes_or_is_unknown_is_named() {
        let before = read();
        let gone: Vec<_> = before.iter().copied().filter(|(id, _)| *id != id::CPACR_EL1).collect();
        for (before, after, word) in [(&before, &gone, "0x300000 before, none"), (&gone, &before, "none before")] {
            let found = unexplained_to_guest(before, after, Arch::Aarch64, &[]);
            assert!(
                matches!(found.as_slice(), [line] if line.starts_with("CPACR_EL1: ") && !word.is_empty()),
                "{found:?}"
            );
        }
        let strange = [(0x6030_0000_0013_ffff, 1)];
        assert!(unexplained_to_guest(&strange, &strange, Arch::Aarch64, &[])[0].contains("0x603000000013ffff"));
    }
}
