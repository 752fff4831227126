//! What machine is asked for ([`MachineConfig`]) and the layout that follows from it ([`Layout`]), checked.
//!
//! Every refusal is one variant of [`ConfigError`] whose message says what to change; nothing is allocated before all
//! checks have passed.

use std::num::NonZeroU32;
use std::path::PathBuf;

use abi::boot::{self, BootInfo, WORKLOAD_PARAMS};
use abi::packet::GuestOutput;
use abi::{Arch, Armv7Aliases, Gpa, Granule, GuestRange, ShortPages, Tables, VaBits, map};

use workload::Pattern;

use super::cpu::CpuModel;
use super::heartbeat::Heartbeat;
use super::kernel::KernelFiles;
use crate::backend::{Accelerator, KvmLog, Skew};
use crate::memory::{Backing, host_page_bytes};

/// Bits of guest physical address that the machine has: KVM's default (`KVM_VM_TYPE_ARM_IPA_SIZE` 0 is 40 bits), which
/// every arm64 host and the emulator support.
pub const PHYSICAL_ADDRESS_BITS: u32 = 40;

/// Where virtual time comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Clock {
    /// The counter follows the host's clock; each vCPU has a thread.
    #[default]
    Wall,
    /// The counter is the number of instructions executed; vCPUs take turns on one thread, reproducibly.
    Icount,
}

/// How hypercalls reach the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// A store to the doorbell page.
    #[default]
    Mmio,
    /// The HVC instruction.
    Hvc,
}

/// The machine asked for. [`MachineConfig::layout`] checks it.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// What executes it.
    pub accelerator: Accelerator,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// Start of the region; `None` places it below RAM where it fits and above RAM elsewhere.
    pub region_base: Option<Gpa>,
    /// Bytes of the region.
    pub region_bytes: u64,
    /// The guest's translation tables, and with them its architecture.
    pub tables: Tables,
    /// Where virtual time comes from.
    pub clock: Clock,
    /// Ticks of the guest's counter a second (CNTFRQ_EL0) on the emulator; `None` is its own frequency, and the only choice on KVM.
    pub counter_hz: Option<NonZeroU32>,
    /// How hypercalls reach the host.
    pub transport: Transport,
    /// The workload's number on the wire.
    pub pattern: u32,
    /// The workload's parameters on the wire.
    pub params: [u64; WORKLOAD_PARAMS],
    /// Seed of the plan.
    pub seed: u64,
    /// Map the region with the largest blocks that fit.
    pub region_blocks: bool,
    /// Test hook: vCPU 0 takes an unexpected exception once it has booted.
    pub plant_exception: bool,
    /// What of the CPU the guest is shown; heeded by a VM under remote control alone.
    pub cpu: CpuModel,
    /// Test hook: vCPUs list other registers than their accelerator does.
    pub skew: Option<Skew>,
    /// How every vCPU shows that it runs.
    pub heartbeat: Heartbeat,
    /// vCPU 0 prints a clock line every second between its steps and while it sleeps.
    pub clock_line: bool,
    /// What the guest sends on its virtual link.
    pub output: GuestOutput,
    /// Bits of the points at which the guest asks to be moved; for a VM under remote control, which stops there.
    pub points: u32,
    /// For a machine of another VMM: the guest runs the plan's steps on its own, and there is no doorbell.
    pub standalone: bool,
    /// A kernel to run in place of the firmware: it is told of RAM, and there is no doorbell. What is asked of the firmware above
    /// means nothing to it.
    pub kernel: Option<KernelFiles>,
    /// Bytes that one bit of the dirty log stands for; `None` is the host's page, the only choice on KVM.
    pub log_page_bytes: Option<u64>,
    /// Which of its dirty logs KVM is to keep; the emulator has one of its own.
    pub kvm_log: KvmLog,
    /// What memory is mapped on.
    pub backing: Backing,
    /// File that backs the region, beside RAM on a memfd.
    pub share: Option<PathBuf>,
    /// Bytes of the chunks in which KVM splits blocks as a dirty log starts; `None` leaves that to the guest's writes.
    pub eager_split: Option<u64>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            accelerator: Accelerator::Emulator,
            vcpus: 1,
            ram_bytes: 256 << 20,
            region_base: None,
            region_bytes: map::REGION_SIZE,
            tables: Tables::V8(VaBits::ALL[1]),
            clock: Clock::Wall,
            counter_hz: None,
            transport: Transport::Mmio,
            pattern: 0,
            params: [0; WORKLOAD_PARAMS],
            seed: 0,
            region_blocks: false,
            plant_exception: false,
            cpu: CpuModel::Host,
            skew: None,
            heartbeat: Heartbeat::Off,
            clock_line: false,
            output: GuestOutput::Off,
            points: 0,
            standalone: false,
            kernel: None,
            log_page_bytes: None,
            kvm_log: KvmLog::Bitmap,
            backing: Backing::Memfd,
            share: None,
            eager_split: None,
        }
    }
}

/// Why a machine cannot be made as asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// A pair that is not one of the seven.
    #[error(
        "no such translation regime: granule {granule} with {bits} VA bits; the architecture has {pairs}",
        pairs = VaBits::ALL.map(|pair| pair.to_string()).join(", ")
    )]
    Translation {
        /// The granule asked for.
        granule: Granule,
        /// The VA bits asked for.
        bits: u32,
    },
    /// Tables that ARMv7 does not have.
    #[error(
        "no such tables on ARMv7: {name} with granule {granule} and {bits} VA bits; it has short with 4k or 64k, and lpae with \
         4k, each with 32 VA bits"
    )]
    Armv7Tables {
        /// Which format was asked for.
        name: &'static str,
        /// The granule asked for.
        granule: Granule,
        /// The VA bits asked for.
        bits: u32,
    },
    /// No vCPU, or too many.
    #[error("{vcpus} vCPUs: a machine has 1 to {max}", max = map::MAX_VCPUS)]
    Vcpus {
        /// How many were asked for.
        vcpus: usize,
    },
    /// RAM below the minimum.
    #[error("{ram_bytes} bytes of RAM are too few: give the guest at least {min} MiB (--ram)", min = map::RAM_MIN >> 20)]
    RamTooSmall {
        /// What was asked for.
        ram_bytes: u64,
    },
    /// RAM or region is not a multiple of the unit that it is mapped in.
    #[error(
        "the {what}'s size of {size_bytes} bytes is not a multiple of {unit_bytes}, the larger of the guest's granule and the host's page"
    )]
    OddSize {
        /// RAM or region.
        what: &'static str,
        /// What was asked for.
        size_bytes: u64,
        /// The unit.
        unit_bytes: u64,
    },
    /// An empty region.
    #[error("the region is empty: give it at least one page (--region-size)")]
    EmptyRegion,
    /// The region's base is not aligned.
    #[error(
        "the region's base {base} is not a multiple of {unit_bytes}, the larger of the guest's granule and the host's page (--region-base)"
    )]
    MisalignedRegion {
        /// The base asked for.
        base: Gpa,
        /// The unit.
        unit_bytes: u64,
    },
    /// RAM or region reaches past the physical addresses that there are.
    #[error(
        "the {what} of {size_bytes} bytes at {base} reaches past {bits} bits of address: make it smaller, or {instead} (the guest maps memory at its physical address; the machine has {PHYSICAL_ADDRESS_BITS} bits)",
        instead = match arch {
            Arch::Aarch64 => "choose more VA bits",
            Arch::Armv7 => "use --arch aarch64; everything of an ARMv7 guest lies below 4 GiB",
        }
    )]
    AddressSpace {
        /// RAM or region.
        what: &'static str,
        /// Where it was to lie.
        base: Gpa,
        /// Its size.
        size_bytes: u64,
        /// The bits there are.
        bits: u32,
        /// The guest's architecture.
        arch: Arch,
    },
    /// A file backs the region, and something else than a memfd is to back memory.
    #[error("--share FILE backs the region: it cannot be on {backing} as well; leave out one of --share and --backing")]
    SharedBacking {
        /// What was asked for.
        backing: Backing,
    },
    /// A guest of 32 bits cannot map RAM and what it needs of the region.
    #[error(
        "an ARMv7 guest has no room in its 4 GiB of virtual addresses for RAM {ram} and {aliases} mapping(s) of the region's \
         {region_bytes} bytes: make one of them smaller (--ram, --region-size), or use --arch aarch64"
    )]
    AliasRoom {
        /// RAM.
        ram: GuestRange,
        /// Bytes of the region.
        region_bytes: u64,
        /// How many mappings of the region there must be.
        aliases: usize,
    },
    /// The region lies over RAM.
    #[error("the region {region} lies over RAM {ram}: choose another --region-base or none")]
    RegionOverRam {
        /// The region.
        region: GuestRange,
        /// RAM.
        ram: GuestRange,
    },
    /// The region lies over a device.
    #[error("the region {region} lies over the {device} at {window}: choose another --region-base or none")]
    RegionOverDevice {
        /// The region.
        region: GuestRange,
        /// The device.
        device: &'static str,
        /// Its window.
        window: GuestRange,
    },
    /// KVM's dirty bits are the host's pages.
    #[error(
        "a dirty log in pages of {log_page_bytes} bytes: KVM's are the host's, of {host_page_bytes} bytes; leave out --host-page"
    )]
    KvmLogPage {
        /// What was asked for.
        log_page_bytes: u64,
        /// The host's page.
        host_page_bytes: u64,
    },
    /// A size of dirty log pages that the emulator does not have.
    #[error(
        "a dirty log in pages of {log_page_bytes} bytes: choose 4k, 16k or 64k, not below the host's page of {host_page_bytes} bytes"
    )]
    LogPage {
        /// What was asked for.
        log_page_bytes: u64,
        /// The host's page.
        host_page_bytes: u64,
    },
}

/// The pair of `granule` and `bits`.
///
/// # Errors
/// [`ConfigError::Translation`] with the list of pairs where there is none.
pub fn va_bits(granule: Granule, bits: u32) -> Result<VaBits, ConfigError> {
    VaBits::new(granule, bits).ok_or(ConfigError::Translation { granule, bits })
}

/// ARMv7's tables of the format `lpae` or not, with `granule` and `bits`.
///
/// # Errors
/// [`ConfigError::Armv7Tables`] with what there is.
pub fn armv7_tables(lpae: bool, granule: Granule, bits: u32) -> Result<Tables, ConfigError> {
    let tables = match (lpae, granule) {
        (false, Granule::K64) => Tables::Short { pages: ShortPages::Large },
        (false, _) => Tables::Short { pages: ShortPages::Small },
        (true, _) => Tables::Lpae,
    };
    if tables.granule() == granule && tables.va_bits() == bits {
        return Ok(tables);
    }
    Err(ConfigError::Armv7Tables { name: tables.name(), granule, bits })
}

/// Where RAM and the region lie, checked against everything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    ram: GuestRange,
    region: GuestRange,
    log_page_bytes: u64,
}

impl Layout {
    /// RAM.
    pub fn ram(&self) -> GuestRange {
        self.ram
    }

    /// The region.
    pub fn region(&self) -> GuestRange {
        self.region
    }

    /// Bytes that one dirty bit stands for.
    pub fn log_page_bytes(&self) -> u64 {
        self.log_page_bytes
    }
}

impl MachineConfig {
    /// Checks everything and places RAM and the region.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn layout(&self) -> Result<Layout, ConfigError> {
        if self.vcpus == 0 || self.vcpus > map::MAX_VCPUS {
            return Err(ConfigError::Vcpus { vcpus: self.vcpus });
        }
        if self.share.is_some() && self.backing != Backing::Memfd {
            return Err(ConfigError::SharedBacking { backing: self.backing });
        }
        let log_page_bytes = self.checked_log_page()?;
        // A page of the guest or of the log that is half in a slot could be neither mapped nor logged.
        let unit_bytes = self.tables.granule().bytes().max(log_page_bytes);
        let ram = self.place_ram(unit_bytes)?;
        let region = self.place_region(ram, unit_bytes)?;
        self.check_alias_room(ram, region)?;
        Ok(Layout { ram, region, log_page_bytes })
    }

    /// The boot block that tells the guest about `layout`.
    pub fn boot_info(&self, layout: &Layout) -> BootInfo {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        BootInfo {
            tables: self.tables,
            vcpus: self.vcpus as u32,
            flags: flag(self.transport == Transport::Hvc, boot::FLAG_HVC)
                | flag(self.region_blocks, boot::FLAG_REGION_BLOCKS)
                | flag(self.plant_exception, boot::FLAG_PLANT_EXCEPTION)
                | flag(self.heartbeat.spins(), boot::FLAG_SPIN)
                | flag(self.clock_line, boot::FLAG_CLOCK_LINE)
                | flag(self.standalone, boot::FLAG_STANDALONE)
                | flag(self.kernel.is_some(), boot::FLAG_KERNEL),
            region: layout.region,
            ram: layout.ram,
            seed: self.seed,
            pattern: self.pattern,
            params: self.params,
            heartbeat_us: self.heartbeat.period_us(),
            output: self.output,
            points: self.points,
        }
    }

    fn checked_log_page(&self) -> Result<u64, ConfigError> {
        let host_page_bytes = host_page_bytes();
        let log_page_bytes = self.log_page_bytes.unwrap_or(host_page_bytes);
        let known = Granule::ALL.iter().any(|granule| granule.bytes() == log_page_bytes);
        if !known || log_page_bytes < host_page_bytes {
            return Err(ConfigError::LogPage { log_page_bytes, host_page_bytes });
        }
        if self.accelerator == Accelerator::Kvm && log_page_bytes != host_page_bytes {
            return Err(ConfigError::KvmLogPage { log_page_bytes, host_page_bytes });
        }
        Ok(log_page_bytes)
    }

    /// Bits of address below which memory must lie: the guest maps it one to one.
    fn address_bits(&self) -> u32 {
        self.tables.va_bits().min(PHYSICAL_ADDRESS_BITS)
    }

    fn place_ram(&self, unit_bytes: u64) -> Result<GuestRange, ConfigError> {
        let size_bytes = self.ram_bytes;
        if size_bytes < map::RAM_MIN {
            return Err(ConfigError::RamTooSmall { ram_bytes: size_bytes });
        }
        if !size_bytes.is_multiple_of(unit_bytes) {
            return Err(ConfigError::OddSize { what: "RAM", size_bytes, unit_bytes });
        }
        self.within_address_space("RAM", map::RAM_BASE, size_bytes)
    }

    fn place_region(&self, ram: GuestRange, unit_bytes: u64) -> Result<GuestRange, ConfigError> {
        let size_bytes = self.region_bytes;
        if size_bytes == 0 {
            return Err(ConfigError::EmptyRegion);
        }
        if !size_bytes.is_multiple_of(unit_bytes) {
            return Err(ConfigError::OddSize { what: "region", size_bytes, unit_bytes });
        }
        let base = self.region_base.unwrap_or_else(|| default_region_base(size_bytes, ram));
        if !base.is_aligned(unit_bytes) {
            return Err(ConfigError::MisalignedRegion { base, unit_bytes });
        }
        let region = self.within_address_space("region", base, size_bytes)?;
        if region.overlaps(ram) {
            return Err(ConfigError::RegionOverRam { region, ram });
        }
        match map::device_windows().into_iter().find(|(_, window)| region.overlaps(*window)) {
            Some((device, window)) => Err(ConfigError::RegionOverDevice { region, device, window }),
            None => Ok(region),
        }
    }

    /// An ARMv7 guest maps devices and RAM at their physical addresses, and the region below and above RAM: once to be
    /// written through, and once more to be executed where the plan writes code.
    fn check_alias_room(&self, ram: GuestRange, region: GuestRange) -> Result<(), ConfigError> {
        if self.tables.arch() == Arch::Aarch64 {
            return Ok(());
        }
        let executes = [Pattern::Code, Pattern::Mixed].iter().any(|pattern| pattern.number() == self.pattern);
        let aliases = 1 + usize::from(executes);
        if Armv7Aliases::new(ram, region).take(aliases).count() == aliases {
            return Ok(());
        }
        Err(ConfigError::AliasRoom { ram, region_bytes: region.len_bytes(), aliases })
    }

    fn within_address_space(&self, what: &'static str, base: Gpa, size_bytes: u64) -> Result<GuestRange, ConfigError> {
        let bits = self.address_bits();
        match GuestRange::new(base, size_bytes) {
            Some(range) if range.end().raw() <= 1 << bits => Ok(range),
            _ => Err(ConfigError::AddressSpace { what, base, size_bytes, bits, arch: self.tables.arch() }),
        }
    }
}

/// Where a region of `size_bytes` goes unless the command line says otherwise.
fn default_region_base(size_bytes: u64, ram: GuestRange) -> Gpa {
    let room_below_ram = map::RAM_BASE.checked_offset_from(map::REGION_BASE).unwrap_or(0);
    if size_bytes <= room_below_ram {
        return map::REGION_BASE;
    }
    // RAM ends below 2^40, so there is such a boundary.
    ram.end().checked_align_up(map::HIGH_REGION_ALIGN).unwrap_or(ram.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig::default()
    }

    #[test]
    fn the_default_machine_is_the_original_test_s() {
        let layout = config().layout().unwrap();
        assert_eq!(layout.region(), GuestRange::new(Gpa::new(0x2000_0000), 8 << 20).unwrap());
        assert_eq!(layout.ram(), GuestRange::new(Gpa::new(0x4000_0000), 256 << 20).unwrap());
        let config = config();
        let info = config.boot_info(&layout);
        assert_eq!(info.tables.to_string(), "4k/48");
        assert_eq!(info.flags, 0);
    }

    #[test]
    fn a_region_too_large_for_below_ram_goes_to_the_first_gib_above() {
        let layout = MachineConfig { region_bytes: 1600 << 20, ..config() }.layout().unwrap();
        assert_eq!(layout.region().start(), Gpa::new(0x8000_0000));
        let layout = MachineConfig { region_bytes: 512 << 20, ..config() }.layout().unwrap();
        assert_eq!(layout.region().start(), map::REGION_BASE);
        let layout = MachineConfig { region_bytes: 1 << 30, ram_bytes: 8 << 30, ..config() }.layout().unwrap();
        assert_eq!(layout.region().start(), Gpa::new(0x2_4000_0000));
    }

    #[test]
    fn vcpu_counts_outside_one_to_eight_are_refused() {
        for vcpus in [0, 9, usize::MAX] {
            assert_eq!(MachineConfig { vcpus, ..config() }.layout(), Err(ConfigError::Vcpus { vcpus }));
        }
    }

    #[test]
    fn small_odd_and_huge_ram_is_refused() {
        let with = |ram_bytes| MachineConfig { ram_bytes, ..config() }.layout();
        assert!(matches!(with(0), Err(ConfigError::RamTooSmall { .. })));
        assert!(matches!(with(map::RAM_MIN - 4096), Err(ConfigError::RamTooSmall { .. })));
        assert!(matches!(with(map::RAM_MIN + 1), Err(ConfigError::OddSize { what: "RAM", .. })));
        assert!(matches!(with(1 << 40), Err(ConfigError::AddressSpace { what: "RAM", bits: 40, .. })));
        assert!(matches!(with(!0xffff), Err(ConfigError::AddressSpace { what: "RAM", .. })));
        assert!(with(8 << 30).is_ok());
    }

    #[test]
    fn memory_past_a_small_virtual_address_space_is_refused() {
        let tables = Tables::V8(va_bits(Granule::K16, 36).unwrap());
        let layout = MachineConfig { tables, ram_bytes: 64 << 30, ..config() }.layout();
        assert!(matches!(layout, Err(ConfigError::AddressSpace { what: "RAM", bits: 36, .. })));
    }

    #[test]
    fn unsuitable_regions_are_refused_one_by_one() {
        let with = |base: Option<u64>, region_bytes| {
            MachineConfig { region_base: base.map(Gpa::new), region_bytes, ..config() }.layout()
        };
        assert_eq!(with(None, 0), Err(ConfigError::EmptyRegion));
        assert!(matches!(with(None, 4097), Err(ConfigError::OddSize { what: "region", .. })));
        assert!(matches!(with(None, !0xfff), Err(ConfigError::AddressSpace { what: "region", .. })));
        assert!(matches!(with(Some(!0xfff), 8192), Err(ConfigError::AddressSpace { .. })));
        assert!(matches!(with(Some(0x2000_0800), 4096), Err(ConfigError::MisalignedRegion { .. })));
        assert!(matches!(with(Some(0x4100_0000), 4096), Err(ConfigError::RegionOverRam { .. })));
        assert!(matches!(with(Some(0x3fff_f000), 8192), Err(ConfigError::RegionOverRam { .. })));
        for (device, base) in
            [("PL011", 0x0900_0000), ("hypercall doorbell", 0x0b00_0000), ("GIC distributor", 0x0800_0000)]
        {
            match with(Some(base), 4096) {
                Err(ConfigError::RegionOverDevice { device: found, .. }) => assert_eq!(found, device),
                other => panic!("{other:?}"),
            }
        }
        assert!(with(Some(0x5000_0000), 4096).is_ok());
    }

    #[test]
    fn the_granule_decides_what_is_aligned() {
        let tables = Tables::V8(va_bits(Granule::K64, 42).unwrap());
        let layout = MachineConfig { tables, region_bytes: 0x1_1000, ..config() }.layout();
        assert!(matches!(layout, Err(ConfigError::OddSize { unit_bytes: 0x1_0000, .. })));
        let region_base = Some(Gpa::new(0x2000_1000));
        let layout = MachineConfig { tables, region_base, ..config() }.layout();
        assert!(matches!(layout, Err(ConfigError::MisalignedRegion { unit_bytes: 0x1_0000, .. })));
    }

    #[test]
    fn pairs_the_architecture_lacks_are_refused_with_the_list() {
        let error = va_bits(Granule::K4, 42).unwrap_err();
        let message = error.to_string();
        for pair in VaBits::ALL {
            assert!(message.contains(&pair.to_string()), "{message}");
        }
    }

    #[test]
    fn armv7_has_three_kinds_of_tables_and_four_gib() {
        assert_eq!(armv7_tables(false, Granule::K64, 32).unwrap().to_string(), "short/64k");
        assert_eq!(armv7_tables(true, Granule::K4, 32), Ok(Tables::Lpae));
        for (lpae, granule, bits) in
            [(true, Granule::K64, 32), (false, Granule::K16, 32), (false, Granule::K4, 48), (true, Granule::K4, 40)]
        {
            let error = armv7_tables(lpae, granule, bits).unwrap_err();
            assert!(matches!(error, ConfigError::Armv7Tables { .. }), "{error}");
        }
        for tables in Tables::ARMV7 {
            let with = |ram_bytes, base| {
                MachineConfig { tables, ram_bytes, region_base: base, ..config() }.layout().map_err(|e| e.to_string())
            };
            assert!(with(1 << 30, None).is_ok());
            let past = Some(Gpa::new(0xff90_0000));
            for error in [with(4 << 30, None).unwrap_err(), with(1 << 30, past).unwrap_err()] {
                assert!(error.contains("32 bits of address") && error.contains("below 4 GiB"), "{error}");
            }
        }
    }

    #[test]
    fn a_shared_file_is_the_region_s_only_backing() {
        let with = |backing| MachineConfig { backing, share: Some("/dev/shm/region".into()), ..config() }.layout();
        assert!(with(Backing::Memfd).is_ok());
        for backing in [Backing::Anonymous, Backing::Thp, Backing::Hugetlb { page_bytes: None }] {
            assert_eq!(with(backing), Err(ConfigError::SharedBacking { backing }));
        }
    }

    #[test]
    fn an_armv7_guest_needs_room_for_its_mappings_of_the_region() {
        let with = |ram_mib: u64, region_mib: u64, pattern: Pattern| {
            let (ram_bytes, region_bytes) = (ram_mib << 20, region_mib << 20);
            let pattern = pattern.number();
            MachineConfig { tables: Tables::Lpae, ram_bytes, region_bytes, pattern, ..config() }.layout()
        };
        assert!(with(3072, 512, Pattern::Full).is_ok());
        assert!(with(256, 1024, Pattern::Mixed).is_ok());
        let error = with(3072, 512, Pattern::Mixed).unwrap_err();
        assert!(matches!(error, ConfigError::AliasRoom { aliases: 2, .. }), "{error}");
    }

    #[test]
    fn dirty_log_pages_are_4k_16k_or_64k() {
        let with = |bytes| MachineConfig { log_page_bytes: Some(bytes), ..config() }.layout();
        assert_eq!(with(0x1_0000).unwrap().log_page_bytes(), 0x1_0000);
        for bytes in [0, 1, 2048, 8192, 1 << 21] {
            assert!(matches!(with(bytes), Err(ConfigError::LogPage { .. })), "{bytes}");
        }
    }
}
