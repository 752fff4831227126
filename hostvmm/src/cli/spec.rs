//! From options to a [`Spec`]: fills in defaults, and refuses what cannot be meant.

use std::path::{Path, PathBuf};

use abi::{Gpa, Granule, Tables};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use workload::{Geometry, Plan, Workload};

use super::common::{
    Accel, Clock, CommonArgs, EagerSplit, LogChoice, Mode, RegionMap, SelfCheck, TablesArg, Transport,
};
use super::ending::Ending;
use crate::backend::{Accelerator, AcceleratorChoice};
use crate::dirty::DirtyLogKind;
use crate::machine::{self, Image, MachineConfig};
use crate::memory::{Backing, host_page_bytes};
use crate::report::ledger::{self, Ledger, RegionEntry, Verdict};
use crate::verify::{self, Spec};

/// Workload unless the command line says otherwise.
const DEFAULT_WORKLOAD: &str = "dirtyram";
/// Virtual address bits unless the command line says otherwise: every granule has them.
const DEFAULT_VA_BITS: u32 = 48;
/// Virtual address bits of every ARMv7 guest.
const ARMV7_VA_BITS: u32 = 32;

impl CommonArgs {
    /// The run that the options ask for, checked as far as it can be without making the machine.
    ///
    /// # Errors
    /// An [`Ending`] with status 2 for what is wrong with the options, with status 4 for what this host or build lacks.
    pub(crate) fn spec(&self, scenario: &'static str) -> Result<Spec, Ending> {
        self.kernel.check(self, scenario)?;
        self.check_outputs()?;
        let arch = self.arch()?;
        let tables = self.tables(arch)?;
        let accelerator = self.accelerator().resolve(arch).map_err(Ending::unavailable)?;
        let logs = self.logs(accelerator)?;
        let workload = parse_workload(self.workload.as_deref().unwrap_or(DEFAULT_WORKLOAD))?;
        let (pattern, params) = workload.encode();
        let machine = MachineConfig {
            accelerator,
            vcpus: self.vcpus.unwrap_or(1) as usize,
            ram_bytes: self.ram,
            region_base: self.region_base.map(Gpa::new),
            region_bytes: self.region_size,
            tables,
            clock: match self.clock {
                Clock::Wall => machine::Clock::Wall,
                Clock::Icount => machine::Clock::Icount,
            },
            counter_hz: None,
            transport: match self.hypercall {
                Transport::Mmio => machine::Transport::Mmio,
                Transport::Hvc => machine::Transport::Hvc,
            },
            pattern,
            params,
            seed: self.seed,
            region_blocks: self.region_map == RegionMap::Blocks,
            plant_exception: false,
            cpu: machine::CpuModel::Host,
            skew: None,
            heartbeat: self.heartbeat.unwrap_or_default(),
            clock_line: self.clock_line,
            output: self.guest_output.into(),
            points: 0,
            standalone: false,
            kernel: self.kernel.files(),
            log_page_bytes: self.host_page.map(|page| Granule::from(page).bytes()),
            kvm_log: logs.iter().find_map(|log| log.kvm_log()).unwrap_or_default(),
            backing: self.backing.unwrap_or_default(),
            share: self.share.clone(),
            eager_split: match self.eager_split {
                EagerSplit::Auto | EagerSplit::Off => None,
                EagerSplit::Chunk(bytes) => Some(bytes),
            },
        };
        let layout = machine.layout().map_err(Ending::input)?;
        check_plan(
            &workload,
            self.seed,
            Geometry { region: layout.region(), tables: machine.tables, vcpus: machine.vcpus as u32 },
        )?;
        Ok(Spec {
            scenario,
            machine,
            firmware: self.kernel.kernel.clone().map_or_else(|| self.firmware(arch), Ok)?,
            workload,
            logs,
            passes: self.passes,
            steps_per_pass: self.steps_per_pass,
            mode: match self.mode.unwrap_or(Mode::Lockstep) {
                Mode::Lockstep => verify::Mode::Lockstep,
                Mode::Live => verify::Mode::Live,
            },
            interval: self.interval_ms,
            self_check: match self.self_check {
                SelfCheck::Every => verify::SelfCheck::Every,
                SelfCheck::Final => verify::SelfCheck::Final,
                SelfCheck::Off => verify::SelfCheck::Off,
            },
            dest: self.dest.clone(),
        })
    }

    /// The guest's architecture: the one named, that of the ELF named, or AArch64.
    ///
    /// # Errors
    /// An [`Ending`] with status 2 where `--arch`, `--tables` and the ELF contradict each other.
    pub(crate) fn arch(&self) -> Result<abi::Arch, Ending> {
        let named = self.arch.map(abi::Arch::from);
        let elf = self.firmware.as_deref().and_then(Image::arch_of);
        if let (Some(named), Some(elf), Some(path)) = (named, elf, &self.firmware)
            && named != elf
        {
            let path = path.display();
            return Err(Ending::usage(format!(
                "--arch {named}: the firmware {path} is for {elf}; leave out one of them"
            )));
        }
        let by_tables = self.tables.map(|_| abi::Arch::Armv7);
        let arch = named.or(elf).or(by_tables).unwrap_or(abi::Arch::Aarch64);
        if by_tables.is_some_and(|needed| needed != arch) {
            return Err(Ending::usage(format!("--tables is for ARMv7 guests, this one is {arch}; leave it out")));
        }
        Ok(arch)
    }

    /// The guest's translation tables.
    fn tables(&self, arch: abi::Arch) -> Result<Tables, Ending> {
        let granule = self.granule.map_or(Granule::K4, Granule::from);
        match arch {
            abi::Arch::Aarch64 => machine::va_bits(granule, self.va_bits.unwrap_or(DEFAULT_VA_BITS)).map(Tables::V8),
            abi::Arch::Armv7 => {
                let lpae = self.tables == Some(TablesArg::Lpae);
                machine::armv7_tables(lpae, granule, self.va_bits.unwrap_or(ARMV7_VA_BITS))
            }
        }
        .map_err(Ending::input)
    }

    /// The ELF file to run for `arch`: the one named, or the built firmware beside this program or below the current
    /// directory.
    ///
    /// # Errors
    /// An [`Ending`] with status 2 that says how to build it.
    pub(crate) fn firmware(&self, arch: abi::Arch) -> Result<PathBuf, Ending> {
        if let Some(path) = &self.firmware {
            return Ok(path.clone());
        }
        let target = match arch {
            abi::Arch::Aarch64 => "aarch64-unknown-none-softfloat",
            abi::Arch::Armv7 => "armv7a-none-eabi",
        };
        let built = Path::new(target).join("release").join("firmware");
        let beside = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.parent()?.join(&built)));
        let below = Path::new("target").join(&built);
        let candidates = [beside, Some(below)];
        candidates.into_iter().flatten().find(|path| path.is_file()).ok_or_else(|| {
            Ending::usage(format!(
                "no built firmware for {arch} found: build it with `cargo build --release -p firmware --target {target}`, \
                 or name one with --firmware"
            ))
        })
    }

    /// The options with what `verify hugepages` has by default: huge pages, and a workload whose first step writes every
    /// page and whose others write every second host page, so that each block is written and each has pages that are only
    /// read.
    ///
    /// # Errors
    /// An [`Ending`] with status 2 for options that the scenario cannot have.
    pub(crate) fn for_hugepages(&self) -> Result<Self, Ending> {
        if self.mode == Some(Mode::Live) {
            return Err(Ending::usage("verify hugepages counts pass by pass; use --mode lockstep".to_owned()));
        }
        if self.dirty_log.contains(&LogChoice::Named(DirtyLogKind::PagemapScan)) {
            return Err(Ending::usage(
                "pagemap-scan splits the host's huge pages itself, so verify hugepages would see its work; use one of \
                 KVM's dirty logs"
                    .to_owned(),
            ));
        }
        let mut options = self.clone();
        options.backing.get_or_insert(Backing::Thp);
        options.workload.get_or_insert_with(|| {
            format!("{DEFAULT_WORKLOAD}:step={},sleep_ms=0", (self.region_size / host_page_bytes() / 2).max(1))
        });
        Ok(options)
    }

    /// Refuses places that the ledger or report could not be written to, before the run and not after it.
    pub(crate) fn check_outputs(&self) -> Result<(), Ending> {
        if let Some(path) = &self.json {
            ledger::check_writable(path).map_err(Ending::input)?;
        }
        if let Some(directory) = &self.report {
            std::fs::create_dir_all(directory).and_then(|()| tempfile::tempfile_in(directory).map(|_| ())).map_err(
                |error| Ending::usage(format!("--report {}: {error}; name a directory", directory.display())),
            )?;
        }
        Ok(())
    }

    /// The ledger of a run that could not be made: what was asked for, and why it did not run.
    pub(crate) fn ledger_without_run(&self, scenario: &str, ending: &Ending) -> Ledger {
        let names = |values: &mut dyn Iterator<Item = Option<PossibleValue>>| {
            values.flatten().map(|value| value.get_name().to_owned()).collect::<Vec<_>>().join(",")
        };
        // A ledger of options that contradict each other says what they say.
        let arch = self.arch().unwrap_or(self.arch.map_or(abi::Arch::Aarch64, abi::Arch::from));
        let (default_bits, tables) = match (arch, self.tables) {
            (abi::Arch::Aarch64, _) => (DEFAULT_VA_BITS, "v8".to_owned()),
            (abi::Arch::Armv7, tables) => {
                (ARMV7_VA_BITS, names(&mut std::iter::once(tables.unwrap_or(TablesArg::Short).to_possible_value())))
            }
        };
        Ledger {
            schema: ledger::SCHEMA.to_owned(),
            verdict: if ending.is_skip() { Verdict::Skip } else { Verdict::Fail },
            reason: Some(ending.message().to_owned()),
            scenario: scenario.to_owned(),
            accelerator: names(&mut std::iter::once(self.accel.to_possible_value())),
            provenance: "none".to_owned(),
            arch: arch.to_string(),
            granule: self.granule.map_or(Granule::K4, Granule::from).to_string(),
            va_bits: self.va_bits.unwrap_or(default_bits),
            tables,
            host_page: self.host_page.map_or_else(host_page_bytes, |page| Granule::from(page).bytes()),
            vcpus: self.vcpus.unwrap_or(1),
            dirty_log: names(&mut self.dirty_log.iter().map(ValueEnum::to_possible_value)),
            backing: self.backing.unwrap_or_default().to_string(),
            workload: self.workload.clone().unwrap_or_else(|| DEFAULT_WORKLOAD.to_owned()),
            seed: self.seed,
            mode: names(&mut std::iter::once(self.mode.unwrap_or(Mode::Lockstep).to_possible_value())),
            clock: names(&mut std::iter::once(self.clock.to_possible_value())),
            region: RegionEntry::unmeasured(self.region_base.unwrap_or(abi::map::REGION_BASE.raw()), self.region_size),
            passes: Vec::new(),
            migration: None,
            colo: None,
            faults: Vec::new(),
            hugepages: None,
            groups: Vec::new(),
            heartbeat: Vec::new(),
            mismatches: Vec::new(),
            cells: Vec::new(),
            reproduce: std::env::args().collect::<Vec<_>>().join(" "),
        }
    }

    /// Which accelerator is asked for. What only the emulator can do decides for it where the choice is free.
    fn accelerator(&self) -> AcceleratorChoice {
        let needs_emulator = self.clock == Clock::Icount
            || self.dirty_log.contains(&LogChoice::Named(DirtyLogKind::Emulator))
            || self.host_page.is_some_and(|page| Granule::from(page).bytes() != host_page_bytes());
        match self.accel {
            Accel::Auto if needs_emulator => AcceleratorChoice::Exactly(Accelerator::Emulator),
            Accel::Auto => AcceleratorChoice::Auto,
            Accel::Kvm => AcceleratorChoice::Exactly(Accelerator::Kvm),
            Accel::Emulator => AcceleratorChoice::Exactly(Accelerator::Emulator),
        }
    }

    fn logs(&self, accelerator: Accelerator) -> Result<Vec<DirtyLogKind>, Ending> {
        let mut logs = Vec::new();
        for &choice in &self.dirty_log {
            let kind = match choice {
                LogChoice::Auto => match accelerator {
                    Accelerator::Emulator => DirtyLogKind::Emulator,
                    Accelerator::Kvm => DirtyLogKind::Bitmap,
                },
                LogChoice::Named(kind) => kind,
            };
            if logs.contains(&kind) {
                return Err(Ending::usage(format!("--dirty-log names {kind} twice")));
            }
            let fits = match kind {
                DirtyLogKind::PagemapScan => true,
                kind => kind.kvm_log().is_some() == (accelerator == Accelerator::Kvm),
            };
            if !fits {
                return Err(Ending::skip(format!(
                    "the dirty log {kind} is not one that the accelerator {accelerator} has; use --dirty-log auto"
                )));
            }
            if let Some(other) = logs.iter().find(|log: &&DirtyLogKind| log.kvm_log().is_some())
                && kind.kvm_log().is_some()
            {
                return Err(Ending::skip(format!(
                    "a machine of KVM's keeps one dirty log, not both {other} and {kind}; compare one of them with pagemap-scan"
                )));
            }
            logs.push(kind);
        }
        Ok(logs)
    }
}

/// The workload that `text` names.
///
/// # Errors
/// An [`Ending`] with status 2 that names the offending word.
pub(crate) fn parse_workload(text: &str) -> Result<Workload, Ending> {
    Workload::parse(text).map_err(|error| Ending::usage(format!("--workload: {error}")))
}

/// Refuses a workload that the region cannot hold.
///
/// # Errors
/// An [`Ending`] with status 2 that says what is needed.
pub(crate) fn check_plan(workload: &Workload, seed: u64, geometry: Geometry) -> Result<(), Ending> {
    Plan::new(workload, seed, geometry)
        .map(|_| ())
        .map_err(|error| Ending::usage(format!("--workload {workload}: {error}")))
}
