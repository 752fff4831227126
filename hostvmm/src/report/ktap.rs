//! A ledger in the kernel's test protocol (Documentation/dev-tools/ktap.rst, version 1).

use std::fmt::Write;

use super::{Ledger, Verdict, cell_name, checks};

/// The ledger as KTAP: a test a check, or a subtest plan a cell where the scenario has cells.
pub fn ktap(ledger: &Ledger) -> String {
    let mut out = String::from("KTAP version 1\n");
    if ledger.cells.is_empty() {
        tests(&mut out, ledger, "");
    } else {
        line(&mut out, format_args!("1..{}", ledger.cells.len()));
        for (index, cell) in ledger.cells.iter().enumerate() {
            line(&mut out, format_args!("  KTAP version 1"));
            tests(&mut out, cell, "  ");
            result(&mut out, "", index + 1, &cell_name(cell), cell.verdict, cell.reason.as_deref());
        }
    }
    out
}

fn tests(out: &mut String, ledger: &Ledger, indent: &str) {
    let checks = checks(ledger);
    if checks.is_empty() {
        line(out, format_args!("{indent}1..1"));
        result(out, indent, 1, &ledger.scenario, ledger.verdict, ledger.reason.as_deref());
        return;
    }
    line(out, format_args!("{indent}1..{}", checks.len()));
    for (index, (name, verdict, why)) in checks.iter().enumerate() {
        result(out, indent, index + 1, name, *verdict, why.as_deref());
    }
}

fn result(out: &mut String, indent: &str, number: usize, name: &str, verdict: Verdict, why: Option<&str>) {
    // '#' starts a directive: a name or reason must not hold one.
    let clean = |text: &str| text.replace(['#', '\n'], " ");
    let why = why.map(clean);
    match (verdict, why) {
        (Verdict::Pass, _) => line(out, format_args!("{indent}ok {number} {}", clean(name))),
        (Verdict::Skip, why) => {
            line(out, format_args!("{indent}ok {number} {} # SKIP {}", clean(name), why.unwrap_or_default()));
        }
        (Verdict::Fail, why) => {
            if let Some(why) = why {
                line(out, format_args!("{indent}# {why}"));
            }
            line(out, format_args!("{indent}not ok {number} {}", clean(name)));
        }
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn a_failed_pass_is_a_failed_test_with_its_reason() {
        let text = ktap(&sample());
        assert!(text.starts_with("KTAP version 1\n1..3\nok 1 pass 0\n"), "{text}");
        assert!(
            text.contains("# missing: pass 1, page 3, GPA 0x20003000: expected dirty, found clean\nnot ok 2 pass 1\n")
        );
    }

    #[test]
    fn cells_are_subtests() {
        let mut whole = sample();
        whole.cells = vec![sample(), sample()];
        whole.cells[1].verdict = Verdict::Skip;
        let text = ktap(&whole);
        assert!(text.contains("\n1..2\n  KTAP version 1\n  1..3\n"), "{text}");
        assert!(text.contains("\nnot ok 1 4k/48"), "{text}");
        assert!(text.contains("# SKIP"), "{text}");
    }
}
