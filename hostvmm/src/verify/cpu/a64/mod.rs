//! Blocks of AArch64: [`A64`].
//!
//! - [`monitor`]: the program in the guest that runs them, and the map of the guest;
//! - [`encodings`], [`data`]: instructions of the table; [`system`]: those by hand; [`walk`]: page-table walks;
//! - [`features`]: what the host has; [`rules`]: what may differ; [`asm`]: words.

mod asm;
mod data;
mod encodings;
mod features;
mod monitor;
mod rules;
mod system;
mod walk;

use emulator::sysreg::enc::*;
use workload::SplitMix64;

use self::data::Draw;
use self::encodings::Encoding;
use self::features::Features;
use self::monitor::{field, map};
use super::block::{Block, Effect, Group, random};
use super::isa::{Isa, Layout, REG_PC, REG_PSTATE, SYSREG, Setup};
use crate::backend::{BackendError, Vcpu};

/// Where the monitor finds what it runs.
pub(super) const LAYOUT: Layout = Layout {
    tables: abi::Tables::V8(abi::VaBits::ALL[1]),
    ram_bytes: map::RAM_BYTES,
    slots: map::SLOTS,
    control: map::CONTROL,
    records: map::RECORDS,
    record_bytes: map::RECORD_BYTES,
    saved: map::SAVED,
    words: field::WORDS,
    records_va: map::WRITE + map::RECORDS,
};

/// The generator of a host with given features.
pub(super) struct A64 {
    features: Features,
    all: Vec<Encoding>,
    processing: Vec<Encoding>,
}

impl A64 {
    /// The generator for the host that executes `vcpu`.
    ///
    /// # Errors
    /// [`BackendError::Register`].
    pub(super) fn new(vcpu: &mut dyn Vcpu) -> Result<Self, BackendError> {
        Features::of(vcpu).map(Self::with)
    }

    /// The generator of a host that has what the emulator has.
    #[cfg(test)]
    pub(super) fn of_the_emulator() -> Self {
        Self::with(Features::ALL)
    }

    fn with(features: Features) -> Self {
        let all = encodings::of(&features, None);
        let is_processing = |one: &&Encoding| matches!(one.group, Group::Integer | Group::Crc | Group::Simd);
        let processing = all.iter().filter(is_processing).copied().collect();
        Self { features, all, processing }
    }

    fn draw(&self, seed: u64, number: u64) -> Draw<'_> {
        Draw { random: random(seed, number), features: &self.features, number }
    }

    /// Block `number` of the encodings of the table, which take turns.
    fn of_table(&self, seed: u64, number: u64, group: Option<Group>) -> Block {
        let of_group: Vec<Encoding>;
        let encodings = match group {
            None => &self.all,
            Some(_) => {
                of_group = encodings::of(&self.features, group);
                &of_group
            }
        };
        // A stride that shares no factor with their number meets every one, whatever the turns of the other groups.
        let count = encodings.len() as u64;
        let mut turn = SplitMix64::new(number / count);
        let first = turn.below(count.max(1));
        (0..count)
            .find_map(|next| {
                let index = (number + first + next) % count;
                data::block(self.draw(seed, number), &encodings[index as usize], &self.processing)
            })
            .unwrap_or_else(|| system::exception(self.draw(seed, number)))
    }
}

impl Isa for A64 {
    #[cfg(test)]
    fn layout(&self) -> Layout {
        LAYOUT
    }

    fn setup(&self) -> Setup {
        let (code, entry) = monitor::image();
        // Blocks of 1 GiB: RAM read-only, RAM, devices, RAM read-only for both levels; attribute 1 is a device's.
        let (usable, el0, read_only, uxn, pxn): (u64, u64, u64, u64, u64) =
            (1 << 10 | 3 << 8 | 1, 1 << 6, 1 << 7, 1 << 54, 1 << 53);
        let upper = [
            map::RAM | usable | read_only | uxn,
            map::RAM | usable | uxn | pxn,
            usable | 1 << 2 | uxn | pxn,
            map::RAM | usable | read_only | el0,
        ];
        let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut memory = data::lower_tables();
        memory.push((map::UPPER_TABLE, bytes(&upper)));
        memory.push((map::MONITOR, code.iter().flat_map(|word| word.to_le_bytes()).collect()));
        let system = [
            (MAIR_EL1, 0xff),
            (TCR_EL1, data::UPPER_TCR | data::LOWER_WALKS | 25),
            (TTBR0_EL1, map::RAM + map::LOWER_TABLE),
            (TTBR1_EL1, map::RAM + map::UPPER_TABLE),
            (VBAR_EL1, map::RUN + map::MONITOR),
            (CNTKCTL_EL1, 0),
            (SCTLR_EL1, emulator::sysreg::id::SCTLR_RES1 | 1 | 1 << 2 | 1 << 12),
        ];
        let mut registers: Vec<(u64, u64)> =
            system.into_iter().map(|(register, value)| (SYSREG | u64::from(register), value)).collect();
        registers.extend([(REG_PSTATE, 0x3c5), (REG_PC, map::RUN + map::MONITOR + entry)]);
        Setup { memory, registers }
    }

    fn probe(&self) -> Option<Block> {
        let draw = self.draw(0, 0);
        let mut registers = self.draw(0, 0).registers();
        registers[field::PSTATE] = 0x3c5;
        Some(draw.finish(Group::System, vec![asm::mrs(0, DCZID_EL0)], registers))
    }

    fn learn(&mut self, effect: &Effect) {
        // Bit 4 prohibits; below it is log2 of the block's words.
        self.features.zeroes_64_bytes = effect.registers[0] & 0x1f == 4;
    }

    fn block(&self, seed: u64, number: u64, group: Option<Group>) -> Block {
        let turn = group.or_else(|| Group::of_turn(number));
        let draw = self.draw(seed, number);
        match turn {
            Some(Group::Walk) => walk::walk(draw),
            Some(Group::System) => system::system(draw),
            Some(Group::Exception) => system::exception(draw),
            Some(Group::Maintenance) => system::maintenance(draw),
            Some(Group::Exclusive) if group.is_none() || number.is_multiple_of(2) => data::exclusive_pair(draw),
            other => self.of_table(seed, number, other),
        }
    }

    fn normalise(&self, block: &Block, effect: &mut Effect) {
        rules::normalise(block, effect, &self.features);
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
        // Store-exclusives: bits 29:24, not ordered (bit 23), not a load (bit 22).
        block.words.iter().any(|word| word & 0x3fc0_0000 == 0x0800_0000)
    }

    fn may_loop_if_cut(&self, block: &Block) -> bool {
        // ELR_EL1 is the block's own start until it is written.
        block.words.contains(&asm::ERET)
    }

    fn describe(&self, word: u32) -> String {
        emulator::lower::describe(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_depends_on_seed_number_and_group_alone() {
        let isa = A64::of_the_emulator();
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
        let isa = A64::of_the_emulator();
        let mut met: Vec<Group> = (0..4096).map(|number| isa.block(1, number, None).group).collect();
        met.sort();
        met.dedup();
        assert_eq!(met, Group::of(abi::Arch::Aarch64).collect::<Vec<_>>());
        for group in Group::of(abi::Arch::Aarch64) {
            assert!((0..16).all(|number| isa.block(1, number, Some(group)).group == group), "{group:?}");
        }
    }

    #[test]
    fn blocks_stay_in_their_slot() {
        let isa = A64::of_the_emulator();
        for number in 0..2048 {
            let block = isa.block(3, number, None);
            for (at, bytes) in &block.memory {
                assert!(at + bytes.len() as u64 <= map::RAM_BYTES);
                let (base, each) = match *at {
                    map::FRAMES.. => (map::FRAMES, map::FRAMES_EACH * map::FRAME_BYTES),
                    map::DATA.. => (map::DATA, map::DATA_BYTES),
                    _ => (map::CODE, map::CODE_BYTES),
                };
                assert_eq!((at - base) / each, number % map::SLOTS, "block {number} at {at:#x}");
            }
        }
    }
}
