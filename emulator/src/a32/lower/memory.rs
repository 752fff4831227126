//! Lowering of loads and stores of general registers.
//!
//! A writeback to the base that is also loaded or stored, or to the program counter, is UNPREDICTABLE, and UNDEFINED here.

use super::data::shift;
use super::{Insn, Lowered, destination, source};
use crate::a32::exec::block;
use crate::a32::exec::loadstore::{self as run, Access, mode};
use crate::cpu::REG_ZERO;
use crate::op::{Handler, Op};

/// The addressing mode in bits P (24) and W (21), and the offset.
enum Indexing {
    Offset,
    Pre,
    Post,
    Unprivileged,
}

fn indexing(insn: Insn) -> Indexing {
    match (insn.bit(24), insn.bit(21)) {
        (true, false) => Indexing::Offset,
        (true, true) => Indexing::Pre,
        (false, false) => Indexing::Post,
        (false, true) => Indexing::Unprivileged,
    }
}

/// The op of an access with an immediate offset.
fn with_immediate<A: Access>(insn: Insn, offset: u32) -> Lowered {
    let signed = if insn.bit(23) { offset } else { offset.wrapping_neg() };
    let op = Op { imm: u64::from(signed), ..based(insn, A::LOADS) };
    let op = match indexing(insn) {
        // The address is known where the base is the program counter.
        Indexing::Offset if insn.reg(16) == 15 => {
            let imm = u64::from((insn.pc_read() & !3).wrapping_add(signed));
            Op { rn: REG_ZERO, imm, run: A::handler::<{ mode::OFFSET }>(), ..op }
        }
        Indexing::Offset => Op { run: A::handler::<{ mode::OFFSET }>(), ..op },
        Indexing::Pre => Op { run: A::handler::<{ mode::PRE }>(), ..op },
        Indexing::Post => Op { run: A::handler::<{ mode::POST }>(), ..op },
        Indexing::Unprivileged => Op { run: A::handler::<{ mode::UNPRIVILEGED }>(), ..op },
    };
    Lowered::Op(op)
}

/// The op of an access with a register as offset, shifted as `DecodeImmShift` says.
fn with_register<A: Access>(insn: Insn, kind: u32, amount: u32) -> Lowered {
    let (kind, amount) = shift(kind, amount);
    let down = !insn.bit(23);
    let plain = !down && matches!(kind, crate::a32::exec::alu::operand::REGISTER | crate::a32::exec::alu::operand::LSL);
    let aux = u16::from(kind) | u16::from(down) << 7;
    let op = Op { rm: insn.reg(0), ra: amount, aux, ..based(insn, A::LOADS) };
    let run: Handler = match indexing(insn) {
        Indexing::Offset if plain => A::handler::<{ mode::LSL }>(),
        Indexing::Offset => A::handler::<{ mode::REGISTER }>(),
        Indexing::Pre => A::handler::<{ mode::REGISTER_PRE }>(),
        Indexing::Post => A::handler::<{ mode::REGISTER_POST }>(),
        Indexing::Unprivileged => A::handler::<{ mode::REGISTER_UNPRIVILEGED }>(),
    };
    Lowered::Op(Op { run, ..op })
}

/// The base and the register loaded or stored.
fn based(insn: Insn, loads: bool) -> Op {
    let rt = insn.reg(12);
    Op {
        rd: if loads { destination(rt) } else { source(rt) },
        rn: source(insn.reg(16)),
        ..insn.op(crate::a32::exec::alu::nothing)
    }
}

fn writes_back(insn: Insn) -> bool {
    !matches!(indexing(insn), Indexing::Offset)
}

/// Whether the writeback, if there is one, is to the register loaded or stored, or to the program counter.
fn clashes(insn: Insn) -> bool {
    writes_back(insn) && (insn.uses_pc(&[16]) || insn.reg(16) == insn.reg(12))
}

/// LDR, STR, LDRB, STRB, LDRT, STRT, LDRBT, STRBT.
pub(in crate::a32) fn single(insn: Insn) -> Lowered {
    let (byte, load, by_register) = (insn.bit(22), insn.bit(20), insn.bit(25));
    let pc_refused = byte || load && matches!(indexing(insn), Indexing::Unprivileged);
    if clashes(insn) || insn.uses_pc(&[12]) && pc_refused || by_register && insn.uses_pc(&[0]) {
        return Lowered::Reserved;
    }
    let (kind, amount, offset) = (insn.field(5, 2), insn.field(7, 5), insn.field(0, 12));
    match (byte, load, by_register) {
        (false, false, false) => with_immediate::<run::Store<u32>>(insn, offset),
        (false, true, false) => with_immediate::<run::Load<u32, false>>(insn, offset),
        (true, false, false) => with_immediate::<run::Store<u8>>(insn, offset),
        (true, true, false) => with_immediate::<run::Load<u8, false>>(insn, offset),
        (false, false, true) => with_register::<run::Store<u32>>(insn, kind, amount),
        (false, true, true) => with_register::<run::Load<u32, false>>(insn, kind, amount),
        (true, false, true) => with_register::<run::Store<u8>>(insn, kind, amount),
        (true, true, true) => with_register::<run::Load<u8, false>>(insn, kind, amount),
    }
}

fn split_immediate(insn: Insn) -> u32 {
    insn.field(8, 4) << 4 | insn.field(0, 4)
}

fn either<A: Access>(insn: Insn) -> Lowered {
    if insn.bit(22) { with_immediate::<A>(insn, split_immediate(insn)) } else { with_register::<A>(insn, 0, 0) }
}

/// LDRH, STRH, LDRSB, LDRSH and their unprivileged forms.
pub(in crate::a32) fn extra(insn: Insn) -> Lowered {
    if clashes(insn) || insn.uses_pc(&[12]) || !insn.bit(22) && insn.uses_pc(&[0]) {
        return Lowered::Reserved;
    }
    match (insn.bit(20), insn.field(5, 2)) {
        (false, _) => either::<run::Store<u16>>(insn),
        (true, 1) => either::<run::Load<u16, false>>(insn),
        (true, 2) => either::<run::Load<u8, true>>(insn),
        (true, _) => either::<run::Load<u16, true>>(insn),
    }
}

/// LDRD and STRD: an even register and the next. Bit 5 stores.
pub(in crate::a32) fn dual(insn: Insn) -> Lowered {
    let (rt, rn, rm, store) = (insn.reg(12), insn.reg(16), insn.reg(0), insn.bit(5));
    let by_register = !insn.bit(22);
    let base_clashes = writes_back(insn) && (rn == 15 || rn & !1 == rt);
    let offset_clashes = by_register && (rm == 15 || !store && rm & !1 == rt);
    let unprivileged = matches!(indexing(insn), Indexing::Unprivileged);
    if rt & 1 != 0 || rt == 14 || base_clashes || offset_clashes || unprivileged {
        return Lowered::Reserved;
    }
    if store { either::<run::StoreDual>(insn) } else { either::<run::LoadDual>(insn) }
}

/// LDM and STM: the list in the low half of `imm`, the offset of the lowest address in the high half, what writeback adds in
/// `aux`, the number of registers in `ra`.
pub(in crate::a32) fn multiple(insn: Insn) -> Lowered {
    let list = insn.field(0, 16);
    let (rn, load, write_back, user) = (insn.reg(16), insn.bit(20), insn.bit(21), insn.bit(22));
    let with_pc = list & 0x8000 != 0;
    if list == 0 || rn == 15 || load && write_back && list >> rn & 1 != 0 || user && write_back && !(load && with_pc) {
        return Lowered::Reserved;
    }
    let len = 4 * list.count_ones();
    let (before, up) = (insn.bit(24), insn.bit(23));
    let offset = match (before, up) {
        (false, true) => 0,
        (true, true) => 4,
        (false, false) => 4_u32.wrapping_sub(len),
        (true, false) => len.wrapping_neg(),
    };
    let moved = match (write_back, up) {
        (false, _) => block::STAYS,
        (true, true) => block::RISES,
        (true, false) => block::FALLS,
    };
    let run: Handler = match (load, user, with_pc) {
        (false, false, _) => block::store,
        (false, true, _) => block::store_user,
        (true, false, false) => block::load::<false>,
        (true, false, true) => block::load::<true>,
        (true, true, false) => block::load_user,
        (true, true, true) => block::load_and_return,
    };
    let imm = u64::from(offset) << 32 | u64::from(list);
    let op = Op { rn, ra: (len / 4) as u8, imm, aux: moved, ..insn.op(run) };
    if load && with_pc { Lowered::Last(op) } else { Lowered::Op(op) }
}
