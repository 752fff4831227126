//! Lowering of exclusives, load-acquire and store-release, whose handlers A64 shares. Register 15 is UNPREDICTABLE.

use super::{Insn, Lowered};
use crate::exec::atomic;
use crate::op::{Handler, Op};

/// The size field in bits 22:21.
const WORD: u32 = 0;
const DOUBLE: u32 = 1;
const BYTE: u32 = 2;

/// Whether the pair of registers from `first` exists.
fn is_pair(first: u8) -> bool {
    first & 1 == 0 && first != 14
}

/// LDREX, LDAEX and their kin: the monitor's barriers are full ones.
pub(in crate::a32) fn load(insn: Insn) -> Lowered {
    let (rt, size) = (insn.reg(12), insn.field(21, 2));
    if insn.uses_pc(&[12, 16]) || size == DOUBLE && !is_pair(rt) {
        return Lowered::Reserved;
    }
    let run: Handler = match size {
        WORD => atomic::load_exclusive::<u32>,
        DOUBLE => atomic::load_exclusive_pair::<false>,
        BYTE => atomic::load_exclusive::<u8>,
        _ => atomic::load_exclusive::<u16>,
    };
    Lowered::Op(Op { rd: rt, ra: rt | 1, rn: insn.reg(16), ..insn.op(run) })
}

/// STREX, STLEX and their kin.
pub(in crate::a32) fn store(insn: Insn) -> Lowered {
    let (rd, rt, rn, size) = (insn.reg(12), insn.reg(0), insn.reg(16), insn.field(21, 2));
    let clashes = rd == rn || rd == rt || size == DOUBLE && (rd == rt | 1 || !is_pair(rt));
    if insn.uses_pc(&[0, 12, 16]) || clashes {
        return Lowered::Reserved;
    }
    let run: Handler = match size {
        WORD => atomic::store_exclusive::<u32>,
        DOUBLE => atomic::store_exclusive_pair::<false>,
        BYTE => atomic::store_exclusive::<u8>,
        _ => atomic::store_exclusive::<u16>,
    };
    Lowered::Op(Op { rd: rt, ra: rt | 1, rm: rd, rn, ..insn.op(run) })
}

/// LDA, LDAB, LDAH.
pub(in crate::a32) fn load_acquire(insn: Insn) -> Lowered {
    if insn.uses_pc(&[12, 16]) {
        return Lowered::Reserved;
    }
    let run: Handler = match insn.field(21, 2) {
        WORD => atomic::load_acquire::<u32>,
        BYTE => atomic::load_acquire::<u8>,
        _ => atomic::load_acquire::<u16>,
    };
    Lowered::Op(Op { rd: insn.reg(12), rn: insn.reg(16), ..insn.op(run) })
}

/// STL, STLB, STLH.
pub(in crate::a32) fn store_release(insn: Insn) -> Lowered {
    if insn.uses_pc(&[0, 16]) {
        return Lowered::Reserved;
    }
    let run: Handler = match insn.field(21, 2) {
        WORD => atomic::store_release::<u32>,
        BYTE => atomic::store_release::<u8>,
        _ => atomic::store_release::<u16>,
    };
    Lowered::Op(Op { rd: insn.reg(0), rn: insn.reg(16), ..insn.op(run) })
}
