//! What the scenario needs to know of an architecture: [`Isa`].

use super::block::{Block, Effect, Group};

/// `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE` and the offset of `regs.pc` in `struct kvm_regs` / 4; of PSTATE.
pub(super) const REG_PC: u64 = 0x6030_0000_0010_0040;
pub(super) const REG_PSTATE: u64 = REG_PC + 2;
/// KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG.
pub(super) const SYSREG: u64 = 0x6030_0000_0013_0000;

/// Where the monitor finds what it runs. Offsets in RAM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Of the machine; blocks have tables of their own.
    pub(super) tables: abi::Tables,
    pub(super) ram_bytes: u64,
    /// Most blocks of one run of the monitor; block `n` has slot `n % slots`.
    pub(super) slots: u64,
    /// Two words: address of the first record, address behind the last.
    pub(super) control: u64,
    pub(super) records: u64,
    pub(super) record_bytes: u64,
    /// Offset in a record of what was saved.
    pub(super) saved: u64,
    /// Words of a record that are loaded, and as many that are saved.
    pub(super) words: usize,
    /// Where the monitor has the records.
    pub(super) records_va: u64,
}

/// A machine before its first run.
pub(super) struct Setup {
    /// Offset in RAM, bytes.
    pub(super) memory: Vec<(u64, Vec<u8>)>,
    /// KVM register id, value.
    pub(super) registers: Vec<(u64, u64)>,
}

/// An architecture: its monitor, its blocks, and what of their effects may differ.
pub(super) trait Isa {
    #[cfg(test)]
    fn layout(&self) -> Layout;

    fn setup(&self) -> Setup;

    /// A block that finds out what the host has and what is no register of KVM's.
    fn probe(&self) -> Option<Block>;

    /// Takes note of what [`Self::probe`] found.
    fn learn(&mut self, effect: &Effect);

    /// Block `number`; of `group`, where one is asked for.
    fn block(&self, seed: u64, number: u64, group: Option<Group>) -> Block;

    /// Makes equal in `effect` what the architecture leaves open.
    fn normalise(&self, block: &Block, effect: &mut Effect);

    /// What a word of a record is called.
    fn name(&self, word: usize) -> String;

    /// An instruction that does nothing.
    fn nop(&self) -> u32;

    /// Offset in RAM of the slot's code, and in that of the block's first instruction.
    fn code(&self, block: &Block) -> (u64, u64);

    /// Whether it has a store-exclusive, which hardware may fail for no reason that can be compared.
    fn may_fail_spuriously(&self, block: &Block) -> bool;

    /// Whether it might not end if one of its instructions were a NOP.
    fn may_loop_if_cut(&self, block: &Block) -> bool;

    /// An instruction, for people.
    fn describe(&self, word: u32) -> String;
}
