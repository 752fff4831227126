//! Loads and stores of structures: LD1 to LD4, ST1 to ST4, whole registers, single elements, and LD1R to LD4R.
//!
//! Elements are accessed one by one in ascending order of address, as the pseudocode does. An instruction of more than one
//! access first checks that RAM answers for all of it: nothing is loaded or stored unless everything can be.

use super::{element, inserted, replicated, set_v, v};
use crate::cpu::{Cpu, REG_SINK, Trap};
use crate::exec::trap::trap;
use crate::op::{Flow, Op, next};

/// The operands of an access to structures, as `lower::simd` packs them into [`Op::imm`] and [`Op::aux`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Structures {
    /// log2 of the bytes of an element.
    pub(crate) size: u32,
    /// Registers that hold one structure (`selem`).
    pub(crate) members: u32,
    /// How often the structure's registers repeat (`rpt`, LD1 and ST1 of several registers).
    pub(crate) repeats: u32,
    /// Whether registers are 128 bits.
    pub(crate) full: bool,
    /// The element of a single structure.
    pub(crate) index: u32,
}

impl Structures {
    /// For [`Op::aux`].
    pub(crate) fn pack(self) -> u16 {
        (self.size | self.members << 2 | self.repeats << 5 | u32::from(self.full) << 8 | self.index << 9) as u16
    }

    fn of(op: &Op) -> Self {
        let field = |low: u32, len: u32| u32::from(op.aux) >> low & ((1 << len) - 1);
        Self {
            size: field(0, 2),
            members: field(2, 3),
            repeats: field(5, 3),
            full: field(8, 1) != 0,
            index: field(9, 4),
        }
    }

    fn bits(self) -> u32 {
        8 << self.size
    }

    fn lanes(self) -> u32 {
        if self.full { 128 / self.bits() } else { 64 / self.bits() }
    }

    /// The register and the element of each access of an instruction on whole registers, in order of address.
    fn accesses(self, first: u8) -> impl Iterator<Item = (u8, u32)> {
        (0..self.repeats).flat_map(move |repeat| {
            (0..self.lanes()).flat_map(move |lane| {
                (0..self.members).map(move |member| (first.wrapping_add((repeat + member) as u8), lane))
            })
        })
    }
}

impl Cpu {
    pub(crate) fn load_element(&mut self, va: u64, size: u32) -> Result<u64, Trap> {
        Ok(match size {
            0 => self.load::<u8>(va)?.into(),
            1 => self.load::<u16>(va)?.into(),
            2 => self.load::<u32>(va)?.into(),
            _ => self.load::<u64>(va)?,
        })
    }

    pub(crate) fn store_element(&mut self, va: u64, size: u32, value: u64) -> Result<(), Trap> {
        match size {
            0 => self.store::<u8>(va, value as u8),
            1 => self.store::<u16>(va, value as u16),
            2 => self.store::<u32>(va, value as u32),
            _ => self.store::<u64>(va, value),
        }
    }
}

/// Adds the post-index offset: the register `rm`, or the bytes accessed where that is 31. Without writeback `rm` is the sink.
fn write_back(cpu: &mut Cpu, op: &Op, len: u64) {
    let offset = match op.rm {
        REG_SINK => return,
        31 => len,
        register => cpu.x[usize::from(register)],
    };
    let base = &mut cpu.x[usize::from(op.rn)];
    *base = base.wrapping_add(offset);
}

/// LD1 to LD4 of whole registers.
pub(crate) fn load_multiple(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let shape = Structures::of(op);
    let va = cpu.x[usize::from(op.rn)];
    let len = u64::from(shape.repeats * shape.members * shape.lanes()) << shape.size;
    let mut loaded = [0_u128; 4];
    let mut load = |cpu: &mut Cpu| {
        cpu.check_aligned(va, shape.size, false)?;
        cpu.probe_load(va, len)?;
        let mut at = va;
        for (register, lane) in shape.accesses(0) {
            let value = cpu.load_element(at, shape.size)?;
            let slot = &mut loaded[usize::from(register)];
            *slot = inserted(*slot, value, lane, shape.bits());
            at = at.wrapping_add(1 << shape.size);
        }
        Ok(())
    };
    match load(cpu) {
        Ok(()) => {
            for index in 0..(shape.repeats * shape.members).min(4) as u8 {
                set_v(cpu, op.rd.wrapping_add(index), loaded[usize::from(index)]);
            }
            write_back(cpu, op, len);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// ST1 to ST4 of whole registers.
pub(crate) fn store_multiple(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let shape = Structures::of(op);
    let va = cpu.x[usize::from(op.rn)];
    let len = u64::from(shape.repeats * shape.members * shape.lanes()) << shape.size;
    let store = |cpu: &mut Cpu| {
        cpu.check_aligned(va, shape.size, true)?;
        cpu.probe_store(va, len)?;
        let mut at = va;
        for (register, lane) in shape.accesses(op.rd) {
            let value = element(v(cpu, register), lane, shape.bits());
            cpu.store_element(at, shape.size, value)?;
            at = at.wrapping_add(1 << shape.size);
        }
        Ok(())
    };
    match store(cpu) {
        Ok(()) => {
            write_back(cpu, op, len);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LD1 to LD4 of a single structure; with `REPLICATE`, LD1R to LD4R.
pub(crate) fn load_single<const REPLICATE: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let shape = Structures::of(op);
    let va = cpu.x[usize::from(op.rn)];
    let len = u64::from(shape.members) << shape.size;
    let mut loaded = [0_u64; 4];
    let mut load = |cpu: &mut Cpu| {
        cpu.check_aligned(va, shape.size, false)?;
        if shape.members > 1 {
            cpu.probe_load(va, len)?;
        }
        for member in 0..shape.members {
            let at = va.wrapping_add(u64::from(member) << shape.size);
            loaded[member as usize & 3] = cpu.load_element(at, shape.size)?;
        }
        Ok(())
    };
    match load(cpu) {
        Ok(()) => {
            for member in 0..shape.members as u8 {
                let register = op.rd.wrapping_add(member);
                let value = loaded[usize::from(member & 3)];
                let result = match (REPLICATE, shape.full) {
                    (true, true) => replicated(value, shape.bits()),
                    (true, false) => replicated(value, shape.bits()) & u128::from(u64::MAX),
                    (false, _) => inserted(v(cpu, register), value, shape.index, shape.bits()),
                };
                set_v(cpu, register, result);
            }
            write_back(cpu, op, len);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// ST1 to ST4 of a single structure.
pub(crate) fn store_single(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let shape = Structures::of(op);
    let va = cpu.x[usize::from(op.rn)];
    let len = u64::from(shape.members) << shape.size;
    let store = |cpu: &mut Cpu| {
        cpu.check_aligned(va, shape.size, true)?;
        if shape.members > 1 {
            cpu.probe_store(va, len)?;
        }
        for member in 0..shape.members {
            let value = element(v(cpu, op.rd.wrapping_add(member as u8)), shape.index, shape.bits());
            cpu.store_element(va.wrapping_add(u64::from(member) << shape.size), shape.size, value)?;
        }
        Ok(())
    };
    match store(cpu) {
        Ok(()) => {
            write_back(cpu, op, len);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}
