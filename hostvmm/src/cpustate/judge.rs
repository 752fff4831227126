//! What two vCPUs hold, before a move and after it, beside what was said of the move: [`unexplained`]. It looks at the registers
//! themselves, not at what a translation wrote.

use std::collections::{BTreeMap, BTreeSet};

use abi::Arch;

use super::outcome::Name;
use super::{Rule, id, lookup};

/// The differences between a vCPU that has moved away, `source`, and what it has become, `destination`, that neither the table lets pass in
/// silence nor one of `lines` names: notes and what is not held, of this vCPU or of all.
pub fn unexplained(source: &[(u64, u128)], destination: &[(u64, u128)], arch: Arch, lines: &[String]) -> Vec<String> {
    let (from, to) = (by_id(source), by_id(destination));
    let ids: BTreeSet<u64> = from.keys().chain(to.keys()).copied().collect();
    let differs = |id: &u64| {
        let (source, destination) = (from.get(id).copied(), to.get(id).copied());
        let is_same = match lookup(*id).map(|entry| entry.rule(arch)) {
            Some(Rule::Mask { bits, .. }) => same_in(source, destination, bits.into()),
            Some(Rule::Derive { generator, low }) => {
                // A view is right where it shows its generator, wherever that is.
                let shown = |registers: &BTreeMap<u64, u128>, own: Option<u128>| {
                    own.or_else(|| registers.get(&generator).map(|value| value >> low & id::bits(*id)))
                };
                let (before, after) = (shown(&from, source), shown(&to, destination));
                before == after || before.is_none() || after.is_none()
            }
            Some(Rule::Clears { .. }) => true,
            _ => source == destination,
        };
        !is_same && !lines.iter().any(|line| names(line, *id))
    };
    ids.iter().filter(|id| differs(id)).map(|id| told(*id, from.get(id), to.get(id))).collect()
}

fn by_id(registers: &[(u64, u128)]) -> BTreeMap<u64, u128> {
    registers.iter().copied().collect()
}

fn same_in(source: Option<u128>, destination: Option<u128>, bits: u128) -> bool {
    source.zip(destination).is_some_and(|(source, destination)| (source ^ destination) & bits == 0)
}

/// Whether `line` is about the register of `id`, or a field of it.
fn names(line: &str, id: u64) -> bool {
    let line = line.strip_prefix("vCPU ").and_then(|rest| rest.split_once(": ")).map_or(line, |(_, line)| line);
    let rest = line.strip_prefix(&Name(id).to_string());
    rest.is_some_and(|rest| rest.starts_with([':', '.']))
}

fn told(id: u64, source: Option<&u128>, destination: Option<&u128>) -> String {
    let value = |value: Option<&u128>| value.map_or("none".to_owned(), |value| format!("{value:#x}"));
    format!("{}: {} before, {} after", Name(id), value(source), value(destination))
}

#[cfg(test)]
mod tests {
    use super::super::{Destination, MissingFeatures, Policy, Source, fixtures, translate};
    use super::*;

    type Registers = Vec<(u64, u128)>;

    const TTBR0_EL1: u64 = id::sysreg(3, 0, 2, 0, 0);

    /// A vCPU of 6.12's KVM after a move from one of 6.1's, and what was said of it.
    fn moved() -> (Registers, Registers, Vec<String>) {
        let mut source = fixtures::named("6.1-aarch64").registers;
        source.iter_mut().filter(|(id, _)| *id == id::PC).for_each(|(_, pc)| *pc = 0x4020_0000);
        let mut destination = fixtures::named("6.12-aarch64").registers;
        let policy = Policy { features: MissingFeatures::Name, ..Policy::default() };
        let from = Source { arch: Arch::Aarch64, registers: &source, wider: &[] };
        let to = Destination { registers: &destination, writable: &[] };
        let translation = translate(&from, &to, policy).unwrap();
        for (id, value) in translation.writes {
            destination.iter_mut().filter(|(found, _)| *found == id).for_each(|(_, held)| *held = value);
        }
        let counters = [id::TIMER_CNT, id::PTIMER_CNT];
        source.retain(|(id, _)| !counters.contains(id));
        destination.retain(|(id, _)| !counters.contains(id));
        (source, destination, translation.notes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_move_by_the_table_is_explained_by_its_notes_and_not_without_them() {
        let (source, destination, notes) = moved();
        assert_eq!(unexplained(&source, &destination, Arch::Aarch64, &notes), [""; 0]);
        assert!(!unexplained(&source, &destination, Arch::Aarch64, &[]).is_empty());
    }

    #[test]
    fn a_register_that_was_lost_on_the_way_is_found() {
        let (source, mut destination, notes) = moved();
        for index in 0..destination.len() {
            let (id, value) = destination[index];
            let is_copied = lookup(id).is_some_and(|entry| entry.rule(Arch::Aarch64) == Rule::Copy);
            if is_copied && !notes.iter().any(|note| names(note, id)) {
                destination[index].1 ^= 1;
                let found = unexplained(&source, &destination, Arch::Aarch64, &notes);
                assert_eq!(found.len(), 1, "{id:#x}: {found:?}");
                destination[index].1 = value;
            }
        }
    }

    #[test]
    fn a_view_must_show_what_its_generator_held() {
        let view = id::cp15_wide(0, 2);
        let check =
            |view_holds| unexplained(&[(TTBR0_EL1, 7)], &[(view, view_holds)], Arch::Armv7, &["TTBR0_EL1: it".into()]);
        assert_eq!(check(7), [""; 0]);
        assert_eq!(check(8), ["TTBR0: none before, 0x8 after"]);
    }

    #[test]
    fn a_line_names_its_register_alone_and_may_be_of_one_vcpu() {
        assert!(names("vCPU 1, 2: MIDR_EL1: differs", id::sysreg(3, 0, 0, 0, 0)));
        assert!(names("ID_AA64PFR0_EL1.EL3: lacks", id::ID_AA64PFR0_EL1));
        assert!(!names("TTBR0_EL1: made of TTBR0", id::cp15_wide(0, 2)));
        assert!(!names("X1: 7", id::core(11)) && !names("X11: 7", id::core(1)));
    }
}
