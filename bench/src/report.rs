//! The table of what was measured, and whether it is what is required: [`Report`].

use std::collections::BTreeMap;
use std::fmt;

use crate::guest::Guest;
use crate::measure::{Chain, Migration};
use crate::vmm::{Kind, Program, Way};

/// Most that hostvmm may take of QEMU's total time and of its downtime.
const RATIO: f64 = 0.5;
/// Most that handing the memory's files over may take, in ms.
const DESCRIPTORS_MS: f64 = 50.0;
/// Most memory of either side beyond the guest's, in bytes.
const OVERHEAD_BYTES: u64 = 64 << 20;

/// Everything measured.
pub(crate) struct Report {
    provenance: &'static str,
    qemu: String,
    migrations: BTreeMap<(Guest, Kind, Way), Vec<Migration>>,
    /// The guest that was moved again and again.
    pub(crate) chain: Option<Chain>,
}

/// Something that is required.
struct Requirement {
    what: String,
    found: String,
    is_met: bool,
}

impl Report {
    /// Of nothing yet, on an accelerator whose figures are of `provenance`.
    pub(crate) fn new(provenance: &'static str, qemu: &Program) -> Self {
        Self { provenance, qemu: qemu.version.clone(), migrations: BTreeMap::new(), chain: None }
    }

    /// One migration more.
    pub(crate) fn add(&mut self, guest: &Guest, migration: Migration) {
        self.migrations.entry((*guest, migration.kind, migration.way)).or_default().push(migration);
    }

    /// Whether everything that is required was found.
    pub(crate) fn is_met(&self) -> bool {
        self.requirements().iter().all(|requirement| requirement.is_met)
    }

    fn median(&self, guest: &Guest, kind: Kind, way: Way, of: fn(&Migration) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = self.migrations.get(&(*guest, kind, way))?.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    fn ratio(&self, guest: &Guest, way: Way, of: fn(&Migration) -> f64) -> Option<f64> {
        let theirs = self.median(guest, Kind::Qemu, Way::Socket, of)?;
        // QEMU's times are whole milliseconds.
        Some(self.median(guest, Kind::Hostvmm, way, of)? / theirs.max(1.0))
    }

    fn requirements(&self) -> Vec<Requirement> {
        let mut all = Vec::new();
        let mut require = |what: String, found: Option<f64>, most: f64, unit: &str| {
            let text = found.map_or("not measured".to_owned(), |found| format!("{found:.2}{unit}"));
            all.push(Requirement { what, found: text, is_met: found.is_some_and(|found| found <= most) });
        };
        let guests: Vec<Guest> = self.migrations.keys().map(|key| key.0).collect();
        if let Some(guest) = guests.into_iter().find(Guest::is_required) {
            let total = self.ratio(&guest, Way::Deferred, |migration| migration.total_ms);
            require(format!("{guest}: total <= {RATIO} x QEMU's"), total, RATIO, " x");
            let downtime = self.ratio(&guest, Way::Deferred, |migration| migration.downtime_ms);
            require(format!("{guest}: downtime <= {RATIO} x QEMU's"), downtime, RATIO, " x");
            let moved = self.median(&guest, Kind::Hostvmm, Way::Descriptors, |migration| migration.total_ms);
            require(format!("{guest} by fd: <= {DESCRIPTORS_MS} ms"), moved, DESCRIPTORS_MS, " ms");
        }
        let ours = self.migrations.iter().filter(|(key, _)| key.1 == Kind::Hostvmm).flat_map(|(_, of)| of);
        let overhead = ours.map(|migration| migration.overhead_bytes).max();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let most = mib(OVERHEAD_BYTES);
        require(format!("memory beside the guest's <= {most} MiB"), overhead.map(mib), most, " MiB");
        if let Some(chain) = &self.chain {
            all.push(Requirement {
                what: format!("{} migrations of a small guest without a mismatch", chain.hops),
                found: format!(
                    "{} completed in {:.0} s, {} mismatches, {}",
                    chain.completed, chain.seconds, chain.mismatches, chain.verdict
                ),
                is_met: chain.completed == chain.hops && chain.mismatches == 0 && chain.verdict == "pass",
            });
        }
        all
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "medians, {}; beside {}\n", self.provenance, self.qemu)?;
        writeln!(
            f,
            "{:<26} {:<8} {:<24} {:>9} {:>9} {:>12} {:>9} {:>7} {:>6} {:>9}",
            "guest", "VMM", "way", "total/ms", "x QEMU", "downtime/ms", "x QEMU", "MiB", "syncs", "beside/MiB"
        )?;
        for (guest, kind, way) in self.migrations.keys() {
            let median = |of| self.median(guest, *kind, *way, of).unwrap_or_default();
            let ratio = |of| match (kind, self.ratio(guest, *way, of)) {
                (Kind::Hostvmm, Some(ratio)) => format!("{ratio:.2}"),
                _ => String::new(),
            };
            let total: fn(&Migration) -> f64 = |migration| migration.total_ms;
            let downtime: fn(&Migration) -> f64 = |migration| migration.downtime_ms;
            writeln!(
                f,
                "{:<26} {kind:<8} {:<24} {:>9.0} {:>9} {:>12.2} {:>9} {:>7.0} {:>6} {:>9.1}",
                guest.to_string(),
                way.name(),
                median(total),
                ratio(total),
                median(downtime),
                ratio(downtime),
                median(|migration| (migration.bytes >> 20) as f64),
                median(|migration| migration.syncs as f64),
                median(|migration| migration.overhead_bytes as f64 / f64::from(1 << 20)),
            )?;
        }
        writeln!(f)?;
        for Requirement { what, found, is_met } in self.requirements() {
            writeln!(f, "{:<3} {what}: {found}", if is_met { "yes" } else { "NO" })?;
        }
        Ok(())
    }
}
