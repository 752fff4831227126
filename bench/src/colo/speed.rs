//! The guest's speed in a pair whose outputs are in step, beside its speed alone: [`Speed`].
//!
//! One guest is measured for equal times: alone; beside a second guest that is none of its own; as primary of a pair; and the
//! first two once more, so that what a machine does meanwhile does not count for one of them. What is *alone* for the
//! requirement is the guest beside another: the pair's second guest takes a core, and what that costs the first on the host (a shared core, shared caches,
//! the clock that falls when both run) is not COLO's.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::pair::{Guest, checkpoints, steps};
use crate::measure::BenchError;
use crate::vmm::{Program, Vm};

/// How long each is measured; also the time from one checkpoint to the next, so that one falls into the pair's.
const WINDOW: Duration = Duration::from_secs(6);
/// Time for what was begun to come to rest.
const SETTLE: Duration = Duration::from_millis(200);

/// Steps a second.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Speed {
    /// The guest alone, before and after.
    pub(crate) idle: [f64; 2],
    /// Beside another guest, before and after.
    pub(crate) beside: [f64; 2],
    /// In the pair.
    pub(crate) paired: f64,
    /// Causes of the checkpoints in that time.
    pub(crate) causes: BTreeMap<String, u64>,
    /// How long the guest stood still for them, in ms.
    pub(crate) stopped_ms: f64,
    /// Records of output that were compared in that time, a second.
    pub(crate) compared_per_s: f64,
}

impl Speed {
    /// The speed in the pair, of that beside another guest.
    pub(crate) fn of_beside(&self) -> f64 {
        self.paired / mean(self.beside)
    }

    /// The speed in the pair, of that alone.
    pub(crate) fn of_idle(&self) -> f64 {
        self.paired / mean(self.idle)
    }
}

fn mean([one, other]: [f64; 2]) -> f64 {
    f64::midpoint(one, other)
}

/// Measures one guest once.
///
/// # Errors
/// [`BenchError`].
pub(super) fn measure(program: &Program, files: &Path) -> Result<Speed, BenchError> {
    // About a packet a millisecond.
    let options = [
        "--ram",
        "32M",
        "--region-size",
        "32M",
        "--guest-output",
        "steps",
        "--workload",
        "full:pages=8192,writes=128,sleep_ms=0",
    ]
    .map(str::to_owned);
    let mut guest = Guest::start(program, &options, "measured", files)?;
    let mut other = Guest::start(program, &options, "other", files)?;
    other.vm.execute("stop", json!({}))?;
    let first = alone(&mut guest.vm, &mut other.vm)?;
    let delay_ms = WINDOW.as_millis() as u64;
    let secondary = guest.protect(&json!({ "x-checkpoint-delay": delay_ms }))?;
    let before = super::pair::shown(&mut guest.vm, None)?;
    let paired = speed(&mut guest.vm)?;
    let after = super::pair::shown(&mut guest.vm, None)?;
    let rounds = checkpoints(&mut guest.vm, before.checkpoints)?;
    guest.leave(secondary)?;
    let second = alone(&mut guest.vm, &mut other.vm)?;
    other.vm.execute("cont", json!({}))?;
    other.vm.quit()?;
    guest.vm.quit()?;
    let mut causes = BTreeMap::new();
    rounds.iter().for_each(|round| *causes.entry(round.cause.clone()).or_default() += 1);
    Ok(Speed {
        idle: [first.0, second.0],
        beside: [first.1, second.1],
        paired,
        causes,
        stopped_ms: rounds.iter().map(|round| round.stop_ns as f64 / 1e6).sum(),
        compared_per_s: (after.compared - before.compared) as f64 / WINDOW.as_secs_f64(),
    })
}

/// Alone, and beside `other`, which stands still before and afterwards.
fn alone(vm: &mut Vm, other: &mut Vm) -> Result<(f64, f64), BenchError> {
    let idle = speed(vm)?;
    other.execute("cont", json!({}))?;
    let beside = speed(vm)?;
    other.execute("stop", json!({}))?;
    Ok((idle, beside))
}

fn speed(vm: &mut Vm) -> Result<f64, BenchError> {
    std::thread::sleep(SETTLE);
    let begun = Instant::now();
    let before = steps(vm)?;
    std::thread::sleep(WINDOW);
    let after = steps(vm)?;
    Ok((after - before) as f64 / begun.elapsed().as_secs_f64())
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { idle, beside, paired, causes, stopped_ms, compared_per_s } = self;
        let causes: Vec<String> = causes.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
        write!(
            f,
            "{:.0} steps/s alone, {:.0} beside another, {paired:.0} in the pair ({:.3}); checkpoints: {}, {stopped_ms:.1} ms; {compared_per_s:.0} records/s compared",
            mean(*idle),
            mean(*beside),
            self.of_beside(),
            causes.join(", ")
        )
    }
}
