//! A workload bound to a seed and a geometry: the plan itself.
//!
//! The guest walks [`Plan::for_each_write`] and [`Plan::reads`] and executes; the host walks the same and applies. Both
//! are pure: any step may be asked for at any time, at the cost of its writes alone.

use core::fmt;

use abi::packet::StepDigest;
use abi::{Arch, Gpa, Granule, GuestRange, Tables, map};

use crate::part::{Part, Place};
use crate::pattern::{Pattern, Role};
use crate::random::{coprime_stride, key};
use crate::{PAGE_BYTES, Workload, Write, text};

/// Where a plan plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The region; its start and length are multiples of the granule.
    pub region: GuestRange,
    /// The guest's tables: the granule, in which `tablewalk` counts, and the architecture, which decides what patterns there
    /// are and which instructions `code` writes.
    pub tables: Tables,
    /// Number of vCPUs that execute the plan.
    pub vcpus: u32,
}

/// Why a plan can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// Zero or more than [`map::MAX_VCPUS`] vCPUs.
    Vcpus(u32),
    /// The region's start or length is no multiple of the granule, or it reaches beyond 2^48.
    Region {
        /// The region.
        region: GuestRange,
        /// The granule.
        granule: Granule,
    },
    /// The architecture lacks the instructions or the hardware that the pattern is about.
    Architecture {
        /// The pattern.
        pattern: Pattern,
        /// The guest's architecture.
        arch: Arch,
    },
    /// The workload does not fit in its region (or, for `mixed`, in the window that it has there).
    TooSmall {
        /// The pattern that does not fit.
        pattern: Pattern,
        /// Bytes that it needs.
        needed_bytes: u64,
        /// Bytes that there are.
        available_bytes: u64,
    },
    /// A parameter contradicts another one or the number of vCPUs.
    Parameter {
        /// The pattern.
        pattern: Pattern,
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// Least value here.
        min: u64,
        /// Greatest value here.
        max: u64,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Vcpus(vcpus) => write!(f, "{vcpus} vCPUs; a plan takes 1 to {}", map::MAX_VCPUS),
            Self::Region { region, granule } => {
                write!(f, "region {region} is not aligned to the {granule} granule or reaches beyond 2^48")
            }
            Self::Architecture { pattern, arch } => {
                write!(f, "{arch} has nothing for the workload {pattern}; use one of")?;
                text::list(f, Pattern::of(arch).map(Pattern::name))
            }
            Self::TooSmall { pattern, needed_bytes, available_bytes } => write!(
                f,
                "workload {pattern} needs {needed_bytes} bytes, but has {available_bytes}; \
                 make the region larger, or the workload smaller"
            ),
            Self::Parameter { pattern, key, value, min, max } => {
                write!(f, "workload {pattern}: {key}={value} is not in {min} to {max}")
            }
        }
    }
}

impl core::error::Error for PlanError {}

/// One vCPU's live table of the `tablewalk` pattern.
///
/// The guest maps it by pointing a descriptor of its own, one level up, at [`TableLayout::table`]; entry `s` of it then
/// translates the granule `s` of the range so mapped. Entries beyond [`TableLayout::slots`] stay zero (invalid). The
/// page of slot `s` starts at `first_page` plus `s` granules. All lie in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLayout {
    /// The table, one granule long and aligned.
    pub table: Gpa,
    /// Entries in use.
    pub slots: u32,
    /// The page that slot 0 maps.
    pub first_page: Gpa,
}

/// A workload bound to a seed and a geometry.
///
/// Defaults of parameters not given: `pages` the whole region; `slots` what fits, at most 64; `step` of dirtyram a
/// 200th of the pages (the original's density), other work per step a 16th of the pages, `writes` of tablewalk a
/// quarter of the slots, each at least 1; `hot` 90; `runs` 3; `sleep_ms` 10 for dirtyram, else 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    seed: u64,
    geometry: Geometry,
    sleep_ms: u64,
    /// One for a plain pattern; for `mixed` all that the architecture has, in the order of the patterns' numbers.
    parts: [Part; Pattern::WINDOWS],
    parts_len: usize,
    /// Parts that are active in a step after step 0.
    runs: u64,
}

impl Plan {
    /// The plan of `workload` with `seed` in `geometry`.
    ///
    /// # Errors
    /// [`PlanError`]: a geometry that is none, a workload larger than its region, a parameter that contradicts another.
    pub fn new(workload: &Workload, seed: u64, geometry: Geometry) -> Result<Self, PlanError> {
        let Geometry { region, tables, vcpus } = geometry;
        let granule = tables.granule();
        if vcpus == 0 || vcpus as usize > map::MAX_VCPUS {
            return Err(PlanError::Vcpus(vcpus));
        }
        let aligned = region.start().is_aligned(granule.bytes()) && region.len_bytes() % granule.bytes() == 0;
        if !aligned || region.end().raw() > 1 << 48 {
            return Err(PlanError::Region { region, granule });
        }
        let pattern = workload.pattern();
        if !pattern.exists_on(tables.arch()) {
            return Err(PlanError::Architecture { pattern, arch: tables.arch() });
        }
        let default_sleep_ms = if pattern == Pattern::Dirtyram { 10 } else { 0 };
        let sleep_ms = workload.value_of(Role::SleepMs).map_or(default_sleep_ms, |(_, value)| value);
        let mut plan = Self { seed, geometry, sleep_ms, parts: [Part::EMPTY; Pattern::WINDOWS], parts_len: 1, runs: 1 };
        if pattern == Pattern::Mixed {
            plan.runs = plan.mixed_runs(workload)?;
            plan.cut_windows()?;
        } else {
            plan.parts[0] = Part::resolve(workload, geometry, 0, region.len_bytes())?;
        }
        Ok(plan)
    }

    /// The patterns of `mixed`: all others that the architecture has.
    fn mixed_patterns(&self) -> impl Iterator<Item = Pattern> + Clone + use<> {
        Pattern::of(self.geometry.tables.arch()).filter(|pattern| *pattern != Pattern::Mixed)
    }

    fn mixed_runs(&self, workload: &Workload) -> Result<u64, PlanError> {
        let max = self.mixed_patterns().count() as u64;
        match workload.value_of(Role::Runs) {
            Some((key, value)) if value > max => {
                Err(PlanError::Parameter { pattern: Pattern::Mixed, key: key.name, value, min: 1, max })
            }
            Some((_, value)) => Ok(value),
            None => Ok(3),
        }
    }

    /// Gives every pattern its window of the region: tablewalk the first quarter, since it counts in granules, the
    /// others equal shares of the rest. Where there is no tablewalk, the others share the whole.
    fn cut_windows(&mut self) -> Result<(), PlanError> {
        let Geometry { region, tables, vcpus } = self.geometry;
        let granule = tables.granule();
        let available_bytes = region.len_bytes();
        let patterns = self.mixed_patterns();
        let walks = Pattern::Tablewalk.exists_on(tables.arch());
        let tables_len = if walks { available_bytes / 4 / granule.bytes() * granule.bytes() } else { 0 };
        let others = patterns.clone().filter(|pattern| *pattern != Pattern::Tablewalk).count() as u64;
        let window_len = (available_bytes - tables_len) / others / PAGE_BYTES * PAGE_BYTES;
        let too_small = |error| match error {
            PlanError::TooSmall { .. } => {
                let pages = others * Part::needed_bytes(Pattern::Unaligned, granule, vcpus);
                let needed_bytes = if walks {
                    // What makes both the quarter and the shares of the remainder large enough.
                    let tables = 4 * Part::needed_bytes(Pattern::Tablewalk, granule, vcpus);
                    tables.max((pages * 4).div_ceil(3).next_multiple_of(4 * granule.bytes()))
                } else {
                    pages.next_multiple_of(granule.bytes())
                };
                PlanError::TooSmall { pattern: Pattern::Mixed, needed_bytes, available_bytes }
            }
            other => other,
        };
        let mut next = tables_len;
        let mut parts_len = 0;
        for (part, pattern) in self.parts.iter_mut().zip(patterns) {
            let (offset, len) = match pattern {
                Pattern::Tablewalk => (0, tables_len),
                _ => (next, window_len),
            };
            *part = Part::resolve(&Workload::new(pattern), self.geometry, offset, len).map_err(too_small)?;
            if pattern != Pattern::Tablewalk {
                next += window_len;
            }
            parts_len += 1;
        }
        self.parts_len = parts_len;
        Ok(())
    }

    /// Where the plan plays.
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The seed.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// How long every vCPU pauses after each step, in milliseconds.
    pub const fn sleep_ms(&self) -> u64 {
        self.sleep_ms
    }

    /// The pattern of every part: one, or for `mixed` all of them.
    pub fn patterns(&self) -> impl Iterator<Item = Pattern> {
        self.parts[..self.parts_len].iter().map(|part| part.pattern)
    }

    /// Every write of `vcpu` in `step`, in program order.
    ///
    /// Writes of different vCPUs in one step commute: they touch different bytes, or both add to the same word.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn for_each_write(&self, vcpu: u32, step: u64, mut sink: impl FnMut(Write)) {
        assert!(vcpu < self.geometry.vcpus, "the plan has no vCPU {vcpu}");
        self.for_each_part(step, |part| part.writes(&self.place(), vcpu, step, &mut sink));
    }

    /// The digest that `vcpu` sends of its writes in `step`. `memory` is the region as its steps before have left it, and is then
    /// as this one does.
    ///
    /// # Panics
    /// If there is no such vCPU, or `memory` is shorter than the region.
    pub fn step_digest(&self, vcpu: u32, step: u64, memory: &mut [u8]) -> u64 {
        let mut digest = StepDigest::new();
        self.for_each_write(vcpu, step, |write| {
            write.apply(memory);
            digest.add(write.offset);
            digest.add(u64::from(write.len));
            if write.how.is_private() {
                let mut word = [0; 8];
                let len = write.len.min(8) as usize;
                word[..len].copy_from_slice(&memory[write.offset as usize..][..len]);
                digest.add(u64::from_le_bytes(word));
            }
        });
        digest.value()
    }

    /// The offset, a multiple of 8, of every 64-bit load of `vcpu` in `step` that the plan asks for beyond those that
    /// its writes imply. In program order, after the step's writes.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn reads(&self, vcpu: u32, step: u64, mut sink: impl FnMut(u64)) {
        assert!(vcpu < self.geometry.vcpus, "the plan has no vCPU {vcpu}");
        self.for_each_part(step, |part| part.reads(&self.place(), vcpu, step, &mut sink));
    }

    /// The live table of `vcpu`, where the plan has a `tablewalk` part.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn tablewalk_layout(&self, vcpu: u32) -> Option<TableLayout> {
        assert!(vcpu < self.geometry.vcpus, "the plan has no vCPU {vcpu}");
        let part = self.parts[..self.parts_len].iter().find(|part| part.pattern == Pattern::Tablewalk)?;
        Some(part.table_layout(&self.place(), vcpu))
    }

    fn place(&self) -> Place {
        Place {
            seed: self.seed,
            region_start: self.geometry.region.start(),
            tables: self.geometry.tables,
            vcpus: u64::from(self.geometry.vcpus),
        }
    }

    /// The parts that are active in `step`: all in step 0, then a choice that changes every two steps, because
    /// tablewalk arms descriptors in one step and has them dirtied in the next.
    fn for_each_part(&self, step: u64, mut visit: impl FnMut(&Part)) {
        let parts = &self.parts[..self.parts_len];
        if step == 0 || parts.len() == 1 {
            parts.iter().for_each(visit);
            return;
        }
        let len = parts.len() as u64;
        let choice = key(self.seed, [u64::from(Pattern::Mixed.number()), (step - 1) / 2]);
        let stride = coprime_stride(len);
        for i in 0..self.runs.min(len) {
            visit(&parts[((choice % len + i * stride) % len) as usize]);
        }
    }
}
