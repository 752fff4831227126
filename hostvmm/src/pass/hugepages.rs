//! Lockstep passes between two touches without a log: what stage 2 is made of before, while and after ([`HugePages`]).
//!
//! ```text
//! before: step 0 ─▶ start the log ─▶ passes 0 … N, each checked as in lockstep ─▶ stop it ─▶ after: one more step ─▶ conclude
//! ```
//!
//! *before*: stage 2 of the region is empty, so a step that writes every page takes a fault a block, or a fault a page where there are no
//! blocks. *logging*: every page that a step writes was clean, so it takes a fault of its own; a write to a block dissolves it, and every other
//! page that it mapped takes a fault when it is next read (none of these with eager splitting).
//! *after*: the last harvest left every page protected, and no log runs: the first write to a block's pages makes
//! it anew, and the others take no fault. Nothing is unmapped on purpose, so no step depends on how KVM does that.

use std::collections::BTreeSet;

use super::lockstep::{Written, check, write};
use super::{PassError, Session, copy_all};
use crate::backend::Vm;
use crate::dirty::{DirtyLog as _, PageBitmap};
use crate::memory::SlotId;
use crate::report::PassEntry;
use crate::report::ledger::{HugePagesPhase, Phase};
use crate::verify::SelfCheck;
use crate::verify::model::Model;
use crate::verify::stage2::count_mappings;

/// How many passes, of how much work, on what machine.
pub struct HugePages<'a> {
    /// The machine, whose faults are counted.
    pub vm: &'a dyn Vm,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Passes after pass 0.
    pub passes: u64,
    /// Steps of every vCPU in each.
    pub steps_per_pass: u64,
    /// When the guest checks itself.
    pub self_check: SelfCheck,
}

impl HugePages<'_> {
    /// Runs all phases; what was counted is in the ledger.
    ///
    /// # Errors
    /// [`PassError`] where guest or host cannot go on; failed checks are in the ledger.
    pub fn run(&self, session: &mut Session<'_>, model: &mut Model) -> Result<(), PassError> {
        self.write(session, model, Phase::Before, 0, 0..1)?;
        session.start()?;
        let mut first = 1;
        for pass in 0..=self.passes {
            let count = if pass == 0 { 1 } else { self.steps_per_pass };
            let writes = self.write(session, model, Phase::Logging, pass, first..first + count)?;
            first += count;
            let written = self.vm.stage2_faults()?;
            check(session, model, pass, &writes)?;
            self.note_reads(session, self.vm.stage2_faults()?.saturating_sub(written));
            if self.self_check == SelfCheck::Every {
                session.self_check(pass, first)?;
            }
        }
        session.log.stop()?;
        let last = self.passes + 1;
        self.write(session, model, Phase::After, last, first..first + 1)?;
        // What was written without a log is copied whole, and proven like a pass.
        copy_all(session.memory, SlotId::Region, session.target, session.threads)?;
        session.check_digests(model, &mut PassEntry { pass: last, ..PassEntry::default() })?;
        if self.self_check != SelfCheck::Off {
            session.self_check(last, first + 1)?;
        }
        session.conclude(last)
    }

    /// Lets the guest execute `steps`, and notes what that took and left.
    fn write(
        &self,
        session: &mut Session<'_>,
        model: &mut Model,
        phase: Phase,
        pass: u64,
        steps: std::ops::Range<u64>,
    ) -> Result<Written, PassError> {
        let before = self.vm.stage2_faults()?;
        let written = write(session, model, pass, steps)?;
        let faults = self.vm.stage2_faults()?.saturating_sub(before);
        let blocks = blocks_of(&written.pages, session.base().raw(), self.block_bytes);
        let tables = self.vm.stage2_tables().map(|dump| count_mappings(&dump, &blocks, self.block_bytes));
        let entry = HugePagesPhase {
            phase,
            pass: (phase == Phase::Logging).then_some(pass),
            pages: written.pages.count(),
            blocks: blocks.len() as u64,
            faults,
            read_faults: None,
            table_blocks: tables.map(|found| found.blocks),
            table_pages: tables.map(|found| found.pages),
        };
        if let Some(huge) = &mut session.ledger.hugepages {
            huge.phases.push(entry);
        }
        Ok(written)
    }

    /// Notes the faults that the guest's digest took, which reads the whole region.
    fn note_reads(&self, session: &mut Session<'_>, faults: u64) {
        if let Some(last) = session.ledger.hugepages.as_mut().and_then(|huge| huge.phases.last_mut()) {
            last.read_faults = Some(faults);
        }
    }
}

/// Numbers (address / block) of the blocks that hold a page of `pages`, of which the first lies at `base`.
fn blocks_of(pages: &PageBitmap, base: u64, block_bytes: u64) -> BTreeSet<u64> {
    let page_bytes = pages.page_bytes();
    pages
        .runs()
        .flat_map(|run| (base + run.start * page_bytes) / block_bytes..=(base + run.end * page_bytes - 1) / block_bytes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_by_address() {
        let mut pages = PageBitmap::new(2048, 4096);
        [0, 511, 512, 1600].into_iter().for_each(|page| pages.set(page));
        let numbers = |base| blocks_of(&pages, base, 2 << 20).into_iter().collect::<Vec<_>>();
        assert_eq!(numbers(0x2000_0000), [256, 257, 259]);
        // A region that begins in the middle of a block.
        assert_eq!(numbers(0x2010_0000), [256, 257, 259]);
        assert_eq!(numbers(0x2010_0000 + (400 << 12)), [257, 258, 260]);
    }
}
