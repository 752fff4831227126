//! The doorbell page: identification registers, and the register whose store is a hypercall.
//!
//! Stateless; see docs/hypercall-abi.md.

use abi::Gpa;
use abi::hypercall::{DOORBELL_ID, REG_DOORBELL, REG_ID, REG_VERSION, REQUEST_ALIGN, VERSION};

/// What a load of `len_bytes` at `offset` in the page reads. Anything but a 32-bit load of a register reads as zero.
pub fn read(offset: u64, len_bytes: u8) -> u64 {
    match (offset, len_bytes) {
        (REG_ID, 4) => u64::from(DOORBELL_ID),
        (REG_VERSION, 4) => u64::from(VERSION),
        _ => 0,
    }
}

/// The GPA of the request block that a store rings for; `None` where the store is not a 32-bit one to the doorbell.
pub fn rung(offset: u64, len_bytes: u8, data: u64) -> Option<Gpa> {
    let shifted = u32::try_from(data).ok()?;
    (offset == REG_DOORBELL && len_bytes == 4).then(|| Gpa::new(u64::from(shifted) * REQUEST_ALIGN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_bit_accesses_of_registers_do_something() {
        assert_eq!(read(REG_ID, 4), u64::from(u32::from_le_bytes(*b"TDMK")));
        assert_eq!(read(REG_VERSION, 4), 1);
        for (offset, len_bytes) in [(REG_ID, 8), (REG_ID, 1), (REG_DOORBELL, 4), (0xffc, 4)] {
            assert_eq!(read(offset, len_bytes), 0);
        }
        assert_eq!(rung(REG_DOORBELL, 4, 0x0100_8000), Some(Gpa::new(0x4020_0000)));
        assert_eq!(rung(REG_DOORBELL, 4, 0xffff_ffff), Some(Gpa::new(0x3f_ffff_ffc0)));
        assert_eq!(rung(REG_DOORBELL, 8, 1), None);
        assert_eq!(rung(REG_ID, 4, 1), None);
    }
}
