//! Randomness as a pure function: SplitMix64 and a hash of words built on its finalizer.
//!
//! Host and guest must draw the same numbers, in any order and with nothing remembered between steps. So every draw
//! is keyed by what it is for (seed, pattern, vCPU, step, index) instead of taken from one long sequence.
//! Constants: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 16.

/// 2^64 divided by the golden ratio, odd: the generator's increment.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The generator whose state is `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The generator whose next number is the `index`th (from 0) of the one seeded with `seed`.
    pub const fn starting_at(seed: u64, index: u64) -> Self {
        Self(seed.wrapping_add(GAMMA.wrapping_mul(index)))
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// A number below `bound`, by the high half of a product: no division, no rejection. The bias is below
    /// `bound` / 2^64. 0 where `bound` is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next_u64() as u128 * bound as u128) >> 64) as u64
    }
}

/// SplitMix64's finalizer: a bijection on 64-bit words.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A hash of `seed` and `words`, order-sensitive.
pub(crate) const fn key<const N: usize>(seed: u64, words: [u64; N]) -> u64 {
    let mut state = mix(seed.wrapping_add(GAMMA));
    let mut i = 0;
    while i < N {
        state = mix(state.wrapping_add(GAMMA) ^ words[i]);
        i += 1;
    }
    state
}

/// The smallest number at or above 0.618 × `len` (at least 1) that shares no factor with `len`.
///
/// Steps of that size visit every one of `len` places once before any twice, and scatter neighbours.
pub(crate) const fn coprime_stride(len: u64) -> u64 {
    let mut stride = ((len as u128 * GAMMA as u128) >> 64) as u64;
    if stride == 0 {
        stride = 1;
    }
    while gcd(stride, len) > 1 {
        stride += 1;
    }
    stride
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_is_the_published_one() {
        // First outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) from state 1234567.
        let mut random = SplitMix64::new(1_234_567);
        assert_eq!(random.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(random.next_u64(), 3_203_168_211_198_807_973);
        assert_eq!(SplitMix64::starting_at(1_234_567, 1).next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn a_stride_visits_every_place_once() {
        for len in 1..200_u64 {
            let stride = coprime_stride(len);
            let mut seen = [false; 200];
            for i in 0..len {
                let at = (i * stride % len) as usize;
                assert!(!core::mem::replace(&mut seen[at], true), "{len}: {at} twice");
            }
        }
    }
}
