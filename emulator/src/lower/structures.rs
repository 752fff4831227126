//! Lowering of SIMD loads and stores of structures (DDI 0487 C4.1.94.2 to C4.1.94.5).

use super::{Insn, Lowered, stack};
use crate::cpu::REG_SINK;
use crate::exec::simd::structures::{self, Structures};
use crate::exec::trap;
use crate::op::{Handler, Op};

/// An op with the checks before it, for an instruction with or without writeback (bit 23).
fn checked(insn: Insn, run: Handler, shape: Structures) -> Lowered {
    Lowered::Op(Op {
        run: if insn.rn() == 31 { trap::fp_checked::<true> } else { trap::fp_checked::<false> },
        then: run,
        rd: insn.rd(),
        rn: stack(insn.rn()),
        rm: if insn.bit(23) { insn.rm() } else { REG_SINK },
        aux: shape.pack(),
        ..insn.op(run)
    })
}

/// LD1 to LD4 and ST1 to ST4 of whole registers.
pub(super) fn multiple(insn: Insn) -> Lowered {
    let (repeats, members) = match insn.field(12, 4) {
        0b0000 => (1, 4),
        0b0010 => (4, 1),
        0b0100 => (1, 3),
        0b0110 => (3, 1),
        0b0111 => (1, 1),
        0b1000 => (1, 2),
        0b1010 => (2, 1),
        _ => return Lowered::Reserved,
    };
    let shape = Structures { size: insn.field(10, 2), members, repeats, full: insn.bit(30), index: 0 };
    if shape.size == 3 && !shape.full && members != 1 {
        return Lowered::Reserved;
    }
    let run: Handler = if insn.bit(22) { structures::load_multiple } else { structures::store_multiple };
    checked(insn, run, shape)
}

/// LD1 to LD4 and ST1 to ST4 of one element a register, and LD1R to LD4R.
pub(super) fn single(insn: Insn) -> Lowered {
    let (full, s, size, load) = (insn.bit(30), insn.bit(12), insn.field(10, 2), insn.bit(22));
    let members = (insn.field(13, 1) << 1 | insn.field(21, 1)) + 1;
    // Q:S:size, of which the element's size leaves the upper bits.
    let position = insn.field(30, 1) << 3 | insn.field(12, 1) << 2 | size;
    let (size, index, replicate) = match (insn.field(14, 2), size) {
        (0, _) => (0, position, false),
        (1, 0 | 2) => (1, position >> 1, false),
        (2, 0) => (2, position >> 2, false),
        (2, 1) if !s => (3, position >> 3, false),
        (3, _) if load && !s => (size, 0, true),
        _ => return Lowered::Reserved,
    };
    let run: Handler = match (load, replicate) {
        (true, true) => structures::load_single::<true>,
        (true, false) => structures::load_single::<false>,
        (false, _) => structures::store_single,
    };
    checked(insn, run, Structures { size, members, repeats: 1, full, index })
}
