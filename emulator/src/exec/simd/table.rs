//! The operations that work element by element, by encoding class: name, form, permitted sizes, element function.
//!
//! Sizes are sets of B, H, S, D as the size field counts them. What is not in a set is a reserved encoding.

use super::lane::{self, Element};

/// How elements are taken from the sources and put into the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// All elements have the same width.
    Same,
    /// The sources are pairs of adjacent elements of the second source's register appended to the first's.
    Pairwise,
    /// Both sources are narrow, from the half that Q says; the result is twice as wide.
    Long,
    /// The second source is narrow, from the half that Q says.
    Wide,
    /// The sources are wide, the result goes to the half that Q says.
    Narrow,
    /// The sources are pairs of adjacent elements of the first source; the result is twice as wide.
    LongPairwise,
    /// A reduction of the first source.
    Across,
    /// A reduction of the first source that sums to twice the width.
    LongAcross,
}

/// One operation.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// The mnemonic, without the 2 that names the upper half.
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    /// Sizes of the vector form, bit `size` set.
    pub(crate) vector: u8,
    /// Sizes of the scalar form.
    pub(crate) scalar: u8,
    pub(crate) element: Element,
}

const NONE: u8 = 0;
const B: u8 = 1;
const H: u8 = 2;
const S: u8 = 4;
const D: u8 = 8;
const BHS: u8 = B | H | S;
const ALL: u8 = B | H | S | D;
const HS: u8 = H | S;

const fn entry(name: &'static str, form: Form, vector: u8, scalar: u8, element: Element) -> Entry {
    Entry { name, form, vector, scalar, element }
}

use Form::{Across, Long, LongAcross, LongPairwise, Narrow, Pairwise, Same, Wide};

/// Advanced SIMD three same (DDI 0487 C4.1.96.30) and its scalar form.
const THREE_SAME: &[Entry] = &[
    entry("add", Same, ALL, D, lane::add),
    entry("sub", Same, ALL, D, lane::sub),
    entry("mul", Same, BHS, NONE, lane::mul),
    entry("mla", Same, BHS, NONE, lane::mla),
    entry("mls", Same, BHS, NONE, lane::mls),
    entry("pmul", Same, B, NONE, lane::pmul),
    entry("cmeq", Same, ALL, D, lane::cmeq),
    entry("cmge", Same, ALL, D, lane::cmge),
    entry("cmgt", Same, ALL, D, lane::cmgt),
    entry("cmhi", Same, ALL, D, lane::cmhi),
    entry("cmhs", Same, ALL, D, lane::cmhs),
    entry("cmtst", Same, ALL, D, lane::cmtst),
    entry("smax", Same, BHS, NONE, lane::smax),
    entry("smin", Same, BHS, NONE, lane::smin),
    entry("umax", Same, BHS, NONE, lane::umax),
    entry("umin", Same, BHS, NONE, lane::umin),
    entry("sabd", Same, BHS, NONE, lane::sabd),
    entry("uabd", Same, BHS, NONE, lane::uabd),
    entry("saba", Same, BHS, NONE, lane::saba),
    entry("uaba", Same, BHS, NONE, lane::uaba),
    entry("shadd", Same, BHS, NONE, lane::shadd),
    entry("uhadd", Same, BHS, NONE, lane::uhadd),
    entry("srhadd", Same, BHS, NONE, lane::srhadd),
    entry("urhadd", Same, BHS, NONE, lane::urhadd),
    entry("shsub", Same, BHS, NONE, lane::shsub),
    entry("uhsub", Same, BHS, NONE, lane::uhsub),
    entry("sqadd", Same, ALL, ALL, lane::sqadd),
    entry("uqadd", Same, ALL, ALL, lane::uqadd),
    entry("sqsub", Same, ALL, ALL, lane::sqsub),
    entry("uqsub", Same, ALL, ALL, lane::uqsub),
    entry("sqdmulh", Same, HS, HS, lane::sqdmulh),
    entry("sqrdmulh", Same, HS, HS, lane::sqrdmulh),
    entry("sshl", Same, ALL, D, lane::sshl),
    entry("ushl", Same, ALL, D, lane::ushl),
    entry("srshl", Same, ALL, D, lane::srshl),
    entry("urshl", Same, ALL, D, lane::urshl),
    entry("sqshl", Same, ALL, ALL, lane::sqshl),
    entry("uqshl", Same, ALL, ALL, lane::uqshl),
    entry("sqrshl", Same, ALL, ALL, lane::sqrshl),
    entry("uqrshl", Same, ALL, ALL, lane::uqrshl),
    entry("addp", Pairwise, ALL, NONE, lane::add),
    entry("smaxp", Pairwise, BHS, NONE, lane::smax),
    entry("sminp", Pairwise, BHS, NONE, lane::smin),
    entry("umaxp", Pairwise, BHS, NONE, lane::umax),
    entry("uminp", Pairwise, BHS, NONE, lane::umin),
];

/// Advanced SIMD three different (C4.1.96.29) and its scalar form. The size is that of the narrow elements.
const THREE_DIFFERENT: &[Entry] = &[
    entry("saddl", Long, BHS, NONE, lane::saddl),
    entry("uaddl", Long, BHS, NONE, lane::uaddl),
    entry("ssubl", Long, BHS, NONE, lane::ssubl),
    entry("usubl", Long, BHS, NONE, lane::usubl),
    entry("sabal", Long, BHS, NONE, lane::saba),
    entry("uabal", Long, BHS, NONE, lane::uaba),
    entry("sabdl", Long, BHS, NONE, lane::sabd),
    entry("uabdl", Long, BHS, NONE, lane::uabd),
    entry("smull", Long, BHS, NONE, lane::smull),
    entry("umull", Long, BHS, NONE, lane::mul),
    entry("smlal", Long, BHS, NONE, lane::smlal),
    entry("umlal", Long, BHS, NONE, lane::mla),
    entry("smlsl", Long, BHS, NONE, lane::smlsl),
    entry("umlsl", Long, BHS, NONE, lane::mls),
    entry("sqdmull", Long, HS, HS, lane::sqdmull),
    entry("sqdmlal", Long, HS, HS, lane::sqdmlal),
    entry("sqdmlsl", Long, HS, HS, lane::sqdmlsl),
    entry("pmull", Long, B, NONE, lane::pmul),
    entry("saddw", Wide, BHS, NONE, lane::saddl),
    entry("uaddw", Wide, BHS, NONE, lane::uaddl),
    entry("ssubw", Wide, BHS, NONE, lane::ssubl),
    entry("usubw", Wide, BHS, NONE, lane::usubl),
    entry("addhn", Narrow, BHS, NONE, lane::addhn),
    entry("raddhn", Narrow, BHS, NONE, lane::raddhn),
    entry("subhn", Narrow, BHS, NONE, lane::subhn),
    entry("rsubhn", Narrow, BHS, NONE, lane::rsubhn),
];

/// Advanced SIMD vector x indexed element (C4.1.96.33) and its scalar form.
const BY_ELEMENT: &[Entry] = &[
    entry("mul", Same, HS, NONE, lane::mul),
    entry("mla", Same, HS, NONE, lane::mla),
    entry("mls", Same, HS, NONE, lane::mls),
    entry("sqdmulh", Same, HS, HS, lane::sqdmulh),
    entry("sqrdmulh", Same, HS, HS, lane::sqrdmulh),
    entry("smull", Long, HS, NONE, lane::smull),
    entry("umull", Long, HS, NONE, lane::mul),
    entry("smlal", Long, HS, NONE, lane::smlal),
    entry("umlal", Long, HS, NONE, lane::mla),
    entry("smlsl", Long, HS, NONE, lane::smlsl),
    entry("umlsl", Long, HS, NONE, lane::mls),
    entry("sqdmull", Long, HS, HS, lane::sqdmull),
    entry("sqdmlal", Long, HS, HS, lane::sqdmlal),
    entry("sqdmlsl", Long, HS, HS, lane::sqdmlsl),
];

/// Advanced SIMD shift by immediate (C4.1.96.32) and its scalar form. The second operand is the shift.
const SHIFT: &[Entry] = &[
    entry("shl", Same, ALL, D, lane::shl),
    entry("sshr", Same, ALL, D, lane::sshr),
    entry("ushr", Same, ALL, D, lane::ushr),
    entry("ssra", Same, ALL, D, lane::ssra),
    entry("usra", Same, ALL, D, lane::usra),
    entry("srshr", Same, ALL, D, lane::srshr),
    entry("urshr", Same, ALL, D, lane::urshr),
    entry("srsra", Same, ALL, D, lane::srsra),
    entry("ursra", Same, ALL, D, lane::ursra),
    entry("sli", Same, ALL, D, lane::sli),
    entry("sri", Same, ALL, D, lane::sri),
    entry("sqshl", Same, ALL, ALL, lane::sqshl_imm),
    entry("uqshl", Same, ALL, ALL, lane::uqshl_imm),
    entry("sqshlu", Same, ALL, ALL, lane::sqshlu),
    entry("sshll", Long, BHS, NONE, lane::sshll),
    entry("ushll", Long, BHS, NONE, lane::shl),
    entry("shrn", Narrow, BHS, NONE, lane::ushr),
    entry("rshrn", Narrow, BHS, NONE, lane::urshr),
    entry("sqshrn", Narrow, BHS, BHS, lane::sqshrn),
    entry("uqshrn", Narrow, BHS, BHS, lane::uqshrn),
    entry("sqshrun", Narrow, BHS, BHS, lane::sqshrun),
    entry("sqrshrn", Narrow, BHS, BHS, lane::sqrshrn),
    entry("uqrshrn", Narrow, BHS, BHS, lane::uqrshrn),
    entry("sqrshrun", Narrow, BHS, BHS, lane::sqrshrun),
];

/// Advanced SIMD two-register miscellaneous (C4.1.96.27) and its scalar form. The second operand is zero.
const TWO_REGISTER: &[Entry] = &[
    entry("abs", Same, ALL, D, lane::abs),
    entry("neg", Same, ALL, D, lane::neg),
    entry("sqabs", Same, ALL, ALL, lane::sqabs),
    entry("sqneg", Same, ALL, ALL, lane::sqneg),
    entry("suqadd", Same, ALL, ALL, lane::suqadd),
    entry("usqadd", Same, ALL, ALL, lane::usqadd),
    entry("cmeq", Same, ALL, D, lane::cmeq),
    entry("cmge", Same, ALL, D, lane::cmge),
    entry("cmgt", Same, ALL, D, lane::cmgt),
    entry("cmle", Same, ALL, D, lane::cmle),
    entry("cmlt", Same, ALL, D, lane::cmlt),
    entry("cls", Same, BHS, NONE, lane::cls),
    entry("clz", Same, BHS, NONE, lane::clz),
    entry("cnt", Same, B, NONE, lane::cnt),
    entry("not", Same, B, NONE, lane::not),
    entry("rbit", Same, B, NONE, lane::rbit),
    entry("saddlp", LongPairwise, BHS, NONE, lane::saddl),
    entry("uaddlp", LongPairwise, BHS, NONE, lane::uaddl),
    entry("sadalp", LongPairwise, BHS, NONE, lane::sadalp),
    entry("uadalp", LongPairwise, BHS, NONE, lane::uadalp),
    entry("xtn", Narrow, BHS, NONE, lane::ushr),
    entry("sqxtn", Narrow, BHS, BHS, lane::sqshrn),
    entry("uqxtn", Narrow, BHS, BHS, lane::uqshrn),
    entry("sqxtun", Narrow, BHS, BHS, lane::sqshrun),
    entry("shll", Long, BHS, NONE, lane::shll),
];

/// Advanced SIMD across lanes (C4.1.96.28), and the scalar ADDP.
const ACROSS_LANES: &[Entry] = &[
    entry("addv", Across, BHS, NONE, lane::add),
    entry("smaxv", Across, BHS, NONE, lane::smax),
    entry("sminv", Across, BHS, NONE, lane::smin),
    entry("umaxv", Across, BHS, NONE, lane::umax),
    entry("uminv", Across, BHS, NONE, lane::umin),
    entry("saddlv", LongAcross, BHS, NONE, lane::saddl),
    entry("uaddlv", LongAcross, BHS, NONE, lane::uaddl),
    entry("addp", Across, NONE, D, lane::add),
];

/// A table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Group {
    ThreeSame,
    ThreeDifferent,
    ByElement,
    Shift,
    TwoRegister,
    AcrossLanes,
}

const TABLES: [&[Entry]; 6] = [THREE_SAME, THREE_DIFFERENT, BY_ELEMENT, SHIFT, TWO_REGISTER, ACROSS_LANES];

/// Finds `mnemonic`, with or without its 2, in `group`: the entry, and the number by which [`by_number`] finds it again.
pub(crate) fn by_name(group: Group, mnemonic: &str) -> Option<(Entry, u16)> {
    let table = TABLES[group as usize];
    let name = mnemonic.strip_suffix('2').unwrap_or(mnemonic);
    let index = table.iter().position(|entry| entry.name == name)?;
    Some((table[index], (group as u16) << 8 | index as u16))
}

/// The entry of a number from [`by_name`].
pub(crate) fn by_number(number: u16) -> Entry {
    TABLES[usize::from(number >> 8)][usize::from(number & 0xff)]
}
