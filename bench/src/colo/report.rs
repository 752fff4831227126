//! The tables of what was measured of COLO, and whether it is what is required: [`Report`].

use std::fmt;

use serde::Serialize;

use super::rate::{PARTS, Rate};
use super::speed::Speed;
use crate::Arguments;

/// Least that a guest in step may have of its speed alone.
const SPEED: f64 = 0.9;
/// Least that the flush may have of a plain copy's speed.
const FLUSH: f64 = 0.9;

/// Everything measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    provenance: &'static str,
    host_cores: usize,
    /// One a round.
    pub(crate) speeds: Vec<Speed>,
    /// One a guest and digest.
    pub(crate) rates: Vec<Rate>,
    /// The flush's speed, of a plain copy's.
    flush: Vec<f64>,
}

/// Something that is required.
#[derive(Clone, Debug, Serialize)]
struct Requirement {
    what: String,
    found: String,
    required: String,
    is_met: bool,
}

impl Report {
    /// Of nothing yet but what `arguments` say of the flush.
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let host_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let provenance = hostvmm::backend::provenance(arguments.accelerator());
        Self { provenance, host_cores, speeds: Vec::new(), rates: Vec::new(), flush: arguments.flush.clone() }
    }

    /// Whether everything that is required was found.
    pub(crate) fn is_met(&self) -> bool {
        self.requirements().iter().all(|requirement| requirement.is_met)
    }

    /// Everything as JSON, the requirements with it.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({ "measured": self, "requirements": self.requirements(), "met": self.is_met() })
    }

    fn requirements(&self) -> Vec<Requirement> {
        let mut all = Vec::new();
        let mut require = |what: &str, required: String, found: Option<(String, bool)>| {
            let (found, is_met) = found.unwrap_or_else(|| ("not measured".to_owned(), false));
            all.push(Requirement { what: what.to_owned(), found, required, is_met });
        };
        let speed = median(self.speeds.iter().map(Speed::of_beside));
        // A checkpoint of another cause would be one that outputs in step do not ask for.
        let others: u64 = self
            .speeds
            .iter()
            .flat_map(|speed| &speed.causes)
            .filter(|(cause, _)| *cause != "interval")
            .map(|it| it.1)
            .sum();
        require(
            "guest in step, of its speed alone (beside another guest)",
            format!(">= {SPEED}, periodic checkpoints alone"),
            speed.map(|speed| (format!("{speed:.3}, {others} other checkpoints"), speed >= SPEED && others == 0)),
        );
        let flush = self.flush.iter().copied().reduce(f64::min);
        require(
            "flush a page, of a plain copy's speed",
            format!(">= {FLUSH}"),
            flush.map(|flush| (format!("{flush:.2}"), flush >= FLUSH)),
        );
        let fullest = self.rates.iter().max_by_key(|rate| rate.secondary_peak_bytes);
        require(
            "memory of the secondary of a 256 MiB guest, at its peak",
            fullest.map_or_else(String::new, |rate| format!("<= {} MiB", rate.secondary_most_bytes >> 20)),
            fullest.map(|rate| {
                let found = format!("{} MiB (PSS {})", rate.secondary_peak_bytes >> 20, rate.secondary_pss_bytes >> 20);
                (found, rate.secondary_peak_bytes > 0 && rate.secondary_peak_bytes <= rate.secondary_most_bytes)
            }),
        );
        let made: usize = self.rates.iter().map(|rate| rate.checkpoints).sum();
        let inexact: usize = self.rates.iter().map(|rate| rate.inexact).sum();
        require(
            "checkpoints that are not exact",
            "0".to_owned(),
            (made > 0).then(|| (format!("{inexact} of {made}"), inexact == 0)),
        );
        all
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "COLO, {}, {} host cores, one vCPU a guest; medians\n", self.provenance, self.host_cores)?;
        writeln!(f, "guest's steps a second; beside it run the outlet and, but for \"alone\", a second guest")?;
        let speeds = |of: fn(&Speed) -> f64| median(self.speeds.iter().map(of)).unwrap_or_default();
        writeln!(
            f,
            "{:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
            "alone", "beside", "in the pair", "of beside", "of alone", "records/s"
        )?;
        writeln!(
            f,
            "{:>12.0} {:>12.0} {:>12.0} {:>12.3} {:>12.3} {:>12.0}\n",
            speeds(|speed| f64::midpoint(speed.idle[0], speed.idle[1])),
            speeds(|speed| f64::midpoint(speed.beside[0], speed.beside[1])),
            speeds(|speed| speed.paired),
            speeds(Speed::of_beside),
            speeds(Speed::of_idle),
            speeds(|speed| speed.compared_per_s),
        )?;
        writeln!(
            f,
            "checkpoints of a 256 MiB guest, which runs for \"runs\" between two; that, the stop and its parts in ms"
        )?;
        write!(f, "{:>5} {:<9} {:>5} {:>7} {:>7}", "share", "digest", "runs", "a sec.", "pages")?;
        write!(f, " {:>8} {:>8}", "stop", "longest")?;
        PARTS.iter().try_for_each(|part| write!(f, " {part:>8}"))?;
        writeln!(f)?;
        for rate in &self.rates {
            let share = format!("{} %", rate.share);
            let ms = |us: f64| us / 1e3;
            let Rate { digest, interval_ms, per_s, primary_dirty, stop_us, stop_most_us, .. } = rate;
            write!(f, "{share:>5} {digest:<9} {interval_ms:>5} {per_s:>7.1} {primary_dirty:>7}")?;
            write!(f, " {:>8.2} {:>8.2}", ms(*stop_us), ms(*stop_most_us))?;
            for part in PARTS {
                write!(f, " {:>8.3}", ms(rate.split_us.get(part).copied().unwrap_or_default()))?;
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        for Requirement { what, found, required, is_met } in self.requirements() {
            writeln!(f, "{:<3} {what}: {found}; required {required}", if is_met { "yes" } else { "NO" })?;
        }
        Ok(())
    }
}
