//! What can be told of a move before anything moves: the source offers its [`constants`], the destination holds them against its own
//! ([`check_constants`]). What depends on values that the guest writes is judged when its state is there, by the same rules.

use abi::Arch;

use super::{Destination, Policy, Refusal, Rule, Source, lookup, translate};

/// Of `registers` those that no guest of `arch` changes: constants and identification. Those that the table does not know are among
/// them, since whether they may move at all is a matter of policy.
pub fn constants(registers: &[(u64, u128)], arch: Arch) -> Vec<(u64, u128)> {
    let is_constant = |id: u64| match lookup(id).map(|entry| entry.rule(arch)) {
        Some(Rule::ConstantEqual | Rule::ConstantIgnore { .. } | Rule::Features { .. }) | None => true,
        Some(_) => false,
    };
    registers.iter().copied().filter(|(id, _)| is_constant(*id)).collect()
}

/// Whether a vCPU with the constants `source` can become one with the constants `destination`, of which the bits `writable` may still be
/// chosen.
///
/// # Errors
/// [`Refusal`] with every reason, as [`translate()`] would give it.
pub fn check_constants(
    source: &[(u64, u128)],
    destination: &[(u64, u128)],
    writable: &[(u64, u64)],
    arch: Arch,
    policy: Policy,
) -> Result<(), Refusal> {
    let (from, to) = (constants(source, arch), constants(destination, arch));
    let source = Source { arch, registers: &from, wider: &[] };
    translate(&source, &Destination { registers: &to, writable }, policy).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::{UnknownRegisters, fixtures, id};
    use super::*;

    const UNKNOWN: u64 = 0x6030_0000_0013_ffff;

    fn check(source: &[(u64, u128)], destination: &[(u64, u128)], policy: Policy) -> Result<(), String> {
        check_constants(source, destination, &[], Arch::Aarch64, policy).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn a_vcpu_fits_itself_and_state_is_not_compared() {
        let source = fixtures::named("6.12-aarch64").registers;
        assert!(constants(&source, Arch::Aarch64).len() < source.len() / 2);
        let destination: Vec<_> =
            source.iter().map(|&(id, value)| (id, if id == id::PC { value ^ 4 } else { value })).collect();
        check(&source, &destination, Policy::default()).unwrap();
    }

    #[test]
    fn a_feature_that_the_destination_lacks_is_named_before_anything_moves() {
        let source = fixtures::named("6.12-aarch64").registers;
        let destination = fixtures::named("6.12-aarch64-a57").registers;
        let refusal = check(&source, &destination, Policy::default()).unwrap_err();
        assert!(refusal.contains("FEAT_LSE"), "{refusal}");
    }

    #[test]
    fn an_unknown_register_is_refused_by_its_id_unless_the_policy_lets_it_pass() {
        let plain = fixtures::named("6.12-aarch64").registers;
        let more = [plain.clone(), vec![(UNKNOWN, 0)]].concat();
        for (from, to, side) in [(&more, &plain, "source"), (&plain, &more, "destination")] {
            let refusal = check(from, to, Policy::default()).unwrap_err();
            assert!(refusal.contains("0x603000000013ffff") && refusal.contains(side), "{refusal}");
            let lenient = Policy { unknown: UnknownRegisters::IgnoreZero, ..Policy::default() };
            check(from, to, lenient).unwrap();
        }
    }
}
