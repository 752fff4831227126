//! What a run tells: the JSON ledger and its renderings.
//!
//! - [`ledger`]: the data, under stable names;
//! - [`mod@text`]: tables for people; [`mod@ktap`]: the kernel's test protocol; [`mod@junit`]: XML for CI systems; [`mod@html`]: a page
//!   with plots;
//! - [`Progress`]: live progress on a terminal.
//!
//! Renderings read nothing but a [`Ledger`], so that `hostvmm report` can make any of them later.

mod colo;
mod html;
mod info_migrate;
mod junit;
mod ktap;
pub mod ledger;
mod migration;
mod progress;
mod text;

use std::io;
use std::path::Path;

pub use html::html;
pub use info_migrate::migration_text;
pub use junit::junit;
pub use ktap::ktap;
pub use ledger::{FaultEntry, GroupEntry, Ledger, LedgerError, Mismatch, PassEntry, RegionEntry, Verdict};
pub use progress::Progress;
pub use text::text;

use crate::memory::Size;

/// Writes a ledger in every format into `directory`, which is made if need be.
///
/// # Errors
/// [`LedgerError::Write`] with the file at fault.
pub fn save_all(ledger: &Ledger, directory: &Path) -> Result<(), LedgerError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| LedgerError::Write { path, source }
    };
    std::fs::create_dir_all(directory).map_err(at(directory))?;
    ledger.save(&directory.join("ledger.json"))?;
    let renderings = [
        ("report.txt", text(ledger)),
        ("report.ktap", ktap(ledger)),
        ("junit.xml", junit(ledger)),
        ("report.html", html(ledger)),
    ];
    for (name, rendering) in renderings {
        let path = directory.join(name);
        std::fs::write(&path, rendering).map_err(at(&path))?;
    }
    Ok(())
}

/// A check: its name, how it ended, and why where it did not pass.
type Check = (String, Verdict, Option<String>);

/// The checks of one run: the tests of KTAP and JUnit.
fn checks(ledger: &Ledger) -> Vec<Check> {
    let mut checks: Vec<Check> = ledger
        .passes
        .iter()
        .map(|entry| {
            let wrong: Vec<String> = ledger.mismatches.iter().filter(|m| m.pass == entry.pass).map(describe).collect();
            check(format!("pass {}", entry.pass), (!wrong.is_empty()).then(|| wrong.join("; ")))
        })
        .collect();
    for entry in &ledger.groups {
        let wrong: Vec<String> = ledger.mismatches.iter().filter(|m| is_of(m, entry)).map(describe).collect();
        let name = format!("{}: {} blocks", entry.group, entry.blocks);
        checks.push(check(name, (!wrong.is_empty()).then(|| wrong.join("; "))));
    }
    checks.extend(migration::checks(ledger));
    checks.extend(colo::checks(ledger));
    let beyond = ledger.mismatches.iter().filter(|m| {
        !ledger.passes.iter().any(|entry| entry.pass == m.pass)
            && !ledger.groups.iter().any(|entry| is_of(m, entry))
            && !migration::is_told(ledger, m)
            && !colo::is_told(ledger, m)
    });
    let beyond: Vec<String> = beyond.map(describe).collect();
    if !beyond.is_empty() {
        checks.push(check("run".to_owned(), Some(beyond.join("; "))));
    }
    for fault in &ledger.faults {
        let name = format!("fault {}", fault.fault);
        checks.push(match &fault.skipped {
            Some(why) => (name, Verdict::Skip, Some(why.clone())),
            None => check(name, (!fault.detected).then(|| format!("planted at {} and not detected", fault.planted))),
        });
    }
    if let Some(equal) = ledger.region.equal {
        checks.push(check("region equals copy".to_owned(), (!equal).then(|| "they differ".to_owned())));
    }
    if ledger.verdict == Verdict::Fail && checks.iter().all(|(_, verdict, _)| *verdict != Verdict::Fail) {
        checks.push(check("run".to_owned(), Some(ledger.reason.clone().unwrap_or_else(|| "failed".to_owned()))));
    }
    checks
}

/// A check that was made, with what it found wrong.
fn check(name: String, wrong: Option<String>) -> Check {
    (name, if wrong.is_none() { Verdict::Pass } else { Verdict::Fail }, wrong)
}

/// Whether a mismatch is of a block in this group: its check begins with the group's name.
fn is_of(mismatch: &Mismatch, entry: &GroupEntry) -> bool {
    mismatch.check.split(' ').next() == Some(entry.group.as_str())
}

/// One mismatch in a line.
fn describe(mismatch: &Mismatch) -> String {
    let page = mismatch.page.map_or(String::new(), |page| format!(", page {page}"));
    let gpa = mismatch.gpa.map_or(String::new(), |gpa| format!(", GPA {gpa:#x}"));
    let Mismatch { check, pass, expected, found, .. } = mismatch;
    format!("{check}: pass {pass}{page}{gpa}: expected {expected}, found {found}")
}

/// What sets one cell of a scenario apart from the others.
fn cell_name(ledger: &Ledger) -> String {
    let Ledger { workload, vcpus, mode, clock, .. } = ledger;
    let eager = match &ledger.hugepages {
        Some(huge) => huge.eager_split.map_or(" eager-split off".to_owned(), |it| format!(" eager-split {}", Size(it))),
        None => String::new(),
    };
    // Migrations side by side differ in nothing else.
    let seed = if ledger.migration.is_some() { format!(" seed={}", ledger.seed) } else { String::new() };
    format!("{} {workload} vcpus={vcpus} {mode} {clock}{eager}{seed}", translation(ledger))
}

/// The guest's translation in two words: granule and VA bits, or on ARMv7 the format, whose VA bits are 32.
fn translation(ledger: &Ledger) -> String {
    let Ledger { granule, va_bits, tables, .. } = ledger;
    if tables == "v8" { format!("{granule}/{va_bits}") } else { format!("{tables}/{granule}") }
}

/// A ledger with everything right and nothing recorded, for tests.
#[cfg(test)]
pub(crate) fn sample_ledger() -> Ledger {
    Ledger {
        schema: ledger::SCHEMA.to_owned(),
        verdict: Verdict::Pass,
        reason: None,
        scenario: "passes".to_owned(),
        accelerator: "emulator".to_owned(),
        provenance: "emulator".to_owned(),
        arch: "aarch64".to_owned(),
        granule: "4k".to_owned(),
        va_bits: 48,
        tables: "v8".to_owned(),
        host_page: 4096,
        vcpus: 1,
        dirty_log: "emulator".to_owned(),
        backing: "memfd".to_owned(),
        workload: "dirtyram:pages=2048,step=10,sleep_ms=0".to_owned(),
        seed: 7,
        mode: "lockstep".to_owned(),
        clock: "wall".to_owned(),
        region: RegionEntry { gpa: 0x2000_0000, size: 8 << 20, sum_r_source: None, sum_r_dest: None, equal: None },
        passes: Vec::new(),
        migration: None,
        colo: None,
        faults: Vec::new(),
        hugepages: None,
        groups: Vec::new(),
        heartbeat: Vec::new(),
        mismatches: Vec::new(),
        cells: Vec::new(),
        reproduce: "hostvmm verify passes --seed 7".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ledger with one good and one bad pass.
    pub(super) fn sample() -> Ledger {
        let mut ledger = sample_ledger();
        ledger.region.sum_r_source = Some(12);
        ledger.region.sum_r_dest = Some(13);
        ledger.region.equal = Some(false);
        ledger.passes = vec![
            PassEntry { pass: 0, predicted: 2048, harvested: 2048, pages_copied: 2048, ..PassEntry::default() },
            PassEntry { pass: 1, predicted: 10, harvested: 9, missing: 1, ..PassEntry::default() },
        ];
        ledger.fail(Mismatch {
            check: "missing".to_owned(),
            pass: 1,
            page: Some(3),
            gpa: Some(0x2000_3000),
            expected: "dirty".to_owned(),
            found: "clean".to_owned(),
        });
        ledger
    }

    #[test]
    fn every_mismatch_reaches_exactly_one_check() {
        let checks = checks(&sample());
        let failed: Vec<_> =
            checks.iter().filter(|(_, verdict, _)| *verdict == Verdict::Fail).map(|(name, ..)| name.as_str()).collect();
        assert_eq!(failed, ["pass 1", "region equals copy"]);
    }

    #[test]
    fn a_failure_without_a_mismatch_still_fails_a_check() {
        let mut ledger = sample();
        ledger.mismatches.clear();
        ledger.region.equal = None;
        ledger.reason = Some("interrupted".to_owned());
        assert!(checks(&ledger).iter().any(|(_, _, why)| why.as_deref() == Some("interrupted")));
    }

    #[test]
    fn all_formats_are_written_and_the_ledger_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        save_all(&sample(), directory.path()).unwrap();
        for name in ["ledger.json", "report.txt", "report.ktap", "junit.xml", "report.html"] {
            assert!(directory.path().join(name).metadata().unwrap().len() > 0, "{name}");
        }
        let back = Ledger::load(&directory.path().join("ledger.json")).unwrap();
        assert_eq!(back.passes, sample().passes);
    }
}
