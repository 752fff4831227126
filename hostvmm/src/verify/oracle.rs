//! The oracle: judges a dirty log and a copy against the model.
//!
//! In lockstep all vCPUs are parked, so the log must be exact: [`judge_sets`] compares the harvested set H with the
//! predicted set W, and [`first_mismatch`] finds the first byte in which the copy differs from the model. Pages in H that
//! the plan did not write must each be explained by an [`ExtraRule`]; there is no tolerance. While the guest runs on,
//! [`live::LiveOracle`] judges what can be said for certain. Nothing here needs a VM: sets and bytes come in, verdicts go out.

pub mod live;
#[cfg(test)]
mod simulation;

use std::fmt;
use std::ops::Range;

use abi::Gpa;
use workload::PAGE_BYTES;

use super::model::Model;
use crate::dirty::PageBitmap;
use crate::memory::MemoryError;
use crate::pass::PageSource;

const PAGE: usize = PAGE_BYTES as usize;

/// A reason why a page that the plan did not write may be in a harvest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtraRule {
    /// The first harvest of a log that starts with all pages set.
    InitiallyAllSet,
    /// The log's unit is larger than a host page, and another page of the unit was written.
    LogUnit,
    /// The VMM itself wrote the page.
    WrittenByVmm,
}

impl ExtraRule {
    /// All rules, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::InitiallyAllSet, Self::WrittenByVmm, Self::LogUnit];

    /// The rule's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InitiallyAllSet => "initially-all-set",
            Self::LogUnit => "log-unit",
            Self::WrittenByVmm => "written-by-vmm",
        }
    }
}

impl fmt::Display for ExtraRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What may explain extra pages in one harvest.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// Whether this is the first harvest of a log that starts with all pages set.
    pub initially_all_set: bool,
    /// Bytes that one bit of the log stands for; a host page unless the log is coarser.
    pub log_unit_bytes: u64,
    /// Pages that the VMM wrote since the last harvest, in host pages.
    pub written_by_vmm: Option<&'a PageBitmap>,
}

impl Circumstances<'_> {
    /// Nothing special: a log of `page_bytes` that starts clean, and a VMM that keeps its hands off.
    pub const fn plain(page_bytes: u64) -> Self {
        Self { initially_all_set: false, log_unit_bytes: page_bytes, written_by_vmm: None }
    }

    fn explains(&self, rule: ExtraRule, predicted: &PageBitmap) -> PageBitmap {
        let mut pages = PageBitmap::new(predicted.pages(), predicted.page_bytes());
        match rule {
            ExtraRule::InitiallyAllSet if self.initially_all_set => pages.set_all(),
            ExtraRule::WrittenByVmm => {
                if let Some(written) = self.written_by_vmm {
                    pages.or(written);
                }
            }
            ExtraRule::LogUnit if self.log_unit_bytes > predicted.page_bytes() => {
                let mut written = predicted.clone();
                if let Some(by_vmm) = self.written_by_vmm {
                    written.or(by_vmm);
                }
                let len_bytes = predicted.pages() * predicted.page_bytes();
                pages = written.rescaled(self.log_unit_bytes, len_bytes).rescaled(predicted.page_bytes(), len_bytes);
            }
            ExtraRule::InitiallyAllSet | ExtraRule::LogUnit => {}
        }
        pages
    }
}

/// How a harvested set compares with a predicted one, in host pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetVerdict {
    /// Predicted, not harvested: the log lost a write.
    pub missing: PageBitmap,
    /// Harvested, not predicted.
    pub extra: PageBitmap,
    /// How many extra pages each rule explains; a page counts for the first rule that explains it.
    pub explained: Vec<(ExtraRule, u64)>,
    /// Extra pages that no rule explains.
    pub unexplained: PageBitmap,
}

impl SetVerdict {
    /// Whether nothing is missing and all that is extra is explained.
    pub fn is_exact(&self) -> bool {
        self.missing.is_clean() && self.unexplained.is_clean()
    }

    /// Number of extra pages that some rule explains.
    pub fn explained_pages(&self) -> u64 {
        self.explained.iter().map(|(_, pages)| pages).sum()
    }
}

/// Compares the set `harvested` with `predicted`.
///
/// # Panics
/// If the two sets range over different pages.
pub fn judge_sets(predicted: &PageBitmap, harvested: &PageBitmap, circumstances: &Circumstances<'_>) -> SetVerdict {
    judge_bounds(predicted, predicted, harvested, circumstances)
}

/// Compares `harvested` with what `must` and what `may` be in it.
fn judge_bounds(
    must: &PageBitmap,
    may: &PageBitmap,
    harvested: &PageBitmap,
    circumstances: &Circumstances<'_>,
) -> SetVerdict {
    let extra = harvested.without(may);
    let mut unexplained = extra.clone();
    let mut explained = Vec::new();
    for rule in ExtraRule::ALL {
        let before = unexplained.count();
        if before == 0 {
            break;
        }
        unexplained.and_not(&circumstances.explains(rule, may));
        let pages = before - unexplained.count();
        if pages > 0 {
            explained.push((rule, pages));
        }
    }
    SetVerdict { missing: must.without(harvested), extra, explained, unexplained }
}

/// The first byte of a copy that is not what it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// The pass after which the copy was wrong.
    pub pass: u64,
    /// Index of the page in the region, in workload pages.
    pub page: u64,
    /// Address of the byte.
    pub gpa: Gpa,
    /// The model's byte.
    pub expected: u8,
    /// The copy's byte.
    pub found: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, page, gpa, expected, found } = self;
        write!(f, "pass {pass}: page {page}, GPA {gpa}: expected {expected:#04x}, found {found:#04x}")
    }
}

/// The first byte in which `copy` differs from `model` after `pass`. Pages that neither has ever held data in are not read.
///
/// # Errors
/// [`MemoryError`] where the copy cannot be searched for holes.
///
/// # Panics
/// If the copy has another size than the region.
pub fn first_mismatch(
    model: &Model,
    copy: &(impl PageSource + ?Sized),
    pass: u64,
) -> Result<Option<Mismatch>, MemoryError> {
    assert_eq!(model.len_bytes(), copy.len_bytes(), "a copy has the region's size");
    let mut pages = PageBitmap::covering(model.len_bytes(), PAGE_BYTES);
    for Range { start, end } in model.data_extents()?.into_iter().chain(copy.data_extents()?) {
        pages.set_bytes(start, end - start);
    }
    let mut found = [0; PAGE];
    for page in pages.iter() {
        copy.read(page * PAGE_BYTES, &mut found);
        if let Some(at) = first_difference(model.page(page), &found) {
            return Ok(Some(mismatch(model, pass, page, at, &found)));
        }
    }
    Ok(None)
}

fn first_difference(expected: &[u8], found: &[u8]) -> Option<usize> {
    // Equality of slices is a fast comparison of memory; the search for the byte is not.
    if expected == found {
        return None;
    }
    expected.iter().zip(found).position(|(expected, found)| expected != found)
}

fn mismatch(model: &Model, pass: u64, page: u64, at: usize, found: &[u8]) -> Mismatch {
    let gpa = model.base().checked_add(page * PAGE_BYTES + at as u64);
    Mismatch { pass, page, gpa: gpa.expect("a region does not wrap"), expected: model.page(page)[at], found: found[at] }
}

#[cfg(test)]
mod tests {
    use abi::{GuestRange, Tables, VaBits, map};
    use workload::{Geometry, Plan, Workload};

    use super::*;

    fn set(pages: &[u64]) -> PageBitmap {
        let mut set = PageBitmap::new(40, 4096);
        pages.iter().for_each(|&page| set.set(page));
        set
    }

    #[test]
    fn missing_and_extra_pages_are_told_apart() {
        let verdict = judge_sets(&set(&[1, 2, 3]), &set(&[2, 3, 4]), &Circumstances::plain(4096));
        assert_eq!((verdict.missing.clone(), verdict.extra.clone()), (set(&[1]), set(&[4])));
        assert_eq!(verdict.unexplained, set(&[4]));
        assert!(!verdict.is_exact());
        assert!(judge_sets(&set(&[5]), &set(&[5]), &Circumstances::plain(4096)).is_exact());
    }

    #[test]
    fn each_extra_page_is_explained_by_a_rule_or_not_at_all() {
        let vmm = set(&[20]);
        let circumstances =
            Circumstances { initially_all_set: false, log_unit_bytes: 16384, written_by_vmm: Some(&vmm) };
        let verdict = judge_sets(&set(&[1]), &set(&[0, 1, 2, 3, 20, 21, 30]), &circumstances);
        assert_eq!(verdict.explained, [(ExtraRule::WrittenByVmm, 1), (ExtraRule::LogUnit, 4)]);
        assert_eq!((verdict.explained_pages(), verdict.unexplained), (5, set(&[30])));

        let all = Circumstances { initially_all_set: true, ..Circumstances::plain(4096) };
        let verdict = judge_sets(&set(&[1]), &set(&[0, 2]), &all);
        assert_eq!(verdict.explained, [(ExtraRule::InitiallyAllSet, 2)]);
        assert_eq!(verdict.missing, set(&[1]), "no rule excuses a missing page");
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        let region = GuestRange::new(map::REGION_BASE, 1 << 20).unwrap();
        let workload = Workload::parse("full").unwrap();
        let plan = Plan::new(&workload, 3, Geometry { region, tables: Tables::V8(VaBits::ALL[1]), vcpus: 1 }).unwrap();
        let mut model = Model::new(plan);
        model.advance_all(4, 4096);
        let mut copy = vec![0; 1 << 20];
        model.read(0, &mut copy);
        assert_eq!(first_mismatch(&model, copy.as_slice(), 3).unwrap(), None);
        let expected = copy[70_000];
        copy[70_000] ^= 1;
        copy[90_000] ^= 1;
        let wrong = first_mismatch(&model, copy.as_slice(), 3).unwrap().unwrap();
        let found = copy[70_000];
        let gpa = Gpa::new(0x2000_0000 + 70_000);
        assert_eq!(wrong, Mismatch { pass: 3, page: 17, gpa, expected, found });
        assert!(wrong.to_string().starts_with("pass 3: page 17, GPA 0x20011170: expected 0x"));
    }
}
