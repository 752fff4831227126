//! From a checked configuration and a checked ELF to a machine that can run: [`Machine`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use abi::hypercall::REG_POINT;
use abi::points::Point;
use abi::{Arch, Gpa, map};

use super::config::{ConfigError, Layout, MachineConfig};
use super::devicetree::{self, DeviceTreeError};
use super::kernel::{Kernel, KernelError, KernelFiles};
use super::loader::{Image, LoadError};
use crate::backend::{self, Accelerator, BackendError, KvmLog, Unavailable, VmHandle, why_no_kvm_log};
use crate::memory::{Backing, GuestMemory, MemoryError, ShareFile};

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// What was asked for makes no machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The firmware does not fit the machine.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel to run in the firmware's place cannot be booted.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No devicetree could be made.
    #[error(transparent)]
    DeviceTree(#[from] DeviceTreeError),
    /// The accelerator refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The host lacks the accelerator: skip, do not fail.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A machine at its first instruction.
pub struct Machine {
    config: MachineConfig,
    layout: Layout,
    memory: GuestMemory,
    vm: VmHandle,
    firmware: PathBuf,
    incoming: bool,
}

impl Machine {
    /// Builds the machine that `config` asks for, with `image` and its devicetree in RAM and vCPU 0 at the entry.
    ///
    /// Everything is checked before memory is mapped or a share file is touched.
    ///
    /// # Errors
    /// [`BuildError`], of which [`BuildError::Unavailable`] means "skipped".
    pub fn build(config: &MachineConfig, image: &Image) -> Result<Self, BuildError> {
        let layout = checked_layout(config)?;
        image.check_arch(config.tables.arch())?;
        image.check_fits(layout.ram())?;
        let boot = config.boot_info(&layout);
        let blob = devicetree::build(&boot)?;
        let memory = map_memory(config, &layout)?;
        image.load(&memory)?;
        let devicetree = layout.ram().start();
        memory.write(devicetree, &blob)?;
        let asks = config.points & Point::MmuOff.bit() != 0;
        let point = map::DOORBELL_BASE.checked_add(REG_POINT).filter(|_| asks);
        let start = Start { arch: image.arch(), entry: image.entry(), devicetree, point };
        let vm = backend::open(config, &layout, &memory, start)?;
        Ok(Self { config: config.clone(), layout, memory, vm, firmware: image.path().to_owned(), incoming: false })
    }

    /// As [`Self::build`], with the kernel of `config` and its initramfs in RAM, in a firmware's place.
    ///
    /// # Errors
    /// As there.
    pub fn build_kernel(config: &MachineConfig, files: &KernelFiles) -> Result<Self, BuildError> {
        let layout = checked_layout(config)?;
        let kernel = Kernel::open(files, layout.ram())?;
        let boot = config.boot_info(&layout);
        let blob = devicetree::build_for_kernel(&boot, kernel.append(), kernel.initrd())?;
        let memory = map_memory(config, &layout)?;
        kernel.load(&memory)?;
        let devicetree = layout.ram().start();
        memory.write(devicetree, &blob)?;
        let start = Start { arch: config.tables.arch(), entry: kernel.entry(), devicetree, point: None };
        let vm = backend::open(config, &layout, &memory, start)?;
        Ok(Self { config: config.clone(), layout, memory, vm, firmware: files.image.clone(), incoming: false })
    }

    /// Builds the machine that `config` asks for as an empty vessel for the state of another one: memory is zero, every
    /// vCPU is to be off until a state is restored ([`crate::vcpus::Vcpus::start_paused`]). `firmware` is the ELF that runs in
    /// the other one, for symbols; it is not loaded.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_incoming(config: &MachineConfig, firmware: &Path) -> Result<Self, BuildError> {
        let layout = checked_layout(config)?;
        let memory = map_memory(config, &layout)?;
        let nowhere = layout.ram().start();
        let start = Start { arch: config.tables.arch(), entry: nowhere, devicetree: nowhere, point: None };
        let vm = backend::open(config, &layout, &memory, start)?;
        Ok(Self { config: config.clone(), layout, memory, vm, firmware: firmware.to_owned(), incoming: true })
    }

    /// Whether it waits for another one's state.
    pub fn is_incoming(&self) -> bool {
        self.incoming
    }

    /// What it was built from.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Where RAM and region lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What executes it.
    pub fn vm(&self) -> VmHandle {
        Arc::clone(&self.vm)
    }

    /// Whether its accelerator keeps this dirty log: one of KVM's, or with `None` the emulator's.
    pub fn keeps(&self, log: Option<KvmLog>) -> bool {
        match self.config.accelerator {
            Accelerator::Kvm => log == Some(self.config.kvm_log),
            Accelerator::Emulator => log.is_none(),
        }
    }

    /// The ELF it was loaded from, for symbols.
    pub fn firmware(&self) -> &Path {
        &self.firmware
    }
}

fn checked_layout(config: &MachineConfig) -> Result<Layout, BuildError> {
    let layout = config.layout()?;
    if config.accelerator == Accelerator::Kvm {
        // The log's reasons include KVM's own.
        why_no_kvm_log(config.kvm_log).map_or(Ok(()), Err)?;
    }
    Ok(layout)
}

fn map_memory(config: &MachineConfig, layout: &Layout) -> Result<GuestMemory, BuildError> {
    let share = config.share.as_deref().map(ShareFile::open).transpose()?;
    Ok(match config.backing {
        Backing::Memfd => GuestMemory::new(layout.ram(), layout.region(), share)?,
        backing => GuestMemory::on(backing, layout.ram(), layout.region())?,
    })
}

/// How vCPU 0 starts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// In which architecture; every other vCPU's as well.
    pub arch: Arch,
    /// Its program counter.
    pub entry: Gpa,
    /// Its x0, on ARMv7 its r2.
    pub devicetree: Gpa,
    /// Its x3 or r3: the register at which the guest asks to be moved, where it is to do so before it can have read the devicetree.
    pub point: Option<Gpa>,
}
