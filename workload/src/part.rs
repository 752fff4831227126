//! One pattern in one window of the region: its resolved parameters and the writes they make.
//!
//! [`Part::resolve`] turns parameters and defaults into numbers and checks that they fit; [`Part::writes`] generates.
//! A new pattern is an entry in [`crate::Pattern`] and an arm here.

mod tablewalk;

use abi::{Arch, Gpa, Granule, Tables};

use crate::pattern::{Pattern, Role};
use crate::random::{SplitMix64, coprime_stride, key};
use crate::{Data, Geometry, How, PAGE_BYTES, PlanError, TableLayout, Workload, Write};

/// A cache line for the patterns that keep vCPUs apart inside a page.
const LINE_BYTES: u64 = 64;
const LINES: u64 = PAGE_BYTES / LINE_BYTES;
/// Half a page: the largest DC ZVA block.
const HALF_BYTES: u64 = PAGE_BYTES / 2;
/// Offset in a page of the stamp that step 0 leaves where nothing else keeps to a fixed place.
const STAMP_AT: u64 = 8;
/// Hash key of the stamps, no pattern's number.
const STAMP: u64 = u64::from_le_bytes(*b"tidestmp");

/// What all parts of a plan have in common.
pub(crate) struct Place {
    pub(crate) seed: u64,
    pub(crate) region_start: Gpa,
    pub(crate) tables: Tables,
    pub(crate) vcpus: u64,
}

impl Place {
    /// What `vcpu` gets of `total`: the first `total % vcpus` vCPUs get one more than the others, so that of two
    /// totals the smaller one's share is never the larger. Returns the first index and the count.
    fn share(&self, total: u64, vcpu: u32) -> (u64, u64) {
        let (quotient, remainder) = (total / self.vcpus, total % self.vcpus);
        let vcpu = u64::from(vcpu);
        (vcpu * quotient + vcpu.min(remainder), quotient + u64::from(vcpu < remainder))
    }
}

/// One pattern in one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) pattern: Pattern,
    /// First byte of the window, from the region's start.
    offset: u64,
    /// Workload pages in use; granules for tablewalk, all vCPUs' together.
    pages: u64,
    /// Work of a step: a total for patterns that divide it, per vCPU for exclusive, lse, shared and tablewalk.
    work: u64,
    /// hotcold: percentage. tablewalk: slots per vCPU.
    extra: u64,
}

impl Part {
    pub(crate) const EMPTY: Self = Self { pattern: Pattern::Readonly, offset: 0, pages: 0, work: 0, extra: 0 };

    /// Least bytes of a window in which `pattern` can play.
    pub(crate) fn needed_bytes(pattern: Pattern, granule: Granule, vcpus: u32) -> u64 {
        let vcpus = u64::from(vcpus);
        match pattern {
            // A table and a page each.
            Pattern::Tablewalk => 2 * vcpus * granule.bytes(),
            _ => least_pages(pattern, vcpus) * PAGE_BYTES,
        }
    }

    /// The part of `workload`'s pattern in the window of `len_bytes` from `offset`.
    pub(crate) fn resolve(
        workload: &Workload,
        geometry: Geometry,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Self, PlanError> {
        let pattern = workload.pattern();
        let vcpus = u64::from(geometry.vcpus);
        let too_small = |needed_bytes| PlanError::TooSmall { pattern, needed_bytes, available_bytes: len_bytes };
        let least_bytes = Self::needed_bytes(pattern, geometry.tables.granule(), geometry.vcpus);
        if len_bytes < least_bytes {
            return Err(too_small(least_bytes));
        }
        if pattern == Pattern::Tablewalk {
            let granule = geometry.tables.granule().bytes();
            let per_vcpu = len_bytes / granule / vcpus;
            let slots = match workload.value_of(Role::Slots) {
                Some((key, value)) if value > granule / 8 => {
                    return Err(PlanError::Parameter { pattern, key: key.name, value, min: 1, max: granule / 8 });
                }
                Some((_, value)) if value >= per_vcpu => return Err(too_small((value + 1) * vcpus * granule)),
                Some((_, value)) => value,
                None => (per_vcpu - 1).min(64),
            };
            let work = bounded_work(workload, (slots / 4).max(1), slots)?;
            return Ok(Self { pattern, offset, pages: (slots + 1) * vcpus, work, extra: slots });
        }
        let available = len_bytes / PAGE_BYTES;
        let pages = match workload.value_of(Role::Pages) {
            Some((_, value)) if value > available => return Err(too_small(value.saturating_mul(PAGE_BYTES))),
            Some((key, value)) if value < least_pages(pattern, vcpus) => {
                let min = least_pages(pattern, vcpus);
                return Err(PlanError::Parameter { pattern, key: key.name, value, min, max: available });
            }
            Some((_, value)) => value,
            None => available,
        };
        let work = match pattern {
            Pattern::Dirtyram => bounded_work(workload, (pages / 200).max(1), pages)?,
            Pattern::Stream => bounded_work(workload, (pages / 16).max(1), pages)?,
            _ => bounded_work(workload, (pages / 16).max(1), u64::MAX)?,
        };
        let extra = workload.value_of(Role::Hot).map_or(90, |(_, value)| value);
        Ok(Self { pattern, offset, pages, work, extra })
    }

    /// The writes of `vcpu` in `step`.
    pub(crate) fn writes(&self, place: &Place, vcpu: u32, step: u64, sink: &mut impl FnMut(Write)) {
        let mut run = Run::new(self, place, vcpu, step, sink);
        match (self.pattern, step) {
            (Pattern::Tablewalk, _) => self.tablewalk(place, vcpu, step, sink),
            (Pattern::Shared, 0) => run.stamp_own_line_of_every_page(),
            (Pattern::Exclusive | Pattern::Lse, 0) => run.stamp_own_pages((LINES - 1) * LINE_BYTES),
            (_, 0) => run.stamp_own_pages(STAMP_AT),
            (Pattern::Dirtyram, _) => run.dirtyram(),
            (Pattern::Tstaeshm, _) => run.words(SplitMix64::below),
            (Pattern::Stream, _) => run.stream(),
            (Pattern::Hotcold, _) => run.hotcold(),
            (Pattern::Full, _) => run.full(),
            (Pattern::Unaligned, _) => run.unaligned(),
            (Pattern::Pair, _) => run.pair(),
            (Pattern::Exclusive, _) => run.exclusive(),
            (Pattern::Lse, _) => run.lse(),
            (Pattern::Dczva, _) => run.dczva(),
            (Pattern::Code, _) => run.code(),
            (Pattern::Shared, _) => run.shared(),
            (Pattern::Readonly | Pattern::Mixed, _) => {}
        }
    }

    /// The explicit loads of `vcpu` in `step`.
    pub(crate) fn reads(&self, place: &Place, vcpu: u32, step: u64, sink: &mut impl FnMut(u64)) {
        if self.pattern != Pattern::Readonly || step == 0 {
            return;
        }
        let (first, pages) = place.share(self.pages, vcpu);
        for i in 0..place.share(self.work, vcpu).1 {
            let mut random = self.random(place, Some(vcpu), step, i);
            let page = first + random.below(pages);
            sink(self.offset + page * PAGE_BYTES + random.below(PAGE_BYTES / 8) * 8);
        }
    }

    /// The live table of `vcpu`; for tablewalk.
    pub(crate) fn table_layout(&self, place: &Place, vcpu: u32) -> TableLayout {
        let granule = place.tables.granule().bytes();
        let at = |granules: u64| {
            let gpa = place.region_start.checked_add(self.offset + granules * granule);
            gpa.expect("the window lies in the region, which does not wrap")
        };
        let first = u64::from(vcpu) * (self.extra + 1);
        TableLayout { table: at(first), slots: self.extra as u32, first_page: at(first + 1) }
    }

    /// The numbers behind the `i`th piece of work of `step`: one vCPU's own, or with `None` the same for all.
    fn random(&self, place: &Place, vcpu: Option<u32>, step: u64, i: u64) -> SplitMix64 {
        let vcpu = vcpu.map_or(u64::MAX, u64::from);
        SplitMix64::new(key(place.seed, [u64::from(self.pattern.number()), vcpu, step, i]))
    }
}

/// Least pages with which `pattern` can play on `vcpus` vCPUs.
const fn least_pages(pattern: Pattern, vcpus: u64) -> u64 {
    match pattern {
        // vCPUs share pages.
        Pattern::Exclusive | Pattern::Lse | Pattern::Shared => 1,
        // A boundary between two pages in each share.
        Pattern::Unaligned => 2 * vcpus,
        _ => vcpus,
    }
}

/// The workload's amount of work a step, `default` where it gives none; at most `max`.
fn bounded_work(workload: &Workload, default: u64, max: u64) -> Result<u64, PlanError> {
    match workload.value_of(Role::Work) {
        Some((key, value)) if value > max => {
            Err(PlanError::Parameter { pattern: workload.pattern(), key: key.name, value, min: 1, max })
        }
        Some((_, value)) => Ok(value),
        None => Ok(default),
    }
}

/// One vCPU's share of a part in one step.
struct Run<'a, F> {
    part: &'a Part,
    place: &'a Place,
    vcpu: u32,
    step: u64,
    /// First page and number of pages of this vCPU's share.
    first: u64,
    pages: u64,
    /// This vCPU's share of the work.
    work: u64,
    sink: &'a mut F,
}

impl<'a, F: FnMut(Write)> Run<'a, F> {
    fn new(part: &'a Part, place: &'a Place, vcpu: u32, step: u64, sink: &'a mut F) -> Self {
        let (first, pages) = place.share(part.pages, vcpu);
        Self { part, place, vcpu, step, first, pages, work: place.share(part.work, vcpu).1, sink }
    }

    fn emit(&mut self, page: u64, at: u64, len: u64, data: Data, how: How) {
        let offset = self.part.offset + page * PAGE_BYTES + at;
        (self.sink)(Write { offset, len: len as u32, data, how });
    }

    fn store_word(&mut self, page: u64, at: u64, value: u64) {
        self.emit(page, at, 8, bytes(u128::from(value)), How::Store);
    }

    /// This vCPU's numbers for the `i`th piece of work.
    fn own(&self, i: u64) -> SplitMix64 {
        self.part.random(self.place, Some(self.vcpu), self.step, i)
    }

    /// All vCPUs' numbers for the `i`th piece of work.
    fn common(&self, i: u64) -> SplitMix64 {
        self.part.random(self.place, None, self.step, i)
    }

    fn stamp(&mut self, page: u64, at: u64) {
        let stamp = key(self.place.seed, [STAMP, self.part.offset + page * PAGE_BYTES, at]);
        self.store_word(page, at, stamp);
    }

    fn stamp_own_pages(&mut self, at: u64) {
        for page in self.first..self.first + self.pages {
            self.stamp(page, at);
        }
    }

    fn stamp_own_line_of_every_page(&mut self) {
        for page in 0..self.part.pages {
            self.stamp(page, u64::from(self.vcpu) * LINE_BYTES);
        }
    }

    /// Every (pages / step)th page of this vCPU's share; the counter is the page's first word, clear of the stamp.
    fn dirtyram(&mut self) {
        for i in 0..self.work {
            let page = self.first + i * self.pages / self.work;
            self.emit(page, 0, 8, Data::Add(1), How::Increment);
        }
    }

    /// A random word of a page that `choose` picks by its index in the share.
    fn words(&mut self, mut choose: impl FnMut(&mut SplitMix64, u64) -> u64) {
        for i in 0..self.work {
            let mut random = self.own(i);
            let page = self.first + choose(&mut random, self.pages);
            let at = random.below(PAGE_BYTES / 8) * 8;
            self.store_word(page, at, random.next_u64());
        }
    }

    fn stream(&mut self) {
        // Reduced first: the step number has no bound.
        let position = (self.step - 1) % self.pages * self.work;
        for i in 0..self.work {
            let page = self.first + (position + i) % self.pages;
            let seed = self.own(i).next_u64();
            self.emit(page, 0, PAGE_BYTES, Data::Random(seed), How::Store);
        }
    }

    fn hotcold(&mut self) {
        let hot = self.part.extra;
        let stride = coprime_stride(self.pages);
        self.words(|random, pages| {
            if random.below(100) >= hot {
                return random.below(pages);
            }
            // Ranks scattered over the share, or all hot pages would be neighbours.
            ((u128::from(zipf(random, pages)) * u128::from(stride)) % u128::from(pages)) as u64
        });
    }

    fn full(&mut self) {
        for i in 0..self.work {
            let mut random = self.own(i);
            let page = self.first + random.below(self.pages);
            self.emit(page, 0, PAGE_BYTES, Data::Random(random.next_u64()), How::Store);
        }
    }

    /// Three quarters of the stores cross a page boundary, the others a line's.
    fn unaligned(&mut self) {
        for i in 0..self.work {
            let mut random = self.own(i);
            let len = 2 << random.below(3);
            let before = 1 + random.below(len - 1);
            let boundary = if random.below(4) > 0 {
                PAGE_BYTES * (1 + random.below(self.pages - 1))
            } else {
                PAGE_BYTES * random.below(self.pages) + LINE_BYTES * (1 + random.below(LINES - 1))
            };
            let data = bytes(u128::from(random.next_u64()) & ((1_u128 << (8 * len)) - 1));
            self.emit(self.first, boundary - before, len, data, How::Unaligned);
        }
    }

    fn pair(&mut self) {
        for i in 0..self.work {
            let mut random = self.own(i);
            let page = self.first + random.below(self.pages);
            let low = random.next_u64();
            let data = bytes((u128::from(random.next_u64()) << 64) | u128::from(low));
            match random.below(3) {
                0 => self.emit(page, random.below(PAGE_BYTES / 16) * 16, 16, data, How::Pair),
                1 => self.emit(page, random.below(PAGE_BYTES / 16) * 16, 16, data, How::Vector),
                _ => self.emit(page, random.below(PAGE_BYTES / 32) * 32, 32, Data::Random(low), How::VectorPair),
            }
        }
    }

    /// Line 0 of a page holds the word that all vCPUs add to, line 1 + vCPU those of one.
    fn own_line(&self) -> u64 {
        (1 + u64::from(self.vcpu)) * LINE_BYTES
    }

    fn add(&mut self, page: u64, at: u64, addend: u64, how: How) {
        self.emit(page, at, 8, Data::Add(addend), how);
    }

    fn exclusive(&mut self) {
        for i in 0..self.part.work {
            let shared_page = self.common(i).below(self.part.pages);
            let mut random = self.own(i);
            // Small, so that a word never wraps and a torn reading can be bounded.
            self.add(shared_page, 0, 1 + random.below(255), How::Exclusive);
            let page = random.below(self.part.pages);
            self.add(page, self.own_line(), 1 + random.below(255), How::Exclusive);
        }
    }

    /// Word 0 of the vCPU's line is added to, word 1 swapped, word 2 compared and swapped.
    fn lse(&mut self) {
        for i in 0..self.part.work {
            let shared_page = self.common(i).below(self.part.pages);
            let mut random = self.own(i);
            self.add(shared_page, 0, 1 + random.below(255), How::AtomicAdd);
            let page = random.below(self.part.pages);
            let line = self.own_line();
            let data = bytes(u128::from(random.next_u64()));
            match random.below(3) {
                0 => self.add(page, line, 1 + random.below(255), How::AtomicAdd),
                1 => self.emit(page, line + 8, 8, data, How::AtomicSwap),
                _ => self.emit(page, line + 16, 8, data, How::AtomicCas),
            }
        }
    }

    /// First zeroes what the step before filled, so that every zeroing changes bytes; then fills anew.
    fn dczva(&mut self) {
        if self.step > 1 {
            for i in 0..self.work {
                let mut random = self.part.random(self.place, Some(self.vcpu), self.step - 1, i);
                let (page, at) = self.half_page(&mut random);
                // Now and then the whole page.
                if random.below(4) == 0 {
                    self.emit(page, 0, PAGE_BYTES, Data::Zero, How::ZeroBlock);
                } else {
                    self.emit(page, at, HALF_BYTES, Data::Zero, How::ZeroBlock);
                }
            }
        }
        for i in 0..self.work {
            let mut random = self.own(i);
            let (page, at) = self.half_page(&mut random);
            self.emit(page, at, HALF_BYTES, Data::Random(random.next_u64()), How::Store);
        }
    }

    fn half_page(&self, random: &mut SplitMix64) -> (u64, u64) {
        (self.first + random.below(self.pages), random.below(2) * HALF_BYTES)
    }

    fn code(&mut self) {
        for i in 0..self.work {
            let mut random = self.own(i);
            let page = self.first + random.below(self.pages);
            let at = random.below(PAGE_BYTES / 16) * 16;
            let returns = random.next_u64() >> 16;
            let instructions = function(self.place.tables.arch(), returns);
            let function = instructions.iter().rev().fold(0_u128, |word, &next| (word << 32) | u128::from(next));
            self.emit(page, at, 16, bytes(function), How::Code { returns });
        }
    }

    /// The same pages for all vCPUs; lines congruent to the vCPU's index are its own.
    fn shared(&mut self) {
        let vcpu = u64::from(self.vcpu);
        let lines = (LINES - vcpu).div_ceil(self.place.vcpus);
        for i in 0..self.part.work {
            let page = self.common(i).below(self.part.pages);
            let mut random = self.own(i);
            let line = vcpu + self.place.vcpus * random.below(lines);
            self.emit(page, line * LINE_BYTES, LINE_BYTES, Data::Random(random.next_u64()), How::Store);
        }
    }
}

/// A function that returns `returns`, of 48 bits, as the architecture's calling convention has it.
const fn function(arch: Arch, returns: u64) -> [u32; 4] {
    let halves = [returns as u32 & 0xffff, (returns >> 16) as u32 & 0xffff, (returns >> 32) as u32 & 0xffff];
    match arch {
        // DDI 0487 C6.2: MOVZ, MOVK (64-bit; hw at bit 21, imm16 at bit 5) of x0, RET x30.
        Arch::Aarch64 => {
            [0xd280_0000 | halves[0] << 5, 0xf2a0_0000 | halves[1] << 5, 0xf2c0_0000 | halves[2] << 5, 0xd65f_03c0]
        }
        // DDI 0406 A8.8: MOVW, MOVT of r0, MOVW of r1 (imm4 at bit 16, imm12), BX lr.
        Arch::Armv7 => [
            0xe300_0000 | split(halves[0]),
            0xe340_0000 | split(halves[1]),
            0xe300_1000 | split(halves[2]),
            0xe12f_ff1e,
        ],
    }
}

/// An immediate of 16 bits as A32's moves have it.
const fn split(imm16: u32) -> u32 {
    (imm16 & 0xf000) << 4 | imm16 & 0xfff
}

/// A rank below `len` with a probability that falls as 1 / (rank + 1): Zipf's law with exponent 1, in integers alone.
///
/// The ranks from 2^k - 1 to 2^(k+1) - 2 have together the same weight for every k, as the law says but for the steps
/// inside a power of two. So a k is drawn evenly, then a rank in its interval. The last interval may be cut short.
fn zipf(random: &mut SplitMix64, len: u64) -> u64 {
    let intervals = u64::from(u64::BITS - len.leading_zeros());
    let k = random.below(intervals);
    let start = (1 << k) - 1;
    start + random.below((1 << k).min(len - start))
}

fn bytes(value: u128) -> Data {
    Data::Bytes(value.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_stays_in_bounds_and_falls_with_the_rank() {
        for len in 1..70_u64 {
            let mut random = SplitMix64::new(len);
            let mut counts = [0_u32; 70];
            for _ in 0..4000 {
                counts[zipf(&mut random, len) as usize] += 1;
            }
            assert_eq!(counts.iter().sum::<u32>(), 4000);
            assert!(counts[..len as usize].iter().all(|&count| count > 0), "{len}: every rank is drawn");
            if len >= 31 {
                let ratio = f64::from(counts[0]) / f64::from(counts[7..15].iter().sum::<u32>());
                assert!((0.8..1.25).contains(&ratio), "{len}: {ratio}");
            }
        }
    }

    #[test]
    fn functions_are_what_an_assembler_makes() {
        // movz x0, #0x1234; movk x0, #0x5678, lsl #16; movk x0, #0x9abc, lsl #32; ret
        assert_eq!(function(Arch::Aarch64, 0x9abc_5678_1234), [0xd282_4680, 0xf2aa_cf00, 0xf2d3_5780, 0xd65f_03c0]);
        // movw r0, #0x1234; movt r0, #0x5678; movw r1, #0x9abc; bx lr
        assert_eq!(function(Arch::Armv7, 0x9abc_5678_1234), [0xe301_0234, 0xe345_0678, 0xe309_1abc, 0xe12f_ff1e]);
    }

    #[test]
    fn shares_cover_everything_and_keep_order() {
        for vcpus in 1..=8_u32 {
            let place = Place { seed: 0, region_start: Gpa::new(0), tables: Tables::Lpae, vcpus: u64::from(vcpus) };
            for total in 0..40 {
                let mut next = 0;
                for vcpu in 0..vcpus {
                    let (first, count) = place.share(total, vcpu);
                    assert_eq!(first, next);
                    next += count;
                    assert!(place.share(total + 1, vcpu).1 >= count);
                }
                assert_eq!(next, total);
            }
        }
    }
}
