//! What became of a cell, by the files that it left: the ledger's figures are judged here again, whatever hostvmm's own
//! verdict, and what is not there is never taken for a pass.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::axes::{Coordinates, Work};
use crate::batch::{self, ENDED_BY_TIMEOUT};

/// hostvmm's exit statuses.
const PASSED: i32 = 0;
const SKIPPED: i32 = 4;

/// How a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Pass,
    Fail,
    Skip,
}

/// A cell's outcome: a row of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    /// Why it did not pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) figures: Option<Figures>,
}

/// Sums over a cell's passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Figures {
    /// Passes made, without pass 0.
    pub(crate) passes: usize,
    /// Host pages that the log reported.
    pub(crate) pages: u64,
    /// Pages dirtied but not reported.
    pub(crate) missing: u64,
    /// Pages reported but not dirtied, and not explained by a rule.
    pub(crate) extra: u64,
    /// Those explained by one.
    pub(crate) extra_explained: u64,
    /// Whether guest, copy and model had the same digest in every pass, and region and copy were equal at the end.
    pub(crate) digests_equal: bool,
    /// Bytes that one dirty bit stands for.
    pub(crate) host_page: u64,
}

/// What is read of hostvmm's ledger (docs/ledger.md).
#[derive(Debug, Deserialize)]
struct Ledger {
    verdict: String,
    reason: Option<String>,
    accelerator: String,
    dirty_log: String,
    host_page: u64,
    region: Region,
    passes: Vec<Pass>,
}

#[derive(Debug, Deserialize)]
struct Region {
    equal: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Pass {
    harvested: u64,
    missing: u64,
    extra: u64,
    extra_explained: u64,
    digest_guest: Option<String>,
    digest_copy: Option<String>,
    digest_model: Option<String>,
}

impl Pass {
    fn digests_equal(&self) -> bool {
        self.digest_guest.is_some() && self.digest_guest == self.digest_copy && self.digest_copy == self.digest_model
    }
}

impl Outcome {
    /// Nothing was run.
    pub(crate) fn skipped(reason: String) -> Self {
        Self { verdict: Verdict::Skip, reason: Some(reason), figures: None }
    }

    /// It was run, or should have been, and did not hold.
    pub(crate) fn failed(reason: String) -> Self {
        Self { verdict: Verdict::Fail, reason: Some(reason), figures: None }
    }
}

/// The outcome of a cell whose batch left its files in `directory`.
pub(crate) fn outcome(directory: &Path, cell: &Coordinates, work: &Work) -> Outcome {
    let name = cell.file_name();
    let Some(ended) = batch::ended(directory, &name) else {
        return Outcome::failed("the guest did not come to it".to_owned());
    };
    let text = fs::read_to_string(directory.join(format!("{name}.json"))).unwrap_or_default();
    let ledger: Option<Ledger> = serde_json::from_str(&text).ok();
    let said = || ended.output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing").trim().to_owned();
    if ended.code == SKIPPED {
        return Outcome::skipped(ledger.and_then(|ledger| ledger.reason).unwrap_or_else(said));
    }
    if ended.code == ENDED_BY_TIMEOUT {
        return Outcome::failed("hostvmm did not end in time".to_owned());
    }
    let Some(ledger) = ledger else {
        return Outcome::failed(format!("hostvmm ended with {} and no ledger: {}", ended.code, said()));
    };
    judge(&ledger, ended.code, cell, work)
}

fn judge(ledger: &Ledger, code: i32, cell: &Coordinates, work: &Work) -> Outcome {
    let sum = |of: fn(&Pass) -> u64| ledger.passes.iter().map(of).sum::<u64>();
    let figures = Figures {
        passes: ledger.passes.len().saturating_sub(1),
        pages: sum(|pass| pass.harvested),
        missing: sum(|pass| pass.missing),
        extra: sum(|pass| pass.extra.saturating_sub(pass.extra_explained)),
        extra_explained: sum(|pass| pass.extra_explained),
        digests_equal: ledger.region.equal == Some(true) && ledger.passes.iter().all(Pass::digests_equal),
        host_page: ledger.host_page,
    };
    let wrong = if code != PASSED || ledger.verdict != "pass" {
        let reason = ledger.reason.clone().unwrap_or_else(|| format!("hostvmm ended with {code}"));
        Some(reason)
    } else if ledger.accelerator != "kvm" || ledger.dirty_log != cell.log.name() {
        Some(format!("it ran on {} with {}", ledger.accelerator, ledger.dirty_log))
    } else if figures.passes != work.passes as usize {
        Some(format!("{} of {} passes were made", figures.passes, work.passes))
    } else if figures.missing != 0 || figures.extra != 0 {
        Some(format!("{} pages missing, {} extra", figures.missing, figures.extra))
    } else if figures.pages == 0 {
        Some("the log reported no page at all".to_owned())
    } else if !figures.digests_equal {
        Some("digests or memories differ".to_owned())
    } else {
        None
    };
    let verdict = if wrong.is_none() { Verdict::Pass } else { Verdict::Fail };
    Outcome { verdict, reason: wrong, figures: Some(figures) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::axes::{Guest, Log};

    const PASS: &str = r#"{"harvested":4,"missing":0,"extra":1,"extra_explained":1,
        "digest_guest":"a","digest_copy":"a","digest_model":"a"}"#;

    fn of(code: &str, ledger: &str) -> Outcome {
        let directory = tempfile::tempdir().unwrap();
        let cell = Coordinates { guest: Guest::K4V39, host: 0, log: Log::Manual, original: true };
        let work = Work { passes: 1, workload: "mixed".to_owned(), vcpus: 1, seed: 1 };
        let write = |suffix: &str, text: &str| {
            fs::write(directory.path().join(format!("4k39-manual.{suffix}")), text).unwrap();
        };
        if !code.is_empty() {
            write("code", code);
        }
        write("txt", "hostvmm: said so\n");
        write("json", ledger);
        outcome(directory.path(), &cell, &work)
    }

    fn ledger(verdict: &str, passes: &str) -> String {
        format!(
            r#"{{"verdict":"{verdict}","accelerator":"kvm","dirty_log":"manual","host_page":4096,
                "region":{{"equal":true}},"passes":[{passes}],"more":1}}"#
        )
    }

    #[test]
    fn a_cell_passes_only_with_every_pass_exact_and_every_digest_equal() {
        let good = of("0", &ledger("pass", &format!("{PASS},{PASS}")));
        assert_eq!(good.verdict, Verdict::Pass, "{good:?}");
        let figures = good.figures.unwrap();
        assert_eq!((figures.passes, figures.pages, figures.extra, figures.extra_explained), (1, 8, 0, 2));

        let broken = |from: &str, to: &str| ledger("pass", &format!("{PASS},{}", PASS.replace(from, to)));
        for bad in [
            ledger("pass", PASS),
            ledger("fail", &format!("{PASS},{PASS}")),
            broken(r#""missing":0"#, r#""missing":1"#),
            broken(r#""extra":1"#, r#""extra":2"#),
            broken(r#""digest_guest":"a""#, r#""digest_guest":"b""#),
            broken(r#""digest_guest":"a""#, r#""digest_guest":null"#),
            ledger("pass", &format!("{PASS},{PASS}")).replace("manual", "bitmap"),
            ledger("pass", &format!("{PASS},{PASS}")).replace(r#""equal":true"#, r#""equal":null"#),
        ] {
            assert_eq!(of("0", &bad).verdict, Verdict::Fail, "{bad}");
        }
    }

    #[test]
    fn what_did_not_run_is_never_a_pass() {
        let good = ledger("pass", &format!("{PASS},{PASS}"));
        assert_eq!(of("", &good).verdict, Verdict::Fail);
        assert_eq!(of("1", &good).verdict, Verdict::Fail);
        assert_eq!(of("137", &good).reason.unwrap(), "hostvmm did not end in time");
        let refused = of("2", "");
        assert_eq!(refused.verdict, Verdict::Fail);
        assert!(refused.reason.unwrap().contains("said so"));
        let skipped = of("4", "");
        assert_eq!((skipped.verdict, skipped.reason.as_deref()), (Verdict::Skip, Some("hostvmm: said so")));
    }
}
