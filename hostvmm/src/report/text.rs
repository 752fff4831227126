//! A ledger as tables for people.

use std::fmt::Write;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use super::ledger::{HugePagesEntry, Phase};
use super::{Ledger, Verdict, cell_name, colo, describe, migration};
use crate::memory::Size;

/// One rule, under the header.
const RULED: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// The ledger as text: what ran, the passes or cells, what went wrong, the checksums, the verdict.
pub fn text(ledger: &Ledger) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a String cannot fail");
    if !ledger.groups.is_empty() {
        line(format!(
            "{} on {}: {}, seed {}, against the emulator",
            ledger.scenario, ledger.provenance, ledger.arch, ledger.seed
        ));
        line(groups(ledger).to_string());
    } else if ledger.cells.is_empty() {
        line(heading(ledger));
        if !ledger.passes.is_empty() {
            line(passes(ledger).to_string());
        }
    } else {
        line(format!("{} on {}: {} runs", ledger.scenario, ledger.provenance, ledger.cells.len()));
        line(cells(ledger).to_string());
    }
    if !ledger.faults.is_empty() {
        line(faults(ledger).to_string());
    }
    for run in std::iter::once(ledger).chain(&ledger.cells) {
        if let Some(huge) = &run.hugepages {
            line(hugepages_heading(run, huge));
            line(hugepages(huge).to_string());
        }
    }
    if let [off, on] = ledger.cells.as_slice()
        && let (Some(off), Some(on)) = (&off.hugepages, &on.hugepages)
    {
        let faults = |huge: &HugePagesEntry| -> u64 {
            let logging = huge.phases.iter().filter(|entry| entry.phase == Phase::Logging);
            logging.map(|entry| entry.faults + entry.read_faults.unwrap_or(0)).sum()
        };
        line(format!("faults while logging: {} without eager splitting, {} with it", faults(off), faults(on)));
    }
    for run in std::iter::once(ledger).chain(&ledger.cells) {
        if let Some(entry) = &run.migration {
            if !ledger.cells.is_empty() {
                line(format!("{}:", cell_name(run)));
            }
            line(migration::text(entry).trim_end().to_owned());
        }
        if let Some(entry) = &run.colo {
            line(colo::text(entry).trim_end().to_owned());
        }
    }
    let region = &ledger.region;
    for (sum, what) in
        [(region.sum_r_source, if ledger.is_of_kernel() { "RAM" } else { "region" }), (region.sum_r_dest, "copy")]
    {
        if let Some(sum) = sum {
            // As coreutils prints it: the checksum, and blocks of 1024 bytes.
            line(format!("sum -r: {sum:05} {:5} {what}", region.size.div_ceil(1024)));
        }
    }
    for mismatch in &ledger.mismatches {
        line(format!("MISMATCH {}", describe(mismatch)));
    }
    let runs = if ledger.cells.is_empty() { std::slice::from_ref(ledger) } else { &ledger.cells };
    for failed in runs.iter().filter(|run| run.verdict == Verdict::Fail) {
        line(format!("reproduce: {}", failed.reproduce));
    }
    let verdict = match ledger.verdict {
        Verdict::Pass if !ledger.faults.is_empty() => {
            "PASS: every fault that was planted was detected where it was planted"
        }
        Verdict::Pass if ledger.scenario == "hugepages" => {
            "PASS: blocks before logging, dissolved page by page while the log was exact, rebuilt after"
        }
        Verdict::Pass if ["migrate", "chain"].contains(&ledger.scenario.as_str()) => {
            "PASS: the guest moved while it ran, and not one byte was lost"
        }
        Verdict::Pass if ledger.scenario == "cancel" => {
            "PASS: exactly one side had the guest, whole, whatever happened"
        }
        Verdict::Pass if ledger.scenario == "colo" => {
            "PASS: both sides were equal at every checkpoint, and every output was seen once"
        }
        Verdict::Pass if !ledger.groups.is_empty() => {
            "PASS: every register and byte after every block is the same on KVM and on the emulator"
        }
        Verdict::Pass if ledger.is_of_kernel() && ledger.region.sum_r_dest.is_some() => {
            "PASS: the guest moved while it ran, and not one byte was lost"
        }
        Verdict::Pass if ledger.is_of_kernel() => "PASS",
        Verdict::Pass => "PASS: every page the guest wrote was logged, copied and verified",
        Verdict::Fail => "FAIL",
        Verdict::Skip => "SKIP",
    };
    let reason = ledger.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
    line(format!("{verdict}{reason}"));
    out
}

fn heading(ledger: &Ledger) -> String {
    let Ledger { scenario, provenance, arch, vcpus, workload, seed, mode, clock, dirty_log, backing, .. } = ledger;
    let region = &ledger.region;
    if ledger.is_of_kernel() {
        return format!(
            "{scenario} on {provenance}: {arch} kernel, {vcpus} vCPU, {mode}, {clock} clock, dirty log {dirty_log}\nRAM {} KiB at {:#x} \
             on {backing}, host page {}",
            region.size / 1024,
            region.gpa,
            ledger.host_page
        );
    }
    let translation = super::translation(ledger);
    format!(
        "{scenario} on {provenance}: {arch} {translation}, {vcpus} vCPU, {mode}, {clock} clock, dirty log \
         {dirty_log}\nworkload {workload}, seed {seed}, region {} KiB at {:#x} on {backing}, host page {}",
        region.size / 1024,
        region.gpa,
        ledger.host_page
    )
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(RULED).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}

/// Right-aligns every column but the first `text_columns`.
pub(super) fn align_numbers(table: &mut Table, text_columns: usize) {
    for column in table.column_iter_mut().skip(text_columns) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn passes(ledger: &Ledger) -> Table {
    let mut table =
        table(&["pass", "predicted", "harvested", "missing", "extra", "copied", "harvest µs", "copy µs", "digests"]);
    for pass in &ledger.passes {
        let extra = match pass.extra {
            0 => "0".to_owned(),
            extra if extra == pass.extra_explained => {
                format!("{extra} ({})", pass.extra_rule.as_deref().unwrap_or("explained"))
            }
            extra => format!("{extra} ({} unexplained)", extra - pass.extra_explained),
        };
        let digests = match (&pass.digest_guest, &pass.digest_copy, &pass.digest_model) {
            (Some(guest), Some(copy), Some(model)) if guest == copy && copy == model => format!("{guest} ×3"),
            (None, Some(copy), Some(model)) if copy == model => format!("{copy} ×2"),
            (None, _, None) => "live".to_owned(),
            (guest, copy, model) => {
                let show = |digest: &Option<String>| digest.clone().unwrap_or_else(|| "-".to_owned());
                format!("guest {} copy {} model {}", show(guest), show(copy), show(model))
            }
        };
        table.add_row([
            pass.pass.to_string(),
            pass.predicted.to_string(),
            pass.harvested.to_string(),
            pass.missing.to_string(),
            extra,
            pass.pages_copied.to_string(),
            microseconds(pass.harvest_ns),
            microseconds(pass.copy_ns),
            digests,
        ]);
    }
    align_numbers(&mut table, 0);
    table
}

fn microseconds(ns: u64) -> String {
    format!("{}.{}", ns / 1000, ns % 1000 / 100)
}

fn cells(ledger: &Ledger) -> Table {
    let mut table = table(&["run", "verdict", "passes", "predicted", "harvested", "missing", "extra", "copied"]);
    for cell in &ledger.cells {
        let sum = |field: fn(&super::PassEntry) -> u64| cell.passes.iter().map(field).sum::<u64>().to_string();
        table.add_row([
            cell_name(cell),
            cell.verdict.name().to_owned(),
            cell.passes.len().to_string(),
            sum(|pass| pass.predicted),
            sum(|pass| pass.harvested),
            sum(|pass| pass.missing),
            sum(|pass| pass.extra),
            sum(|pass| pass.pages_copied),
        ]);
    }
    align_numbers(&mut table, 2);
    table
}

fn groups(ledger: &Ledger) -> Table {
    let mut table = table(&["group", "blocks", "instructions", "disagreements"]);
    let row = |name: &str, [blocks, instructions, disagreements]: [u64; 3]| {
        [name.to_owned(), blocks.to_string(), instructions.to_string(), disagreements.to_string()]
    };
    let mut all = [0; 3];
    for entry in &ledger.groups {
        let numbers = [entry.blocks, entry.instructions, entry.disagreements];
        table.add_row(row(&entry.group, numbers));
        all = std::array::from_fn(|index| all[index] + numbers[index]);
    }
    table.add_row(row("all", all));
    align_numbers(&mut table, 1);
    table
}

fn faults(ledger: &Ledger) -> Table {
    let mut table = table(&["fault", "planted", "detected", "by", "in pass"]);
    for fault in &ledger.faults {
        table.add_row([
            fault.fault.clone(),
            fault.planted.clone(),
            match (&fault.skipped, fault.detected) {
                (Some(_), _) => "skipped",
                (None, true) => "yes",
                (None, false) => "NO",
            }
            .to_owned(),
            fault.skipped.clone().unwrap_or_else(|| fault.by.join(", ")),
            fault.pass.map_or_else(|| "-".to_owned(), |pass| pass.to_string()),
        ]);
    }
    table
}

fn hugepages_heading(ledger: &Ledger, huge: &HugePagesEntry) -> String {
    format!(
        "stage 2, {} on {}, blocks of {}, eager splitting {}:",
        ledger.backing,
        ledger.provenance,
        Size(huge.block),
        huge.eager_split.map_or("off".to_owned(), |bytes| format!("by {}", Size(bytes)))
    )
}

fn hugepages(huge: &HugePagesEntry) -> Table {
    let mut table = table(&["touch", "pages", "in blocks", "faults", "read faults", "blocks mapped", "pages mapped"]);
    let optional = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    for entry in &huge.phases {
        table.add_row([
            match (entry.phase, entry.pass) {
                (Phase::Before, _) => "before logging".to_owned(),
                (Phase::Logging, pass) => format!("logging, pass {}", pass.unwrap_or(0)),
                (Phase::After, _) => "after logging".to_owned(),
            },
            entry.pages.to_string(),
            entry.blocks.to_string(),
            entry.faults.to_string(),
            optional(entry.read_faults),
            optional(entry.table_blocks),
            optional(entry.table_pages),
        ]);
    }
    align_numbers(&mut table, 1);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn a_mismatch_shows_page_gpa_pass_and_how_to_reproduce() {
        let text = text(&sample());
        assert!(
            text.contains("MISMATCH missing: pass 1, page 3, GPA 0x20003000: expected dirty, found clean"),
            "{text}"
        );
        assert!(text.contains("reproduce: hostvmm verify passes --seed 7"), "{text}");
        assert!(text.trim_end().ends_with("FAIL"), "{text}");
    }
}
