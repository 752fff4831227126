//! Small ELFs made by hand, for tests.

use goblin::elf::program_header::{PF_R, PF_W, PF_X};

/// Bytes of an ELF64 header and of a program header.
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;

/// A program header and the bytes it loads.
#[derive(Clone, Debug)]
pub(crate) struct TestSegment {
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory_bytes: u64,
    pub(crate) executable: bool,
}

impl TestSegment {
    pub(crate) fn code(address: u64, words: &[u32]) -> Self {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Self { address, memory_bytes: bytes.len() as u64, bytes, executable: true }
    }

    pub(crate) fn data(address: u64, bytes: &[u8], memory_bytes: u64) -> Self {
        Self { address, bytes: bytes.to_vec(), memory_bytes, executable: false }
    }
}

/// An AArch64 ET_EXEC with these segments.
pub(crate) fn elf(entry: u64, segments: &[TestSegment]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    file.extend_from_slice(&2u16.to_le_bytes()); // e_type: ET_EXEC
    file.extend_from_slice(&183u16.to_le_bytes()); // e_machine: EM_AARCH64
    file.extend_from_slice(&1u32.to_le_bytes());
    file.extend_from_slice(&entry.to_le_bytes());
    file.extend_from_slice(&(HEADER_BYTES as u64).to_le_bytes()); // e_phoff
    file.extend_from_slice(&0u64.to_le_bytes()); // e_shoff
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [HEADER_BYTES, PROGRAM_HEADER_BYTES, segments.len(), 64, 0, 0] {
        file.extend_from_slice(&(half as u16).to_le_bytes());
    }
    assert_eq!(file.len(), HEADER_BYTES);
    let mut offset = HEADER_BYTES + segments.len() * PROGRAM_HEADER_BYTES;
    for segment in segments {
        let flags = PF_R | if segment.executable { PF_X } else { PF_W };
        file.extend_from_slice(&1u32.to_le_bytes()); // p_type: PT_LOAD
        file.extend_from_slice(&flags.to_le_bytes());
        let len_bytes = segment.bytes.len() as u64;
        for word in [offset as u64, segment.address, segment.address, len_bytes, segment.memory_bytes, 4] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        offset += segment.bytes.len();
    }
    for segment in segments {
        file.extend_from_slice(&segment.bytes);
    }
    file
}

/// An ARM ET_EXEC of 32 bits with these segments.
pub(crate) fn elf32(entry: u32, segments: &[TestSegment]) -> Vec<u8> {
    const HEADER_BYTES: usize = 52;
    const PROGRAM_HEADER_BYTES: usize = 32;
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x01\x01\x01");
    file.resize(16, 0);
    file.extend_from_slice(&2u16.to_le_bytes()); // e_type: ET_EXEC
    file.extend_from_slice(&40u16.to_le_bytes()); // e_machine: EM_ARM
    for word in [1, entry, HEADER_BYTES as u32, 0, 0x0500_0000] {
        file.extend_from_slice(&word.to_le_bytes()); // e_version, e_entry, e_phoff, e_shoff, e_flags: EABI 5
    }
    for half in [HEADER_BYTES, PROGRAM_HEADER_BYTES, segments.len(), 40, 0, 0] {
        file.extend_from_slice(&(half as u16).to_le_bytes());
    }
    assert_eq!(file.len(), HEADER_BYTES);
    let mut offset = HEADER_BYTES + segments.len() * PROGRAM_HEADER_BYTES;
    for segment in segments {
        let flags = PF_R | if segment.executable { PF_X } else { PF_W };
        let (address, len_bytes) = (segment.address as u32, segment.bytes.len() as u32);
        for word in [1, offset as u32, address, address, len_bytes, segment.memory_bytes as u32, flags, 4] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        offset += segment.bytes.len();
    }
    for segment in segments {
        file.extend_from_slice(&segment.bytes);
    }
    file
}
