//! The registers of a vCPU as text: what an accelerator listed, when and where. Lines of `id value [bits that may be written]`, in
//! hexadecimal, after lines of `#` that say of what; the checked-in lists of KVM's have this form.

use std::fmt;

use thiserror::Error;

/// The most registers of one vCPU that are taken: four times as many as any list has.
pub const MAX_REGISTERS: usize = 2048;

/// What one vCPU listed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Of what, in words.
    pub origin: String,
    /// Id and value in the accelerator's order; of a register wider than 16 bytes the low 16.
    pub registers: Vec<(u64, u128)>,
    /// Of constants that software may choose before the vCPU runs: id and the bits (KVM_ARM_GET_REG_WRITABLE_MASKS).
    pub writable: Vec<(u64, u64)>,
}

/// A line that is no register.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// Not two or three hexadecimal numbers.
    #[error("line {line}: expected `id value [writable bits]` in hexadecimal")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// More than [`MAX_REGISTERS`].
    #[error("more than {MAX_REGISTERS} registers")]
    TooMany,
}

impl Snapshot {
    /// Reads the text form.
    ///
    /// # Errors
    /// [`SnapshotError`] for the first line that is none.
    pub fn parse(text: &str) -> Result<Self, SnapshotError> {
        let mut snapshot = Self::default();
        for (line, content) in (1..).zip(text.lines()) {
            if let Some(words) = content.strip_prefix('#') {
                let gap = if snapshot.origin.is_empty() { "" } else { " " };
                snapshot.origin += &format!("{gap}{}", words.trim());
                continue;
            }
            let bad = || SnapshotError::Line { line };
            let mut words = content.split_whitespace();
            let mut word = || words.next().map(|word| u128::from_str_radix(word, 16).map_err(|_| bad())).transpose();
            let Some(id) = word()? else { continue };
            let id = u64::try_from(id).map_err(|_| bad())?;
            let value = word()?.ok_or_else(bad)?;
            if let Some(bits) = word()? {
                snapshot.writable.push((id, u64::try_from(bits).map_err(|_| bad())?));
            }
            if words.next().is_some() {
                return Err(bad());
            }
            if snapshot.registers.len() == MAX_REGISTERS {
                return Err(SnapshotError::TooMany);
            }
            snapshot.registers.push((id, value));
        }
        Ok(snapshot)
    }

    /// The value of `id`.
    pub fn value(&self, id: u64) -> Option<u128> {
        self.registers.iter().find(|(found, _)| *found == id).map(|(_, value)| *value)
    }

    /// The bits of `id` that software may choose.
    pub fn writable(&self, id: u64) -> u64 {
        self.writable.iter().find(|(found, _)| *found == id).map_or(0, |(_, bits)| *bits)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# {}", self.origin)?;
        self.registers.iter().try_for_each(|(id, value)| match self.writable(*id) {
            0 => writeln!(f, "{id:016x} {value:x}"),
            bits => writeln!(f, "{id:016x} {value:x} {bits:x}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_snapshot_are_the_same() {
        let text = "# a vCPU\n6030000000100000 7\n603000000013c030 1120 fffffffffffffff0\n";
        let snapshot = Snapshot::parse(text).unwrap();
        assert_eq!(snapshot.registers, [(0x6030_0000_0010_0000, 7), (0x6030_0000_0013_c030, 0x1120)]);
        assert_eq!(snapshot.writable(0x6030_0000_0013_c030), !0xf);
        assert_eq!(snapshot.value(1), None);
        assert_eq!(snapshot.to_string(), text);
    }

    #[test]
    fn what_is_no_register_is_refused_by_its_line() {
        for bad in ["x", "1", "1 y", "1 2 3 4", "1 2 10000000000000000", "10000000000000000 2"] {
            assert_eq!(Snapshot::parse(&format!("1 2\n{bad}")), Err(SnapshotError::Line { line: 2 }), "{bad}");
        }
        assert_eq!(Snapshot::parse(&"1 2\n".repeat(MAX_REGISTERS + 1)), Err(SnapshotError::TooMany));
    }
}
