//! What runs vCPUs: the traits [`Vm`] and [`Vcpu`], and the accelerators that implement them.
//!
//! The shape is `/dev/kvm`'s, and the emulator follows it:
//!
//! - registers are named by KVM's register ids (`KVM_REG_ARM64…`), read and written one at a time;
//! - [`Vcpu::run`] returns an [`Exit`]; what an exit asks for is answered *before* the next `run`
//!   ([`Vcpu::complete_mmio_read`], as `kvm_run.mmio.data`; [`Vcpu::complete_hvc`], as x0–x3 by `KVM_SET_ONE_REG`);
//! - PSCI, the GIC and the timers belong to the backend (in-kernel on KVM, inside the emulator here); the PL011 and the
//!   doorbell are exits;
//! - [`Vm::kick`] is sticky (`immediate_exit` and a signal on KVM): the vCPU's current or next `run` returns
//!   [`Exit::Kicked`];
//! - an access that was answered is complete before state is read or written: [`Vcpu::get_reg`] and its kind see the vCPU
//!   between two instructions;
//! - a machine's state is its memory, each vCPU's registers ([`Vcpu::reg_list`]) and power ([`Vcpu::is_on`]), and its GIC
//!   ([`Vm::save_gic`]), all by KVM's keys, so that it moves between accelerators;
//! - a dirty log is harvested by slot, in bits of [`Vm::log_page_bytes`];
//! - what only an emulator can do (instruction budgets, virtual time that stands still) is an `Option` or an error
//!   by name, not a second trait.
//!
//! Neighbours: [`crate::machine`] makes a [`Vm`]; [`crate::vcpus`] runs its vCPUs; `dirty` wraps its log.

mod boot;
#[cfg(test)]
mod conformance;
mod dump;
pub mod emulator;
mod gic_state;
#[cfg(target_arch = "aarch64")]
mod kvm;
#[cfg(not(target_arch = "aarch64"))]
#[path = "no_kvm.rs"]
mod kvm;
#[cfg(any(target_arch = "aarch64", test))]
mod kvm_run;
mod skewed;
#[cfg(test)]
mod state_conformance;
#[cfg(test)]
mod state_guest;
#[cfg(test)]
pub(crate) mod store_guest;
mod walker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use abi::{Arch, Gpa, GuestRange};

pub use self::dump::VcpuDump;
pub use self::gic_state::{GicKey, GicState, PrivateInterrupts};
pub use self::skewed::{Skew, Skewed};
pub use self::walker::{WalkerFlaw, try_log as try_log_with_walker};
use crate::machine::{BuildError, Layout, MachineConfig, Start};
use crate::memory::{GuestMemory, Size, SlotId};

/// What executes the guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Accelerator {
    /// The host's hypervisor, `/dev/kvm` on an arm64 host.
    Kvm,
    /// The embedded emulator, on any host.
    Emulator,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Emulator => "emulator",
        })
    }
}

/// What `--accel` asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AcceleratorChoice {
    /// The best that this host and this build have.
    #[default]
    Auto,
    /// This one or none.
    Exactly(Accelerator),
}

/// Why the host cannot run a guest on the accelerator asked for. Not a failure: exit status 4, "skipped".
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unavailable {
    /// The host's CPU is no arm64 CPU.
    #[error("kvm: the host is {host_arch}, an arm64 guest needs an arm64 host; use --accel emulator")]
    HostArch {
        /// What it is.
        host_arch: &'static str,
    },
    /// There is no `/dev/kvm`, or it cannot be opened.
    #[error("kvm: cannot open /dev/kvm: {reason}; use --accel emulator")]
    NoDevice {
        /// Why.
        reason: String,
    },
    /// `/dev/kvm` is there but not for this user.
    #[error("kvm: no permission to open /dev/kvm; join the group that owns it, or use --accel emulator")]
    Permission,
    /// `/dev/kvm` makes no machine.
    #[error("kvm: cannot make a machine: {reason}; use --accel emulator")]
    NoVm {
        /// Why.
        reason: String,
    },
    /// KVM takes fewer vCPUs a machine.
    #[error("kvm: this host's KVM takes {most} vCPUs a machine, not {vcpus}; use --vcpus {most} or --accel emulator")]
    Vcpus {
        /// How many were asked for.
        vcpus: usize,
        /// How many it takes (KVM_CAP_MAX_VCPUS).
        most: usize,
    },
    /// The host's CPU has fewer bits of guest physical address.
    #[error(
        "kvm: the memory at {range} reaches past this host's {bits} bits of guest address (KVM_CAP_ARM_VM_IPA_SIZE); use less memory, a lower --region-base, or --accel emulator"
    )]
    AddressBits {
        /// RAM or region.
        range: GuestRange,
        /// The host's bits.
        bits: u32,
    },
    /// KVM is there but lacks something.
    #[error("kvm: this host's KVM has no {what}; use {instead}")]
    Lacks {
        /// What.
        what: &'static str,
        /// Which options do without.
        instead: &'static str,
    },
    /// KVM splits no blocks in chunks of that size.
    #[error(
        "kvm: --eager-split {}: this host's KVM does not split blocks so ({}); use --eager-split off",
        Size(*chunk_bytes),
        if offered.is_empty() { "KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE came with Linux 6.5".to_owned() } else { format!("it offers {offered}") }
    )]
    EagerSplit {
        /// What was asked for.
        chunk_bytes: u64,
        /// What there is.
        offered: String,
    },
    /// A frequency that was chosen.
    #[error("--counter-hz: under kvm the guest's counter is the host's; leave it out, or use --accel emulator")]
    CounterHz,
    /// Something that only KVM can show.
    #[error("{what} needs --accel kvm on an arm64 host: the emulator has no stage-2 tables{reason}")]
    Emulated {
        /// What was asked for.
        what: &'static str,
        /// Why the emulator was taken, unless it was asked for.
        reason: String,
    },
    /// Memory that no block can map.
    #[error(
        "the region {region} is not made of whole blocks of {}, so this host maps it by pages; use --region-size {} or a multiple",
        Size(*block_bytes),
        Size(*block_bytes)
    )]
    NoWholeBlocks {
        /// The region.
        region: GuestRange,
        /// The host's block with the backing asked for.
        block_bytes: u64,
    },
}

impl AcceleratorChoice {
    /// The accelerator to use on this host for a guest of `arch`.
    ///
    /// # Errors
    /// [`Unavailable`] where exactly KVM is asked for: the first reason that holds.
    pub fn resolve(self, arch: Arch) -> Result<Accelerator, Unavailable> {
        match (self, why_no_kvm_guest(arch)) {
            (Self::Exactly(Accelerator::Emulator), _) | (Self::Auto, Some(_)) => Ok(Accelerator::Emulator),
            (Self::Exactly(Accelerator::Kvm), Some(reason)) => Err(reason),
            (Self::Exactly(Accelerator::Kvm) | Self::Auto, None) => Ok(Accelerator::Kvm),
        }
    }
}

/// KVM's own dirty logs, of which a machine has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum KvmLog {
    /// KVM_GET_DIRTY_LOG fetches and resets.
    #[default]
    Bitmap,
    /// KVM_CLEAR_DIRTY_LOG resets what KVM_GET_DIRTY_LOG has fetched.
    Manual,
    /// As `Manual`, with every page dirty at the start.
    Initset,
    /// A ring a vCPU.
    Ring,
}

/// Why this host cannot use KVM: the first reason that holds; `None` where it can.
pub fn why_no_kvm() -> Option<Unavailable> {
    kvm::probe().err()
}

/// Why this host's KVM runs no guest of `arch`; `None` where it does.
pub fn why_no_kvm_guest(arch: Arch) -> Option<Unavailable> {
    kvm::probe_guest(arch).err()
}

/// Why this host has no such log of KVM's; `None` where it has.
pub fn why_no_kvm_log(log: KvmLog) -> Option<Unavailable> {
    kvm::probe_log(log).err()
}

/// Why this host's KVM cannot split blocks in chunks of `chunk_bytes` as a dirty log starts; `None` where it can.
pub fn why_no_eager_split(chunk_bytes: u64) -> Option<Unavailable> {
    kvm::probe_eager_split(chunk_bytes).err()
}

/// Why this host has no KVM that counts stage-2 faults; `None` where it has.
pub fn why_no_fault_counts() -> Option<Unavailable> {
    kvm::probe_fault_counts().err()
}

/// Where numbers taken on `accelerator` come from, as the ledger names it: `kvm (nested in emulation)` where the host's
/// CPU is certainly an emulated one.
pub fn provenance(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Emulator => "emulator",
        Accelerator::Kvm if kvm::is_nested_in_emulation() => "kvm (nested in emulation)",
        Accelerator::Kvm => "kvm",
    }
}

/// Makes the machine that `config` and `layout` describe, on the slots of `memory`.
///
/// # Errors
/// [`BuildError::Backend`] in the accelerator's own words, [`BuildError::Unavailable`] for what the host lacks.
pub(crate) fn open(
    config: &MachineConfig,
    layout: &Layout,
    memory: &GuestMemory,
    start: Start,
) -> Result<VmHandle, BuildError> {
    match config.accelerator {
        Accelerator::Kvm if config.counter_hz.is_some() => Err(Unavailable::CounterHz.into()),
        Accelerator::Kvm => kvm::open(config, memory, start),
        Accelerator::Emulator if config.eager_split.is_some() => {
            Err(Unavailable::Emulated { what: "--eager-split", reason: String::new() }.into())
        }
        Accelerator::Emulator => Ok(Arc::new(emulator::EmulatorVm::new(config, layout, memory, start)?)),
    }
}

/// A call that the accelerator refused.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The machine's shape is not one the accelerator takes.
    #[error("the {accelerator} refuses this machine: {reason}")]
    Refused {
        /// Which.
        accelerator: Accelerator,
        /// In its own words.
        reason: String,
    },
    /// No register of that id, or it cannot be written.
    #[error("vCPU {vcpu}: the {accelerator} refuses register {register:#018x}: {reason}")]
    Register {
        /// Which vCPU.
        vcpu: usize,
        /// Which.
        accelerator: Accelerator,
        /// KVM register id.
        register: u64,
        /// In its own words.
        reason: String,
    },
    /// A vCPU's state could not be had as a whole.
    #[error("vCPU {vcpu}: the {accelerator} does not give its state: {reason}")]
    State {
        /// Which vCPU.
        vcpu: usize,
        /// Which.
        accelerator: Accelerator,
        /// In its own words.
        reason: String,
    },
    /// A register of the GIC's could not be read or written.
    #[error("the {accelerator} refuses GIC register {attr:#x} of group {group}: {reason}", attr = key.attr, group = key.group)]
    Gic {
        /// Which.
        accelerator: Accelerator,
        /// The register.
        key: GicKey,
        /// In its own words.
        reason: String,
    },
    /// The vCPU cannot be run on.
    #[error("vCPU {vcpu} stopped: {reason}{dump}")]
    Run {
        /// Which vCPU.
        vcpu: usize,
        /// In the accelerator's words.
        reason: String,
        /// The memslots, and its registers as far as they could be read.
        dump: Box<VcpuDump>,
    },
    /// The accelerator cannot do this at all.
    #[error("the {accelerator} cannot {what}")]
    Unsupported {
        /// Which.
        accelerator: Accelerator,
        /// What was asked for.
        what: &'static str,
    },
    /// Its statistics cannot be read.
    #[error("the {accelerator}'s statistics: {reason}")]
    Statistics {
        /// Whose.
        accelerator: Accelerator,
        /// In its own words.
        reason: String,
    },
    /// The dirty log was used in the wrong state or with the wrong shape.
    #[error("the {accelerator}'s dirty log: {reason}")]
    DirtyLog {
        /// Whose.
        accelerator: Accelerator,
        /// What was wrong.
        reason: String,
    },
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A load from an address without memory; answered by [`Vcpu::complete_mmio_read`].
    MmioRead {
        /// Where.
        gpa: Gpa,
        /// 1, 2, 4 or 8.
        len_bytes: u8,
    },
    /// A store to an address without memory. The next `run` goes on after it.
    MmioWrite {
        /// Where.
        gpa: Gpa,
        /// 1, 2, 4 or 8.
        len_bytes: u8,
        /// The bytes stored, zero-extended.
        data: u64,
    },
    /// An HVC that is not PSCI; answered by [`Vcpu::complete_hvc`].
    Hvc {
        /// x0 (r0): the function id in its low half.
        function: u64,
        /// x1 to x7, of an AArch32 guest r1 to r7.
        args: [u64; 7],
    },
    /// [`Vm::kick`] was called.
    Kicked,
    /// The budget of instructions is used up.
    Budget,
    /// The vCPU waits for an interrupt, or is off. Only with a budget; without one the accelerator waits itself.
    Idle,
    /// PSCI SYSTEM_OFF.
    SystemOff,
    /// PSCI SYSTEM_RESET.
    SystemReset,
    /// PSCI CPU_OFF, or not yet CPU_ON: the vCPU executes nothing until another one turns it on.
    CpuOff,
}

/// A fault planted in the accelerator's dirty log, to prove that the bench finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlantedFault {
    /// Writes to this page never set its bit.
    SkipPage {
        /// Any address in the page.
        gpa: Gpa,
    },
    /// Harvest number `harvest` leaves the vCPUs believing that this page is still marked, so writes to it go unseen.
    StaleTag {
        /// Any address in the page.
        gpa: Gpa,
        /// Which harvest of the page's slot, counted from 0 at the start of the log.
        harvest: u64,
    },
    /// Harvest number `harvest` loses this page's bit.
    DropBit {
        /// Any address in the page.
        gpa: Gpa,
        /// Which harvest of the page's slot, counted from 0 at the start of the log.
        harvest: u64,
    },
}

/// Bytes of the register of KVM id `register`, from the id alone: KVM_REG_SIZE, bits 55:52, is their logarithm.
pub const fn register_bytes(register: u64) -> usize {
    1 << (register >> 52 & 0xf)
}

/// PMINTENCLR_EL1, PMCNTENCLR_EL0 and PMOVSCLR_EL0: views of the registers that set, whose writes take bits away.
const CLEARING_REGISTERS: [u64; 3] = [0x6030_0000_0013_c4f2, 0x6030_0000_0013_dce2, 0x6030_0000_0013_dce3];

/// A virtual machine: everything that is shared by its vCPUs.
pub trait Vm: Send + Sync {
    /// What executes it.
    fn accelerator(&self) -> Accelerator;

    /// Takes vCPU `index` to run it; `None` if there is no such vCPU or it has been taken.
    fn take_vcpu(&self, index: usize) -> Option<Box<dyn Vcpu>>;

    /// Makes the current `run` of vCPU `index`, or its next one, return [`Exit::Kicked`] soon.
    fn kick(&self, index: usize);

    /// Sets the level of the interrupt line `intid` (an SPI, 32 and up).
    fn set_irq_line(&self, intid: u32, level: bool);

    /// The state of the interrupt controller. No vCPU may be inside its `run`.
    ///
    /// # Errors
    /// [`BackendError::Gic`]; on KVM EBUSY where a vCPU runs.
    fn save_gic(&self) -> Result<GicState, BackendError>;

    /// Replaces the state of the interrupt controller by that of a machine with as many vCPUs. No vCPU may be inside its
    /// `run`. To be followed by power and registers of all vCPUs: their timers drive lines of the controller, and KVM may
    /// have to reset a vCPU.
    ///
    /// # Errors
    /// [`BackendError::Gic`]. A state of another shape has changed nothing; a refused value leaves those before it changed.
    fn restore_gic(&self, state: &GicState) -> Result<(), BackendError>;

    /// The host has written guest memory behind the guest's back, which executes nothing now: before any vCPU executes on it
    /// forgets what it holds of translation tables and of code. The dirty log is not told: see [`Self::mark_dirty`].
    ///
    /// # Errors
    /// [`BackendError::Refused`] in the accelerator's words.
    fn forget_memory(&self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Tells a running dirty log that the host wrote `range`.
    fn mark_dirty(&self, range: GuestRange);

    /// Bytes that one dirty bit stands for.
    fn log_page_bytes(&self) -> u64;

    /// Starts logging writes to `slots`, with every page clean. Logging costs the guest a fault a page: a slot that
    /// nobody harvests is better left out. (The emulator logs all of them, at no cost.)
    ///
    /// # Errors
    /// [`BackendError::DirtyLog`] where it runs already.
    fn start_dirty_log(&self, slots: &[SlotId]) -> Result<(), BackendError>;

    /// Stops logging.
    ///
    /// # Errors
    /// [`BackendError::DirtyLog`] where it does not run.
    fn stop_dirty_log(&self) -> Result<(), BackendError>;

    /// Fetches and resets the dirty bits of `slot`: bit `n` of the little-endian bitmap is page `n`. When it
    /// returns, every write that a returned bit stands for is visible, and every later write sets its bit anew.
    ///
    /// # Errors
    /// [`BackendError::DirtyLog`] where the log does not run or `bitmap` has another length than the slot's pages / 64,
    /// rounded up.
    fn harvest_dirty(&self, slot: SlotId, bitmap: &mut [u64]) -> Result<(), BackendError>;

    /// How much of the last harvest went into resetting what had been fetched, where that is a call of its own.
    fn last_reset(&self) -> Duration {
        Duration::ZERO
    }

    /// Plants a fault in the dirty log.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] on hardware.
    fn plant(&self, fault: PlantedFault) -> Result<(), BackendError>;

    /// Stage-2 faults of all vCPUs so far, and some interrupts of the host's that cannot be told from them.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] without stage 2, [`BackendError::Statistics`] where they cannot be read.
    fn stage2_faults(&self) -> Result<u64, BackendError> {
        Err(BackendError::Unsupported { accelerator: self.accelerator(), what: "count stage-2 faults" })
    }

    /// The stage-2 tables as the host's kernel prints them, where it does.
    fn stage2_tables(&self) -> Option<String> {
        None
    }

    /// Of identification registers the bits that can be chosen before a vCPU first runs: KVM's id and the bits.
    fn writable_features(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }

    /// The guest's virtual time in ticks of its counter.
    fn now_ticks(&self) -> u64;

    /// Tells that the counter was made to read `ticks` just now, by a vCPU's register.
    fn counter_was_set(&self, ticks: u64) {
        let _ = ticks;
    }

    /// Instructions of all vCPUs so far and those skipped while idle, where they are the machine's time.
    fn elapsed_instructions(&self) -> Option<u64> {
        None
    }

    /// Goes on from the time of a machine saved elsewhere; before its vCPUs' registers are restored.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where time is not instructions.
    fn set_elapsed_instructions(&self, total: u64) -> Result<(), BackendError> {
        let _ = total;
        Err(BackendError::Unsupported { accelerator: self.accelerator(), what: "take up a time of instructions" })
    }

    /// Ticks of the guest's counter per second.
    fn ticks_per_second(&self) -> u64;

    /// Goes on at the frequency of a machine saved elsewhere, which its guest has read once (CNTFRQ_EL0); before its counters are set.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where the counter is the host's.
    fn set_ticks_per_second(&self, hz: u64) -> Result<(), BackendError> {
        let _ = hz;
        let what = "count at another frequency than the host's counter";
        Err(BackendError::Unsupported { accelerator: self.accelerator(), what })
    }

    /// Moves virtual time to the next deadline of any vCPU's timer: what a machine does whose vCPUs all wait. Returns
    /// whether there was one.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where time is not ours to move.
    fn warp_to_next_deadline(&self) -> Result<bool, BackendError>;
}

/// One vCPU, run by one thread at a time.
pub trait Vcpu: Send {
    /// Its index, also its MPIDR affinity 0.
    fn index(&self) -> usize;

    /// Runs the guest until something happens that the host must see, or `budget` instructions have retired.
    ///
    /// # Errors
    /// [`BackendError::Run`] where the vCPU cannot go on; [`BackendError::Unsupported`] for a budget on hardware.
    fn run(&mut self, budget: Option<u64>) -> Result<Exit, BackendError>;

    /// The value that the load of the last [`Exit::MmioRead`] returns.
    fn complete_mmio_read(&mut self, data: u64);

    /// x0 to x3 (r0 to r3) after the HVC of the last [`Exit::Hvc`].
    fn complete_hvc(&mut self, results: [u64; 4]);

    /// The KVM ids of every register that is state or identification, each once.
    ///
    /// # Errors
    /// [`BackendError::State`] in the accelerator's words.
    fn reg_list(&mut self) -> Result<Vec<u64>, BackendError>;

    /// Reads the register of KVM id `register`, little-endian, as many bytes as its id says ([`register_bytes`]).
    ///
    /// 16 bytes hold every register of the vCPUs made here: only SVE has wider ones, on vCPUs that ask for it.
    ///
    /// # Errors
    /// [`BackendError::Register`] where there is none, or it is wider than 16 bytes.
    fn get_reg(&mut self, register: u64) -> Result<u128, BackendError>;

    /// Writes the register of KVM id `register`.
    ///
    /// # Errors
    /// [`BackendError::Register`] where there is none or it refuses the value.
    fn set_reg(&mut self, register: u64, value: u128) -> Result<(), BackendError>;

    /// Writes all of `registers`, as read in the order of [`Self::reg_list`]: to restore a saved vCPU.
    ///
    /// The PMU's enables and overflows have two ids each, which read the same; since Linux 6.3 a write of the one sets bits,
    /// of the other clears them. All are cleared first, and then only what sets is written.
    ///
    /// # Errors
    /// [`BackendError::Register`] for the first that is refused; those before it are written.
    fn restore_regs(&mut self, registers: &[(u64, u128)]) -> Result<(), BackendError> {
        let (clear, others): (Vec<_>, Vec<_>) = registers.iter().partition(|(id, _)| CLEARING_REGISTERS.contains(id));
        clear.into_iter().try_for_each(|(id, _)| self.set_reg(id, u64::MAX.into()))?;
        others.into_iter().try_for_each(|(id, value)| self.set_reg(id, value))
    }

    /// Whether the vCPU is on, as PSCI has it. Not among the registers.
    ///
    /// # Errors
    /// [`BackendError::State`] in the accelerator's words.
    fn is_on(&mut self) -> Result<bool, BackendError>;

    /// Turns the vCPU on or off without PSCI, its registers unchanged: to restore a saved machine.
    ///
    /// # Errors
    /// [`BackendError::State`] in the accelerator's words.
    fn set_on(&mut self, on: bool) -> Result<(), BackendError>;

    /// Drops what the vCPU is in the middle of, as an access or a call that has not come to its end, and what no register
    /// shows, so that another state can be put in its place. It executes nothing.
    ///
    /// # Errors
    /// [`BackendError::Run`] where an access cannot be ended.
    fn discard(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Completes what was answered and drops what no register shows and a guest must expect to lose (the exclusive
    /// monitor), so that registers and power are the vCPU's whole state. Returns whether it waits for an interrupt; one that
    /// is restored as not waiting only wakes once without reason, which WFI allows (DDI 0487 D1.7.2), and so KVM
    /// never says so.
    ///
    /// # Errors
    /// [`BackendError::State`] or [`BackendError::Run`] where an access cannot be completed.
    fn quiesce(&mut self) -> Result<bool, BackendError> {
        self.is_on().map(|_| false)
    }

    /// Lets the vCPU wait for an interrupt as a saved one did; the last thing to restore, after the counter.
    fn set_waiting(&mut self, waiting: bool) {
        let _ = waiting;
    }

    /// Instructions retired so far, where the accelerator counts them.
    fn instructions(&self) -> Option<u64>;
}

/// A shared [`Vm`].
pub type VmHandle = Arc<dyn Vm>;
