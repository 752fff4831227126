//! What the architecture leaves open is made equal before two effects are compared: [`normalise`].
//!
//! | rule | what is ignored |
//! |---|---|
//! | psr-features | PSR bits of features that the emulator has not (PAN, SSBS, DIT; IT, J, E, T): DDI 0487 G8.2.33 |
//! | sctlr-features | SCTLR bits that the emulator has not |
//! | par-unknown | PAR.NS, bit 10 of the long format, bit 8 of the short one: G8.2.115 |
//! | short-par | on QEMU 7.2 alone: memory attributes in PAR of the short format, which it leaves out |
//! | ifsr-domain | on QEMU 7.2 alone: a domain in IFSR of the short format, which has none: G8.2.76 |
//! | ifar-unknown | IFAR after a debug event: G5.11.1 |
//! | load-unknown | destinations of a load that aborts |
//! | store-unknown | bytes of a store that aborts at its second page or word: B2.2.1 |

use super::monitor::{field, map};
use super::walk::unknown_in_par;
use crate::verify::cpu::block::{Block, Effect};

const PSR_COMPARED: u64 = 0x1f << 27 | 1 << 20 | 0xf << 16 | 7 << 6 | 0x1f;
const FPEXC_COMPARED: u64 = 1 << 30;
/// Bytes on either side of DFAR that a store of up to 64 bytes may have written.
const STORE_BYTES: u64 = 64;
const PREFETCH_ABORT: u64 = 3;
const DATA_ABORT: u64 = 4;

/// Makes equal in `effect` what may differ.
pub(super) fn normalise(block: &Block, effect: &mut Effect, emulated: bool) {
    let registers = &mut effect.registers;
    for word in (field::SPSR..field::SPSR + 5).chain([field::PSR, field::HANDLER]) {
        registers[word] &= PSR_COMPARED;
    }
    registers[field::SCTLR] &= emulator::sysreg::id::SCTLR32_WRITABLE;
    registers[field::FPEXC] &= FPEXC_COMPARED;
    registers[field::CPACR] &= 0xf << 20;
    let long = registers[field::TTBCR] >> 31 & 1 == 1;
    if registers[field::PAR] & 1 == 0 {
        registers[field::PAR] &= !u64::from(unknown_in_par(long, emulated));
    }
    if emulated && !long {
        registers[field::IFSR] &= !0xf0;
    }
    let vector = registers[field::VECTOR];
    let status = registers[field::IFSR];
    let debug = if long { status & 0x3f == 0x22 } else { status & 0x40f == 2 };
    if vector == PREFETCH_ABORT && debug {
        registers[field::IFAR] = 0;
    }
    if vector != DATA_ABORT {
        return;
    }
    let at = registers[field::PC].wrapping_sub(8).wrapping_sub(block.registers[field::PC]) / 4;
    let write = registers[field::DFSR] >> 11 & 1 == 1;
    match (write, block.words.get(at as usize)) {
        (false, Some(&word)) => forget_destinations(word, registers),
        (true, _) => {
            let far = registers[field::DFAR];
            forget_store(block, effect, far);
        }
        _ => {}
    }
}

/// Clears what the load `word` would have written, in any mode.
fn forget_destinations(word: u32, registers: &mut [u64]) {
    let unconditional = word >> 28 == 15;
    let (rt, rn) = (word >> 12 & 15, word >> 16 & 15);
    let mut forget = |register: u32| {
        if register == rn || register == 15 {
            return;
        }
        for mode in emulator::a32::Mode::ALL {
            registers[emulator::a32::mode::slot(mode, register as u8)] = 0;
        }
    };
    match word >> 25 & 7 {
        0b100 if !unconditional => (0..15).filter(|register| word >> register & 1 == 1).for_each(forget),
        0b110 | 0b010 if word >> 25 & 7 == 0b110 || unconditional => registers[field::VECTORS..].fill(0),
        // A pair, at most.
        0b000 => [rt, rt | 1].into_iter().for_each(forget),
        _ => forget(rt),
    }
}

/// Clears the bytes around the address `far` of the slot's data pages.
fn forget_store(block: &Block, effect: &mut Effect, far: u64) {
    let offset = far.wrapping_sub(map::DATA_VA).wrapping_add(map::DATA);
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
