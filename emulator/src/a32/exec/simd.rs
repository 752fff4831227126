//! VFP and Advanced SIMD, as far as they move bits: doubleword n is half of register n / 2 of [`Cpu::v`], singleword n a
//! quarter of register n / 4.

use super::{reg, set};
use crate::a32::coprocessor::fp_enabled;
use crate::cpu::{Cpu, Trap};
use crate::exec::host::Word;
use crate::exec::simd::{element, inserted, replicated};
use crate::exec::trap::trap;
use crate::op::{Flow, Op, next};
use crate::tlb::PAGE_BYTES;

/// In [`Op::rm`] of an access to structures: the base gains nothing.
pub(in crate::a32) const NO_INDEX: u8 = 255;
/// In [`Op::rm`] of an access to structures: the base gains the bytes accessed.
pub(in crate::a32) const ASIDE: u8 = 254;

/// The small operands in [`Op::aux`].
pub(in crate::a32) mod with {
    /// The operation is on quadwords.
    pub(in crate::a32) const QUAD: u16 = 0x80;

    /// log2 of an element's bytes, log2 of the alignment that is asked for, and a flag.
    pub(in crate::a32) const fn pack(size: u32, align_shift: u32, flag: u32) -> u16 {
        (size | align_shift << 2 | flag << 5) as u16
    }

    pub(super) fn size(aux: u16) -> u32 {
        u32::from(aux) & 3
    }

    pub(super) fn align(aux: u16) -> u64 {
        1 << (aux >> 2 & 7)
    }

    pub(super) fn flag(aux: u16) -> bool {
        aux & 0x20 != 0
    }
}

#[inline(always)]
fn word(cpu: &Cpu, number: u8) -> u32 {
    (cpu.v[usize::from(number >> 2 & 31)] >> (32 * (number & 3))) as u32
}

#[inline(always)]
fn set_word(cpu: &mut Cpu, number: u8, value: u32) {
    let register = &mut cpu.v[usize::from(number >> 2 & 31)];
    let shift = 32 * (number & 3);
    *register = *register & !(0xffff_ffff << shift) | u128::from(value) << shift;
}

#[inline(always)]
fn double(cpu: &Cpu, number: u8) -> u64 {
    let register = cpu.v[usize::from(number >> 1 & 31)];
    // A choice of halves, as a shift of 128 bits by a variable is several instructions.
    if number & 1 == 0 { register as u64 } else { (register >> 64) as u64 }
}

#[inline(always)]
fn set_double(cpu: &mut Cpu, number: u8, value: u64) {
    let register = &mut cpu.v[usize::from(number >> 1 & 31)];
    let low = u128::from(u64::MAX);
    *register =
        if number & 1 == 0 { *register & !low | u128::from(value) } else { *register & low | u128::from(value) << 64 };
}

/// Sets a doubleword or, if the op is on quadwords, two.
#[inline(always)]
fn set_result(cpu: &mut Cpu, op: &Op, value: impl Fn(&Cpu, u8) -> u64) {
    let first = value(cpu, 0);
    if op.aux & with::QUAD != 0 {
        let second = value(cpu, 1);
        set_double(cpu, op.rd + 1, second);
    }
    set_double(cpu, op.rd, first);
}

/// Does `what` if VFP and Advanced SIMD are enabled.
#[inline(always)]
fn enabled(cpu: &mut Cpu, op: &Op, rest: &[Op], what: impl FnOnce(&mut Cpu)) -> Flow {
    if !fp_enabled(cpu) {
        return trap(cpu, op, rest, Trap::Undefined);
    }
    what(cpu);
    next(cpu, rest)
}

/// As [`enabled`], of what may abort.
#[inline(always)]
fn enabled_access(cpu: &mut Cpu, op: &Op, rest: &[Op], what: impl FnOnce(&mut Cpu) -> Result<(), Trap>) -> Flow {
    let done = if fp_enabled(cpu) { what(cpu) } else { Err(Trap::Undefined) };
    match done {
        Ok(()) => next(cpu, rest),
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// The address of VLDR, VLDM and their kin.
fn start(cpu: &Cpu, op: &Op) -> u64 {
    u64::from(reg(cpu, op.rn).wrapping_add((op.imm >> 32) as u32))
}

fn gain(cpu: &mut Cpu, op: &Op) {
    let gain = op.imm as u32;
    if gain != 0 {
        let base = reg(cpu, op.rn).wrapping_add(gain);
        set(cpu, op.rn, base);
    }
}

/// VLDR and VLDM: `ra` words from word `rd`.
pub(in crate::a32) fn load_words(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled_access(cpu, op, rest, |cpu| {
        let mut words = [0; 32];
        let words = &mut words[..usize::from(op.ra).min(32)];
        if let [word] = words {
            // A device may answer a single word.
            let va = start(cpu, op);
            cpu.require_aligned(va, 4, false)?;
            *word = cpu.load::<u32>(va)?;
        } else {
            cpu.load_words(start(cpu, op), words)?;
        }
        for (index, &mut word) in words.iter_mut().enumerate() {
            set_word(cpu, op.rd + index as u8, word);
        }
        gain(cpu, op);
        Ok(())
    })
}

/// VSTR and VSTM: `ra` words from word `rd`.
pub(in crate::a32) fn store_words(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled_access(cpu, op, rest, |cpu| {
        let mut words = [0; 32];
        let words = &mut words[..usize::from(op.ra).min(32)];
        for (index, slot) in words.iter_mut().enumerate() {
            *slot = word(cpu, op.rd + index as u8);
        }
        if let [word] = words {
            let va = start(cpu, op);
            cpu.require_aligned(va, 4, true)?;
            cpu.store::<u32>(va, *word)?;
        } else {
            cpu.store_words(start(cpu, op), words)?;
        }
        gain(cpu, op);
        Ok(())
    })
}

/// Adds what the base of an access to structures gains: nothing, `len`, or a register.
#[inline(always)]
fn move_base(cpu: &mut Cpu, op: &Op, len: u32) {
    let gain = match op.rm {
        NO_INDEX => return,
        ASIDE => len,
        register => reg(cpu, register),
    };
    let base = reg(cpu, op.rn).wrapping_add(gain);
    set(cpu, op.rn, base);
}

/// Whether `count` doublewords at `va` lie in one page.
#[inline(always)]
fn in_one_page(va: u64, count: u8) -> bool {
    va % PAGE_BYTES + 8 * u64::from(count) <= PAGE_BYTES
}

/// VLD1 of `ra` doublewords.
pub(in crate::a32) fn load_structures(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled_access(cpu, op, rest, |cpu| {
        let va = u64::from(reg(cpu, op.rn));
        cpu.require_aligned(va, with::align(op.aux), false)?;
        match cpu.tlb.read::<3>(va) {
            Some(host) if in_one_page(va, op.ra) => {
                for index in 0..op.ra {
                    set_double(cpu, op.rd + index, u64::load(host + 8 * u64::from(index)));
                }
            }
            _ => {
                let mut loaded = [0; 4];
                let loaded = &mut loaded[..usize::from(op.ra & 7).min(4)];
                cpu.load_elements(va, with::size(op.aux), loaded)?;
                for (index, &mut value) in loaded.iter_mut().enumerate() {
                    set_double(cpu, op.rd + index as u8, value);
                }
            }
        }
        move_base(cpu, op, 8 * u32::from(op.ra));
        Ok(())
    })
}

/// VST1 of `ra` doublewords.
pub(in crate::a32) fn store_structures(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled_access(cpu, op, rest, |cpu| {
        let va = u64::from(reg(cpu, op.rn));
        cpu.require_aligned(va, with::align(op.aux), true)?;
        match cpu.tlb.write::<3>(va) {
            Some(host) if in_one_page(va, op.ra) => {
                for index in 0..op.ra {
                    u64::store(host + 8 * u64::from(index), double(cpu, op.rd + index));
                }
            }
            _ => {
                let stored: [u64; 4] = std::array::from_fn(|index| double(cpu, (op.rd + index as u8) & 63));
                cpu.store_elements(va, with::size(op.aux), &stored[..usize::from(op.ra & 7).min(4)])?;
            }
        }
        move_base(cpu, op, 8 * u32::from(op.ra));
        Ok(())
    })
}

/// VLD1 of lane `ra`.
pub(in crate::a32) fn load_lane(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled_access(cpu, op, rest, |cpu| {
        let (va, size) = (u64::from(reg(cpu, op.rn)), with::size(op.aux));
        cpu.require_aligned(va, with::align(op.aux), false)?;
        let value = cpu.load_element(va, size)?;
        let merged = inserted(double(cpu, op.rd).into(), value, op.ra.into(), 8 << size);
        set_double(cpu, op.rd, merged as u64);
        move_base(cpu, op, 1 << size);
        Ok(())
    })
}

/// VST1 of lane `ra`.
pub(in crate::a32) fn store_lane(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled_access(cpu, op, rest, |cpu| {
        let (va, size) = (u64::from(reg(cpu, op.rn)), with::size(op.aux));
        cpu.require_aligned(va, with::align(op.aux), true)?;
        let value = element(double(cpu, op.rd).into(), op.ra.into(), 8 << size);
        cpu.store_element(va, size, value)?;
        move_base(cpu, op, 1 << size);
        Ok(())
    })
}

/// VLD1 to all lanes of `ra` doublewords.
pub(in crate::a32) fn load_all_lanes(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled_access(cpu, op, rest, |cpu| {
        let (va, size) = (u64::from(reg(cpu, op.rn)), with::size(op.aux));
        cpu.require_aligned(va, with::align(op.aux), false)?;
        let value = replicated(cpu.load_element(va, size)?, 8 << size) as u64;
        for index in 0..op.ra {
            set_double(cpu, op.rd + index, value);
        }
        move_base(cpu, op, 1 << size);
        Ok(())
    })
}

impl Cpu {
    /// Loads doublewords from `va` by elements of `1 << size` bytes: what SCTLR.A checks is an element.
    fn load_elements(&mut self, va: u64, size: u32, out: &mut [u64]) -> Result<(), Trap> {
        self.probe_load(va, 8 * out.len() as u64)?;
        let mut at = va as u32;
        for value in out {
            *value = 0;
            for index in 0..8 >> size {
                let element = self.load_element(at.into(), size)?;
                *value |= element << (index * (8 << size));
                at = at.wrapping_add(1 << size);
            }
        }
        Ok(())
    }

    /// Stores doublewords to `va` by elements.
    fn store_elements(&mut self, va: u64, size: u32, values: &[u64]) -> Result<(), Trap> {
        self.probe_store(va, 8 * values.len() as u64)?;
        let mut at = va as u32;
        for &value in values {
            for index in 0..8 >> size {
                self.store_element(at.into(), size, element(value.into(), index, 8 << size))?;
                at = at.wrapping_add(1 << size);
            }
        }
        Ok(())
    }
}

/// VMOV of two words from word `rm` to `rd` and `ra`.
pub(in crate::a32) fn two_words_to_general(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| {
        let (low, high) = (word(cpu, op.rm), word(cpu, op.rm + 1));
        set(cpu, op.rd, low);
        set(cpu, op.ra, high);
    })
}

/// VMOV of `rd` and `ra` to two words from word `rm`.
pub(in crate::a32) fn two_words_from_general(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| {
        let (low, high) = (reg(cpu, op.rd), reg(cpu, op.ra));
        set_word(cpu, op.rm, low);
        set_word(cpu, op.rm + 1, high);
    })
}

/// VMOV of element `ra` of doubleword `rm` to `rd`, sign-extended if the flag says so.
pub(in crate::a32) fn scalar_to_general(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| {
        let bits = 8 << with::size(op.aux);
        let value = element(double(cpu, op.rm).into(), op.ra.into(), bits) as u32;
        let unused = 32 - bits;
        let extended = if with::flag(op.aux) { ((value << unused) as i32 >> unused) as u32 } else { value };
        set(cpu, op.rd, extended);
    })
}

/// VMOV of `rd` to element `ra` of doubleword `rm`.
pub(in crate::a32) fn general_to_scalar(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| {
        let value = reg(cpu, op.rd).into();
        let merged = inserted(double(cpu, op.rm).into(), value, op.ra.into(), 8 << with::size(op.aux));
        set_double(cpu, op.rm, merged as u64);
    })
}

/// VDUP of element `ra` of doubleword `rm`.
pub(in crate::a32) fn duplicate_scalar(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| {
        let bits = 8 << with::size(op.aux);
        let value = replicated(element(double(cpu, op.rm).into(), op.ra.into(), bits), bits) as u64;
        set_result(cpu, op, |_, _| value);
    })
}

/// VDUP of `rn`.
pub(in crate::a32) fn duplicate_general(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| {
        let value = replicated(reg(cpu, op.rn).into(), 8 << with::size(op.aux)) as u64;
        set_result(cpu, op, |_, _| value);
    })
}

/// The bitwise operations.
pub(in crate::a32) mod bitwise {
    pub(in crate::a32) const AND: u8 = 0;
    pub(in crate::a32) const BIC: u8 = 1;
    pub(in crate::a32) const ORR: u8 = 2;
    pub(in crate::a32) const ORN: u8 = 3;
    pub(in crate::a32) const EOR: u8 = 4;
    pub(in crate::a32) const BSL: u8 = 5;
    pub(in crate::a32) const BIT: u8 = 6;
    pub(in crate::a32) const BIF: u8 = 7;
}

/// VAND and its kin.
pub(in crate::a32) fn bitwise<const KIND: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| {
        set_result(cpu, op, |cpu, part| {
            let (d, n, m) = (double(cpu, op.rd + part), double(cpu, op.rn + part), double(cpu, op.rm + part));
            match KIND {
                bitwise::AND => n & m,
                bitwise::BIC => n & !m,
                bitwise::ORR => n | m,
                bitwise::ORN => n | !m,
                bitwise::EOR => n ^ m,
                bitwise::BSL => n & d | m & !d,
                bitwise::BIT => n & m | d & !m,
                _ => n & !m | d & m,
            }
        });
    })
}

/// VADD and VSUB of integers of `8 << ra` bits.
pub(in crate::a32) fn add<const SUB: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| {
        let bits = 8_u32 << (op.ra & 3);
        set_result(cpu, op, |cpu, part| {
            let (n, m) = (u128::from(double(cpu, op.rn + part)), u128::from(double(cpu, op.rm + part)));
            (0..64 / bits).fold(0, |sum, index| {
                let (a, b) = (element(n, index, bits), element(m, index, bits));
                inserted(sum, if SUB { a.wrapping_sub(b) } else { a.wrapping_add(b) }, index, bits)
            }) as u64
        });
    })
}

/// VMOV and VMVN of an immediate.
pub(in crate::a32) fn set_immediate(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| set_result(cpu, op, |_, _| op.imm))
}

/// VORR of an immediate.
pub(in crate::a32) fn or_immediate(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| set_result(cpu, op, |cpu, part| double(cpu, op.rd + part) | op.imm))
}

/// VBIC of an immediate.
pub(in crate::a32) fn clear_immediate(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| set_result(cpu, op, |cpu, part| double(cpu, op.rd + part) & !op.imm))
}

/// VMOV of an immediate to word `rd`.
pub(in crate::a32) fn set_word_immediate(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    enabled(cpu, op, rest, |cpu| set_word(cpu, op.rd, op.imm as u32))
}

/// VMOV, VABS and VNEG of doublewords (`WIDE`) or words: clears the bits in the high half of `imm`, inverts those in the low half.
pub(in crate::a32) fn float_move<const WIDE: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (clear, invert) = ((op.imm >> 32) as u32, op.imm as u32);
    enabled(cpu, op, rest, |cpu| {
        if WIDE {
            let value = double(cpu, op.rm);
            set_double(cpu, op.rd, value & !(u64::from(clear) << 32) ^ u64::from(invert) << 32);
        } else {
            let value = word(cpu, op.rm);
            set_word(cpu, op.rd, value & !clear ^ invert);
        }
    })
}
