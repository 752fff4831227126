//! Which pages go into which batch: [`Pieces`].
//!
//! Threads that send side by side each take a piece at a time, so that none waits for another.

use std::ops::Range;

use crate::dirty::PageBitmap;
use crate::memory::SlotId;

/// Most bytes of guest memory in a piece: those of a batch.
const PIECE_BYTES: u64 = 256 << 10;

/// Cuts the pages of a pass into pieces.
#[derive(Debug)]
pub(crate) struct Pieces {
    runs: std::vec::IntoIter<(SlotId, Range<u64>)>,
    rest: Option<(SlotId, Range<u64>)>,
    most_pages: u64,
}

impl Pieces {
    /// Of `pages`, a bitmap a slot.
    pub(crate) fn new(pages: &[PageBitmap; SlotId::COUNT]) -> Self {
        let runs: Vec<_> =
            SlotId::ALL.into_iter().flat_map(|slot| pages[slot.index()].runs().map(move |run| (slot, run))).collect();
        Self { runs: runs.into_iter(), rest: None, most_pages: PIECE_BYTES / pages[0].page_bytes() }
    }
}

impl Iterator for Pieces {
    type Item = (SlotId, Vec<Range<u64>>);

    fn next(&mut self) -> Option<Self::Item> {
        let (slot, mut run) = self.rest.take().or_else(|| self.runs.next())?;
        let mut piece = Vec::new();
        let mut room = self.most_pages;
        loop {
            let end = run.end.min(run.start + room);
            room -= end - run.start;
            piece.push(run.start..end);
            if end < run.end {
                self.rest = Some((slot, end..run.end));
                return Some((slot, piece));
            }
            match self.runs.next() {
                Some((next, following)) if next == slot && room > 0 => run = following,
                other => {
                    self.rest = other;
                    return Some((slot, piece));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 300;

    proptest! {
        #[test]
        fn pieces_are_the_pages_in_order_and_no_larger_than_a_batch(
            ram in prop::collection::btree_set(0..PAGES, 0..200),
            region in prop::collection::btree_set(0..PAGES, 0..200),
        ) {
            let mut pages = [PageBitmap::new(PAGES, 4096), PageBitmap::new(PAGES, 4096)];
            ram.iter().for_each(|page| pages[0].set(*page));
            region.iter().for_each(|page| pages[1].set(*page));
            let mut seen = [Vec::new(), Vec::new()];
            for (slot, piece) in Pieces::new(&pages) {
                let count: u64 = piece.iter().map(|run| run.end - run.start).sum();
                prop_assert!(count > 0 && count * 4096 <= PIECE_BYTES);
                seen[slot.index()].extend(piece.into_iter().flatten());
            }
            prop_assert_eq!(&seen[0], &ram.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(&seen[1], &region.into_iter().collect::<Vec<_>>());
        }
    }
}
