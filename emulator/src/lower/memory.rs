//! Lowering of loads, stores and atomics, of general and SIMD&FP registers.

use super::{Insn, Lowered, sink, stack};
use crate::exec::loadstore::{self as ls, mode, sign};
use crate::exec::{atomic, trap};
use crate::op::{Handler, Op};

/// Whether it is a load or store of SIMD&FP registers.
fn is_vector(insn: Insn) -> bool {
    insn.bit(26)
}

/// log2 of the access's size in bytes.
fn size_shift(insn: Insn) -> u32 {
    let size = insn.field(30, 2);
    if is_vector(insn) && insn.bit(23) { 4 } else { size }
}

/// Puts the checks before an op that its base register and its kind of data ask for, and resolves the base.
fn checked(insn: Insn, op: Op) -> Lowered {
    let based_on_sp = insn.rn() == 31;
    let run: Handler = match (is_vector(insn), based_on_sp) {
        (true, true) => trap::fp_checked::<true>,
        (true, false) => trap::fp_checked::<false>,
        (false, true) => trap::sp_checked,
        (false, false) => return Lowered::Op(op),
    };
    Lowered::Op(Op { run, then: op.run, rn: stack(insn.rn()), ..op })
}

/// The handler of a single-register access and whether it is a load, or `None` for PRFM and what is reserved.
fn single<const MODE: u8>(insn: Insn) -> Option<(Handler, bool)> {
    let run: (Handler, bool) = if is_vector(insn) {
        // Q has size 0; the other sizes with its opc are unallocated.
        if insn.bit(23) && insn.field(30, 2) != 0 {
            return None;
        }
        match (size_shift(insn), insn.bit(22)) {
            (0, false) => (ls::store_fp::<u8, MODE>, false),
            (1, false) => (ls::store_fp::<u16, MODE>, false),
            (2, false) => (ls::store_fp::<u32, MODE>, false),
            (3, false) => (ls::store_fp::<u64, MODE>, false),
            (4, false) => (ls::store_q::<MODE>, false),
            (0, true) => (ls::load_fp::<u8, MODE>, true),
            (1, true) => (ls::load_fp::<u16, MODE>, true),
            (2, true) => (ls::load_fp::<u32, MODE>, true),
            (3, true) => (ls::load_fp::<u64, MODE>, true),
            _ => (ls::load_q::<MODE>, true),
        }
    } else {
        match (insn.field(30, 2), insn.field(22, 2)) {
            (0, 0) => (ls::store::<u8, MODE>, false),
            (1, 0) => (ls::store::<u16, MODE>, false),
            (2, 0) => (ls::store::<u32, MODE>, false),
            (3, 0) => (ls::store::<u64, MODE>, false),
            (0, 1) => (ls::load::<u8, { sign::ZERO }, MODE>, true),
            (1, 1) => (ls::load::<u16, { sign::ZERO }, MODE>, true),
            (2, 1) => (ls::load::<u32, { sign::ZERO }, MODE>, true),
            (3, 1) => (ls::load::<u64, { sign::ZERO }, MODE>, true),
            (0, 2) => (ls::load::<u8, { sign::DOUBLE }, MODE>, true),
            (1, 2) => (ls::load::<u16, { sign::DOUBLE }, MODE>, true),
            (2, 2) => (ls::load::<u32, { sign::DOUBLE }, MODE>, true),
            (0, 3) => (ls::load::<u8, { sign::WORD }, MODE>, true),
            (1, 3) => (ls::load::<u16, { sign::WORD }, MODE>, true),
            _ => return None,
        }
    };
    Some(run)
}

/// The op of a single-register access: a store's data register is a source.
fn single_op<const MODE: u8>(insn: Insn, op: Op) -> Lowered {
    match single::<MODE>(insn) {
        Some((run, load)) => {
            let rd = if load && !is_vector(insn) { sink(insn.rd()) } else { insn.rd() };
            checked(insn, Op { run, rd, ..op })
        }
        None if is_prefetch(insn) => Lowered::Op(insn.op(ls::nothing)),
        None => Lowered::Reserved,
    }
}

/// PRFM and PRFUM, which may do nothing.
fn is_prefetch(insn: Insn) -> bool {
    !is_vector(insn) && insn.field(30, 2) == 3 && insn.field(22, 2) == 2
}

/// LDR, STR and so on with an unsigned, scaled offset.
pub(super) fn unsigned_offset(insn: Insn) -> Lowered {
    let imm = u64::from(insn.field(10, 12)) << size_shift(insn);
    single_op::<{ mode::OFFSET }>(insn, Op { imm, ..insn.op(ls::nothing) })
}

/// LDR, STR and so on, pre-indexed and post-indexed.
pub(super) fn indexed(insn: Insn) -> Lowered {
    let op = Op { imm: insn.signed(12, 9) as u64, ..insn.op(ls::nothing) };
    match insn.field(10, 2) {
        1 => single_op::<{ mode::POST }>(insn, op),
        3 => single_op::<{ mode::PRE }>(insn, op),
        _ => Lowered::Reserved,
    }
}

/// LDUR, STUR and so on.
pub(super) fn unscaled(insn: Insn) -> Lowered {
    let op = Op { imm: insn.signed(12, 9) as u64, ..insn.op(ls::nothing) };
    single_op::<{ mode::OFFSET }>(insn, op)
}

/// LDR, STR and so on with a register offset: option 011 is LSL.
pub(super) fn register_offset(insn: Insn) -> Lowered {
    let option = insn.field(13, 3);
    if option & 2 == 0 {
        return Lowered::Reserved;
    }
    let shift = if insn.bit(12) { size_shift(insn) } else { 0 };
    let op = Op { ra: shift as u8, aux: option as u16, ..insn.op(ls::nothing) };
    if option == 3 || option == 7 { single_op::<{ mode::REG }>(insn, op) } else { single_op::<{ mode::EXT }>(insn, op) }
}

/// LDTR, STTR and so on.
pub(super) fn unprivileged(insn: Insn) -> Lowered {
    let op = Op { imm: insn.signed(12, 9) as u64, ..insn.op(ls::nothing) };
    let store = insn.field(22, 2) == 0;
    let run: Handler = match (insn.field(30, 2), insn.field(22, 2)) {
        (0, 0) => ls::store_unprivileged::<u8>,
        (1, 0) => ls::store_unprivileged::<u16>,
        (2, 0) => ls::store_unprivileged::<u32>,
        (3, 0) => ls::store_unprivileged::<u64>,
        (0, 1) => ls::load_unprivileged::<u8, { sign::ZERO }>,
        (1, 1) => ls::load_unprivileged::<u16, { sign::ZERO }>,
        (2, 1) => ls::load_unprivileged::<u32, { sign::ZERO }>,
        (3, 1) => ls::load_unprivileged::<u64, { sign::ZERO }>,
        (0, 2) => ls::load_unprivileged::<u8, { sign::DOUBLE }>,
        (1, 2) => ls::load_unprivileged::<u16, { sign::DOUBLE }>,
        (2, 2) => ls::load_unprivileged::<u32, { sign::DOUBLE }>,
        (0, 3) => ls::load_unprivileged::<u8, { sign::WORD }>,
        (1, 3) => ls::load_unprivileged::<u16, { sign::WORD }>,
        _ => return Lowered::Reserved,
    };
    let rd = if store { insn.rd() } else { sink(insn.rd()) };
    checked(insn, Op { run, rd, ..op })
}

/// LDR (literal), LDRSW (literal), PRFM (literal).
pub(super) fn literal(insn: Insn) -> Lowered {
    let vector = is_vector(insn);
    let run: Handler = match (insn.field(30, 2), vector) {
        (0, false) => ls::load_literal::<u32, { sign::ZERO }>,
        (1, false) => ls::load_literal::<u64, { sign::ZERO }>,
        (2, false) => ls::load_literal::<u32, { sign::DOUBLE }>,
        (3, false) => ls::nothing,
        (0, true) => ls::load_literal_fp::<u32>,
        (1, true) => ls::load_literal_fp::<u64>,
        (2, true) => ls::load_literal_q,
        _ => return Lowered::Reserved,
    };
    let op = Op { imm: insn.target(insn.signed(5, 19) << 2), ..insn.op(run) };
    Lowered::Op(if vector { Op { run: trap::fp_checked::<false>, then: run, rd: insn.rd(), ..op } } else { op })
}

/// LDP, STP, LDPSW, LDNP, STNP.
pub(super) fn pair(insn: Insn) -> Lowered {
    match insn.field(23, 2) {
        1 => pair_op::<{ mode::POST }>(insn),
        3 => pair_op::<{ mode::PRE }>(insn),
        _ => pair_op::<{ mode::OFFSET }>(insn),
    }
}

fn pair_op<const MODE: u8>(insn: Insn) -> Lowered {
    let (opc, load, vector) = (insn.field(30, 2), insn.bit(22), is_vector(insn));
    let (run, shift): (Handler, u32) = match (vector, opc, load) {
        (false, 0, false) => (ls::store_pair::<u32, MODE>, 2),
        (false, 0, true) => (ls::load_pair::<u32, { sign::ZERO }, MODE>, 2),
        (false, 1, true) => (ls::load_pair::<u32, { sign::DOUBLE }, MODE>, 2),
        (false, 2, false) => (ls::store_pair::<u64, MODE>, 3),
        (false, 2, true) => (ls::load_pair::<u64, { sign::ZERO }, MODE>, 3),
        (true, 0, false) => (ls::store_pair_fp::<u32, MODE>, 2),
        (true, 0, true) => (ls::load_pair_fp::<u32, MODE>, 2),
        (true, 1, false) => (ls::store_pair_fp::<u64, MODE>, 3),
        (true, 1, true) => (ls::load_pair_fp::<u64, MODE>, 3),
        (true, 2, false) => (ls::store_pair_q::<MODE>, 4),
        (true, 2, true) => (ls::load_pair_q::<MODE>, 4),
        _ => return Lowered::Reserved,
    };
    let data = |register: u8| if load && !vector { sink(register) } else { register };
    let imm = (insn.signed(15, 7) << shift) as u64;
    checked(insn, Op { rd: data(insn.rd()), ra: data(insn.ra()), imm, ..insn.op(run) })
}

/// Exclusives, LDAR, STLR, LDLAR, STLLR.
pub(super) fn exclusive(insn: Insn) -> Lowered {
    let (size, load) = (insn.field(30, 2), insn.bit(22));
    let run: Handler = match (insn.bit(23), insn.bit(21), load, size) {
        (false, false, true, 0) => atomic::load_exclusive::<u8>,
        (false, false, true, 1) => atomic::load_exclusive::<u16>,
        (false, false, true, 2) => atomic::load_exclusive::<u32>,
        (false, false, true, _) => atomic::load_exclusive::<u64>,
        (false, false, false, 0) => atomic::store_exclusive::<u8>,
        (false, false, false, 1) => atomic::store_exclusive::<u16>,
        (false, false, false, 2) => atomic::store_exclusive::<u32>,
        (false, false, false, _) => atomic::store_exclusive::<u64>,
        (false, true, true, 2) => atomic::load_exclusive_pair::<false>,
        (false, true, true, 3) => atomic::load_exclusive_pair::<true>,
        (false, true, false, 2) => atomic::store_exclusive_pair::<false>,
        (false, true, false, 3) => atomic::store_exclusive_pair::<true>,
        (true, false, true, _) => return acquire(insn),
        (true, false, false, 0) => atomic::store_release::<u8>,
        (true, false, false, 1) => atomic::store_release::<u16>,
        (true, false, false, 2) => atomic::store_release::<u32>,
        (true, false, false, _) => atomic::store_release::<u64>,
        _ => return Lowered::Reserved,
    };
    let data = |register: u8| if load { sink(register) } else { register };
    checked(insn, Op { rd: data(insn.rd()), ra: data(insn.ra()), rm: sink(insn.rm()), ..insn.op(run) })
}

fn acquire(insn: Insn) -> Lowered {
    checked(
        insn,
        insn.op(match insn.field(30, 2) {
            0 => atomic::load_acquire::<u8>,
            1 => atomic::load_acquire::<u16>,
            2 => atomic::load_acquire::<u32>,
            _ => atomic::load_acquire::<u64>,
        }),
    )
}

/// LDAPR: load-acquire is stronger than it asks for.
pub(super) fn load_acquire_rcpc(insn: Insn) -> Lowered {
    acquire(insn)
}

/// CAS, CASP, SWP and LDADD and its kin.
pub(super) fn lse(insn: Insn, name: &str) -> Lowered {
    let size = insn.field(30, 2);
    if name.starts_with("casp") {
        if (insn.rm() | insn.rd()) & 1 != 0 {
            return Lowered::Reserved;
        }
        let run: Handler = if size == 0 { atomic::casp::<false> } else { atomic::casp::<true> };
        return checked(insn, Op { rd: insn.rd(), ..insn.op(run) });
    }
    if name.starts_with("cas") {
        let run: Handler = match size {
            0 => atomic::cas::<u8>,
            1 => atomic::cas::<u16>,
            2 => atomic::cas::<u32>,
            _ => atomic::cas::<u64>,
        };
        return checked(insn, Op { rd: insn.rd(), rm: sink(insn.rm()), ..insn.op(run) });
    }
    let run = match if insn.bit(15) { 8 + insn.field(12, 3) } else { insn.field(12, 3) } {
        0 => rmw::<0>(size),
        1 => rmw::<1>(size),
        2 => rmw::<2>(size),
        3 => rmw::<3>(size),
        4 => rmw::<4>(size),
        5 => rmw::<5>(size),
        6 => rmw::<6>(size),
        7 => rmw::<7>(size),
        8 => rmw::<8>(size),
        _ => return Lowered::Reserved,
    };
    checked(insn, insn.op(run))
}

fn rmw<const KIND: usize>(size: u32) -> Handler {
    match size {
        0 => atomic::rmw::<u8, KIND>,
        1 => atomic::rmw::<u16, KIND>,
        2 => atomic::rmw::<u32, KIND>,
        _ => atomic::rmw::<u64, KIND>,
    }
}
