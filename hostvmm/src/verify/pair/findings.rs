//! What a scenario found wrong: [`Findings`].

use crate::report::{Ledger, Mismatch};

/// Writes failed checks into a ledger.
pub(in crate::verify) struct Findings<'a> {
    ledger: &'a mut Ledger,
    kind: &'static str,
    number: u64,
}

impl<'a> Findings<'a> {
    /// Checks of the whole run.
    pub(in crate::verify) fn of_run(ledger: &'a mut Ledger) -> Self {
        Self { ledger, kind: "", number: 0 }
    }

    /// Checks of one hop, cancelled migration or kill (`kind`), numbered from 1.
    pub(in crate::verify) fn numbered(ledger: &'a mut Ledger, kind: &'static str, number: usize) -> Self {
        Self { ledger, kind, number: number as u64 }
    }

    /// Records that `check` failed.
    pub(in crate::verify) fn fail(&mut self, check: &str, expected: impl Into<String>, found: impl Into<String>) {
        let check = if self.kind.is_empty() { check.to_owned() } else { format!("{} {check}", self.kind) };
        let (expected, found) = (expected.into(), found.into());
        self.ledger.fail(Mismatch { check, pass: self.number, page: None, gpa: None, expected, found });
    }

    /// Records that `check` failed unless `holds`; returns whether it does.
    pub(in crate::verify) fn check(
        &mut self,
        check: &str,
        holds: bool,
        expected: &str,
        found: impl FnOnce() -> String,
    ) -> bool {
        if !holds {
            self.fail(check, expected, found());
        }
        holds
    }
}
