//! What a guest without a plan says of itself: a kernel whose program dirties memory and compares it, and prints how far it is
//! (docs/linux-guest.md). [`GuestLines`] keeps of any number of lines what a verdict needs.

use crate::verify::pair::Findings;

/// Complaints that are kept.
const KEPT: usize = 8;

/// A line `dirtyram: N steps, …, W wrong`, or one of a page that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
enum GuestLine {
    /// Steps made since the guest's start, and pages found wrong.
    Progress { steps: u64, wrong: u64 },
    /// A page is wrong.
    Wrong(String),
}

impl GuestLine {
    /// The line in `text`, as `hostvmm run` echoes the guest's console.
    fn parse(text: &str) -> Option<Self> {
        let said = text.strip_prefix("guest: dirtyram: ")?;
        if let Some(what) = said.strip_prefix("WRONG ") {
            return Some(Self::Wrong(what.to_owned()));
        }
        let (steps, rest) = said.split_once(" steps, ")?;
        let wrong = rest.strip_suffix(" wrong")?.rsplit(' ').next()?;
        Some(Self::Progress { steps: steps.parse().ok()?, wrong: wrong.parse().ok()? })
    }
}

/// What a guest has said in one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::verify) struct GuestLines {
    first: Option<u64>,
    last: Option<u64>,
    wrong: u64,
    complaints: Vec<String>,
}

impl GuestLines {
    /// Takes note of `text`, a line that a VM printed.
    pub(super) fn note(&mut self, text: &str) {
        match GuestLine::parse(text) {
            None => {}
            Some(GuestLine::Progress { steps, wrong }) => {
                if let Some(last) = self.last.filter(|last| *last > steps) {
                    self.complain(format!("{steps} steps after {last}"));
                }
                self.first.get_or_insert(steps);
                self.last = Some(steps);
                self.wrong = self.wrong.max(wrong);
            }
            Some(GuestLine::Wrong(what)) => self.complain(what),
        }
    }

    /// How many steps it has made, by its last line.
    pub(super) fn steps(&self) -> Option<u64> {
        self.last
    }

    /// Files what is wrong with a guest that said `said` in one VM after the other: it went on everywhere, and its memory was
    /// what it wrote.
    pub(in crate::verify) fn judge<'a>(
        findings: &mut Findings<'_>,
        said: impl IntoIterator<Item = (&'a str, &'a Self)>,
    ) {
        let mut before: Option<u64> = None;
        for (name, lines) in said {
            let (Some(first), Some(last)) = (lines.first, lines.last) else {
                findings.fail("guest", format!("lines of the guest in VM {name}"), "none");
                continue;
            };
            let goes_on = before.is_none_or(|before| first >= before) && last > first;
            findings.check("guest", goes_on, &format!("a guest that goes on in VM {name}"), || {
                format!("steps {first} to {last} after {before:?}")
            });
            findings.check(
                "guest",
                lines.wrong == 0,
                &format!("a guest in VM {name} that finds its memory whole"),
                || format!("{} pages wrong", lines.wrong),
            );
            for complaint in &lines.complaints {
                findings.fail("guest", format!("a guest in VM {name} that finds its memory whole"), complaint.clone());
            }
            before = Some(last);
        }
    }

    fn complain(&mut self, what: String) {
        if self.complaints.len() < KEPT {
            self.complaints.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Verdict, sample_ledger};

    fn lines(of: &[&str]) -> GuestLines {
        let mut lines = GuestLines::default();
        of.iter().for_each(|text| lines.note(text));
        lines
    }

    fn progress(steps: u64, wrong: u64) -> String {
        format!("guest: dirtyram: {steps} steps, 99 pages written, 2 times all compared, {wrong} wrong")
    }

    #[test]
    fn the_guests_lines_are_read_among_others() {
        assert_eq!(GuestLine::parse(&progress(7, 1)), Some(GuestLine::Progress { steps: 7, wrong: 1 }));
        let wrong = GuestLine::parse("guest: dirtyram: WRONG page 1");
        assert_eq!(wrong, Some(GuestLine::Wrong("page 1".to_owned())));
        for other in [
            "guest: dirtyram: 2 threads",
            "guest: dirtyram: 1 steps, no wrong",
            "dirtyram: 1 steps, 2 wrong",
            "guest: clock 1 s, counter 2",
            "",
        ] {
            assert_eq!(GuestLine::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_guest_that_goes_on_whole_passes_and_every_other_fails() {
        let verdict = |a: &[String], b: &[String]| {
            let of = |texts: &[String]| lines(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            let (a, b) = (of(a), of(b));
            let mut ledger = sample_ledger();
            GuestLines::judge(&mut Findings::of_run(&mut ledger), [("A", &a), ("B", &b)]);
            ledger.verdict
        };
        let good = [progress(1, 0), progress(5, 0)];
        assert_eq!(verdict(&good, &[progress(6, 0), progress(9, 0)]), Verdict::Pass);
        for bad in [
            vec![],
            vec![progress(6, 0)],
            vec![progress(3, 0), progress(9, 0)],
            vec![progress(6, 0), progress(9, 1)],
            vec![progress(7, 0), progress(6, 0), progress(9, 0)],
            vec![progress(6, 0), "guest: dirtyram: WRONG page 3".to_owned(), progress(9, 0)],
        ] {
            assert_eq!(verdict(&good, &bad), Verdict::Fail, "{bad:?}");
        }
    }
}
