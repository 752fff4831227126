//! The scenario `cpu`: random blocks of instructions and page-table walks on KVM and on the emulator.
//!
//! Both accelerators run the same blocks from the same registers and memory through the traits of [`crate::backend`]; every
//! register, flag, exception and byte must agree afterwards, but for what the architecture leaves open (`rules`). A
//! block is a function of seed and number, so that one can be run again by itself; where it disagrees, it is shrunk to the
//! instructions that do.
//!
//! - [`block`]: a block and its effect; [`isa`]: what an architecture brings; [`a64`]: AArch64; [`a32`]: AArch32;
//! - [`executor`]: a machine with the monitor in it, which runs hundreds of blocks an exit;
//! - [`shrink`]: the least instructions that still disagree.

mod a32;
mod a64;
mod block;
mod executor;
mod isa;
mod shrink;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;

pub use self::block::Group;
pub use self::executor::CpuError;

use self::a32::A32;
use self::a64::A64;
use self::block::{Block, Effect};
use self::executor::Executor;
use self::isa::{Isa, Layout};
use super::Interrupt;
use crate::backend::{Accelerator, AcceleratorChoice};
use crate::machine::BuildError;
use crate::report::{GroupEntry, Mismatch, Progress};

/// Disagreements after which a run ends.
const ENOUGH: usize = 16;
/// How often a block with a store-exclusive may be tried again.
const TRIES: u32 = 3;

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct CpuSpec {
    /// Architecture of the guest.
    pub arch: abi::Arch,
    /// Seed of all blocks.
    pub seed: u64,
    /// First block.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Only this group.
    pub group: Option<Group>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct CpuReport {
    /// Blocks by group.
    pub groups: Vec<GroupEntry>,
    /// Disagreements, each with its block's number as the pass.
    pub mismatches: Vec<Mismatch>,
    /// Whether the user ended the run.
    pub interrupted: bool,
}

/// Both machines.
struct Pair {
    kvm: Executor,
    emulator: Executor,
    layout: Layout,
}

/// Effects of one block, made comparable: KVM's and the emulator's.
type Effects = (Effect, Effect);

impl Pair {
    fn run(&mut self, isa: &dyn Isa, blocks: &[Block]) -> Result<Vec<Effects>, CpuError> {
        let kvm = self.kvm.run(&self.layout, blocks)?;
        let emulator = self.emulator.run(&self.layout, blocks)?;
        let normal = |block, mut effect| {
            isa.normalise(block, &mut effect);
            effect
        };
        Ok(blocks
            .iter()
            .zip(kvm.into_iter().zip(emulator))
            .map(|(block, (kvm, emulator))| (normal(block, kvm), normal(block, emulator)))
            .collect())
    }

    /// Whether `block` disagrees when it is run by itself.
    fn disagrees(&mut self, isa: &dyn Isa, block: &Block) -> Result<Option<Effects>, CpuError> {
        let tries = if isa.may_fail_spuriously(block) { TRIES } else { 1 };
        let mut last = None;
        for _ in 0..tries {
            let effects = self.run(isa, std::slice::from_ref(block))?.pop();
            match effects {
                Some((kvm, emulator)) if kvm != emulator => last = Some((kvm, emulator)),
                _ => return Ok(None),
            }
        }
        Ok(last)
    }
}

/// Runs the blocks of `spec` on KVM and on the emulator.
///
/// # Errors
/// [`CpuError`] where they cannot be run; [`BuildError::Unavailable`] in it where the host has no KVM. What disagrees is in the
/// report.
pub fn run_cpu(spec: &CpuSpec, interrupt: &Interrupt, progress: &Progress) -> Result<CpuReport, CpuError> {
    AcceleratorChoice::Exactly(Accelerator::Kvm).resolve(spec.arch).map_err(BuildError::from)?;
    let layout = if spec.arch == abi::Arch::Armv7 { a32::LAYOUT } else { a64::LAYOUT };
    let mut kvm = Executor::new(&executor::config(Accelerator::Kvm, &layout))?;
    let mut isa: Box<dyn Isa> =
        if spec.arch == abi::Arch::Armv7 { Box::new(A32::new()) } else { Box::new(A64::new(kvm.vcpu())?) };
    kvm.prepare(isa.as_ref())?;
    let mut emulator = Executor::new(&executor::config(Accelerator::Emulator, &layout))?;
    emulator.prepare(isa.as_ref())?;
    if let Some(probe) = isa.probe()
        && let Some(effect) = kvm.run(&layout, &[probe])?.first()
    {
        isa.learn(effect);
    }
    compare(spec, isa.as_ref(), &mut Pair { kvm, emulator, layout }, interrupt, progress)
}

fn compare(
    spec: &CpuSpec,
    isa: &dyn Isa,
    pair: &mut Pair,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<CpuReport, CpuError> {
    let mut report = CpuReport::default();
    let mut groups: BTreeMap<Group, GroupEntry> = BTreeMap::new();
    let end = spec.first.saturating_add(spec.count);
    let mut next = spec.first;
    while next < end && report.mismatches.len() < ENOUGH {
        if interrupt.is_raised() {
            report.interrupted = true;
            break;
        }
        let slots = pair.layout.slots;
        let behind = (next / slots + 1).saturating_mul(slots).min(end);
        let blocks: Vec<Block> = (next..behind).map(|number| isa.block(spec.seed, number, spec.group)).collect();
        let effects = pair.run(isa, &blocks)?;
        for (block, (kvm, emulator)) in blocks.iter().zip(effects) {
            let entry = groups.entry(block.group).or_insert_with(|| GroupEntry::named(block.group.name()));
            entry.blocks += 1;
            entry.instructions += block.words.len() as u64;
            if kvm == emulator || report.mismatches.len() >= ENOUGH {
                continue;
            }
            let Some((smallest, effects)) = shrink::shrink(pair, isa, block, (kvm, emulator))? else { continue };
            entry.disagreements += 1;
            let mismatch = describe(isa, &smallest, &effects);
            progress.line(&explain(isa, block, &smallest, &effects));
            report.mismatches.push(mismatch);
        }
        progress.advance_by(behind - next);
        next = behind;
    }
    if report.mismatches.is_empty()
        && let Some(gpa) = executor::first_stray(&pair.layout, &pair.kvm, &pair.emulator)?
    {
        report.mismatches.push(Mismatch {
            check: "stray write".to_owned(),
            pass: end,
            page: None,
            gpa: Some(gpa.raw()),
            expected: "memory that no block may write to be equal".to_owned(),
            found: "a difference".to_owned(),
        });
    }
    report.groups = groups.into_values().collect();
    Ok(report)
}

/// Every register and byte that differs: name, KVM's, the emulator's.
fn differences(isa: &dyn Isa, block: &Block, (kvm, emulator): &Effects) -> Vec<(String, u64, u64)> {
    let registers = kvm.registers.iter().zip(&emulator.registers).enumerate();
    let mut found: Vec<_> = registers
        .filter(|(_, (kvm, emulator))| kvm != emulator)
        .map(|(word, (kvm, emulator))| (isa.name(word), *kvm, *emulator))
        .collect();
    let offsets = block.watched.iter().flat_map(Clone::clone);
    let memory = kvm.memory.iter().zip(&emulator.memory).zip(offsets);
    found.extend(memory.filter(|((kvm, emulator), _)| kvm != emulator).map(|((kvm, emulator), at)| {
        (format!("byte {:#x}", abi::map::RAM_BASE.raw() + at), u64::from(*kvm), u64::from(*emulator))
    }));
    found
}

fn describe(isa: &dyn Isa, block: &Block, effects: &Effects) -> Mismatch {
    let (name, kvm, emulator) =
        differences(isa, block, effects).into_iter().next().unwrap_or_else(|| ("nothing".to_owned(), 0, 0));
    Mismatch {
        check: format!("{} {name}", block.group.name()),
        pass: block.number,
        page: None,
        gpa: None,
        expected: format!("{kvm:#x} as on kvm after {:08x?}", block.words),
        found: format!("{emulator:#x} on the emulator"),
    }
}

/// A disagreement for people: instructions, differences, and the registers that the block started from.
fn explain(isa: &dyn Isa, whole: &Block, block: &Block, effects: &Effects) -> String {
    let mut text = format!("block {} ({}), shrunk from {:08x?}:\n", block.number, block.group.name(), whole.words);
    for word in &block.words {
        let _ = writeln!(text, "  {word:08x} {}", isa.describe(*word));
    }
    for (name, kvm, emulator) in differences(isa, block, effects).into_iter().take(12) {
        let _ = writeln!(text, "  {name}: kvm {kvm:#x}, emulator {emulator:#x}");
    }
    for (at, bytes) in block.memory.iter().filter(|(_, bytes)| bytes.len() == 8) {
        let word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        let _ = writeln!(text, "  word {:#x}: {word:#018x}", abi::map::RAM_BASE.raw() + at);
    }
    let changed = block.registers.iter().enumerate().filter(|(_, value)| **value != 0);
    let general = changed.filter(|(word, _)| *word < 51).map(|(word, value)| format!("{}={value:#x}", isa.name(word)));
    let _ = write!(text, "  from {}", general.collect::<Vec<_>>().join(" "));
    text
}
