//! The BSD checksum that `sum -r` prints: the pass criterion of the original replication tests.
//!
//! It is 16 bits, so two swapped pages that hold only a counter go unnoticed; the salted digest of `workload` is what proves
//! memory. This one is kept because the original tests' readers compare it with `sum -r` of the files.

use std::fmt;
use std::io::{self, Read};

/// Bytes in one of the blocks that `sum -r` counts.
const BLOCK_BYTES: u64 = 1024;

/// A multiple of the 16 bits of the sum.
const PIECE_BYTES: usize = 64;

/// A running BSD checksum; [`fmt::Display`] gives what `sum -r` prints for standard input: `%05d %5d`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SumR {
    checksum: u16,
    len_bytes: u64,
}

impl SumR {
    /// The checksum of all bytes of `reader`.
    ///
    /// # Errors
    /// Whatever reading returns.
    pub fn of_reader(mut reader: impl Read) -> io::Result<Self> {
        let mut sum = Self::default();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(sum),
                Ok(got) => sum.update(&buffer[..got]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The checksum of `bytes`.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut sum = Self::default();
        sum.update(bytes);
        sum
    }

    /// What a peer reported of `len_bytes` bytes.
    pub(super) fn from_parts(checksum: u16, len_bytes: u64) -> Self {
        Self { checksum, len_bytes }
    }

    /// Adds `bytes`: rotate right by one, add the byte, modulo 2^16.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut checksum = self.checksum;
        for piece in bytes.chunks(PIECE_BYTES) {
            // So many zeroes rotate the sum all the way round, and memory is full of them.
            if piece.len() == PIECE_BYTES && piece.iter().fold(0, |any, byte| any | byte) == 0 {
                continue;
            }
            for byte in piece {
                checksum = checksum.rotate_right(1).wrapping_add(u16::from(*byte));
            }
        }
        self.checksum = checksum;
        self.len_bytes += bytes.len() as u64;
    }

    /// Adds `count` zero bytes without reading them: a rotation by `count`.
    pub fn update_zeros(&mut self, count: u64) {
        self.checksum = self.checksum.rotate_right((count % 16) as u32);
        self.len_bytes += count;
    }

    /// The 16-bit checksum.
    pub fn checksum(self) -> u16 {
        self.checksum
    }

    /// Blocks of 1024 bytes, a partial one counting as one.
    pub fn blocks(self) -> u64 {
        self.len_bytes.div_ceil(BLOCK_BYTES)
    }
}

impl fmt::Display for SumR {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:05} {:5}", self.checksum, self.blocks())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// What the system's own `sum -r` prints, or nothing where there is none.
    fn system_sum(bytes: &[u8]) -> Option<String> {
        let mut child = Command::new("sum").arg("-r").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        Some(String::from_utf8(output.stdout).unwrap().trim_end_matches(['\n', '-']).trim_end().to_owned())
    }

    #[test]
    fn prints_what_sum_prints() {
        let pattern: Vec<u8> = (0_u32..200_000).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut compared = 0;
        for len in [0, 1, 2, 511, 512, 1023, 1024, 1025, 4096, 65_537, 200_000] {
            let ours = SumR::of_bytes(&pattern[..len]).to_string();
            if let Some(theirs) = system_sum(&pattern[..len]) {
                assert_eq!(ours, theirs, "{len} bytes");
                compared += 1;
            }
        }
        if compared == 0 {
            println!("skipped: no `sum` program to compare with");
        }
    }

    #[test]
    fn golden_values() {
        assert_eq!(SumR::default().to_string(), "00000     0");
        assert_eq!(SumR::of_bytes(b"abc").to_string(), "16556     1");
    }

    #[test]
    fn stretches_of_zeroes_count_wherever_they_lie() {
        let mut bytes = vec![0; 1000];
        for (at, byte) in [(3, 0x81), (64, 0xff), (200, 1), (333, 0xfe), (871, 0x40)] {
            bytes[at] = byte;
        }
        for start in 0..130 {
            let naive = bytes[start..].iter().fold(0_u16, |sum, &byte| sum.rotate_right(1).wrapping_add(byte.into()));
            assert_eq!(SumR::of_bytes(&bytes[start..]).checksum(), naive);
        }
    }

    #[test]
    fn pieces_zeros_and_readers_agree() {
        let mut bytes = vec![7; 1000];
        bytes.extend(vec![0; 3001]);
        bytes.extend(b"end");
        let mut pieces = SumR::default();
        pieces.update(&bytes[..1000]);
        pieces.update_zeros(3001);
        pieces.update(b"end");
        assert_eq!(pieces, SumR::of_bytes(&bytes));
        assert_eq!(SumR::of_reader(bytes.as_slice()).unwrap(), pieces);
    }
}
