//! The encodings that blocks are drawn from: [`Encoding`], of `encodings.txt`.

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
            let word = tamed(self.fixed | random.next_u64() as u32 & !self.mask, self.mask, random, reach)?;
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

/// `word` with its free bits changed so that it stays in its slot, or `None` if it is CONSTRAINED UNPREDICTABLE.
fn tamed(word: u32, mask: u32, random: &mut SplitMix64, reach: Reach) -> Option<u32> {
    let field = |low: u32, len: u32| word >> low & ((1 << len) - 1);
    let mut fold = |low: u32, len: u32| {
        let offset = if random.below(3) == 0 {
            reach.back.0 + random.below((reach.back.1 - reach.back.0 + 1) as u64) as i32
        } else {
            1 + random.below(reach.forward as u64 - 1) as i32
        };
        let places = ((1 << len) - 1) << low;
        Some(word & !places | (offset as u32) << low & places)
    };
    if word >> 26 & 0x1f == 0b00101 {
        return fold(0, 26);
    }
    if word & 0xff00_0010 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 {
        return fold(5, 19);
    }
    if word & 0x7e00_0000 == 0x3600_0000 {
        return fold(5, 14);
    }
    if word >> 25 & 0b101 != 0b100 {
        return Some(word);
    }
    let (rt, rn, rt2, rs) = (field(0, 5), field(5, 5), field(10, 5), field(16, 5));
    let (vector, load) = (field(26, 1) == 1, field(22, 1) == 1);
    match field(27, 3) {
        0b011 => fold(5, 19),
        0b001 if !vector => {
            // Fields that should be one.
            let mut word = word;
            let paired = field(21, 1) == 1;
            if !paired {
                word |= 0x1f << 10 & !mask;
            }
            if (load || field(23, 1) == 1) && !paired {
                word |= 0x1f << 16 & !mask;
            }
            let store_exclusive = !load && field(23, 1) == 0;
            let clash = store_exclusive && (rs == rt || rs == rn && rn != 31 || paired && rs == rt2);
            let double = load && field(23, 1) == 0 && paired && rt == rt2;
            (!clash && !double).then_some(word)
        }
        0b101 => {
            let writes_back = field(23, 1) == 1 && !vector && rn != 31 && (rt == rn || rt2 == rn);
            (!(writes_back || load && rt == rt2)).then_some(word)
        }
        0b111 if field(24, 1) == 0 => {
            let writes_back = field(21, 1) == 0 && field(10, 1) == 1 && !vector && rn != 31 && rt == rn;
            let offset_is_base = field(21, 1) == 1 && field(10, 2) == 2 && rs == rn && rn != 31;
            (!writes_back && !offset_is_base).then_some(word)
        }
        _ => Some(word),
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
