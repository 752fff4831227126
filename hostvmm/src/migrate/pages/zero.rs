//! Zero pages and leaves, at the speed of memory.

use workload::PAGE_BYTES;
use workload::digest::leaf;

/// Bytes of a page that has a leaf of its own.
pub const LEAF_PAGE: usize = PAGE_BYTES as usize;

/// The leaf of a page of zeroes. A page whose hash it happens to be is taken for one, by both sides alike.
pub const ZERO_LEAF: u64 = 0;

/// Bytes looked at before it is decided whether to look further: few enough for a page that is not zero, enough for vector
/// instructions on one that is.
const STRIDE: usize = 256;

/// Whether all bytes are zero; ends soon after the first that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    strides.iter().all(|stride| {
        let words = stride.as_chunks::<8>().0;
        words.iter().fold(0, |any, word| any | u64::from_ne_bytes(*word)) == 0
    }) && rest.iter().all(|byte| *byte == 0)
}

/// The leaf of `page`, of [`LEAF_PAGE`] bytes: [`ZERO_LEAF`] if it is zero, else that of `workload::digest`.
pub fn leaf_of(page: &[u8]) -> u64 {
    if is_zero(page) { ZERO_LEAF } else { leaf(page) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_zeroes_are_zero() {
        for len in [0, 1, 7, 255, 256, 257, 4096, 65536] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in [0, len / 3, len / 2, len.saturating_sub(1)].into_iter().filter(|at| *at < len) {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{len} bytes, one at {at}");
                bytes[at] = 0;
            }
        }
        assert_eq!(leaf_of(&[0; LEAF_PAGE]), ZERO_LEAF);
        assert_eq!(leaf_of(&[1; LEAF_PAGE]), leaf(&[1; LEAF_PAGE]));
    }

    proptest! {
        #[test]
        fn agrees_with_looking_at_each_byte(bytes in prop::collection::vec(prop_oneof![40 => Just(0_u8), 1 => any::<u8>()], 0..600)) {
            prop_assert_eq!(is_zero(&bytes), bytes.iter().all(|byte| *byte == 0));
        }
    }
}
