//! What the architecture leaves open is made equal before two effects are compared: [`normalise`].
//!
//! | rule | what is ignored |
//! |---|---|
//! | spsr-features | SPSR_EL1 bits of features that the emulator has not (BTYPE, SSBS, UAO, DIT, TCO): DDI 0487 C5.2.19 |
//! | far-unknown | FAR_EL1 after an exception that does not set it: D24.2.42 |
//! | par-unknown | PAR_EL1.NS and bit 10: D24.2.124 |
//! | load-unknown | destinations of a load that aborts: D1.3.5.6 and the pseudocode's "UNKNOWN" |
//! | late-pc-alignment | on QEMU 7.2 alone: an abort of a fetch from a PC that is not aligned comes first |
//! | atomic-abort | on QEMU 7.2 with several CPUs alone: an atomic that aborts is a write, where a read would have aborted too |
//! | store-unknown | bytes of a store that aborts at its second page or element: B2.2.1 |

use super::features::Features;
use super::monitor::{field, map};
use crate::verify::cpu::block::{Block, Effect};

const SPSR_COMPARED: u64 = 0xf << 28 | 1 << 22 | 3 << 20 | 0x3df;
const PAR_IGNORED: u64 = 3 << 9;
/// ESR_EL1.ISS.WnR of a data abort.
const ESR_WRITE: u64 = 1 << 6;
/// Bytes on either side of FAR_EL1 that a store of up to 64 bytes may have written.
const STORE_BYTES: u64 = 64;

/// Exception classes that set FAR_EL1: aborts, PC alignment, watchpoints.
fn sets_far(class: u64) -> bool {
    matches!(class, 0x20 | 0x21 | 0x22 | 0x24 | 0x25 | 0x34 | 0x35)
}

/// Whether the effect of `block` holds a data abort of a store, or of a load.
fn aborted(effect: &Effect) -> Option<bool> {
    let esr = effect.registers[field::ESR];
    matches!(esr >> 26 & 0x3f, 0x24 | 0x25).then_some(esr & ESR_WRITE != 0)
}

/// Whether `word` reads and writes memory in one: LD\<op\>, SWP, CAS, CASP (DDI 0487 C4.1.94). LDAPR is encoded among them.
fn is_atomic(word: u32) -> bool {
    let operation = word & 0x3b20_0c00 == 0x3820_0000 && word & 0xf000 != 0xc000;
    operation || word & 0x3fa0_7c00 == 0x08a0_7c00 || word & 0xbfa0_7c00 == 0x0820_7c00
}

/// Makes equal in `effect` what may differ.
pub(super) fn normalise(block: &Block, effect: &mut Effect, features: &Features) {
    let start = block.registers[field::PC];
    let at = effect.registers[field::PC].wrapping_sub(start) / 4;
    let word = block.words.get(at as usize).copied();
    if features.emulated_parallel && aborted(effect).is_some() && word.is_some_and(is_atomic) {
        effect.registers[field::ESR] &= !ESR_WRITE;
    }
    let write = aborted(effect);
    let registers = &mut effect.registers;
    registers[field::PSTATE] &= SPSR_COMPARED;
    registers[field::ESR] &= 0xffff_ffff;
    registers[field::PAR] &= !PAR_IGNORED;
    registers[field::CLEAN] = 0;
    let class = registers[field::ESR] >> 26 & 0x3f;
    if features.emulated && registers[field::PC] & 3 != 0 && matches!(class, 0x20..=0x22) {
        registers[field::ESR] = 0x22 << 26 | 1 << 25;
    }
    if !sets_far(registers[field::ESR] >> 26 & 0x3f) {
        registers[field::FAR] = 0;
    }
    match (write, word) {
        (Some(false), Some(word)) => forget_destinations(word, registers),
        (Some(true), _) => {
            let far = registers[field::FAR];
            forget_store(block, effect, far);
        }
        _ => {}
    }
}

/// Clears what the load `word` would have written. Registers of SIMD structures follow each other.
fn forget_destinations(word: u32, registers: &mut [u64]) {
    let (rt, rt2) = (word & 31, word >> 10 & 31);
    if word >> 26 & 1 == 0 {
        for register in [rt, rt2].into_iter().filter(|&register| register != 31) {
            registers[register as usize] = 0;
        }
        return;
    }
    let structures = word >> 27 & 7 == 0b001;
    let vectors: Vec<u32> = if structures { (0..4).map(|next| (rt + next) % 32).collect() } else { vec![rt, rt2] };
    for vector in vectors {
        registers[field::VECTORS + 2 * vector as usize..][..2].fill(0);
    }
}

/// Clears the bytes around the address `far` of the slot's data pages.
fn forget_store(block: &Block, effect: &mut Effect, far: u64) {
    let offset = (far & !(0xff << 56)).wrapping_sub(map::DATA_VA).wrapping_add(map::DATA);
    let mut at = 0;
    for range in &block.watched {
        for (index, gpa) in range.clone().enumerate() {
            if gpa.wrapping_add(STORE_BYTES).wrapping_sub(offset) < 2 * STORE_BYTES {
                effect.memory[at + index] = 0;
            }
        }
        at += (range.end - range.start) as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::cpu::a64::encodings;
    use crate::verify::cpu::block::Group;

    /// The syndrome of a data abort of the only instruction `word`, a write, after normalisation on a host with `features`.
    fn syndrome(word: u32, features: Features) -> u64 {
        let registers = vec![0; field::WORDS];
        let block =
            Block { number: 0, group: Group::Atomic, words: vec![word], registers, memory: vec![], watched: vec![] };
        let mut effect = Effect { registers: block.registers.clone(), memory: vec![] };
        effect.registers[field::ESR] = 0x25 << 26 | ESR_WRITE | 0xf;
        normalise(&block, &mut effect, &features);
        effect.registers[field::ESR]
    }

    #[test]
    fn atomics_that_abort_are_no_writes_on_a_parallel_emulated_host_alone() {
        let parallel = Features { emulated: true, emulated_parallel: true, ..Features::ALL };
        let alone = Features { emulated_parallel: false, ..parallel };
        let (ldadd, str) = (0xf824_0003, 0xf900_0000);
        assert_eq!(syndrome(ldadd, parallel) & ESR_WRITE, 0);
        assert_eq!(syndrome(ldadd, alone) & ESR_WRITE, ESR_WRITE);
        assert_eq!(syndrome(str, parallel) & ESR_WRITE, ESR_WRITE);
    }

    #[test]
    fn atomics_are_those_of_the_table() {
        for encoding in encodings::all() {
            let atomic = encoding.group == Group::Atomic;
            assert_eq!(is_atomic(encoding.fixed), atomic, "{encoding:?}");
        }
    }
}
