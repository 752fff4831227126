//! Decoding of A32: [`decode`] finds the [`Encoding`] of a word in the tables of `table`, and [`encodings`] lists them.
//!
//! No maintained library decodes A32 well enough to build on (docs/adr): the tables are ours. A row is the diagram of the
//! manual: `0` and `1` are fixed, `z` and `o` should be zero and one (which hardware ignores), any other letter is free.

use super::lower::{Insn, Lowered};
use super::table::{CONDITIONAL, UNCONDITIONAL};

/// One encoding of A32.
#[derive(Clone, Copy)]
pub struct Encoding {
    /// The instruction's name, in lower case.
    pub name: &'static str,
    /// The bits that identify it. Those of the condition are among them only where it has none.
    pub mask: u32,
    /// What these bits are.
    pub value: u32,
    /// The bits that should have a value, and are ignored if they have not.
    pub should_mask: u32,
    /// What those should be.
    pub should_value: u32,
    /// Lowers a word of it.
    pub(super) lower: fn(Insn) -> Lowered,
}

impl Encoding {
    /// A word of this encoding with the condition and the free bits of `any`, for generators of tests; `None` where that is a word of a
    /// narrower encoding, or one that the emulator does not execute ([`is_modelled`](super::is_modelled)).
    pub fn word(&'static self, any: u32) -> Option<u32> {
        let fixed = self.mask | self.should_mask;
        let word = any & !fixed | self.value | self.should_value;
        (decode(word).is_some_and(|found| std::ptr::eq(found, self)) && super::is_modelled(word)).then_some(word)
    }
}

/// Finds the encoding of `word`; `None` is a reserved encoding.
pub fn decode(word: u32) -> Option<&'static Encoding> {
    let table = if word >> 28 == 15 { UNCONDITIONAL } else { CONDITIONAL };
    table.iter().find(|encoding| word & encoding.mask == encoding.value)
}

/// All encodings. A word that matches one may still belong to a narrower one before it.
pub fn encodings() -> impl Iterator<Item = &'static Encoding> {
    CONDITIONAL.iter().chain(UNCONDITIONAL)
}

/// A row of the tables: `pattern` has 32 characters, bit 31 first, and spaces for the eye.
pub(super) const fn row(name: &'static str, pattern: &str, lower: fn(Insn) -> Lowered) -> Encoding {
    let bits = pattern.as_bytes();
    let (mut mask, mut value, mut should_mask, mut should_value) = (0, 0, 0, 0);
    let mut bit = 1_u32 << 31;
    let mut index = 0;
    while index < bits.len() {
        assert!(bit != 0 || bits[index] == b' ', "a pattern has 32 bits");
        match bits[index] {
            b' ' => {
                index += 1;
                continue;
            }
            b'0' => mask |= bit,
            b'1' => (mask, value) = (mask | bit, value | bit),
            b'z' => should_mask |= bit,
            b'o' => (should_mask, should_value) = (should_mask | bit, should_value | bit),
            _ => {}
        }
        bit >>= 1;
        index += 1;
    }
    assert!(bit == 0, "a pattern has 32 bits");
    Encoding { name, mask, value, should_mask, should_value, lower }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_manual_are_found() {
        for (word, name) in [
            (0xe1a0_0000, "mov (register)"),
            (0xe320_f003, "hint"),
            (0xe328_f000, "msr (immediate)"),
            (0xe12f_ff1e, "bx"),
            (0xe8bd_8010, "ldmia"),
            (0xe92d_4010, "stmdb"),
            (0xf57f_f05f, "dmb"),
            (0xe1b0_0f9f, "ldrexd"),
            (0xee11_0f10, "mrc"),
            (0xeef1_0a10, "vmrs"),
            (0xf400_0a4f, "vst1 (2 registers)"),
            (0xe1a0_f00e, "mov (register)"),
            (0xf102_0010, "cps"),
        ] {
            assert_eq!(decode(word).map(|encoding| encoding.name), Some(name), "{word:#010x}");
        }
        assert!(decode(0xe7f0_00f0).is_none(), "UDF is reserved");
        assert!(decode(0xe100_0090).is_none(), "SWP is no more");
    }

    #[test]
    fn every_encoding_can_be_reached() {
        for encoding in encodings() {
            let condition = if encoding.mask >> 28 == 0 { 14 << 28 } else { 0 };
            let free = !(encoding.mask | encoding.should_mask | 0xf << 28);
            // Some filling of the free bits is not a narrower encoding's.
            let found = (0..64_u32).any(|seed| {
                let filling = seed.wrapping_mul(0x9e37_79b9) & free;
                let word = encoding.value | encoding.should_value | condition | filling;
                decode(word).is_some_and(|found| std::ptr::eq(found, encoding))
            });
            assert!(found, "{} is hidden", encoding.name);
        }
    }
}
