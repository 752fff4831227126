//! [`translate`]: a source's registers become the writes that restore them at a destination, by the table's rules.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use abi::Arch;

use super::features::{self, Lack};
use super::outcome::{Note, NoteKind, Reason, Refusal, Side, Translation};
use super::rule::{Absent, Entry, NEVER_WRITTEN, Rule, Stage, Surplus};
use super::table::{lookup, table};
use super::{Destination, MissingFeatures, Policy, Source, UnknownRegisters, check, id};

/// The views of each generator: id and lowest bit.
static VIEWS: LazyLock<BTreeMap<u64, Vec<(u64, u32)>>> = LazyLock::new(|| {
    let mut views: BTreeMap<u64, Vec<(u64, u32)>> = BTreeMap::new();
    for entry in table() {
        if let Rule::Derive { generator, low } = entry.rule {
            views.entry(generator).or_default().push((entry.id, low));
        }
    }
    views
});

/// What restores `source` at `destination`.
///
/// Writing a state to a vCPU that has it already changes nothing, but for the PMU's views that clear, which come before what sets.
///
/// # Errors
/// [`Refusal`] with every reason: lists that are none, ids unknown under `policy`, constants that differ, features that the
/// destination lacks, registers in use that it does not have.
pub fn translate(source: &Source<'_>, destination: &Destination<'_>, policy: Policy) -> Result<Translation, Refusal> {
    let mut reasons = check(source.registers, Side::Source);
    reasons.extend(check(destination.registers, Side::Destination));
    if !reasons.is_empty() {
        return Err(Refusal { reasons });
    }
    let mut work = Work::new(source, destination, policy);
    for (id, value) in source.registers {
        work.fold(*id, *value);
    }
    for (id, present) in destination.registers {
        match lookup(*id) {
            Some(entry) => work.fill(entry, *present),
            None => work.unknown(*id),
        }
    }
    for (id, value) in source.registers {
        if work.present(*id).is_none() {
            match lookup(*id) {
                Some(entry) => work.leave(entry, *value),
                None => work.unknown(*id),
            }
        }
    }
    work.finish()
}

/// A generator that the source has not, made of the views that it has.
struct Composed {
    value: u128,
    shown: u128,
    views: Vec<u64>,
}

struct Work<'a> {
    arch: Arch,
    policy: Policy,
    /// By id.
    source: Vec<(u64, u128)>,
    destination: Vec<(u64, u128)>,
    writable: Vec<(u64, u64)>,
    wider: &'a [u64],
    composed: BTreeMap<u64, Composed>,
    /// Whether the AArch32 part of what identifies the processor counts.
    aarch32: bool,
    writes: Vec<(Stage, u64, u128)>,
    notes: Vec<Note>,
    reasons: Vec<Reason>,
}

fn find<T: Copy>(sorted: &[(u64, T)], id: u64) -> Option<T> {
    sorted.binary_search_by_key(&id, |(found, _)| *found).ok().map(|at| sorted[at].1)
}

fn sorted<T: Copy>(list: &[(u64, T)]) -> Vec<(u64, T)> {
    let mut list = list.to_vec();
    list.sort_unstable_by_key(|(id, _)| *id);
    list
}

impl<'a> Work<'a> {
    fn new(source: &Source<'a>, destination: &Destination<'_>, policy: Policy) -> Self {
        let (from, to) = (sorted(source.registers), sorted(destination.registers));
        let has_aarch32 = |list: &[_]| find(list, id::ID_AA64PFR0_EL1).is_none_or(|pfr0: u128| pfr0 & 0xf >= 2);
        Self {
            arch: source.arch,
            policy,
            aarch32: source.arch == Arch::Armv7 || (has_aarch32(&from) && has_aarch32(&to)),
            writable: sorted(destination.writable),
            wider: source.wider,
            composed: BTreeMap::new(),
            writes: Vec::with_capacity(to.len()),
            notes: Vec::new(),
            reasons: Vec::new(),
            source: from,
            destination: to,
        }
    }

    /// The source's value.
    fn value(&self, id: u64) -> Option<u128> {
        find(&self.source, id)
    }

    /// The destination's.
    fn present(&self, id: u64) -> Option<u128> {
        find(&self.destination, id)
    }

    /// The source's value, or what its views make.
    fn effective(&self, id: u64) -> Option<u128> {
        self.value(id).or_else(|| self.composed.get(&id).map(|composed| composed.value))
    }

    fn write(&mut self, entry: &Entry, value: u128) {
        self.writes.push((entry.stage, entry.id, value));
    }

    fn note(&mut self, entry: &Entry, kind: NoteKind) {
        self.notes.push(Note { id: entry.id, kind });
    }

    /// Folds a view of the source's into its generator, unless the source has that too, which then counts.
    fn fold(&mut self, view: u64, value: u128) {
        let Some(entry) = lookup(view) else { return };
        let (generator, low) = match entry.rule(self.arch) {
            Rule::Derive { generator, low } => (generator, low),
            Rule::Clears { generator } => (generator, 0),
            _ => return,
        };
        if let Some(of) = self.value(generator) {
            if (of >> low) & id::bits(view) != value {
                self.note(entry, NoteKind::Overruled { generator, view: value });
            }
            return;
        }
        // The same view at a destination without the generator: simply copied.
        if self.present(view).is_some() && self.present(generator).is_none() {
            return;
        }
        let reset = match lookup(generator).map(|entry| entry.absent) {
            Some(Absent::Reset(reset)) => reset.into(),
            _ => self.present(generator).unwrap_or(0),
        };
        let shown = id::bits(view) << low;
        let composed = self.composed.entry(generator).or_insert(Composed { value: reset, shown: 0, views: Vec::new() });
        composed.value = composed.value & !shown | value << low;
        composed.shown |= shown;
        composed.views.push(view);
    }

    /// A register that the destination has.
    fn fill(&mut self, entry: &Entry, present: u128) {
        let id = entry.id;
        match entry.rule(self.arch) {
            Rule::Derive { generator, low } => return self.fill_view(entry, generator, low),
            Rule::Clears { generator } => return self.clear(entry, generator),
            Rule::Refuse { why } => {
                return self.reasons.push(Reason::Refused { side: Side::Destination, id, why });
            }
            _ => {}
        }
        let Some(value) = self.effective(id) else { return self.fill_absent(entry, present) };
        if let Some(Composed { shown, views, .. }) = self.composed.get(&id) {
            let kind = NoteKind::Composed { views: views.clone(), reset_bits: id::bits(id) & !shown };
            self.note(entry, kind);
        }
        if value != present && (self.aarch32 || !features::is_aarch32(id)) {
            let lacks = features::lacks(id, self.arch, value as u64, present as u64);
            self.lacks(entry, lacks);
        }
        let writable = u128::from(find(&self.writable, id).unwrap_or(0));
        match entry.rule(self.arch) {
            Rule::Copy => self.write(entry, value),
            Rule::Mask { bits, why } => self.write_masked(entry, value, present, bits.into(), why),
            Rule::Counters => {
                let counters = self.present(id::PMCR_EL0).unwrap_or(0) >> 11 & 0x1f;
                let there = 1 << 31 | ((1 << counters) - 1);
                self.write(entry, value & there);
                if value & !there != 0 {
                    let why = "they are of counters that it has not";
                    self.note(entry, NoteKind::Masked { bits: value & !there, why });
                }
            }
            Rule::ConstantEqual if (value ^ present) & !writable != 0 => {
                self.reasons.push(Reason::Constant { id, source_value: value, destination_value: present });
            }
            Rule::ConstantEqual => self.write_if_other(entry, value, present),
            Rule::ConstantIgnore { why } => {
                let possible = present & !writable | value & writable;
                self.write_if_other(entry, possible, present);
                if possible != value {
                    self.note(entry, NoteKind::NotWritten { source: value, destination: possible, why });
                }
            }
            Rule::Features { settable } => {
                // What is said of AArch32 to a guest that cannot execute it stays, whatever it is: kernels do not take every value.
                let is_heeded = self.aarch32 || !features::is_aarch32(id);
                let writable = if settable { u128::MAX } else { writable } * u128::from(is_heeded);
                let lesser = features::least(id, self.arch, value as u64, present as u64);
                let possible = present & !writable | u128::from(lesser) & writable;
                self.write_if_other(entry, possible, present);
                if possible != value {
                    self.note(entry, NoteKind::ShownOtherwise { source: value, destination: possible });
                }
            }
            Rule::Ignore { why } if value != present => {
                self.note(entry, NoteKind::NotWritten { source: value, destination: present, why });
            }
            Rule::Ignore { .. } | Rule::Derive { .. } | Rule::Clears { .. } | Rule::Refuse { .. } => {}
        }
    }

    /// A view that the destination has: its value comes from the generator, wherever that is.
    fn fill_view(&mut self, entry: &Entry, generator: u64, low: u32) {
        if self.present(generator).is_some() {
            return;
        }
        let shown = self.effective(generator).map(|value| (value >> low) & id::bits(entry.id));
        match shown.or_else(|| self.value(entry.id)) {
            Some(value) => self.write(entry, value),
            None => self.fill_absent(entry, 0),
        }
    }

    /// A view whose writes clear.
    fn clear(&mut self, entry: &Entry, generator: u64) {
        self.write(entry, id::bits(entry.id));
        let value = self.effective(generator).or_else(|| self.value(entry.id)).unwrap_or(0);
        if value != 0 && self.present(generator).is_none() {
            self.reasons.push(Reason::Missing { id: generator, value, why: "cannot be set by a view that clears" });
        }
    }

    /// A register that the source has not.
    fn fill_absent(&mut self, entry: &Entry, present: u128) {
        match (entry.absent, entry.rule(self.arch)) {
            (Absent::Reset(_), Rule::Ignore { why }) | (Absent::Keep(why), _) => {
                self.note(entry, NoteKind::Kept { value: present, why });
            }
            (Absent::Reset(reset), rule) => {
                let value = match rule {
                    Rule::Mask { bits, .. } => present & !u128::from(bits) | u128::from(reset & bits),
                    Rule::Features { .. } => features::least(entry.id, self.arch, reset, present as u64).into(),
                    _ => reset.into(),
                };
                self.write(entry, value);
                self.note(entry, NoteKind::Reset { value });
            }
        }
    }

    fn write_masked(&mut self, entry: &Entry, value: u128, present: u128, bits: u128, why: &'static str) {
        self.write(entry, present & !bits | value & bits);
        if (value ^ present) & !bits != 0 {
            self.note(entry, NoteKind::Masked { bits: (value ^ present) & !bits, why });
        }
    }

    fn write_if_other(&mut self, entry: &Entry, value: u128, present: u128) {
        if value != present {
            self.write(entry, value);
        }
    }

    fn lacks(&mut self, entry: &Entry, lacks: Vec<Lack>) {
        match self.policy.features {
            MissingFeatures::Refuse => self.reasons.extend(lacks.into_iter().map(Reason::Lacks)),
            MissingFeatures::Name => {
                self.notes.extend(lacks.into_iter().map(|lack| Note { id: entry.id, kind: NoteKind::Lacks(lack) }));
            }
        }
    }

    /// A register that only the source has.
    fn leave(&mut self, entry: &Entry, value: u128) {
        let id = entry.id;
        let rule = entry.rule(self.arch);
        // A view is accounted for with its generator, wherever that is.
        if let Rule::Derive { generator, .. } | Rule::Clears { generator } = rule
            && (self.present(generator).is_some() || self.value(generator).is_some())
        {
            return;
        }
        if entry.surplus != Surplus::SveUnused
            && let Some(views) = VIEWS.get(&id)
        {
            let there = views.iter().filter(|(view, _)| self.present(*view).is_some());
            let views: Vec<_> = there.copied().collect();
            let shown = views.iter().fold(0, |shown, (view, low)| shown | id::bits(*view) << low);
            if !views.is_empty() && value & !shown == 0 {
                return self.note(entry, NoteKind::Split { views: views.into_iter().map(|(view, _)| view).collect() });
            }
        }
        match self.why_left(entry, value) {
            Ok(why) => self.note(entry, NoteKind::LeftBehind { value, why }),
            Err(why) => self.reasons.push(Reason::Missing { id, value, why }),
        }
        if let Surplus::Offers(offered) = entry.surplus
            && (self.aarch32 || !features::is_aarch32(id))
        {
            let lacks = features::lacks(id, self.arch, value as u64, offered);
            self.lacks(entry, lacks);
        }
    }

    /// Why a register may be left behind, or why not.
    fn why_left(&self, entry: &Entry, value: u128) -> Result<&'static str, &'static str> {
        const RESET: &str = "it is as after a reset";
        let reset = match entry.absent {
            Absent::Reset(reset) => reset,
            Absent::Keep(_) => 0,
        };
        if let Rule::Ignore { why } = entry.rule(self.arch) {
            return Ok(why);
        }
        let at_reset = value == reset.into() || value == NEVER_WRITTEN.into();
        match entry.surplus {
            Surplus::Always(why) => Ok(why),
            Surplus::Offers(_) => Ok("its features are compared with those of a machine without it"),
            Surplus::SveUnused => match self.sve_in_use() {
                None => Ok("SVE was never used"),
                Some(why) => Err(why),
            },
            _ if at_reset => Ok(RESET),
            Surplus::AtReset => Err("is not its reset value"),
            Surplus::Disabled { control } => match self.value(control) {
                Some(control) if control & 1 == 0 || control == NEVER_WRITTEN.into() => Ok("it is not enabled"),
                _ => Err("is enabled"),
            },
            Surplus::NotCounting { counter } if self.counts(counter) => Err("counts"),
            Surplus::NotCounting { .. } => Ok("it does not count"),
        }
    }

    /// Whether event counter `counter` counts.
    fn counts(&self, counter: u8) -> bool {
        const EVENT_BITS: u128 = 0x3ff;
        let enabled = self.value(id::PMCR_EL0).unwrap_or(1) & 1 != 0
            && self.value(id::PMCNTENSET_EL0).unwrap_or(u128::MAX) >> counter & 1 != 0;
        // Events have 10 or 16 bits, by the PMU's version; KVM masks what it puts there at reset.
        let never_chosen = self.value(id::event_type(counter)).is_some_and(|event| {
            let never: u128 = NEVER_WRITTEN.into();
            event & !never == 0 && event & EVENT_BITS == never & EVENT_BITS
        });
        enabled && !never_chosen
    }

    /// Why SVE's state cannot be left behind; `None` while it was never used.
    fn sve_in_use(&self) -> Option<&'static str> {
        const ZEN: u128 = 0b11 << 16;
        if self.value(id::CPACR_EL1).is_none_or(|cpacr| cpacr & ZEN != 0) {
            return Some("may be in use: CPACR_EL1.ZEN lets the guest use SVE");
        }
        let predicates = (0..17).any(|number| self.value(id::sve_p(number)).is_some_and(|value| value != 0));
        (predicates || !self.wider.is_empty())
            .then_some("belongs to vectors in use: upper parts or predicates are not zero")
    }

    /// A register that the table does not know.
    fn unknown(&mut self, id: u64) {
        let (source, destination) = (self.value(id), self.present(id));
        let passes = match self.policy.unknown {
            UnknownRegisters::Refuse => false,
            UnknownRegisters::IgnoreZero => {
                source == destination || (source.unwrap_or(0) == 0 && destination.unwrap_or(0) == 0)
            }
            UnknownRegisters::Ignore => true,
        };
        if passes {
            return self.notes.push(Note { id, kind: NoteKind::Unknown { source, destination } });
        }
        let (side, value) = match (source, destination) {
            (Some(value), _) => (Side::Source, value),
            (None, destination) => (Side::Destination, destination.unwrap_or(0)),
        };
        self.reasons.push(Reason::Unknown { side, id, value });
    }

    fn finish(mut self) -> Result<Translation, Refusal> {
        if !self.reasons.is_empty() {
            return Err(Refusal { reasons: self.reasons });
        }
        // Within a stage in the destination's own order.
        self.writes.sort_by_key(|(stage, ..)| *stage);
        let writes = self.writes.into_iter().map(|(_, id, value)| (id, value)).collect();
        Ok(Translation { writes, notes: self.notes })
    }
}
