//! From an A32 word to an [`Op`]: [`lower`].
//!
//! The tables of `decode` name the function here that lowers an encoding, by file: [`data`], [`multiply`], [`media`], [`memory`],
//! [`exclusive`], [`system`], [`simd`]. What is UNPREDICTABLE is UNDEFINED here unless real cores agree on something useful.
//!
//! Handlers know neither conditions nor the program counter: an op with either gets a check before it ([`guarded`]), and
//! register 15 becomes an index of its own, [`REG_PC`] as a source and [`REG_PC_OUT`] as a destination.

pub(super) mod data;
pub(super) mod exclusive;
pub(super) mod media;
pub(super) mod memory;
pub(super) mod multiply;
pub(super) mod simd;
pub(super) mod system;

use super::decode::decode;
use super::exec::guard::{self, READS_PC, REG_PC, REG_PC_OUT, RETURNS, WRITES_PC};
use crate::exec::{loadstore, trap};
use crate::op::{Handler, Op};

/// The condition that always holds.
pub(super) const ALWAYS: u32 = 14;

/// What lowering made of an instruction.
pub(super) enum Lowered {
    /// An op within a block.
    Op(Op),
    /// An op that ends its block.
    Last(Op),
    /// An op within a block that looks at the condition itself.
    Conditional(Op),
    /// The encoding is reserved, or its operands make it UNPREDICTABLE.
    Reserved,
    /// The instruction is not modelled.
    Unknown,
}

/// Lowers the instruction `word` at `pc`. Also whether it ends its block.
pub(crate) fn lower(word: u32, pc: u64) -> (Op, bool) {
    let insn = Insn { word, pc };
    match by_encoding(insn) {
        Lowered::Op(op) => guarded(insn, op, false),
        Lowered::Last(op) => guarded(insn, op, true),
        Lowered::Conditional(op) => (op, false),
        Lowered::Reserved => guarded(insn, insn.op(trap::undefined), true),
        Lowered::Unknown => guarded(insn, Op { imm: u64::from(word), ..insn.op(guard::unimplemented) }, true),
    }
}

/// Whether `word` is an instruction that the emulator executes: neither reserved, nor UNPREDICTABLE, nor left out.
pub fn is_modelled(word: u32) -> bool {
    !matches!(by_encoding(Insn { word, pc: 0 }), Lowered::Reserved | Lowered::Unknown)
}

/// The name of an instruction for the log.
pub(super) fn describe(word: u32) -> String {
    let name = decode(word).map_or("of no known name", |encoding| encoding.name);
    format!("A32 instruction {name}, such as {word:#010x}")
}

fn by_encoding(insn: Insn) -> Lowered {
    decode(insn.word).map_or(Lowered::Reserved, |encoding| (encoding.lower)(insn))
}

/// Lowers what is not modelled.
pub(super) fn unknown(_insn: Insn) -> Lowered {
    Lowered::Unknown
}

/// Puts before `op` what its condition and its uses of the program counter ask for.
fn guarded(insn: Insn, op: Op, ends: bool) -> (Op, bool) {
    let reads = [op.rd, op.rn, op.rm, op.ra].contains(&REG_PC);
    let writes = op.rd == REG_PC_OUT;
    let cond = insn.cond();
    if reads || writes || op.aux & RETURNS != 0 {
        let uses = if reads { READS_PC } else { 0 } | if writes { WRITES_PC } else { 0 } | op.aux & RETURNS;
        let aux = op.aux & 0xff | uses | (cond as u16) << 12;
        let ends = ends || writes && cond == ALWAYS;
        (Op { run: guard::with_pc, then: op.run, aux, ..op }, ends)
    } else if cond != ALWAYS {
        (Op { run: guard::when(cond), then: op.run, aux: op.aux & 0xff, ..op }, ends)
    } else {
        (op, ends)
    }
}

/// An instruction word at its address, with the fields that most encodings share.
#[derive(Clone, Copy)]
pub(super) struct Insn {
    pub(super) word: u32,
    pub(super) pc: u64,
}

impl Insn {
    /// The field of `len` bits from bit `low`.
    pub(super) fn field(self, low: u32, len: u32) -> u32 {
        self.word >> low & ((1 << len) - 1)
    }

    /// The register number at bit `low`.
    pub(super) fn reg(self, low: u32) -> u8 {
        self.field(low, 4) as u8
    }

    /// Bit `n`.
    pub(super) fn bit(self, n: u32) -> bool {
        self.word >> n & 1 != 0
    }

    /// The condition; that of the unconditional instructions is "always".
    pub(super) fn cond(self) -> u32 {
        if self.word >> 28 == 15 { ALWAYS } else { self.word >> 28 }
    }

    /// What the instruction reads as the program counter.
    pub(super) fn pc_read(self) -> u32 {
        (self.pc as u32).wrapping_add(8)
    }

    /// Whether any of the registers at the bits `lows` is 15, where that is UNPREDICTABLE.
    pub(super) fn uses_pc(self, lows: &[u32]) -> bool {
        lows.iter().any(|&low| self.reg(low) == 15)
    }

    /// An op with `run` and no operands.
    pub(super) fn op(self, run: Handler) -> Op {
        Op {
            run,
            then: loadstore::nothing,
            imm: 0,
            rd: 0,
            rn: 0,
            rm: 0,
            ra: 0,
            offset: (self.pc & 0xfff) as u16,
            aux: 0,
        }
    }
}

/// A register as a source.
pub(super) fn source(register: u8) -> u8 {
    if register == 15 { REG_PC } else { register }
}

/// A register as a destination.
pub(super) fn destination(register: u8) -> u8 {
    if register == 15 { REG_PC_OUT } else { register }
}
