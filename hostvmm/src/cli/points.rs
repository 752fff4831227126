//! `--points`: where a guest asks to be moved.

use std::fmt;
use std::str::FromStr;

use abi::points::Point;

/// A list of points, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PointsArg(Vec<Point>);

impl PointsArg {
    /// The points, in the order in which a guest comes to them.
    pub(crate) fn points(&self) -> &[Point] {
        &self.0
    }

    /// Their bits.
    pub(crate) fn mask(&self) -> u32 {
        self.0.iter().fold(0, |mask, point| mask | point.bit())
    }
}

impl FromStr for PointsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self(Point::ALL.to_vec()));
        }
        let names = || Point::ALL.map(Point::name).join(", ");
        let point = |name: &str| name.parse().map_err(|_| format!("no point `{name}`; there are {}, and all", names()));
        let mut points = text.split(',').map(point).collect::<Result<Vec<Point>, _>>()?;
        points.sort_unstable();
        points.dedup();
        Ok(Self(points))
    }
}

impl fmt::Display for PointsArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|point| point.name()).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_visited_in_their_order_and_once() {
        let points: PointsArg = "wfi,mmu-off,wfi".parse().unwrap();
        assert_eq!(points.points(), [Point::MmuOff, Point::Wfi]);
        assert_eq!((points.mask(), points.to_string()), (0b100_0010, "mmu-off,wfi".to_owned()));
        assert_eq!("all".parse::<PointsArg>().unwrap().points(), Point::ALL);
        assert!("nowhere".parse::<PointsArg>().unwrap_err().contains("table-switch"));
        assert!("".parse::<PointsArg>().is_err());
    }
}
