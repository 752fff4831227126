//! LDM and STM, and the words of VLDM and VSTM: several words at consecutive addresses.
//!
//! The usual case is one look into the TLB and a copy. Otherwise every page is known to answer before the first word is moved, so
//! that an abort in the middle leaves registers and memory as they were. Devices abort: one answer of the host cannot carry them.

use super::guard::{branch_exchange, exception_return};
use super::{reg, set};
use crate::a32::Mode;
use crate::cpu::{Cpu, Trap};
use crate::exec::host::Word;
use crate::exec::trap::trap;
use crate::op::{Flow, Op, next};
use crate::tlb::PAGE_BYTES;

/// What writeback does to the base, for [`Op::aux`].
pub(in crate::a32) const STAYS: u16 = 0;
pub(in crate::a32) const RISES: u16 = 1;
pub(in crate::a32) const FALLS: u16 = 2;

/// The bit of R15 in a list.
const PC: u32 = 1 << 15;

/// The lowest address of the access.
#[inline(always)]
fn start(cpu: &Cpu, op: &Op) -> u64 {
    u64::from(reg(cpu, op.rn).wrapping_add((op.imm >> 32) as u32))
}

#[inline(always)]
fn write_back(cpu: &mut Cpu, op: &Op) {
    let len = 4 * u32::from(op.ra);
    let base = reg(cpu, op.rn);
    match op.aux & 0xff {
        STAYS => {}
        RISES => set(cpu, op.rn, base.wrapping_add(len)),
        _ => set(cpu, op.rn, base.wrapping_sub(len)),
    }
}

/// The registers of a list, ascending.
struct Registers(u32);

impl Iterator for Registers {
    type Item = u8;

    #[inline(always)]
    fn next(&mut self) -> Option<u8> {
        if self.0 == 0 {
            return None;
        }
        let lowest = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(lowest as u8)
    }
}

/// The part of an access of `words` words that lies in one page.
#[inline(always)]
fn in_one_page(va: u64, words: u8) -> bool {
    va % PAGE_BYTES + 4 * u64::from(words) <= PAGE_BYTES
}

/// LDM; with `TO_PC` R15 is in the list.
pub(in crate::a32) fn load<const TO_PC: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = start(cpu, op);
    match cpu.tlb.read::<2>(va) {
        Some(mut host) if in_one_page(va, op.ra) => {
            write_back(cpu, op);
            for register in Registers(op.imm as u32 & 0x7fff) {
                set(cpu, register, u32::load(host));
                host += 4;
            }
            if TO_PC { branch_exchange(cpu, op, rest, u32::load(host)) } else { next(cpu, rest) }
        }
        _ => load_slow::<TO_PC>(cpu, op, rest),
    }
}

#[cold]
#[inline(never)]
fn load_slow<const TO_PC: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let mut words = [0; 16];
    let va = start(cpu, op);
    match cpu.load_words(va, &mut words[..usize::from(op.ra & 31).min(16)]) {
        Ok(()) => {
            write_back(cpu, op);
            let mut loaded = words.into_iter();
            for (register, word) in Registers(op.imm as u32 & 0x7fff).zip(&mut loaded) {
                set(cpu, register, word);
            }
            if TO_PC { branch_exchange(cpu, op, rest, loaded.next().unwrap_or(0)) } else { next(cpu, rest) }
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// What STM stores of a register: R15 reads as the instruction's address and 8.
#[inline(always)]
fn stored(cpu: &Cpu, op: &Op, register: u8) -> u32 {
    if register == 15 { (cpu.op_pc(op) as u32).wrapping_add(8) } else { reg(cpu, register) }
}

/// STM.
pub(in crate::a32) fn store(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = start(cpu, op);
    match cpu.tlb.write::<2>(va) {
        Some(mut host) if in_one_page(va, op.ra) => {
            for register in Registers(op.imm as u32 & 0xffff) {
                u32::store(host, stored(cpu, op, register));
                host += 4;
            }
            write_back(cpu, op);
            next(cpu, rest)
        }
        _ => store_slow(cpu, op, rest),
    }
}

#[cold]
#[inline(never)]
fn store_slow(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let mut words = [0; 16];
    let va = start(cpu, op);
    for (word, register) in words.iter_mut().zip(Registers(op.imm as u32 & 0xffff)) {
        *word = stored(cpu, op, register);
    }
    match cpu.store_words(va, &words[..usize::from(op.ra & 31).min(16)]) {
        Ok(()) => {
            write_back(cpu, op);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDM (User registers). UNPREDICTABLE in User mode, and UNDEFINED here.
pub(in crate::a32) fn load_user(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if cpu.mode() == Mode::User {
        return trap(cpu, op, rest, Trap::Undefined);
    }
    let mut words = [0; 16];
    let va = start(cpu, op);
    match cpu.load_words(va, &mut words[..usize::from(op.ra & 31).min(16)]) {
        Ok(()) => {
            for (register, word) in Registers(op.imm as u32 & 0x7fff).zip(words) {
                cpu.set_banked(Mode::User, register, word);
            }
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// STM (User registers). UNPREDICTABLE in User mode, and UNDEFINED here.
pub(in crate::a32) fn store_user(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if cpu.mode() == Mode::User {
        return trap(cpu, op, rest, Trap::Undefined);
    }
    let mut words = [0; 16];
    let va = start(cpu, op);
    for (word, register) in words.iter_mut().zip(Registers(op.imm as u32 & 0xffff)) {
        *word = if register == 15 { stored(cpu, op, 15) } else { cpu.banked(Mode::User, register) };
    }
    match cpu.store_words(va, &words[..usize::from(op.ra & 31).min(16)]) {
        Ok(()) => next(cpu, rest),
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDM (exception return): R15 is in the list, and CPSR comes from SPSR. UNDEFINED where there is none.
pub(in crate::a32) fn load_and_return(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let Some(spsr) = cpu.spsr32() else { return trap(cpu, op, rest, Trap::Undefined) };
    debug_assert!(op.imm as u32 & PC != 0, "the list has R15");
    let mut words = [0; 16];
    let va = start(cpu, op);
    match cpu.load_words(va, &mut words[..usize::from(op.ra & 31).min(16)]) {
        Ok(()) => {
            write_back(cpu, op);
            let mut loaded = words.into_iter();
            for (register, word) in Registers(op.imm as u32 & 0x7fff).zip(&mut loaded) {
                set(cpu, register, word);
            }
            exception_return(cpu, rest, loaded.next().unwrap_or(0), spsr)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

impl Cpu {
    /// Loads consecutive words (at most a page of them) from `va`.
    ///
    /// # Errors
    /// As [`Cpu::load`]; misalignment faults whatever SCTLR.A.
    pub(in crate::a32) fn load_words(&mut self, va: u64, words: &mut [u32]) -> Result<(), Trap> {
        self.require_aligned(va, 4, false)?;
        self.probe_load(va, 4 * words.len() as u64)?;
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.load::<u32>(u64::from((va as u32).wrapping_add(4 * index as u32)))?;
        }
        Ok(())
    }

    /// Stores consecutive words (at most a page of them) to `va`.
    ///
    /// # Errors
    /// As [`Cpu::load_words`]; then nothing was stored.
    pub(in crate::a32) fn store_words(&mut self, va: u64, words: &[u32]) -> Result<(), Trap> {
        self.require_aligned(va, 4, true)?;
        self.probe_store(va, 4 * words.len() as u64)?;
        for (index, &word) in words.iter().enumerate() {
            self.store::<u32>(u64::from((va as u32).wrapping_add(4 * index as u32)), word)?;
        }
        Ok(())
    }
}
