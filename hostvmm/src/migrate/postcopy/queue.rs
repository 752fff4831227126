//! What the source sends next in post-copy: [`PageQueue`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PostcopyError;
use crate::dirty::PageBitmap;
use crate::memory::SlotId;

/// Why pages are sent now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// Somebody waits for them: they go out at once, and alone.
    Requested,
    /// They have to go at some time.
    Background,
}

/// The pages that are still at the source alone. Each leaves the queue once.
///
/// Requests come before all else. After one the background goes on from there: who touches a page will touch its neighbours.
#[derive(Debug)]
pub struct PageQueue {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    pending: [PageBitmap; SlotId::COUNT],
    left: u64,
    requested: VecDeque<(SlotId, u64)>,
    /// Where the background goes on.
    cursor: (SlotId, u64),
    requests: u64,
}

impl PageQueue {
    /// Of `pending`, by slot, in wire pages.
    pub fn new(pending: [PageBitmap; SlotId::COUNT]) -> Self {
        let left = pending.iter().map(PageBitmap::count).sum();
        let cursor = (SlotId::Ram, 0);
        Self { inner: Mutex::new(Inner { pending, left, requested: VecDeque::new(), cursor, requests: 0 }) }
    }

    /// The destination waits for `page`. One that was sent is on its way, and nothing is to be done.
    ///
    /// # Errors
    /// [`PostcopyError::NoPage`].
    pub fn request(&self, slot: SlotId, page: u64) -> Result<(), PostcopyError> {
        let mut inner = self.lock();
        let pages = inner.pending[slot.index()].pages();
        if page >= pages {
            return Err(PostcopyError::NoPage { slot, page, pages });
        }
        inner.requests += 1;
        // A peer that asks for the same page over and over costs nothing.
        if inner.pending[slot.index()].test(page) && !inner.requested.contains(&(slot, page)) {
            inner.requested.push_back((slot, page));
        }
        Ok(())
    }

    /// The pages to send next, `most` at most; they are no longer in the queue. `None` when none is left.
    pub fn next(&self, most: u64) -> Option<(SlotId, Range<u64>, Urgency)> {
        let mut inner = self.lock();
        while let Some((slot, page)) = inner.requested.pop_front() {
            if inner.pending[slot.index()].test(page) {
                inner.cursor = (slot, page + 1);
                return Some((slot, inner.take(slot, page..page + 1), Urgency::Requested));
            }
        }
        let (slot, start) = inner.find()?;
        let pages = inner.pending[slot.index()].pages();
        let mut end = start + 1;
        while end < pages && end - start < most && inner.pending[slot.index()].test(end) {
            end += 1;
        }
        inner.cursor = (slot, end);
        Some((slot, inner.take(slot, start..end), Urgency::Background))
    }

    /// Pages left.
    pub fn left(&self) -> u64 {
        self.lock().left
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The first page from the cursor on, all slots around.
    fn find(&self) -> Option<(SlotId, u64)> {
        let (slot, from) = self.cursor;
        let other = SlotId::ALL[(slot.index() + 1) % SlotId::COUNT];
        let first = |slot: SlotId, from| next_set(&self.pending[slot.index()], from).map(|page| (slot, page));
        first(slot, from).or_else(|| first(other, 0)).or_else(|| first(slot, 0))
    }

    fn take(&mut self, slot: SlotId, pages: Range<u64>) -> Range<u64> {
        pages.clone().for_each(|page| self.pending[slot.index()].clear(page));
        self.left -= pages.end - pages.start;
        pages
    }
}

/// The first page of `bitmap` from `from` on.
fn next_set(bitmap: &PageBitmap, from: u64) -> Option<u64> {
    let words = bitmap.words();
    let mut index = usize::try_from(from / 64).ok()?;
    let mut word = *words.get(index)? & (u64::MAX << (from % 64));
    while word == 0 {
        index += 1;
        word = *words.get(index)?;
    }
    Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 200;

    fn bitmap(pages: &BTreeSet<u64>) -> PageBitmap {
        let mut bitmap = PageBitmap::new(PAGES, 4096);
        pages.iter().for_each(|page| bitmap.set(*page));
        bitmap
    }

    #[test]
    fn what_is_waited_for_comes_first_and_the_background_goes_on_from_there() {
        let queue = PageQueue::new([bitmap(&(0..10).collect()), bitmap(&(50..60).collect())]);
        assert_eq!(queue.next(4), Some((SlotId::Ram, 0..4, Urgency::Background)));
        queue.request(SlotId::Region, 55).unwrap();
        queue.request(SlotId::Region, 55).unwrap();
        queue.request(SlotId::Ram, 2).unwrap();
        queue.request(SlotId::Region, 7).unwrap();
        assert!(matches!(queue.request(SlotId::Ram, PAGES), Err(PostcopyError::NoPage { pages: PAGES, .. })));
        assert_eq!(queue.next(4), Some((SlotId::Region, 55..56, Urgency::Requested)));
        assert_eq!(queue.next(3), Some((SlotId::Region, 56..59, Urgency::Background)));
        assert_eq!(queue.next(100), Some((SlotId::Region, 59..60, Urgency::Background)));
        assert_eq!(queue.next(100), Some((SlotId::Ram, 4..10, Urgency::Background)));
        assert_eq!(queue.next(100), Some((SlotId::Region, 50..55, Urgency::Background)));
        assert_eq!((queue.next(100), queue.left(), queue.requests()), (None, 0, 4));
    }

    proptest! {
        #[test]
        fn every_page_leaves_once_whatever_is_asked_for(
            ram in prop::collection::btree_set(0..PAGES, 0..PAGES as usize),
            region in prop::collection::btree_set(0..PAGES, 0..PAGES as usize),
            requests in prop::collection::vec((0..2_usize, 0..PAGES), 0..300),
            most in 1..20_u64,
        ) {
            let queue = PageQueue::new([bitmap(&ram), bitmap(&region)]);
            let mut sent = [BTreeSet::new(), BTreeSet::new()];
            let mut requests = requests.into_iter();
            loop {
                let wanted = requests.next();
                if let Some((slot, page)) = wanted {
                    queue.request(SlotId::ALL[slot], page).unwrap();
                }
                let Some((slot, pages, urgency)) = queue.next(most) else { break };
                if let Some((wanted_slot, page)) = wanted && urgency == Urgency::Requested {
                    prop_assert_eq!((slot, pages.clone()), (SlotId::ALL[wanted_slot], page..page + 1));
                }
                prop_assert!(pages.end - pages.start <= most);
                for page in pages {
                    prop_assert!(sent[slot.index()].insert(page));
                }
            }
            prop_assert_eq!(sent, [ram, region]);
            prop_assert_eq!(queue.left(), 0);
        }
    }
}
