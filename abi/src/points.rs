//! Points at which a guest asks to be moved to another machine, and how it prints the registers that it read around one.
//!
//! A store of a point's number to [`crate::hypercall::REG_POINT`] asks. The host stops the whole machine right behind that store, whatever
//! the vCPU is in the middle of; with [`Point::Wfi`] it only takes note, for a vCPU that has been stopped does not wait for an interrupt.

/// Written before everything else a line of registers holds, on the console.
pub const LINE_PREFIX: &str = "point ";
/// A register's id on the console is KVM's, exclusive-or this: short for registers of 64 bits.
pub const ID_BASE: u64 = 0x6030_0000_0000_0000;

/// Where a guest asks to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Point {
    /// Before the MMU is first on.
    MmuOff = 1,
    /// With the registers of new translation tables written, and nothing translated by them yet.
    TableSwitch = 2,
    /// Inside the handler of a data abort.
    Handler = 3,
    /// With an interrupt pending that is masked.
    Pending = 4,
    /// Between a load-exclusive and its store-exclusive.
    Exclusives = 5,
    /// Waiting for an interrupt.
    Wfi = 6,
    /// In the middle of a step of the workload.
    Workload = 7,
}

/// A name that is no point's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPoint;

impl Point {
    /// All, in the order in which a guest comes to them.
    pub const ALL: [Self; 7] =
        [Self::MmuOff, Self::TableSwitch, Self::Handler, Self::Pending, Self::Exclusives, Self::Wfi, Self::Workload];

    /// The point numbered `number`.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|point| point.number() == number)
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// Its bit in the boot block's mask of points.
    pub const fn bit(self) -> u32 {
        1 << self.number()
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MmuOff => "mmu-off",
            Self::TableSwitch => "table-switch",
            Self::Handler => "handler",
            Self::Pending => "pending",
            Self::Exclusives => "exclusives",
            Self::Wfi => "wfi",
            Self::Workload => "workload",
        }
    }

    /// Whether the guest goes on behind the store: it is to be stopped once it waits.
    pub const fn goes_on(self) -> bool {
        matches!(self, Self::Wfi)
    }
}

impl core::str::FromStr for Point {
    type Err = NoPoint;

    fn from_str(name: &str) -> Result<Self, NoPoint> {
        Self::ALL.into_iter().find(|point| point.name() == name).ok_or(NoPoint)
    }
}

/// The points in a mask of their bits, in order; `None` where it has other bits.
pub fn from_mask(mask: u32) -> Option<impl Iterator<Item = Point>> {
    let known = Point::ALL.iter().fold(0, |bits, point| bits | point.bit());
    (mask & !known == 0).then(|| Point::ALL.into_iter().filter(move |point| mask & point.bit() != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_the_points() {
        for point in Point::ALL {
            assert_eq!(Point::from_number(point.number()), Some(point));
            assert_eq!(point.name().parse(), Ok(point));
        }
        assert_eq!((Point::from_number(0), Point::from_number(8)), (None, None));
        assert_eq!("Wfi".parse::<Point>(), Err(NoPoint));
    }

    #[test]
    fn a_mask_holds_points_in_order_and_nothing_else() {
        assert!(from_mask(1 << 6 | 1 << 1).unwrap().eq([Point::MmuOff, Point::Wfi]));
        assert!(from_mask(1).is_none() && from_mask(1 << 8).is_none());
    }
}
