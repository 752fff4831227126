//! Whether a dirty log on block mappings is to be relied on where the guest's table walker writes: [`try_log`].
//!
//! With FEAT_HAFDBS the walker sets the access flag in the guest's tables. If stage 2 maps these by a block that a log has
//! write-protected, that write is a stage-2 permission fault on a stage-1 walk (ESR_EL2.S1PTW), and its level is that of the
//! block in stage 2. KVM relies on the level (arch/arm64/kvm/mmu.c, `user_mem_abort`): told 3, it takes the block for a page
//! and makes it writable as a whole, with the one page marked. What is written to the block's other pages until it is
//! protected again is in no log. QEMU before 8.2 tells the level of the stage-1 walk, which for a page is 3.
//!
//! The machine here shows which of both a host does: one vCPU, one block, one store.
//!
//! ```text
//! RAM     page 0: code    page 1: level 1 table, RAM mapped by a block    page 2: level 2 table, the doorbell by a block
//! region  page 0: level 3 table       page 1: its access flag is clear    page 2: accessed before the log starts
//! ```

use abi::{Arch, Gpa, Granule, GuestRange, map};
use workload::descriptor::{ACCESS_FLAG, State, page_descriptor};

use super::{Accelerator, BackendError, Exit, KvmLog, Vcpu, VmHandle};
use crate::machine::{BuildError, MachineConfig, Start};
use crate::memory::{Backing, GuestMemory, Size, SlotId, host_page_bytes};

/// ```text
///     strb  w1, [x0]
///     str   wzr, [x2]     // the doorbell: an exit
/// 1:  b     1b
/// ```
const CODE: [u32; 3] = [0x3900_0001, 0xb900_005f, 0x1400_0000];
/// ```text
///     str   w2, [x2]      // the doorbell, with another value than 0
/// 1:  b     1b
/// ```
const HANDLER: [u32; 2] = [0xb900_0042, 0x1400_0000];
/// Offset of the vectors in RAM, and of that for a synchronous exception of EL1's own.
const VECTORS: u64 = 0x800;
const SYNCHRONOUS: u64 = 0x200;

/// The guest's granule; the host's page may be larger.
const GRANULE: Granule = Granule::K4;
/// Blocks larger than this are not tried: the memory may not be there.
const MAX_BLOCK_BYTES: u64 = 32 << 20;

const REG_X0: u64 = 0x6030_0000_0010_0000;
const REG_PC: u64 = REG_X0 + 64;
const SCTLR_EL1: u64 = 0x6030_0000_0013_c080;
const TTBR0_EL1: u64 = 0x6030_0000_0013_c100;
const TCR_EL1: u64 = 0x6030_0000_0013_c102;
const MAIR_EL1: u64 = 0x6030_0000_0013_c510;
const VBAR_EL1: u64 = 0x6030_0000_0013_c600;
const ID_AA64MMFR1_EL1: u64 = 0x6030_0000_0013_c039;

/// SCTLR_EL1 with its RES1 bits, M, C and I.
const SCTLR_ON: u64 = 0x30d0_1805;
/// TCR_EL1: 39 bits of address, 4K, inner shareable write-back walks; EPD1, the upper half has no
/// tables; HA.
const TCR: u64 = 25 | 0b01 << 8 | 0b01 << 10 | 0b11 << 12 | 25 << 16 | 1 << 23 | 0b10 << 30 | 1 << 39;
/// Attribute 0 is Normal write-back, 1 is Device-nGnRE.
const MAIR: u64 = 0x04ff;
/// A block of Normal memory (attribute 0), inner shareable; one of a device (attribute 1), never executed; a table.
const NORMAL_BLOCK: u64 = 0b01 | 0b11 << 8 | ACCESS_FLAG;
const DEVICE_BLOCK: u64 = 0b01 | 1 << 2 | 0b11 << 53 | ACCESS_FLAG;
const TABLE: u64 = 0b11;

/// What a log had of one store whose translation the walker had to mark as accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WalkerWrite {
    /// The page of the table, which the walker wrote.
    pub(super) table: Gpa,
    /// Whether the log had it.
    pub(super) has_table: bool,
    /// The page that the store wrote.
    pub(super) stored: Gpa,
    /// Whether the log had it.
    pub(super) has_stored: bool,
    /// Bytes of the blocks that memory could be mapped by.
    pub(super) block_bytes: u64,
}

impl WalkerWrite {
    /// Whether nothing that was written is missing.
    pub(super) const fn is_whole(&self) -> bool {
        self.has_table && self.has_stored
    }
}

/// A dirty log that loses writes to blocks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "it loses writes to pages that share a block of {} with a table of the guest's: after the table walker's write at {table} a \
     store at {stored} was in no log. QEMU before 8.2 does so: it tells KVM the level of stage 1 for the walker's fault in \
     stage 2, and KVM makes the whole block writable; use --backing memfd",
    Size(*block_bytes)
)]
pub struct WalkerFlaw {
    table: Gpa,
    stored: Gpa,
    block_bytes: u64,
}

/// Tries whether `log` of this host's KVM loses what a guest on transparent huge pages writes while its walker writes as
/// well; `None` where that cannot be shown.
pub fn try_log(log: KvmLog) -> Option<Result<(), WalkerFlaw>> {
    let seen = observe(Accelerator::Kvm, Backing::Thp, log).ok()??;
    let WalkerWrite { table, stored, block_bytes, .. } = seen;
    Some(if seen.is_whole() { Ok(()) } else { Err(WalkerFlaw { table, stored, block_bytes }) })
}

/// Lets a guest on memory of kind `backing` store once, as above, while `log` runs. `None` where that shows nothing: the
/// blocks are too large to be tried, or the CPU's walker writes no tables.
///
/// # Errors
/// [`BuildError`] where there is no such machine here, [`BuildError::Backend`] where it does not run.
pub(super) fn observe(
    accelerator: Accelerator,
    backing: Backing,
    log: KvmLog,
) -> Result<Option<WalkerWrite>, BuildError> {
    let (page_bytes, block_bytes) = (host_page_bytes(), backing.block_bytes());
    if block_bytes > MAX_BLOCK_BYTES {
        return Ok(None);
    }
    let region_bytes = block_bytes.max(2 << 20);
    let config = MachineConfig {
        accelerator,
        kvm_log: log,
        backing,
        ram_bytes: map::RAM_MIN,
        region_base: Some(map::REGION_BASE),
        region_bytes,
        ..MachineConfig::default()
    };
    let range = |start, len_bytes| GuestRange::new(start, len_bytes).expect("it lies far below 2^64");
    let memory = GuestMemory::on(backing, range(map::RAM_BASE, map::RAM_MIN), range(map::REGION_BASE, region_bytes))?;
    let start = Start { arch: Arch::Aarch64, entry: map::RAM_BASE, devicetree: map::RAM_BASE, point: None };
    let vm = super::open(&config, &config.layout()?, &memory, start)?;
    let mut guest = Guest::load(&vm, &memory)?;
    if !guest.has_writing_walker()? {
        return Ok(None);
    }
    let [table, stored, before] = [0, 1, 2].map(|index| at(map::REGION_BASE, index * page_bytes));
    // Maps the block, for the table and the page that it translates.
    guest.store(before)?;
    vm.start_dirty_log(&[SlotId::Region])?;
    if log == KvmLog::Initset {
        harvest(&vm, &memory)?;
    }
    guest.store(stored)?;
    let dirty = harvest(&vm, &memory)?;
    let has = |gpa: Gpa| {
        let page = (gpa.raw() - map::REGION_BASE.raw()) / vm.log_page_bytes();
        dirty[(page / 64) as usize] >> (page % 64) & 1 != 0
    };
    Ok(Some(WalkerWrite { table, has_table: has(table), stored, has_stored: has(stored), block_bytes }))
}

fn harvest(vm: &VmHandle, memory: &GuestMemory) -> Result<Vec<u64>, BackendError> {
    let pages = memory.slot(SlotId::Region).range().len_bytes() / vm.log_page_bytes();
    let mut words = vec![0; pages.div_ceil(64) as usize];
    vm.harvest_dirty(SlotId::Region, &mut words)?;
    Ok(words)
}

fn at(base: Gpa, offset: u64) -> Gpa {
    base.checked_add(offset).expect("it lies in the slot")
}

/// vCPU 0, which translates by tables of its own, each address to itself.
struct Guest {
    vcpu: Box<dyn Vcpu>,
    accelerator: Accelerator,
}

impl Guest {
    fn load(vm: &VmHandle, memory: &GuestMemory) -> Result<Self, BuildError> {
        let page_bytes = host_page_bytes();
        let (level_1, level_2) = (at(map::RAM_BASE, page_bytes), at(map::RAM_BASE, 2 * page_bytes));
        memory.write(map::RAM_BASE, &CODE.map(u32::to_le_bytes).concat())?;
        memory.write(at(map::RAM_BASE, VECTORS + SYNCHRONOUS), &HANDLER.map(u32::to_le_bytes).concat())?;
        let entry =
            |table: Gpa, index: u64, descriptor: u64| memory.write(at(table, index * 8), &descriptor.to_le_bytes());
        entry(level_1, 0, level_2.raw() | TABLE)?;
        entry(level_1, 1, map::RAM_BASE.raw() | NORMAL_BLOCK)?;
        entry(level_2, map::REGION_BASE.raw() >> 21, map::REGION_BASE.raw() | TABLE)?;
        entry(level_2, map::DOORBELL_BASE.raw() >> 21, map::DOORBELL_BASE.raw() >> 21 << 21 | DEVICE_BLOCK)?;
        for (page, accessed) in [(1, false), (2, true)] {
            let page = at(map::REGION_BASE, page * page_bytes);
            let dirty = page_descriptor(GRANULE, page, State::Dirty);
            let descriptor = if accessed { dirty } else { dirty & !ACCESS_FLAG };
            entry(map::REGION_BASE, page.raw() >> 12 & 511, descriptor)?;
        }
        let mut vcpu = vm.take_vcpu(0).expect("nobody has taken it");
        let vectors = map::RAM_BASE.raw() + VECTORS;
        for (register, value) in
            [(MAIR_EL1, MAIR), (TCR_EL1, TCR), (TTBR0_EL1, level_1.raw()), (VBAR_EL1, vectors), (SCTLR_EL1, SCTLR_ON)]
        {
            vcpu.set_reg(register, value.into())?;
        }
        Ok(Self { vcpu, accelerator: vm.accelerator() })
    }

    /// FEAT_HAFDBS, by ID_AA64MMFR1_EL1.HAFDBS.
    fn has_writing_walker(&mut self) -> Result<bool, BackendError> {
        Ok(self.vcpu.get_reg(ID_AA64MMFR1_EL1)? & 0xf != 0)
    }

    fn store(&mut self, gpa: Gpa) -> Result<(), BackendError> {
        for (register, value) in [(0, gpa.raw()), (1, 1), (2, map::DOORBELL_BASE.raw())] {
            self.vcpu.set_reg(REG_X0 + 2 * register, value.into())?;
        }
        self.vcpu.set_reg(REG_PC, map::RAM_BASE.raw().into())?;
        loop {
            match self.vcpu.run(None)? {
                Exit::MmioWrite { gpa, data: 0, .. } if gpa == map::DOORBELL_BASE => return Ok(()),
                Exit::Kicked => {}
                exit => {
                    let reason = format!("a store at {gpa} ended with {exit:?}");
                    return Err(BackendError::Refused { accelerator: self.accelerator, reason });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{provenance, why_no_kvm, why_no_kvm_log};

    const LOGS: [KvmLog; 4] = [KvmLog::Bitmap, KvmLog::Manual, KvmLog::Initset, KvmLog::Ring];

    #[test]
    fn the_emulator_s_walker_is_in_its_log() {
        let seen = observe(Accelerator::Emulator, Backing::Memfd, KvmLog::Bitmap).unwrap().unwrap();
        assert!(seen.is_whole(), "{seen:?}");
        assert_eq!(seen.table, map::REGION_BASE);
    }

    #[test]
    fn on_memory_that_is_mapped_by_pages_the_walker_s_write_and_the_store_are_in_every_log() {
        if let Some(reason) = why_no_kvm() {
            println!("skipped: {reason}");
            return;
        }
        for log in LOGS.into_iter().filter(|log| why_no_kvm_log(*log).is_none()) {
            let seen = observe(Accelerator::Kvm, Backing::Memfd, log).unwrap();
            assert!(seen.is_none_or(|seen| seen.is_whole()), "{log:?}: {seen:?}");
        }
    }

    #[test]
    fn on_blocks_they_are_in_every_log_unless_a_translator_tells_the_wrong_level() {
        if let Some(reason) = why_no_kvm() {
            println!("skipped: {reason}");
            return;
        }
        for log in LOGS.into_iter().filter(|log| why_no_kvm_log(*log).is_none()) {
            let seen = match observe(Accelerator::Kvm, Backing::Thp, log) {
                Ok(seen) => seen,
                Err(error) => {
                    println!("skipped: {error}");
                    return;
                }
            };
            println!("{log:?}: {seen:?}");
            let Some(seen) = seen else { continue };
            assert!(seen.has_table, "{log:?}: the fault names the table's page: {seen:?}");
            let is_translated = provenance(Accelerator::Kvm) != "kvm";
            assert!(seen.has_stored || is_translated, "{log:?}: hardware tells the level of the block: {seen:?}");
        }
    }
}
