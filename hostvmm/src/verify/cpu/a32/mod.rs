//! Blocks of AArch32: [`A32`].
//!
//! - [`monitor`]: the program in the guest that runs them, and the map of the guest;
//! - [`encodings`], [`data`]: instructions of the emulator's table; [`system`]: those by hand; [`walk`]: page-table walks;
//! - [`rules`]: what may differ; [`asm`]: words.

mod asm;
mod data;
mod encodings;
mod monitor;
mod rules;
mod system;
mod walk;

use emulator::sysreg::enc::*;
use workload::SplitMix64;

use self::data::Draw;
use self::encodings::Encoding;
use self::monitor::{field, map};
use super::block::{Block, Effect, Group, random};
use super::isa::{Isa, Layout, REG_PC, REG_PSTATE, SYSREG, Setup};
use crate::backend::{Accelerator, provenance};

/// Where the monitor finds what it runs.
pub(super) const LAYOUT: Layout = Layout {
    tables: abi::Tables::ARMV7[0],
    ram_bytes: map::RAM_BYTES,
    slots: map::SLOTS,
    control: map::CONTROL,
    records: map::RECORDS,
    record_bytes: map::RECORD_BYTES,
    saved: map::SAVED,
    words: field::WORDS,
    records_va: map::WRITE + map::RECORDS,
};

/// The generator.
pub(super) struct A32 {
    /// The host's CPU is QEMU's.
    emulated: bool,
    all: Vec<Encoding>,
    processing: Vec<Encoding>,
}

impl A32 {
    /// The generator for this host.
    pub(super) fn new() -> Self {
        Self::with(provenance(Accelerator::Kvm) != Accelerator::Kvm.to_string())
    }

    /// The generator of a host whose CPU is QEMU's or not.
    pub(super) fn with(emulated: bool) -> Self {
        let all: Vec<Encoding> = encodings::all().collect();
        let is_processing =
            |one: &&Encoding| matches!(one.group, Group::Integer | Group::Crc | Group::Multiply | Group::Media);
        let processing = all.iter().filter(is_processing).copied().collect();
        Self { emulated, all, processing }
    }

    fn draw(&self, seed: u64, number: u64) -> Draw {
        Draw { random: random(seed, number), number, emulated: self.emulated }
    }

    /// Block `number` of the encodings of the table, which take turns.
    fn of_table(&self, seed: u64, number: u64, group: Option<Group>) -> Block {
        let encodings: Vec<Encoding> =
            self.all.iter().filter(|one| group.is_none_or(|group| one.group == group)).copied().collect();
        let count = encodings.len() as u64;
        let mut turn = SplitMix64::new(number / count.max(1));
        let first = turn.below(count.max(1));
        (0..count)
            .find_map(|next| {
                let index = (number + first + next) % count;
                data::block(self.draw(seed, number), &encodings[index as usize], &self.processing)
            })
            .unwrap_or_else(|| system::exception(self.draw(seed, number)))
    }
}

impl Isa for A32 {
    #[cfg(test)]
    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn setup(&self) -> Setup {
        let (code, entry) = monitor::image();
        let mut memory = data::upper_tables();
        memory.extend(data::lower_tables());
        memory.push((map::MONITOR, code.iter().flat_map(|word| word.to_le_bytes()).collect()));
        let system = [
            (MAIR_EL1, 0),
            (TCR_EL1, 2),
            (TTBR0_EL1, (map::RAM + map::LOWER_SHORT) | data::SHORT_WALKS),
            (TTBR1_EL1, data::upper(false)),
            (DACR32_EL2, 1),
            (VBAR_EL1, map::RAM + map::MONITOR),
            (CNTKCTL_EL1, 0),
            (SCTLR_EL1, data::sctlr::ON),
        ];
        // The mode first: it decides what the other registers are.
        let mut registers = vec![(REG_PSTATE, 0x1d3)];
        registers.extend(system.into_iter().map(|(register, value)| (SYSREG | u64::from(register), value)));
        registers.push((REG_PC, map::RAM + map::MONITOR + entry));
        Setup { memory, registers }
    }

    fn probe(&self) -> Option<Block> {
        None
    }

    fn learn(&mut self, _effect: &Effect) {}

    fn block(&self, seed: u64, number: u64, group: Option<Group>) -> Block {
        let turn = group.or_else(|| Group::of_turn(number));
        let draw = self.draw(seed, number);
        match turn {
            Some(Group::Walk) => walk::walk(draw),
            Some(Group::System) => system::system(draw),
            Some(Group::Exception) => system::exception(draw),
            Some(Group::Maintenance) if group.is_none() || number.is_multiple_of(2) => system::maintenance(draw),
            Some(Group::Exclusive) if group.is_none() || number.is_multiple_of(2) => data::exclusive_pair(draw),
            other => self.of_table(seed, number, other),
        }
    }

    fn normalise(&self, block: &Block, effect: &mut Effect) {
        rules::normalise(block, effect, self.emulated);
    }

    fn name(&self, word: usize) -> String {
        field::name(word)
    }

    fn nop(&self) -> u32 {
        asm::NOP
    }

    fn code(&self, block: &Block) -> (u64, u64) {
        let slot = block.number % map::SLOTS;
        (map::CODE + slot * map::CODE_BYTES, 4 * data::START as u64)
    }

    fn may_fail_spuriously(&self, block: &Block) -> bool {
        // STREX and STLEX of every size.
        block.words.iter().any(|word| word & 0x0f90_02f0 == 0x0180_0290)
    }

    fn may_loop_if_cut(&self, _block: &Block) -> bool {
        // Blocks are entered from IRQ mode, which is not theirs: no LR of theirs is their start.
        false
    }

    fn describe(&self, word: u32) -> String {
        emulator::a32::decode(word).map_or_else(|| "reserved".to_owned(), |encoding| encoding.name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_depends_on_seed_number_and_group_alone() {
        let isa = A32::with(false);
        for number in 0..64 {
            for group in [None, Some(Group::Walk), Some(Group::Memory)] {
                let (one, other) = (isa.block(7, number, group), isa.block(7, number, group));
                assert_eq!((one.words.clone(), &one.registers), (other.words, &other.registers));
                assert_eq!(one.memory, other.memory);
                assert_ne!(one.registers, isa.block(8, number, group).registers);
            }
        }
    }

    #[test]
    fn every_group_has_its_turn() {
        let isa = A32::with(false);
        let mut met: Vec<Group> = (0..4096).map(|number| isa.block(1, number, None).group).collect();
        met.sort();
        met.dedup();
        assert_eq!(met, Group::of(abi::Arch::Armv7).collect::<Vec<_>>());
        for group in Group::of(abi::Arch::Armv7) {
            assert!((0..16).all(|number| isa.block(1, number, Some(group)).group == group), "{group:?}");
        }
    }

    #[test]
    fn blocks_stay_in_their_slot() {
        let isa = A32::with(false);
        for number in 0..2048 {
            let block = isa.block(3, number, None);
            for (at, bytes) in &block.memory {
                assert!(at + bytes.len() as u64 <= map::RAM_BYTES);
                let (base, each) = match *at {
                    map::FRAMES.. => (map::FRAMES, map::FRAME_BYTES),
                    map::DATA.. => (map::DATA, map::DATA_BYTES),
                    _ => (map::CODE, map::CODE_BYTES),
                };
                assert_eq!((at - base) / each, number % map::SLOTS, "block {number} at {at:#x}");
            }
        }
    }
}
