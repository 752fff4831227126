//! Lowering of SIMD and floating-point instructions.
//!
//! Every op is entered through `trap::fp_checked`, which takes the trap of CPACR_EL1.FPEN and goes on to `Op::then`. The
//! operations that work element by element are described in `exec::simd::table`; what is in no table and in no function here
//! is not modelled.

use disarm64_defn::InsnClass as Class;

use super::{Insn, Lowered, structures};
use crate::exec::simd::table::{self, Form, Group};
use crate::exec::simd::{Shape, elements, moves, permute, replicated, whole};
use crate::exec::{fp, trap};
use crate::op::{Handler, Op};

/// Lowers an instruction of the features SIMD and FP.
pub(super) fn lower(insn: Insn, class: Class, name: &str) -> Lowered {
    let lowered = match class {
        Class::ASISDLSE | Class::ASISDLSEP => return structures::multiple(insn),
        Class::ASISDLSO | Class::ASISDLSOP => return structures::single(insn),
        Class::ASIMDSAME if matches!(name, "and" | "bic" | "orr" | "orn" | "eor" | "bsl" | "bit" | "bif") => {
            logical(insn)
        }
        Class::ASIMDSAME | Class::ASISDSAME => {
            element_wise(insn, Group::ThreeSame, name, shape(insn), elements::with_register)
        }
        Class::ASIMDDIFF | Class::ASISDDIFF => {
            element_wise(insn, Group::ThreeDifferent, name, shape(insn), elements::with_register)
        }
        Class::ASIMDELEM | Class::ASISDELEM => by_element(insn, name),
        Class::ASIMDSHF | Class::ASISDSHF => shift(insn, name),
        Class::ASIMDMISC if matches!(name, "rev16" | "rev32" | "rev64") => reverse(insn, name),
        Class::ASIMDMISC | Class::ASISDMISC => two_register(insn, name),
        Class::ASIMDALL | Class::ASISDPAIR => {
            element_wise(insn, Group::AcrossLanes, name, shape(insn), elements::with_immediate)
        }
        Class::ASIMDEXT => ext(insn),
        Class::ASIMDPERM => permutation(insn),
        Class::ASIMDTBL => lookup(insn),
        Class::ASIMDIMM => modified_immediate(insn),
        Class::ASIMDINS | Class::ASISDONE => element_move(insn, name),
        Class::FLOAT2INT if name == "fmov" => general_move(insn),
        Class::FLOATDP1 | Class::FLOATIMM | Class::FLOATSEL => scalar_move(insn, class, name),
        _ => Lowered::Unknown,
    };
    match lowered {
        Lowered::Op(op) => Lowered::Op(Op { run: trap::fp_checked::<false>, then: op.run, ..op }),
        other => other,
    }
}

/// The arrangement that Q, size and the scalar bit say.
fn shape(insn: Insn) -> Shape {
    let scalar = insn.bit(28);
    Shape { size: insn.field(22, 2), full: insn.bit(30) && !scalar, scalar }
}

/// Whether it is a vector of one doubleword, which is reserved nearly everywhere.
fn is_single_doubleword(shape: Shape) -> bool {
    shape.size == 3 && !shape.full && !shape.scalar
}

/// An op whose destination is a SIMD&FP register.
fn vector(insn: Insn, run: Handler, shape: Shape) -> Op {
    Op { rd: insn.rd(), ra: shape.pack(), ..insn.op(run) }
}

/// An operation in one of the tables.
fn element_wise(insn: Insn, group: Group, name: &str, shape: Shape, run: Handler) -> Lowered {
    let Some((entry, number)) = table::by_name(group, name) else { return Lowered::Unknown };
    let sizes = if shape.scalar { entry.scalar } else { entry.vector };
    let reduces_two = matches!(entry.form, Form::Across | Form::LongAcross) && shape.lanes() == 2;
    if sizes >> shape.size & 1 == 0 || is_single_doubleword(shape) || reduces_two {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { aux: number, ..vector(insn, run, shape) })
}

fn two_register(insn: Insn, name: &str) -> Lowered {
    // RBIT has the size of halfwords, to tell it from NOT.
    let shape = if name == "rbit" { Shape { size: 0, ..shape(insn) } } else { shape(insn) };
    element_wise(insn, Group::TwoRegister, name, shape, elements::with_immediate)
}

/// Vector x indexed element: H:L:M is the index, of which M belongs to the register where elements are words.
fn by_element(insn: Insn, name: &str) -> Lowered {
    let (h, l, m) = (insn.field(11, 1), insn.field(21, 1), insn.field(20, 1));
    let (index, rm) = match insn.field(22, 2) {
        1 => (h << 2 | l << 1 | m, insn.rm() & 15),
        _ => (h << 1 | l, insn.rm()),
    };
    match element_wise(insn, Group::ByElement, name, shape(insn), elements::with_element) {
        Lowered::Op(op) => Lowered::Op(Op { imm: index.into(), rm, ..op }),
        other => other,
    }
}

/// Shift by immediate: the highest bit of immh is the size, immh:immb the shift above or below it.
fn shift(insn: Insn, name: &str) -> Lowered {
    let Some(size) = insn.field(19, 4).checked_ilog2() else { return Lowered::Reserved };
    let shape = Shape { size, ..shape(insn) };
    let left = matches!(name.trim_end_matches('2'), "shl" | "sli" | "sqshl" | "uqshl" | "sqshlu" | "sshll" | "ushll");
    let amount = if left { insn.field(16, 7) - shape.bits() } else { 2 * shape.bits() - insn.field(16, 7) };
    match element_wise(insn, Group::Shift, name, shape, elements::with_immediate) {
        Lowered::Op(op) => Lowered::Op(Op { imm: amount.into(), ..op }),
        other => other,
    }
}

fn logical(insn: Insn) -> Lowered {
    use whole::logic::*;
    let kind = insn.field(29, 1) << 2 | insn.field(22, 2);
    let run: Handler = match (kind as u8, insn.bit(30)) {
        (AND, false) => whole::logical::<false, AND>,
        (AND, true) => whole::logical::<true, AND>,
        (BIC, false) => whole::logical::<false, BIC>,
        (BIC, true) => whole::logical::<true, BIC>,
        (ORR, false) => whole::logical::<false, ORR>,
        (ORR, true) => whole::logical::<true, ORR>,
        (ORN, false) => whole::logical::<false, ORN>,
        (ORN, true) => whole::logical::<true, ORN>,
        (EOR, false) => whole::logical::<false, EOR>,
        (EOR, true) => whole::logical::<true, EOR>,
        (BSL, false) => whole::logical::<false, BSL>,
        (BSL, true) => whole::logical::<true, BSL>,
        (BIT, false) => whole::logical::<false, BIT>,
        (BIT, true) => whole::logical::<true, BIT>,
        (_, false) => whole::logical::<false, BIF>,
        (_, true) => whole::logical::<true, BIF>,
    };
    Lowered::Op(vector(insn, run, shape(insn)))
}

fn reverse(insn: Insn, name: &str) -> Lowered {
    let container = match name {
        "rev16" => 16,
        "rev32" => 32,
        _ => 64,
    };
    let shape = shape(insn);
    if shape.bits() >= container {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { imm: container.into(), ..vector(insn, permute::reverse, shape) })
}

fn ext(insn: Insn) -> Lowered {
    let position = insn.field(11, 4);
    let shape = Shape { size: 0, ..shape(insn) };
    if !shape.full && position >= 8 {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { imm: position.into(), ..vector(insn, permute::ext, shape) })
}

fn permutation(insn: Insn) -> Lowered {
    use permute::permutation::*;
    if is_single_doubleword(shape(insn)) {
        return Lowered::Reserved;
    }
    let run: Handler = match insn.field(12, 2) as u8 {
        UZP => permute::permute::<UZP>,
        TRN => permute::permute::<TRN>,
        ZIP => permute::permute::<ZIP>,
        _ => return Lowered::Reserved,
    };
    Lowered::Op(Op { imm: insn.field(14, 1).into(), ..vector(insn, run, shape(insn)) })
}

fn lookup(insn: Insn) -> Lowered {
    let run: Handler = if insn.bit(12) { permute::lookup::<true> } else { permute::lookup::<false> };
    let registers = insn.field(13, 2) + 1;
    Lowered::Op(Op { imm: registers.into(), ..vector(insn, run, Shape { size: 0, ..shape(insn) }) })
}

/// DUP, INS, UMOV, SMOV: the lowest set bit of imm5 is the size, what is above it the index.
fn element_move(insn: Insn, name: &str) -> Lowered {
    let imm5 = insn.field(16, 5);
    let size = imm5.trailing_zeros();
    if size > 3 {
        return Lowered::Reserved;
    }
    let shape = Shape { size, ..shape(insn) };
    let index = u64::from(imm5 >> (size + 1));
    // In INS (element), which bit 29 tells, bit 11 belongs to the source's index.
    let run: Handler = match (name, insn.bit(11)) {
        ("dup", _) if is_single_doubleword(shape) => return Lowered::Reserved,
        ("dup", false) => moves::dup_element,
        ("dup", true) => moves::dup_general,
        ("ins", _) if !insn.bit(29) => moves::insert_general,
        ("ins", _) => {
            let from = insn.field(11, 4) >> size;
            return Lowered::Op(Op { imm: index, aux: from as u16, ..vector(insn, moves::insert_element, shape) });
        }
        _ => return to_general(insn, name, shape, index),
    };
    Lowered::Op(Op { imm: index, ..vector(insn, run, shape) })
}

/// UMOV and SMOV: the general register is as wide as the element asks for, and for SMOV wider.
fn to_general(insn: Insn, name: &str, shape: Shape, index: u64) -> Lowered {
    let run: Handler = match (name, shape.size, shape.full) {
        ("umov", 0..=2, false) | ("umov", 3, true) => moves::to_general,
        ("smov", 0 | 1, false) => moves::to_general_signed::<false>,
        ("smov", 0..=2, true) => moves::to_general_signed::<true>,
        _ => return Lowered::Reserved,
    };
    Lowered::Op(Op { imm: index, ra: shape.pack(), ..insn.op(run) })
}

/// MOVI, MVNI, ORR, BIC, FMOV of an immediate.
fn modified_immediate(insn: Insn) -> Lowered {
    use whole::immediate::*;
    let (invert, cmode, full) = (insn.bit(29), insn.field(12, 4), insn.bit(30));
    // FMOV of a doubleword has no 64-bit form.
    if cmode == 15 && invert && !full {
        return Lowered::Reserved;
    }
    let value = expand_immediate(invert, cmode, insn.field(16, 3) << 5 | insn.field(5, 5));
    let merges = cmode & 1 != 0 && cmode < 12;
    let run: Handler = match (merges, invert, full) {
        (false, _, false) => whole::with_immediate::<false, MOVE>,
        (false, _, true) => whole::with_immediate::<true, MOVE>,
        (true, false, false) => whole::with_immediate::<false, ORR>,
        (true, false, true) => whole::with_immediate::<true, ORR>,
        (true, true, false) => whole::with_immediate::<false, BIC>,
        (true, true, true) => whole::with_immediate::<true, BIC>,
    };
    let imm = if invert && !merges && cmode < 14 { !value } else { value };
    Lowered::Op(Op { imm, ..vector(insn, run, shape(insn)) })
}

/// `AdvSIMDExpandImm` of the pseudocode.
fn expand_immediate(op: bool, cmode: u32, imm8: u32) -> u64 {
    let imm = u64::from(imm8);
    let (pattern, bits) = match cmode {
        0..=7 => (imm << (8 * (cmode >> 1)), 32),
        8..=11 => (imm << (8 * (cmode >> 1 & 1)), 16),
        12 => (imm << 8 | 0xff, 32),
        13 => (imm << 16 | 0xffff, 32),
        14 if !op => (imm, 8),
        14 => ((0..8).filter(|bit| imm8 >> bit & 1 != 0).fold(0, |mask, bit| mask | 0xff << (8 * bit)), 64),
        _ if !op => (fp::expand_immediate(imm8, 32), 32),
        _ => (fp::expand_immediate(imm8, 64), 64),
    };
    replicated(pattern, bits) as u64
}

/// FMOV between SIMD&FP and general registers.
fn general_move(insn: Insn) -> Lowered {
    let to_vector = insn.bit(16);
    let (size, index) = match (insn.is_64(), insn.field(22, 2), insn.field(19, 2)) {
        (false, 0, 0) => (2, 0),
        (true, 1, 0) => (3, 0),
        (true, 2, 1) => (3, 1),
        _ => return Lowered::Reserved,
    };
    let shape = Shape { size, full: false, scalar: true };
    Lowered::Op(match (to_vector, index) {
        (false, _) => Op { imm: index, ra: shape.pack(), ..insn.op(moves::to_general) },
        (true, 0) => vector(insn, moves::from_general, shape),
        (true, _) => Op { imm: index, ..vector(insn, moves::insert_general, shape) },
    })
}

/// The scalar floating-point instructions that compute nothing: FMOV, FABS, FNEG, FCSEL.
fn scalar_move(insn: Insn, class: Class, name: &str) -> Lowered {
    let size = match insn.field(22, 2) {
        0 => 2,
        1 => 3,
        _ => return Lowered::Reserved,
    };
    let shape = Shape { size, full: false, scalar: true };
    let op = |run: Handler| vector(insn, run, shape);
    Lowered::Op(match (class, name) {
        (Class::FLOATIMM, _) => {
            let imm = fp::expand_immediate(insn.field(13, 8), shape.bits());
            Op { imm, ..op(whole::scalar_immediate) }
        }
        (Class::FLOATSEL, _) => Op { aux: insn.field(12, 4) as u16, ..op(fp::select) },
        (_, "fmov") => op(moves::dup_element),
        (_, "fabs") => op(fp::absolute),
        (_, "fneg") => op(fp::negate),
        _ => return Lowered::Unknown,
    })
}
