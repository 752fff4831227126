//! The lines in which a guest prints the registers that it read around the points at which it asked to be moved (`abi::points`).

use std::collections::BTreeMap;

use abi::points::{ID_BASE, LINE_PREFIX, Point};

/// A line of a guest that has been moved, as `hostvmm run` echoes it: `guest: point handler before 13c080=30d0198d …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::verify) enum PointLine {
    /// Registers by KVM's ids, before the point or after it.
    Registers {
        /// Which.
        point: Point,
        /// Whether it was after the move.
        after: bool,
        /// What was read.
        registers: Vec<(u64, u128)>,
    },
    /// What the guest checks of itself held.
    Passed(Point),
}

impl PointLine {
    /// The line in `text`.
    pub(in crate::verify) fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("guest: ")?.strip_prefix(LINE_PREFIX)?.split_whitespace();
        let point = words.next()?.parse().ok()?;
        let after = match words.next()? {
            "before" => false,
            "after" => true,
            "passed" => return words.next().is_none().then_some(Self::Passed(point)),
            _ => return None,
        };
        let register = |word: &str| {
            let (id, value) = word.split_once('=')?;
            Some((u64::from_str_radix(id, 16).ok()? ^ ID_BASE, u128::from_str_radix(value, 16).ok()?))
        };
        let registers = words.map(register).collect::<Option<Vec<_>>>()?;
        Some(Self::Registers { point, after, registers })
    }
}

/// What a guest read at one point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::verify) struct Reading {
    /// Before it asked.
    pub(in crate::verify) before: Vec<(u64, u128)>,
    /// After it was moved.
    pub(in crate::verify) after: Vec<(u64, u128)>,
    /// Whether its own checks held.
    pub(in crate::verify) passed: bool,
}

/// What it read at every point, by the lines that it printed in this order.
pub(in crate::verify) fn readings(lines: impl IntoIterator<Item = PointLine>) -> BTreeMap<Point, Reading> {
    let mut readings = BTreeMap::<Point, Reading>::new();
    for line in lines {
        match line {
            PointLine::Passed(point) => readings.entry(point).or_default().passed = true,
            PointLine::Registers { point, after, registers } => {
                let reading = readings.entry(point).or_default();
                if after { &mut reading.after } else { &mut reading.before }.extend(registers);
            }
        }
    }
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_prints_is_read_back() {
        let lines = [
            "guest: point handler before 13c080=30d0198d 1000000001000d4=0",
            "guest: point handler before 100000=7 70000000100054=123456789abcdef0101010101010101",
            "guest: point handler after 13c080=30d0198d",
            "guest: point handler passed",
        ];
        let readings = readings(lines.iter().map(|line| PointLine::parse(line).unwrap()));
        let before = vec![
            (0x6030_0000_0013_c080, 0x30d0_198d),
            (0x6130_0000_0010_00d4, 0),
            (0x6030_0000_0010_0000, 7),
            (0x6040_0000_0010_0054, 0x0123_4567_89ab_cdef_0101_0101_0101_0101),
        ];
        let expected = Reading { before, after: vec![(0x6030_0000_0013_c080, 0x30d0_198d)], passed: true };
        assert_eq!(readings, BTreeMap::from([(Point::Handler, expected)]));
    }

    #[test]
    fn other_lines_are_none() {
        for line in [
            "point handler passed",
            "guest: point",
            "guest: point nowhere passed",
            "guest: point handler during 1=2",
            "guest: point handler before 1",
            "guest: point handler before 1=x",
            "guest: point handler before 1=100000000000000000000000000000000",
            "guest: point handler passed over",
        ] {
            assert_eq!(PointLine::parse(line), None, "{line}");
        }
    }
}
