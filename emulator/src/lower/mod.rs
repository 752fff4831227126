//! From an instruction word to an [`Op`]: [`lower`].
//!
//! `disarm64` decodes; its class and feature say which file lowers it: [`integer`], [`memory`], [`system`], [`simd`], [`structures`]. A word that decodes to
//! nothing, or to an encoding that the architecture reserves, is UNDEFINED; an instruction that exists but is not modelled is
//! UNDEFINED too and named in the machine's log.

pub mod blocks;
mod integer;
mod memory;
mod simd;
mod structures;
mod system;

use disarm64::{InsnOpcode, Opcode, decoder};
use disarm64_defn::{InsnClass as Class, InsnFeatureSet as Feature};

use crate::cpu::{REG_SINK, REG_SP, REG_ZERO};
use crate::exec::{loadstore, trap};
use crate::op::{Handler, Op};

/// What lowering made of an instruction.
pub(crate) enum Lowered {
    /// An op within a block.
    Op(Op),
    /// An op that ends its block.
    Last(Op),
    /// The encoding is reserved.
    Reserved,
    /// The instruction is not modelled.
    Unknown,
}

/// Lowers the instruction `word` at `pc`. Also whether it ends its block.
pub(crate) fn lower(word: u32, pc: u64) -> (Op, bool) {
    let insn = Insn { word, pc };
    let lowered = match decoder::decode(word) {
        Some(opcode) => by_class(insn, opcode),
        None => Lowered::Reserved,
    };
    match lowered {
        Lowered::Op(op) => (op, false),
        Lowered::Last(op) => (op, true),
        Lowered::Reserved => (insn.op(trap::undefined), true),
        Lowered::Unknown => (Op { imm: u64::from(word), ..insn.op(trap::unimplemented) }, true),
    }
}

/// What the emulator makes of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// It is executed.
    Executes,
    /// Its encoding is reserved: UNDEFINED, as on hardware of this version.
    Reserved,
    /// It exists but is not modelled: UNDEFINED here, whatever hardware does.
    Unknown,
}

/// Whether the instruction `word` is executed.
pub fn support(word: u32) -> Support {
    let insn = Insn { word, pc: 0 };
    match decoder::decode(word).map(|opcode| by_class(insn, opcode)) {
        Some(Lowered::Op(_) | Lowered::Last(_)) => Support::Executes,
        None | Some(Lowered::Reserved) => Support::Reserved,
        Some(Lowered::Unknown) => Support::Unknown,
    }
}

/// The name of an instruction for people: its mnemonic, its class and its word.
pub fn describe(word: u32) -> String {
    match decoder::decode(word) {
        Some(opcode) => {
            let definition = opcode.definition();
            format!("instruction {} ({:?}), such as {word:#010x}", definition.mnemonic, definition.class)
        }
        None => format!("instruction {word:#010x}"),
    }
}

fn by_class(insn: Insn, opcode: Opcode) -> Lowered {
    let definition = opcode.definition();
    let name = definition.mnemonic;
    match (definition.class, definition.feature_set) {
        (Class::ADDSUB_IMM, Feature::V8) => integer::add_sub_imm(insn),
        (Class::ADDSUB_SHIFT, Feature::V8) => integer::add_sub_shifted(insn),
        (Class::ADDSUB_EXT, Feature::V8) => integer::add_sub_extended(insn),
        (Class::ADDSUB_CARRY, Feature::V8) => integer::add_sub_carry(insn),
        (Class::LOG_IMM, Feature::V8) => integer::logic_imm(insn),
        (Class::LOG_SHIFT, Feature::V8) => integer::logic_shifted(insn),
        (Class::MOVEWIDE, Feature::V8) => integer::move_wide(insn),
        (Class::BITFIELD, Feature::V8) => integer::bitfield(insn),
        (Class::EXTRACT, Feature::V8) => integer::extract(insn),
        (Class::PCRELADDR, Feature::V8) => integer::pc_relative(insn),
        (Class::CONDSEL, Feature::V8) => integer::conditional_select(insn),
        (Class::CONDCMP_IMM | Class::CONDCMP_REG, Feature::V8) => integer::conditional_compare(insn),
        (Class::DP_1SRC, Feature::V8) => integer::one_source(insn),
        (Class::DP_2SRC, Feature::V8) => integer::two_sources(insn),
        (Class::DP_2SRC, Feature::CRC) => integer::crc32(insn),
        (Class::DP_3SRC, Feature::V8) => integer::three_sources(insn),
        (Class::BRANCH_IMM, Feature::V8) => system::branch_imm(insn),
        (Class::CONDBRANCH, Feature::V8) => system::branch_cond(insn),
        (Class::COMPBRANCH, Feature::V8) => system::compare_branch(insn),
        (Class::TESTBRANCH, Feature::V8) => system::test_branch(insn),
        (Class::BRANCH_REG, Feature::V8) => system::branch_register(insn, name),
        (Class::EXCEPTION, Feature::V8) => system::exception(insn, name),
        (Class::IC_SYSTEM, Feature::V8 | Feature::SB | Feature::FLAGM) => system::system(insn, name),
        // Where a system encoding has a later feature's name, it still is MSR, SYS or HINT.
        (Class::LDST_POS, Feature::V8) => memory::unsigned_offset(insn),
        (Class::LDST_IMM9, Feature::V8) => memory::indexed(insn),
        (Class::LDST_UNSCALED, Feature::V8) => memory::unscaled(insn),
        (Class::LDST_UNPRIV, Feature::V8) => memory::unprivileged(insn),
        (Class::LDST_REGOFF, Feature::V8) => memory::register_offset(insn),
        (Class::LOADLIT, Feature::V8) => memory::literal(insn),
        (Class::LDSTPAIR_OFF | Class::LDSTPAIR_INDEXED | Class::LDSTNAPAIR_OFFS, Feature::V8) => memory::pair(insn),
        (Class::LDSTEXCL, Feature::V8 | Feature::LOR) => memory::exclusive(insn),
        (Class::LDSTEXCL, Feature::RCPC) => memory::load_acquire_rcpc(insn),
        (Class::LSE_ATOMIC, Feature::LSE) => memory::lse(insn, name),
        (class, Feature::SIMD | Feature::FP) => simd::lower(insn, class, name),
        _ => Lowered::Unknown,
    }
}

/// An instruction word at its address, with the fields that most encodings share.
#[derive(Clone, Copy)]
pub(crate) struct Insn {
    pub(crate) word: u32,
    pub(crate) pc: u64,
}

impl Insn {
    /// The field of `len` bits from bit `low`.
    pub(crate) fn field(self, low: u32, len: u32) -> u32 {
        self.word >> low & ((1 << len) - 1)
    }

    /// Bit `n`.
    pub(crate) fn bit(self, n: u32) -> bool {
        self.word >> n & 1 != 0
    }

    /// The field of `len` bits from bit `low`, sign-extended.
    pub(crate) fn signed(self, low: u32, len: u32) -> i64 {
        i64::from((self.word << (32 - low - len)) as i32 >> (32 - len))
    }

    /// Whether the operation is on 64 bits (`sf`).
    pub(crate) fn is_64(self) -> bool {
        self.bit(31)
    }

    /// Bits 4:0 as a register number.
    pub(crate) fn rd(self) -> u8 {
        self.field(0, 5) as u8
    }

    /// Bits 9:5 as a register number.
    pub(crate) fn rn(self) -> u8 {
        self.field(5, 5) as u8
    }

    /// Bits 20:16 as a register number.
    pub(crate) fn rm(self) -> u8 {
        self.field(16, 5) as u8
    }

    /// Bits 14:10 as a register number.
    pub(crate) fn ra(self) -> u8 {
        self.field(10, 5) as u8
    }

    /// `pc` moved by `offset` bytes.
    pub(crate) fn target(self, offset: i64) -> u64 {
        self.pc.wrapping_add(offset as u64)
    }

    /// An op with `run` and the registers of the common fields: ZR as sink and source.
    pub(crate) fn op(self, run: Handler) -> Op {
        Op {
            run,
            then: loadstore::nothing,
            imm: 0,
            rd: sink(self.rd()),
            rn: self.rn(),
            rm: self.rm(),
            ra: 0,
            offset: (self.pc & 0xfff) as u16,
            aux: 0,
        }
    }
}

/// A register as a destination: 31 is ZR.
pub(crate) fn sink(register: u8) -> u8 {
    if register == REG_ZERO { REG_SINK } else { register }
}

/// A register where 31 is the stack pointer.
pub(crate) fn stack(register: u8) -> u8 {
    if register == REG_ZERO { REG_SP } else { register }
}
