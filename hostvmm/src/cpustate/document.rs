//! docs/registers.md, made from the table; the test fails where the file is stale.

use std::fmt::Write as _;
use std::path::Path;

use super::rule::{Absent, Entry, Rule, Surplus};
use super::table::{lookup, table};
use super::{features, id};

const PATH: &str = "../docs/registers.md";
/// As it was when the test was built: the test also runs where the sources are not.
const FOUND: &str = include_str!("../../../docs/registers.md");
/// Set to write the file instead of comparing it.
const WRITE: &str = "TIDEMARK_WRITE_DOCS";

const INTRODUCTION: &str = "\
# Registers

What becomes of each register of a vCPU that moves to another kernel or another accelerator. Made from the table in
`hostvmm/src/cpustate`; `TIDEMARK_WRITE_DOCS=1 cargo test -p hostvmm --lib cpustate::document` makes it anew.

Ids are KVM's (`KVM_GET_REG_LIST`); the emulator has the same. KVM lists 242 of them on Linux 6.1 and 259 on 6.12, 74 more on a
vCPU with a PMU, the same for AArch64 and AArch32 guests. Those with a meaning and rules in common share a line.

| rule | what happens where both sides have the register |
|---|---|
| copy | the destination gets the source's value |
| mask | it gets these bits, and keeps its own others |
| counters | it gets the bits of counters that it has |
| derive | a view of another register, its generator: never written where the destination has the generator, made from it where not. A source that has views and no generator has the generator made of them |
| clears | a view whose writes clear: all bits are cleared before the generator is written |
| constant-equal | must be the same, or the move is refused |
| constant-ignore | may differ; written only where the destination lets software choose it (KVM_ARM_GET_REG_WRITABLE_MASKS) |
| features | each field is compared, below: the destination must offer what the guest was shown; where it offers more and lets software choose, it is made to show the same |
| ignore | the destination's value stays |
| refuse | the move is refused |

A register that the source has not gets its reset value, or stays. One that the destination has not is left behind only as the
table says; otherwise the move is refused. Everything that is not simply copied is named in the log, and so is what the destination,
read back, does not hold of what was written: reserved bits. Ids that are not in the table
follow `--unknown-registers`: `refuse`; `ignore-zero`, which leaves them behind while they are zero or the same on both sides;
`ignore`.

Writes come in this order: what must be set before a vCPU first runs, PSTATE, state, the PMU's clearing views, its counters, what
makes them count, timers' compare values, their controls. The machine's counter is set after all vCPUs, the GIC by itself. DCZID_EL0 and
CNTFRQ_EL0 are in no list, though a guest reads them. The counter's frequency moves by itself: the emulator goes on at an arriving guest's, under
KVM it is the host's and must be the same. DCZID_EL0 stays the destination's.

";

fn rule(rule: Rule, entry: &Entry) -> String {
    match rule {
        Rule::Copy => "copy".into(),
        Rule::Mask { bits, why } => format!("mask {bits:#x}: {why}"),
        Rule::Counters => "counters".into(),
        Rule::Derive { generator, low } => {
            let high = low + id::bits(entry.id).count_ones() - 1;
            let of = lookup(generator).map_or("?", |entry| &entry.name);
            // Numbered as the view is.
            let of = of.strip_prefix('Z').map_or(of, |_| "Zn");
            format!("derive: {of}, bits {high}:{low}")
        }
        Rule::Clears { generator } => format!("clears {}", lookup(generator).map_or("?", |entry| &entry.name)),
        Rule::ConstantEqual => "constant-equal".into(),
        Rule::ConstantIgnore { why } => format!("constant-ignore: {why}"),
        Rule::Features { settable: true } => "features, and it can always be chosen".into(),
        Rule::Features { settable: false } => "features".into(),
        Rule::Ignore { why } => format!("ignore: {why}"),
        Rule::Refuse { why } => format!("refuse: {why}"),
    }
}

fn absent(entry: &Entry) -> String {
    match (entry.absent, entry.rule) {
        (_, Rule::Refuse { .. }) => "refused".into(),
        (_, Rule::Clears { .. }) => "all bits".into(),
        (Absent::Reset(value), Rule::Ignore { .. }) => format!("stays; of AArch32 guests {value:#x}"),
        (Absent::Reset(value), _) => format!("{value:#x}"),
        (Absent::Keep(_), _) => "stays".into(),
    }
}

fn surplus(entry: &Entry) -> String {
    match entry.surplus {
        Surplus::AtReset if matches!(entry.rule, Rule::Ignore { .. }) => {
            "always; of AArch32 guests while as after reset".into()
        }
        Surplus::AtReset => "while as after reset".into(),
        Surplus::Always(_) => "always".into(),
        Surplus::Disabled { .. } => "while not enabled".into(),
        Surplus::NotCounting { .. } => "while it does not count".into(),
        Surplus::SveUnused => "while SVE was never used".into(),
        Surplus::Offers(value) => format!("if {value:#x} lacks nothing"),
    }
}

/// What entries must have in common to share a line: the name but for its numbers, and everything that is said.
type Line = (String, [String; 5]);

fn line(entry: &Entry) -> Line {
    let stem =
        entry.name.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("#");
    let aarch32 = entry.aarch32.map_or_else(String::new, |of| rule(of, entry));
    (stem, [entry.meaning.to_owned(), rule(entry.rule, entry), aarch32, absent(entry), surplus(entry)])
}

fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    text += "## The table\n\n";
    text +=
        "| id | register | meaning | rule | of AArch32 guests, where another | the source has none | left behind |\n";
    text += "|---|---|---|---|---|---|---|\n";
    let mut lines: Vec<(Line, Vec<&Entry>)> = Vec::new();
    for entry in table() {
        let key = line(entry);
        match lines.iter_mut().find(|(found, _)| *found == key) {
            Some((_, entries)) => entries.push(entry),
            None => lines.push((key, vec![entry])),
        }
    }
    for ((_, columns), entries) in lines {
        let (first, last) = (entries[0], entries[entries.len() - 1]);
        let name = match entries.len() {
            1 => first.name.clone(),
            count => format!("{} … {} ({count})", first.name, last.name),
        };
        writeln!(text, "| `{:016x}` | {name} | {} |", first.id, columns.join(" | ")).unwrap();
    }
    text += "\n## Fields that are compared\n\n";
    text += "A field that is not here, of a register with the rule `features`, is four bits wide (of the firmware's services one) and more is\n";
    text +=
        "more.\n\n| register | field | bits | order | what it promises, from which value on |\n|---|---|---|---|---|\n";
    for entry in table() {
        for field in features::described(entry.id) {
            writeln!(text, "| {} | {} |", entry.name, field.join(" | ")).unwrap();
        }
    }
    text
}

#[test]
fn docs_registers_md_is_what_the_table_says() {
    let expected = markdown();
    if std::env::var_os(WRITE).is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PATH);
        return std::fs::write(&path, &expected).unwrap();
    }
    assert!(
        FOUND == expected,
        "docs/registers.md is stale; {WRITE}=1 cargo test -p hostvmm --lib cpustate::document makes it anew"
    );
}
