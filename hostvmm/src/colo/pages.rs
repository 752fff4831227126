//! Sets of pages of both slots, as checkpoints are about them: [`DirtyPages`], their counts, and how they are sent.

use abi::Gpa;

use super::info::DirtyCounts;
use super::vm::ColoVm;
use crate::dirty::PageBitmap;
use crate::memory::{GuestMemory, MemoryError, SlotId};
use crate::migrate::VmError;
use crate::migrate::wire::{ColoMessage, MAX_DIRTY_WORDS, WireError};

/// Bytes compared at a time.
const PIECE: usize = 64 << 10;

/// A set for each slot.
pub type DirtyPages = [PageBitmap; SlotId::COUNT];

/// No page of `memory`, in pages of `page_bytes`.
pub(super) fn clean(memory: &GuestMemory, page_bytes: u64) -> DirtyPages {
    SlotId::ALL.map(|slot| PageBitmap::covering(memory.slot(slot).range().len_bytes(), page_bytes))
}

/// Every page of `memory` that may hold something else than zeroes.
pub(super) fn data(memory: &GuestMemory, page_bytes: u64) -> Result<DirtyPages, MemoryError> {
    let mut pages = clean(memory, page_bytes);
    for slot in SlotId::ALL {
        for extent in memory.data_extents(slot, 0..memory.slot(slot).range().len_bytes())? {
            pages[slot.index()].set_bytes(extent.start, extent.end - extent.start);
        }
    }
    Ok(pages)
}

/// How many there are.
pub(super) fn count(pages: &DirtyPages) -> u64 {
    pages.iter().map(PageBitmap::count).sum()
}

/// Adds those of `other`.
pub(super) fn add(pages: &mut DirtyPages, other: &DirtyPages) {
    pages.iter_mut().zip(other).for_each(|(pages, other)| pages.or(other));
}

/// Those of either.
pub(super) fn union(one: &DirtyPages, other: &DirtyPages) -> DirtyPages {
    let mut all = one.clone();
    add(&mut all, other);
    all
}

/// Those of both.
pub(super) fn both(one: &DirtyPages, other: &DirtyPages) -> DirtyPages {
    let mut both = one.clone();
    both.iter_mut().zip(other).for_each(|(both, other)| both.and(other));
    both
}

/// Those of `one` that are not in `other`.
pub(super) fn without(one: &DirtyPages, other: &DirtyPages) -> DirtyPages {
    let mut rest = one.clone();
    rest.iter_mut().zip(other).for_each(|(rest, other)| rest.and_not(other));
    rest
}

/// The first page, and where it lies.
pub(super) fn first(pages: &DirtyPages, memory: &GuestMemory) -> Option<(SlotId, u64, Gpa)> {
    SlotId::ALL.into_iter().find_map(|slot| {
        let bitmap = &pages[slot.index()];
        let page = bitmap.iter().next()?;
        let gpa = memory.slot(slot).range().start().checked_add(page * bitmap.page_bytes())?;
        Some((slot, page, gpa))
    })
}

/// What a checkpoint's report says about them.
pub(super) fn counts(primary: &DirtyPages, secondary: &DirtyPages, flushed: &DirtyPages) -> DirtyCounts {
    DirtyCounts {
        primary_dirty: count(primary),
        secondary_dirty: count(secondary),
        both_dirty: count(&both(primary, secondary)),
        flushed: count(flushed),
    }
}

/// Fetches and resets the log of both slots.
pub(super) fn harvest(vm: &dyn ColoVm, into: &mut DirtyPages) -> Result<(), VmError> {
    SlotId::ALL.into_iter().try_for_each(|slot| vm.harvest(slot, &mut into[slot.index()]))
}

/// The messages that tell of them: parts of the bitmaps that are not empty.
pub(super) fn messages(pages: &DirtyPages) -> impl Iterator<Item = ColoMessage> + '_ {
    SlotId::ALL.into_iter().flat_map(move |slot| {
        let parts = pages[slot.index()].words().chunks(MAX_DIRTY_WORDS).zip(0_u64..);
        parts.filter(|(words, _)| words.iter().any(|word| *word != 0)).map(move |(words, part)| ColoMessage::Dirty {
            slot,
            first: part * MAX_DIRTY_WORDS as u64 * 64,
            words: words.to_vec(),
        })
    })
}

/// Adds the pages of a message, which comes from outside.
///
/// # Errors
/// [`WireError::Pages`] for pages that the slot does not have.
pub fn take(pages: &mut DirtyPages, slot: SlotId, first: u64, words: &[u64]) -> Result<(), WireError> {
    let bitmap = &mut pages[slot.index()];
    let (all, count) = (bitmap.pages(), words.len() as u64 * 64);
    let refused = WireError::Pages { slot, first, count, pages: all };
    let start = first / 64;
    if !first.is_multiple_of(64) || start.saturating_add(words.len() as u64) > all.div_ceil(64) {
        return Err(refused);
    }
    let tail = all % 64;
    if start + words.len() as u64 == all.div_ceil(64) && tail != 0 && words.last().is_some_and(|last| last >> tail != 0)
    {
        return Err(refused);
    }
    bitmap.fill_words(|mine| {
        for (mine, theirs) in mine[start as usize..].iter_mut().zip(words) {
            *mine |= theirs;
        }
    });
    Ok(())
}

/// The first page of `slot`, of the smaller kind, that is not the same in both memories.
pub(super) fn first_difference(
    one: &GuestMemory,
    other: &GuestMemory,
    slot: SlotId,
) -> Result<Option<Gpa>, MemoryError> {
    let range = one.slot(slot).range();
    let (mut ours, mut theirs) = (vec![0; PIECE], vec![0; PIECE]);
    for offset in (0..range.len_bytes()).step_by(PIECE) {
        let len = (range.len_bytes() - offset).min(PIECE as u64) as usize;
        one.copy_from_slot(slot, offset, &mut ours[..len])?;
        other.copy_from_slot(slot, offset, &mut theirs[..len])?;
        if ours[..len] != theirs[..len] {
            let page_bytes = workload::PAGE_BYTES as usize;
            let page = ours[..len].chunks(page_bytes).zip(theirs[..len].chunks(page_bytes)).position(|(a, b)| a != b);
            let at = offset + (page.unwrap_or(0) * page_bytes) as u64;
            return Ok(range.start().checked_add(at));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use abi::{GuestRange, map};
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 70;

    fn memory() -> GuestMemory {
        let range = |base, pages| GuestRange::new(base, pages * 4096 * 16).unwrap();
        GuestMemory::new(range(map::RAM_BASE, PAGES), range(map::REGION_BASE, 200), None).unwrap()
    }

    fn set(memory: &GuestMemory, pages: &[(usize, u64)]) -> DirtyPages {
        let mut set = clean(memory, 4096 * 16);
        pages.iter().for_each(|(slot, page)| set[*slot].set(page % set[*slot].pages()));
        set
    }

    proptest! {
        #[test]
        fn sets_are_sent_and_counted_as_they_are(
            one in prop::collection::vec((0..2_usize, 0..200_u64), 0..60),
            other in prop::collection::vec((0..2_usize, 0..200_u64), 0..60),
        ) {
            let memory = memory();
            let (one, other) = (set(&memory, &one), set(&memory, &other));
            let mut taken = clean(&memory, 4096 * 16);
            for message in messages(&one) {
                let ColoMessage::Dirty { slot, first, words } = message else { unreachable!() };
                take(&mut taken, slot, first, &words).unwrap();
            }
            prop_assert_eq!(&taken, &one);
            let all = union(&one, &other);
            let counts = counts(&one, &other, &all);
            prop_assert_eq!(counts.union(), counts.flushed);
            prop_assert_eq!(count(&without(&all, &other)), counts.primary_dirty - counts.both_dirty);
        }
    }

    #[test]
    fn pages_that_a_slot_does_not_have_are_refused() {
        let memory = memory();
        let mut pages = clean(&memory, 4096 * 16);
        for (first, words) in
            [(128, vec![1]), (64, vec![0, 1]), (64, vec![1 << 6]), (u64::MAX - 63, vec![1]), (3, vec![1])]
        {
            assert!(take(&mut pages, SlotId::Ram, first, &words).is_err(), "{first} {words:?}");
        }
        assert_eq!(count(&pages), 0);
        take(&mut pages, SlotId::Ram, 64, &[1 << 5]).unwrap();
        assert!(pages[0].test(69));
    }
}
