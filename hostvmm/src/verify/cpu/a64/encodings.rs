//! The encodings that blocks are drawn from: [`Encoding`], of `encodings.txt`.

use emulator::lower::blocks::tamed;
use workload::SplitMix64;

use super::features::Features;
use crate::verify::cpu::block::Group;

/// One encoding: `word & mask == fixed`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Encoding {
    pub(super) group: Group,
    pub(super) fixed: u32,
    pub(super) mask: u32,
    pub(super) feature: &'static str,
    pub(super) name: &'static str,
}

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Encoding> {
    include_str!("encodings.txt").lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut words = line.split(' ');
        let mut next = || words.next().expect("five words a line");
        let group = Group::by_name(next()).expect("a group");
        let mut hex = || u32::from_str_radix(next(), 16).expect("a hexadecimal number");
        let (fixed, mask) = (hex(), hex());
        Encoding { group, fixed, mask, feature: next(), name: next() }
    })
}

/// Those of a host with `features`, in `group` or in all groups.
pub(super) fn of(features: &Features, group: Option<Group>) -> Vec<Encoding> {
    all().filter(|one| features.has(one.feature) && group.is_none_or(|group| one.group == group)).collect()
}

impl Encoding {
    /// A word of this encoding at word `position` of its code of `len` words, if a few tries find one that is not CONSTRAINED
    /// UNPREDICTABLE and that the emulator models.
    pub(super) fn word(&self, random: &mut SplitMix64, reach: Reach) -> Option<u32> {
        (0..64).find_map(|_| {
            let any = self.fixed | random.next_u64() as u32 & !self.mask;
            let word = tamed(any, self.mask, |_| reach.displacement(random))?;
            (emulator::lower::support(word) != emulator::lower::Support::Unknown).then_some(word)
        })
    }
}

/// Where a branch or a load of a literal may go without making a loop: so many words back, or so many forward at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// The furthest and the nearest word before the block.
    pub(super) back: (i32, i32),
    /// Words to the end of the slot.
    pub(super) forward: i32,
}

impl Reach {
    fn displacement(self, random: &mut SplitMix64) -> i32 {
        if random.below(3) == 0 {
            self.back.0 + random.below((self.back.1 - self.back.0 + 1) as u64) as i32
        } else {
            1 + random.below(self.forward as u64 - 1) as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use emulator::lower::{Support, support};

    use super::*;

    const REACH: Reach = Reach { back: (-8, -1), forward: 20 };

    #[test]
    fn every_encoding_has_words_that_the_emulator_executes() {
        let mut random = SplitMix64::new(1);
        for encoding in all() {
            let executes = (0..64)
                .filter_map(|_| encoding.word(&mut random, REACH))
                .any(|word| word & encoding.mask == encoding.fixed && support(word) == Support::Executes);
            assert!(executes, "{encoding:?}");
        }
    }

    #[test]
    fn what_the_emulator_executes_is_in_the_table_or_generated_by_hand() {
        let encodings: Vec<Encoding> = all().collect();
        let by_hand = |word: u32| word >> 24 == 0xd4 || word >> 22 == 0x354 || word == 0xd69f_03e0;
        let mut random = SplitMix64::new(2);
        let mut executed = 0;
        for _ in 0..300_000 {
            let word = random.next_u64() as u32;
            if support(word) == Support::Executes && !by_hand(word) {
                executed += 1;
                assert!(encodings.iter().any(|one| word & one.mask == one.fixed), "{word:#010x}");
            }
        }
        assert!(executed > 50_000, "{executed}");
    }
}
