//! Loads and stores of general registers: handlers generic over what is accessed ([`Access`]) and how it is addressed
//! ([`mode`]).
//!
//! As in A64 the base is written back only after the access succeeded, and a miss of the TLB is a tail call of its own.

use std::marker::PhantomData;

use super::alu::operand;
use super::{reg, set};
use crate::cpu::{Cpu, Trap};
use crate::exec::host::Word;
use crate::exec::trap::trap;
use crate::fault::Status;
use crate::op::{Flow, Handler, Op, next};

/// Addressing modes. The offset is `imm`; in the register modes it is `rm`, shifted by `ra` as the low bits of `aux` say
/// ([`operand`]), subtracted if bit 7 of `aux` is set.
pub(in crate::a32) mod mode {
    pub(in crate::a32) const OFFSET: u8 = 0;
    pub(in crate::a32) const PRE: u8 = 1;
    pub(in crate::a32) const POST: u8 = 2;
    /// Post-indexed with EL0's permissions.
    pub(in crate::a32) const UNPRIVILEGED: u8 = 3;
    /// `rm` shifted left by `ra`, added.
    pub(in crate::a32) const LSL: u8 = 4;
    pub(in crate::a32) const REGISTER: u8 = 5;
    pub(in crate::a32) const REGISTER_PRE: u8 = 6;
    pub(in crate::a32) const REGISTER_POST: u8 = 7;
    pub(in crate::a32) const REGISTER_UNPRIVILEGED: u8 = 8;
}

const fn is_unprivileged(mode: u8) -> bool {
    matches!(mode, mode::UNPRIVILEGED | mode::REGISTER_UNPRIVILEGED)
}

const fn is_post(mode: u8) -> bool {
    matches!(mode, mode::POST | mode::REGISTER_POST) || is_unprivileged(mode)
}

#[inline(always)]
fn offset<const MODE: u8>(cpu: &Cpu, op: &Op) -> u32 {
    match MODE {
        mode::OFFSET | mode::PRE | mode::POST | mode::UNPRIVILEGED => op.imm as u32,
        mode::LSL => reg(cpu, op.rm) << (op.ra & 31),
        _ => {
            let (value, amount) = (reg(cpu, op.rm), u32::from(op.ra & 63));
            let shifted = match (op.aux & 0x7f) as u8 {
                operand::REGISTER => value,
                operand::LSL => value << (amount & 31),
                operand::LSR => (u64::from(value) >> amount) as u32,
                operand::ASR => (i64::from(value as i32) >> amount) as u32,
                operand::ROR => value.rotate_right(amount),
                _ => value >> 1 | u32::from(cpu.pstate.nzcv & 2 != 0) << 31,
            };
            if op.aux & 0x80 != 0 { shifted.wrapping_neg() } else { shifted }
        }
    }
}

/// The address of the access.
#[inline(always)]
fn address<const MODE: u8>(cpu: &Cpu, op: &Op) -> u64 {
    let base = reg(cpu, op.rn);
    u64::from(if is_post(MODE) { base } else { base.wrapping_add(offset::<MODE>(cpu, op)) })
}

#[inline(always)]
fn write_back<const MODE: u8>(cpu: &mut Cpu, op: &Op) {
    if is_post(MODE) || matches!(MODE, mode::PRE | mode::REGISTER_PRE) {
        let base = reg(cpu, op.rn).wrapping_add(offset::<MODE>(cpu, op));
        set(cpu, op.rn, base);
    }
}

/// A kind of access, and its handlers.
pub(in crate::a32) trait Access {
    /// Whether it loads.
    const LOADS: bool;
    /// The handler for an addressing mode.
    fn handler<const MODE: u8>() -> Handler;
}

/// A load of a `T`, sign-extended if `SIGNED`.
pub(in crate::a32) struct Load<T, const SIGNED: bool>(PhantomData<T>);
/// A store of a `T`.
pub(in crate::a32) struct Store<T>(PhantomData<T>);
/// LDRD.
pub(in crate::a32) struct LoadDual;
/// STRD.
pub(in crate::a32) struct StoreDual;

impl<T: Word, const SIGNED: bool> Access for Load<T, SIGNED> {
    const LOADS: bool = true;

    fn handler<const MODE: u8>() -> Handler {
        if is_unprivileged(MODE) { load_missed::<T, SIGNED, MODE> } else { load::<T, SIGNED, MODE> }
    }
}

impl<T: Word> Access for Store<T> {
    const LOADS: bool = false;

    fn handler<const MODE: u8>() -> Handler {
        if is_unprivileged(MODE) { store_missed::<T, MODE> } else { store::<T, MODE> }
    }
}

impl Access for LoadDual {
    const LOADS: bool = true;

    fn handler<const MODE: u8>() -> Handler {
        load_dual::<MODE>
    }
}

impl Access for StoreDual {
    const LOADS: bool = false;

    fn handler<const MODE: u8>() -> Handler {
        store_dual::<MODE>
    }
}

#[inline(always)]
fn fill<T: Word, const SIGNED: bool>(value: T) -> u32 {
    let wide = value.wide() as u32;
    let unused = 32 - (8 << T::SHIFT);
    if SIGNED { ((wide << unused) as i32 >> unused) as u32 } else { wide }
}

fn load<T: Word, const SIGNED: bool, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load_hit::<T>(address::<MODE>(cpu, op)) {
        Some(value) => {
            write_back::<MODE>(cpu, op);
            set(cpu, op.rd, fill::<T, SIGNED>(value));
            next(cpu, rest)
        }
        None => load_missed::<T, SIGNED, MODE>(cpu, op, rest),
    }
}

#[cold]
#[inline(never)]
fn load_missed<T: Word, const SIGNED: bool, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = address::<MODE>(cpu, op);
    let loaded = if is_unprivileged(MODE) { cpu.load_unprivileged::<T>(va) } else { cpu.load::<T>(va) };
    match loaded {
        Ok(value) => {
            write_back::<MODE>(cpu, op);
            set(cpu, op.rd, fill::<T, SIGNED>(value));
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

fn store<T: Word, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = T::cut(cpu.x[usize::from(op.rd)]);
    if cpu.store_hit::<T>(address::<MODE>(cpu, op), value) {
        write_back::<MODE>(cpu, op);
        next(cpu, rest)
    } else {
        store_missed::<T, MODE>(cpu, op, rest)
    }
}

#[cold]
#[inline(never)]
fn store_missed<T: Word, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = T::cut(cpu.x[usize::from(op.rd)]);
    let va = address::<MODE>(cpu, op);
    let stored = if is_unprivileged(MODE) { cpu.store_unprivileged::<T>(va, value) } else { cpu.store::<T>(va, value) };
    match stored {
        Ok(()) => {
            write_back::<MODE>(cpu, op);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// The register behind `rd`.
#[inline(always)]
fn second(op: &Op) -> u8 {
    op.rd | 1
}

/// LDRD: aligned to 8 it is one access, so that a descriptor of the long format is never seen half written.
fn load_dual<const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load_hit::<u64>(address::<MODE>(cpu, op)) {
        Some(value) => {
            write_back::<MODE>(cpu, op);
            set(cpu, op.rd, value as u32);
            set(cpu, second(op), (value >> 32) as u32);
            next(cpu, rest)
        }
        None => load_dual_missed::<MODE>(cpu, op, rest),
    }
}

#[cold]
#[inline(never)]
fn load_dual_missed<const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load_two(address::<MODE>(cpu, op)) {
        Ok((low, high)) => {
            write_back::<MODE>(cpu, op);
            set(cpu, op.rd, low);
            set(cpu, second(op), high);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// STRD: one access if aligned to 8.
fn store_dual<const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = u64::from(reg(cpu, second(op))) << 32 | u64::from(reg(cpu, op.rd));
    if cpu.store_hit::<u64>(address::<MODE>(cpu, op), value) {
        write_back::<MODE>(cpu, op);
        next(cpu, rest)
    } else {
        store_dual_missed::<MODE>(cpu, op, rest)
    }
}

#[cold]
#[inline(never)]
fn store_dual_missed<const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (low, high) = (reg(cpu, op.rd), reg(cpu, second(op)));
    match cpu.store_two(address::<MODE>(cpu, op), low, high) {
        Ok(()) => {
            write_back::<MODE>(cpu, op);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

impl Cpu {
    /// An alignment fault unless `va` is aligned to `align`, whatever SCTLR.A (DDI 0487 E2.5.2: LDM, LDRD, VLDR and their kin).
    pub(in crate::a32) fn require_aligned(&mut self, va: u64, align: u64, write: bool) -> Result<(), Trap> {
        let context = self.tlb.context();
        if va & (align - 1) == 0 { Ok(()) } else { Err(self.abort(Status::Alignment, va, write, context)) }
    }

    /// The words of LDRD.
    fn load_two(&mut self, va: u64) -> Result<(u32, u32), Trap> {
        self.require_aligned(va, 4, false)?;
        if va & 7 == 0 {
            let value = self.load::<u64>(va)?;
            return Ok((value as u32, (value >> 32) as u32));
        }
        self.load_pair::<u32>(va)
    }

    /// The words of STRD.
    fn store_two(&mut self, va: u64, low: u32, high: u32) -> Result<(), Trap> {
        self.require_aligned(va, 4, true)?;
        if va & 7 == 0 {
            return self.store::<u64>(va, u64::from(high) << 32 | u64::from(low));
        }
        self.store_pair::<u32>(va, low, high)
    }
}
