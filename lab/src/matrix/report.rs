//! The matrix as one table, as KTAP (Documentation/dev-tools/ktap.rst), and as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::axes::Coordinates;
use super::cell::{Outcome, Verdict};

/// Value of the field `schema` of the JSON.
const SCHEMA: &str = "tidemark-matrix/1";

/// A matrix that has been run.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) hosts: Vec<Host>,
    pub(crate) rows: Vec<Row>,
}

/// A host kernel of the matrix.
#[derive(Debug)]
pub(crate) struct Host {
    /// As `--host` names it.
    pub(crate) name: String,
    /// Its release, if it was booted.
    pub(crate) release: Option<String>,
}

/// A cell with what became of it.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) cell: Coordinates,
    pub(crate) outcome: Outcome,
}

impl Matrix {
    /// A failure is worst, and a pass outweighs what was skipped.
    pub(crate) fn verdict(&self) -> Verdict {
        let any = |verdict| self.rows.iter().any(|row| row.outcome.verdict == verdict);
        if any(Verdict::Fail) {
            Verdict::Fail
        } else if any(Verdict::Pass) {
            Verdict::Pass
        } else {
            Verdict::Skip
        }
    }

    /// The table, for people.
    pub(crate) fn text(&self) -> String {
        let head = [
            " ",
            "guest",
            "host",
            "kernel",
            "host page",
            "log",
            "result",
            "passes",
            "pages",
            "missing",
            "extra",
            "digests",
        ];
        let mut lines: Vec<[String; 12]> = vec![head.map(str::to_owned)];
        let mut notes = Vec::new();
        for Row { cell, outcome } in &self.rows {
            let host = &self.hosts[cell.host];
            let mut line: [String; 12] = Default::default();
            line[0] = if cell.original { "*" } else { "" }.to_owned();
            line[1] = cell.guest.title().to_owned();
            line[2].clone_from(&host.name);
            line[3] = host.release.clone().unwrap_or_default();
            line[5] = cell.log.name().to_owned();
            line[6] = match outcome.verdict {
                Verdict::Pass => "pass",
                Verdict::Fail => "FAIL",
                Verdict::Skip => "skipped",
            }
            .to_owned();
            if let Some(reason) = &outcome.reason {
                let number = notes.iter().position(|note| note == reason).unwrap_or_else(|| {
                    notes.push(reason.clone());
                    notes.len() - 1
                });
                line[6] += &format!(" [{}]", number + 1);
            }
            if let Some(figures) = &outcome.figures {
                line[4] = format!("{}K", figures.host_page / 1024);
                line[7] = figures.passes.to_string();
                line[8] = figures.pages.to_string();
                line[9] = figures.missing.to_string();
                line[10] = figures.extra.to_string();
                if figures.extra_explained != 0 {
                    line[10] += &format!(" (+{} explained)", figures.extra_explained);
                }
                line[11] = if figures.digests_equal { "equal" } else { "DIFFER" }.to_owned();
            }
            lines.push(line);
        }
        let mut out = aligned(&lines);
        for (index, note) in notes.iter().enumerate() {
            push(&mut out, format_args!("[{}] {note}", index + 1));
        }
        push(&mut out, format_args!("* guest and host of the original ARMv8 test"));
        push(&mut out, format_args!("{}", self.summary()));
        out
    }

    /// A test a cell.
    pub(crate) fn ktap(&self) -> String {
        let mut out = String::from("KTAP version 1\n");
        push(&mut out, format_args!("1..{}", self.rows.len()));
        for (index, Row { cell, outcome }) in self.rows.iter().enumerate() {
            let host = &self.hosts[cell.host];
            let name = format!("{cell} on host {} {}", host.name, host.release.as_deref().unwrap_or_default());
            let (name, number) = (clean(name.trim()), index + 1);
            let reason = clean(outcome.reason.as_deref().unwrap_or_default());
            if let Some(figures) = &outcome.figures {
                push(
                    &mut out,
                    format_args!(
                        "# {} passes, {} pages, {} missing, {} extra, {} extra explained, digests {}{}",
                        figures.passes,
                        figures.pages,
                        figures.missing,
                        figures.extra,
                        figures.extra_explained,
                        if figures.digests_equal { "equal" } else { "differ" },
                        if cell.original { ", of the original matrix" } else { "" },
                    ),
                );
            }
            match outcome.verdict {
                Verdict::Pass => push(&mut out, format_args!("ok {number} {name}")),
                Verdict::Skip => push(&mut out, format_args!("ok {number} {name} # SKIP {reason}")),
                Verdict::Fail => {
                    push(&mut out, format_args!("# {reason}"));
                    push(&mut out, format_args!("not ok {number} {name}"));
                }
            }
        }
        out
    }

    /// Everything, under stable names; `ledger` is the path below `--out`.
    pub(crate) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Whole<'a> {
            schema: &'a str,
            verdict: Verdict,
            cells: Vec<Cell<'a>>,
        }
        #[derive(Serialize)]
        struct Cell<'a> {
            guest: &'a str,
            host: &'a str,
            kernel: Option<&'a str>,
            dirty_log: &'a str,
            original: bool,
            ledger: String,
            #[serde(flatten)]
            outcome: &'a Outcome,
        }
        let cells = self.rows.iter().map(|Row { cell, outcome }| {
            let host = &self.hosts[cell.host];
            Cell {
                guest: cell.guest.title(),
                host: &host.name,
                kernel: host.release.as_deref(),
                dirty_log: cell.log.name(),
                original: cell.original,
                ledger: format!("{}/{}.json", super::host_directory(cell.host, &host.name), cell.file_name()),
                outcome,
            }
        });
        let whole = Whole { schema: SCHEMA, verdict: self.verdict(), cells: cells.collect() };
        serde_json::to_string_pretty(&whole).expect("strings and numbers always encode") + "\n"
    }

    fn summary(&self) -> String {
        let count = |verdict, original: bool| {
            let rows = self.rows.iter().filter(|row| row.outcome.verdict == verdict);
            rows.filter(|row| row.cell.original || !original).count()
        };
        let of = |original| {
            [Verdict::Pass, Verdict::Fail, Verdict::Skip].map(|verdict| count(verdict, original).to_string())
        };
        let ([pass, fail, skip], [pass_16, fail_16, skip_16]) = (of(false), of(true));
        format!(
            "{} cells: {pass} passed, {fail} failed, {skip} skipped; of the original pairs {pass_16} passed, {fail_16} \
             failed, {skip_16} skipped",
            self.rows.len()
        )
    }
}

/// Columns as wide as their widest entry.
fn aligned<const COLUMNS: usize>(lines: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for line in lines {
        for (width, entry) in widths.iter_mut().zip(line) {
            *width = (*width).max(entry.chars().count());
        }
    }
    let mut out = String::new();
    for line in lines {
        let entries: Vec<String> = line.iter().zip(widths).map(|(entry, width)| format!("{entry:<width$}")).collect();
        push(&mut out, format_args!("{}", entries.join("  ").trim_end()));
    }
    out
}

/// '#' starts a directive of KTAP: a name or reason must not hold one.
fn clean(text: &str) -> String {
    text.replace(['#', '\n'], " ")
}

fn push(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::axes::{Guest, Log};
    use crate::matrix::cell::Figures;

    fn sample(last: Outcome) -> Matrix {
        let figures = Figures {
            passes: 10,
            pages: 99,
            missing: 0,
            extra: 0,
            extra_explained: 2,
            digests_equal: true,
            host_page: 65536,
        };
        let pass = Outcome { verdict: Verdict::Pass, reason: None, figures: Some(figures) };
        let cell = |log, original| Coordinates { guest: Guest::K4V39, host: 0, log, original };
        Matrix {
            hosts: vec![Host { name: "64k42".to_owned(), release: Some("6.1.1-lab64k42".to_owned()) }],
            rows: vec![
                Row { cell: cell(Log::Bitmap, true), outcome: pass },
                Row { cell: cell(Log::Ring, true), outcome: last },
            ],
        }
    }

    #[test]
    fn the_table_has_a_row_a_cell_and_says_why_one_is_missing() {
        let text = sample(Outcome::skipped("no ring here".to_owned())).text();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1],
            [
                "*",
                "4K/39",
                "64k42",
                "6.1.1-lab64k42",
                "64K",
                "bitmap",
                "pass",
                "10",
                "99",
                "0",
                "0",
                "(+2",
                "explained)",
                "equal"
            ]
        );
        assert_eq!(lines[2], ["*", "4K/39", "64k42", "6.1.1-lab64k42", "ring", "skipped", "[1]"]);
        assert!(text.contains("\n[1] no ring here\n"), "{text}");
        assert!(text.ends_with(
            "2 cells: 1 passed, 0 failed, 1 skipped; of the original pairs 1 passed, 0 failed, 1 skipped\n"
        ));
    }

    #[test]
    fn ktap_tells_passed_skipped_and_failed_apart() {
        let text = sample(Outcome::skipped("no # ring".to_owned())).ktap();
        assert!(text.starts_with("KTAP version 1\n1..2\n# 10 passes, 99 pages"), "{text}");
        assert!(text.contains("\nok 1 guest 4K/39 with bitmap on host 64k42 6.1.1-lab64k42\n"), "{text}");
        assert!(
            text.contains("\nok 2 guest 4K/39 with ring on host 64k42 6.1.1-lab64k42 # SKIP no   ring\n"),
            "{text}"
        );
        let text = sample(Outcome::failed("a panic".to_owned())).ktap();
        assert!(text.contains("# a panic\nnot ok 2 "), "{text}");
    }

    #[test]
    fn one_failure_fails_the_whole_and_nothing_run_is_a_skip() {
        assert_eq!(sample(Outcome::failed(String::new())).verdict(), Verdict::Fail);
        assert_eq!(sample(Outcome::skipped(String::new())).verdict(), Verdict::Pass);
        let mut nothing = sample(Outcome::skipped(String::new()));
        nothing.rows.remove(0);
        assert_eq!(nothing.verdict(), Verdict::Skip);
        assert!(nothing.json().contains(r#""verdict": "skip""#));
    }
}
