//! What KVM's dirty log costs through hostvmm, beside the kernel's own `dirty_log_perf_test` doing the same work on the
//! same kernel: a guest of one vCPU that writes to each page of 64 MiB, twice, with the log fetched and cleared after each.
//!
//! The guest's time is the count of instructions, so the figures repeat to the tick and their ratios are exact; they say
//! nothing of a hardware's time. Exits are counted by the kernel's trace events, in runs of their own since tracing costs
//! instructions: what one pass more adds is what a pass takes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::batch::{self, Job};
use crate::error::Error;
use crate::selftest;

/// Bytes that the guests write to, a page at a time.
const MEMORY_MIB: u64 = 64;
/// Pages of that, on the hosts with pages of 4 KiB that this runs on.
const PAGES: u64 = MEMORY_MIB << 20 >> 12;
/// Rounds of writing, fetching and clearing, as the figures are for.
const ROUNDS: u64 = 2;
/// Most that hostvmm's figures may be of the selftest's.
const LIMIT: f64 = 1.05;
const SECONDS: u64 = 120;
/// Where the guest has its trace events.
const EVENTS: &str = "/sys/kernel/tracing/events/kvm";

/// The jobs of a boot: each program timed, and counted over two lengths.
pub(crate) fn jobs() -> Vec<Job> {
    let job = |name: &str, command: String| Job {
        name: name.to_owned(),
        command: ["sh", "-c"].map(str::to_owned).into_iter().chain([command]).collect(),
        seconds: SECONDS,
    };
    let mut jobs = vec![
        job("selftest", selftest_command(ROUNDS)),
        job("hostvmm", hostvmm_command(ROUNDS, "hostvmm.json")),
        job("tracing", "mount -t tracefs tracefs /sys/kernel/tracing".to_owned()),
    ];
    for rounds in [ROUNDS, ROUNDS + 1] {
        let name = format!("selftest-{rounds}");
        jobs.push(job(&name, counted(&selftest_command(rounds), &name)));
        let name = format!("hostvmm-{rounds}");
        jobs.push(job(&name, counted(&hostvmm_command(rounds, "counted.json"), &name)));
    }
    jobs
}

fn selftest_command(rounds: u64) -> String {
    // Mode 2: 48 bits of physical and virtual address, pages of 4 KiB.
    format!("/files/{} -b {MEMORY_MIB}M -v 1 -i {rounds} -m 2", selftest::NAME)
}

/// The same with hostvmm: the selftest too fetches and clears by hand, with every page dirty at first.
fn hostvmm_command(rounds: u64, ledger: &str) -> String {
    format!(
        "hostvmm verify passes --accel kvm --dirty-log initset --region-size {MEMORY_MIB}M --granule 4k --va-bits 48 \
         --workload dirtyram:pages={PAGES},step={PAGES} --passes {rounds} --json {ledger}"
    )
}

/// `command`, with its exits from the guest counted by class and those to userspace by reason.
fn counted(command: &str, name: &str) -> String {
    let (exits, userspace) = (format!("{EVENTS}/kvm_exit"), format!("{EVENTS}/kvm_userspace_exit"));
    format!(
        "echo 'hist:keys=ret,esr_ec' >{exits}/trigger && echo 'hist:keys=reason' >{userspace}/trigger && {command}; \
         code=$?; cat {exits}/hist >{name}.exits; cat {userspace}/hist >{name}.userspace; \
         echo '!hist:keys=ret,esr_ec' >{exits}/trigger; echo '!hist:keys=reason' >{userspace}/trigger; exit $code"
    )
}

/// A ledger of hostvmm's, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Ledger {
    provenance: String,
    passes: Vec<Pass>,
}

#[derive(Debug, Deserialize)]
struct Pass {
    harvested: u64,
    run_ns: u64,
    harvest_ns: u64,
    reset_ns: u64,
}

/// What a program's rounds took, in ns: mean of the rounds in which every page faults.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Times {
    dirty: f64,
    get: f64,
    clear: f64,
}

/// What one round more adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exits {
    /// Data aborts in the guest that are no MMIO: stage-2 faults.
    faults: i64,
    /// Exits to userspace.
    userspace: i64,
}

/// Judges what the jobs left in `directory`, and gives the table, and whether every requirement is met.
///
/// # Errors
/// [`Error::Bench`] for a job that failed or whose output is not understood.
pub(crate) fn judge(directory: &Path, source: &str) -> Result<(String, bool), Error> {
    for job in jobs() {
        match batch::ended(directory, &job.name) {
            Some(ended) if ended.code == 0 => {}
            Some(ended) => return Err(bad(format!("{} ended with {}: {}", job.name, ended.code, ended.output))),
            None => return Err(bad(format!("{} was not run", job.name))),
        }
    }
    let output = batch::ended(directory, "selftest").map(|ended| ended.output).unwrap_or_default();
    let theirs = selftest_times(&output).ok_or_else(|| bad(format!("not understood: {output}")))?;
    let ledger: Ledger = serde_json::from_str(&read(directory, "hostvmm.json")?)
        .map_err(|error| bad(format!("hostvmm's ledger: {error}")))?;
    let ours = hostvmm_times(&ledger).ok_or_else(|| bad("hostvmm's ledger has other passes".to_owned()))?;
    let (their_exits, our_exits) = (exits(directory, "selftest")?, exits(directory, "hostvmm")?);

    let kernel = batch::kernel(directory).unwrap_or_default();
    let mut text = format!(
        "KVM's dirty log on Linux {kernel}, {}, instruction clock (ns are counts of instructions, scaled)\n\
         {MEMORY_MIB} MiB, 1 vCPU, {ROUNDS} rounds, log initially all set; {} of {source} beside hostvmm\n\n\
         {:<34} {:>20} {:>12} {:>8}   {:<9} {}\n",
        ledger.provenance,
        selftest::NAME,
        "figure",
        selftest::NAME,
        "hostvmm",
        "ratio",
        "required",
        "met"
    );
    let mut met = true;
    let mut row = |figure: &str, theirs: f64, ours: f64, limit: Option<f64>| {
        let ratio = ours / theirs;
        let verdict = limit.map(|limit| ratio <= limit);
        met &= verdict != Some(false);
        let required = limit.map_or(String::new(), |limit| format!("<= {limit}"));
        let verdict = verdict.map_or("", |met| if met { "yes" } else { "NO" });
        writeln!(text, "{figure:<34} {theirs:>20.3} {ours:>12.3} {ratio:>8.3}   {required:<9} {verdict}")
            .expect("writing to a String cannot fail");
    };
    let page = |ns: f64| ns / PAGES as f64;
    row("dirtying a page, ns", page(theirs.dirty), page(ours.dirty), Some(LIMIT));
    row("get, ns a page", page(theirs.get), page(ours.get), Some(LIMIT));
    row("clear, ns a page", page(theirs.clear), page(ours.clear), Some(LIMIT));
    row("stage-2 faults a round", their_exits.faults as f64, our_exits.faults as f64, None);
    row("exits to userspace a round", their_exits.userspace as f64, our_exits.userspace as f64, None);
    let least = our_exits.faults <= PAGES as i64;
    met &= least;
    let verdict = if least { "yes" } else { "NO" };
    writeln!(text, "no fault more than pages ({PAGES}): {verdict}").expect("writing to a String cannot fail");
    Ok((text, met))
}

fn bad(what: String) -> Error {
    Error::Bench { what }
}

fn read(directory: &Path, name: &str) -> Result<String, Error> {
    let path = directory.join(name);
    fs::read_to_string(&path).map_err(Error::file("read", &path))
}

/// From the selftest's report. With every page dirty at first nothing is protected in its first round, so only later
/// ones count for dirtying.
fn selftest_times(output: &str) -> Option<Times> {
    let mean = |what: &str, from: u64| {
        let times: Option<Vec<f64>> = (from..=ROUNDS)
            .map(|round| {
                let label = format!("Iteration {round} {what} time: ");
                let line = output.lines().find_map(|line| line.trim().strip_prefix(label.as_str()))?;
                Some(line.trim_end_matches('s').parse::<f64>().ok()? * 1e9)
            })
            .collect();
        times.map(|times| times.iter().sum::<f64>() / times.len() as f64)
    };
    Some(Times { dirty: mean("dirty memory", 2)?, get: mean("get dirty log", 1)?, clear: mean("clear dirty log", 1)? })
}

/// From hostvmm's ledger. Pass 0 is the populating of memory, which the selftest does before it starts the log.
fn hostvmm_times(ledger: &Ledger) -> Option<Times> {
    let passes = ledger.passes.get(1..)?;
    if passes.len() as u64 != ROUNDS || passes.iter().any(|pass| pass.harvested != PAGES) {
        return None;
    }
    let mean = |of: fn(&Pass) -> u64| passes.iter().map(|pass| of(pass) as f64).sum::<f64>() / passes.len() as f64;
    Some(Times {
        dirty: mean(|pass| pass.run_ns),
        get: mean(|pass| pass.harvest_ns - pass.reset_ns),
        clear: mean(|pass| pass.reset_ns),
    })
}

/// What one round more adds to the counts of `program`.
fn exits(directory: &Path, program: &str) -> Result<Exits, Error> {
    // asm/kvm_arm.h ARM_EXCEPTION_TRAP; asm/esr.h ESR_ELx_EC_DABT_LOW; linux/kvm.h KVM_EXIT_MMIO.
    const TRAP: i64 = 2;
    const DATA_ABORT: i64 = 0x24;
    const MMIO: i64 = 6;
    let of = |rounds: u64, what: &str| Ok::<_, Error>(hist(&read(directory, &format!("{program}-{rounds}.{what}"))?));
    let added = |what: &str| -> Result<BTreeMap<Vec<i64>, i64>, Error> {
        let mut counts = of(ROUNDS + 1, what)?;
        for (keys, count) in of(ROUNDS, what)? {
            *counts.entry(keys).or_default() -= count;
        }
        Ok(counts)
    };
    let (exits, userspace) = (added("exits")?, added("userspace")?);
    let of = |counts: &BTreeMap<Vec<i64>, i64>, keys: &[i64]| counts.get(keys).copied().unwrap_or(0);
    Ok(Exits { faults: of(&exits, &[TRAP, DATA_ABORT]) - of(&userspace, &[MMIO]), userspace: userspace.values().sum() })
}

/// The counts of a histogram of trace events (trace/histogram.rst) by its keys, in their order.
fn hist(text: &str) -> BTreeMap<Vec<i64>, i64> {
    let parse = |line: &str| {
        let (keys, count) = line.strip_prefix('{')?.split_once('}')?;
        let keys: Option<Vec<i64>> =
            keys.split(',').map(|key| key.split_once(':')?.1.trim().parse::<i64>().ok()).collect();
        Some((keys?, count.trim().strip_prefix("hitcount:")?.trim().parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "Populate memory time: 0.814854944s\n\n\
        Iteration 1 dirty memory time: 0.011956432s\nIteration 1 get dirty log time: 0.000005424s\n\
        Iteration 1 clear dirty log time: 0.002609072s\nIteration 2 dirty memory time: 0.345419296s\n\
        Iteration 2 get dirty log time: 0.000005440s\nIteration 2 clear dirty log time: 0.002609088s\n";

    fn histogram(pairs: &[(&str, u64)]) -> String {
        let lines = pairs.iter().map(|(keys, count)| format!("{{ {keys} }} hitcount: {count:>10}\n"));
        format!("# event histogram\n#\n\n{}\nTotals:\n    Hits: 9\n", lines.collect::<String>())
    }

    fn results(directory: &Path, our_pass: &str, our_faults: u64) {
        for job in jobs() {
            fs::write(directory.join(format!("{}.code", job.name)), "0\n").unwrap();
            fs::write(directory.join(format!("{}.txt", job.name)), REPORT).unwrap();
        }
        fs::write(directory.join("kernel"), "6.12.1\n").unwrap();
        let populate = r#"{"harvested":16384,"run_ns":9,"harvest_ns":9,"reset_ns":9}"#;
        let ledger = format!(r#"{{"provenance":"kvm","passes":[{populate},{our_pass},{our_pass}]}}"#);
        fs::write(directory.join("hostvmm.json"), ledger).unwrap();
        for (program, faults) in [("selftest", PAGES), ("hostvmm", our_faults)] {
            for rounds in [ROUNDS, ROUNDS + 1] {
                let aborts = 1000 + rounds * (faults + 3);
                let exits = histogram(&[("ret: 0, esr_ec: 0", 77 * rounds), ("ret: 2, esr_ec: 36", aborts)]);
                fs::write(directory.join(format!("{program}-{rounds}.exits")), exits).unwrap();
                let userspace = histogram(&[("reason: 6", 5 + 3 * rounds)]);
                fs::write(directory.join(format!("{program}-{rounds}.userspace")), userspace).unwrap();
            }
        }
    }

    #[test]
    fn the_same_costs_meet_what_is_required() {
        let directory = tempfile::tempdir().unwrap();
        let pass = r#"{"harvested":16384,"run_ns":345419296,"harvest_ns":2614512,"reset_ns":2609080}"#;
        results(directory.path(), pass, PAGES);
        let (text, met) = judge(directory.path(), "linux-source").unwrap();
        assert!(met, "{text}");
        for expected in ["Linux 6.12.1, kvm", "21082.721", "0.332", "159.246", "16384.000", "1.000"] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
    }

    #[test]
    fn a_dearer_reset_or_a_fault_too_many_misses_what_is_required() {
        let cheap = r#"{"harvested":16384,"run_ns":1,"harvest_ns":2614512,"reset_ns":2609080}"#;
        let dear = r#"{"harvested":16384,"run_ns":1,"harvest_ns":2814512,"reset_ns":2809080}"#;
        for (pass, faults, expected) in [(cheap, PAGES, true), (dear, PAGES, false), (cheap, PAGES + 1, false)] {
            let directory = tempfile::tempdir().unwrap();
            results(directory.path(), pass, faults);
            let (text, met) = judge(directory.path(), "linux-source").unwrap();
            assert_eq!(met, expected, "{text}");
        }
    }

    #[test]
    fn a_job_that_failed_is_no_result() {
        let directory = tempfile::tempdir().unwrap();
        results(directory.path(), "{}", PAGES);
        assert!(judge(directory.path(), "").unwrap_err().to_string().contains("ledger"));
        fs::write(directory.path().join("hostvmm-3.code"), "4\n").unwrap();
        assert!(judge(directory.path(), "").unwrap_err().to_string().contains("hostvmm-3 ended with 4"));
    }
}
