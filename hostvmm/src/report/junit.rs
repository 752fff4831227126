//! A ledger as JUnit XML, for CI systems.

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::{Ledger, Verdict, cell_name, checks};

/// The ledger as JUnit XML: a suite a run, a case a check.
pub fn junit(ledger: &Ledger) -> String {
    let mut report = Report::new("tidemark");
    let runs = if ledger.cells.is_empty() { std::slice::from_ref(ledger) } else { &ledger.cells };
    for run in runs {
        let mut suite = TestSuite::new(format!("{} {}", run.scenario, cell_name(run)));
        if run.verdict == Verdict::Skip {
            let mut status = TestCaseStatus::skipped();
            status.set_message(run.reason.as_deref().unwrap_or_default());
            suite.add_test_case(TestCase::new("run", status));
        }
        for (name, verdict, why) in checks(run) {
            let mut status = match verdict {
                Verdict::Pass => TestCaseStatus::success(),
                Verdict::Skip => TestCaseStatus::skipped(),
                Verdict::Fail => TestCaseStatus::non_success(NonSuccessKind::Failure),
            };
            if let Some(why) = why {
                status.set_message(why);
            }
            suite.add_test_case(TestCase::new(name, status));
        }
        report.add_test_suite(suite);
    }
    report.to_string().expect("a report of plain text serialises")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn failures_are_counted_and_named() {
        let xml = junit(&sample());
        assert!(xml.contains(r#"failures="2""#), "{xml}");
        assert!(xml.contains("GPA 0x20003000"), "{xml}");
    }
}
