//! The doorbell page: identification registers, the register whose store is a hypercall, and the one at which a guest asks to be moved.
//!
//! Stateless; see docs/hypercall-abi.md.

use abi::Gpa;
use abi::hypercall::{DOORBELL_ID, REG_DOORBELL, REG_ID, REG_POINT, REG_VERSION, REQUEST_ALIGN, VERSION};
use abi::points::Point;

/// What a load of `len_bytes` at `offset` in the page reads, where the guest has told of `told` and goes on. Anything but a 32-bit load of a
/// register reads as zero.
pub fn read(offset: u64, len_bytes: u8, told: Option<Point>) -> u64 {
    match (offset, len_bytes) {
        (REG_ID, 4) => u64::from(DOORBELL_ID),
        (REG_VERSION, 4) => u64::from(VERSION),
        (REG_POINT, 4) => told.map_or(0, |point| point.number().into()),
        _ => 0,
    }
}

/// The GPA of the request block that a store rings for; `None` where the store is not a 32-bit one to the doorbell.
pub fn rung(offset: u64, len_bytes: u8, data: u64) -> Option<Gpa> {
    let shifted = u32::try_from(data).ok()?;
    (offset == REG_DOORBELL && len_bytes == 4).then(|| Gpa::new(u64::from(shifted) * REQUEST_ALIGN))
}

/// The point at which a store asks to be moved; `None` where it is not a 32-bit store of a point's number to that register.
pub fn asked(offset: u64, len_bytes: u8, data: u64) -> Option<Point> {
    let number = u32::try_from(data).ok()?;
    if offset == REG_POINT && len_bytes == 4 { Point::from_number(number) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_bit_accesses_of_registers_do_something() {
        assert_eq!(read(REG_ID, 4, None), u64::from(u32::from_le_bytes(*b"TDMK")));
        assert_eq!(read(REG_VERSION, 4, None), 1);
        for (offset, len_bytes) in [(REG_ID, 8), (REG_ID, 1), (REG_DOORBELL, 4), (REG_POINT, 8), (0xffc, 4)] {
            assert_eq!(read(offset, len_bytes, Some(Point::Wfi)), 0);
        }
        assert_eq!(rung(REG_DOORBELL, 4, 0x0100_8000), Some(Gpa::new(0x4020_0000)));
        assert_eq!(rung(REG_DOORBELL, 4, 0xffff_ffff), Some(Gpa::new(0x3f_ffff_ffc0)));
        assert_eq!(rung(REG_DOORBELL, 8, 1), None);
        assert_eq!(rung(REG_ID, 4, 1), None);
    }

    #[test]
    fn only_points_are_asked_for_and_only_what_was_told_is_read() {
        assert_eq!(asked(REG_POINT, 4, 6), Some(Point::Wfi));
        for (offset, len_bytes, data) in
            [(REG_POINT, 8, 6), (REG_DOORBELL, 4, 6), (REG_POINT, 4, 0), (REG_POINT, 4, 1 << 32 | 6)]
        {
            assert_eq!(asked(offset, len_bytes, data), None);
        }
        assert_eq!((read(REG_POINT, 4, Some(Point::Wfi)), read(REG_POINT, 4, None)), (6, 0));
    }
}
