//! A set of host pages of one memslot: [`PageBitmap`].
//!
//! It is what a [`super::DirtyLog`] yields, what the copier walks as runs, what the verifier compares with the plan, and what
//! the file protocol of [`crate::replicate`] carries as bytes. Bits past the last page are always zero, whatever a
//! backend wrote there, so counting and comparing need no mask.

use std::ops::Range;

use thiserror::Error;

const WORD_BITS: u64 = 64;

/// A set of pages, one bit a page, counted from the start of one memslot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageBitmap {
    words: Vec<u64>,
    pages: u64,
    page_bytes: u64,
}

/// Bytes that are no bitmap of the expected number of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a bitmap of {pages} pages has {expected} bytes, not {given}")]
pub struct BitmapSizeError {
    /// Pages of the bitmap.
    pub pages: u64,
    /// Bytes that many pages take.
    pub expected: usize,
    /// Bytes given.
    pub given: usize,
}

impl PageBitmap {
    /// An empty set over `pages` pages of `page_bytes` each.
    ///
    /// # Panics
    /// If `page_bytes` is not a power of two, or the set is larger than the address space.
    pub fn new(pages: u64, page_bytes: u64) -> Self {
        assert!(page_bytes.is_power_of_two(), "a page size is a power of two");
        let words = usize::try_from(pages.div_ceil(WORD_BITS)).expect("a bitmap fits the address space");
        Self { words: vec![0; words], pages, page_bytes }
    }

    /// An empty set over the pages that cover `len_bytes`; a partial last page counts as one.
    pub fn covering(len_bytes: u64, page_bytes: u64) -> Self {
        Self::new(len_bytes.div_ceil(page_bytes), page_bytes)
    }

    /// Pages that the set ranges over, set or not.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Bytes of one page: a power of two.
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// The words, page `64 * i + j` at bit `j` of word `i`.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Lets a backend write the words in place, then drops what it set past the last page.
    pub fn fill_words<R>(&mut self, fill: impl FnOnce(&mut [u64]) -> R) -> R {
        let result = fill(&mut self.words);
        self.trim();
        result
    }

    /// Adds `page`.
    ///
    /// # Panics
    /// If `page` is not below [`Self::pages`].
    pub fn set(&mut self, page: u64) {
        let (word, bit) = self.place(page);
        self.words[word] |= bit;
    }

    /// Removes `page`.
    ///
    /// # Panics
    /// If `page` is not below [`Self::pages`].
    pub fn clear(&mut self, page: u64) {
        let (word, bit) = self.place(page);
        self.words[word] &= !bit;
    }

    /// Whether `page` is in the set. A page past the end is not.
    pub fn test(&self, page: u64) -> bool {
        page < self.pages && {
            let (word, bit) = self.place(page);
            self.words[word] & bit != 0
        }
    }

    /// Adds every page of `range`.
    ///
    /// # Panics
    /// If the range ends past [`Self::pages`].
    pub fn set_range(&mut self, range: Range<u64>) {
        assert!(range.end <= self.pages, "page range {range:?} ends past {} pages", self.pages);
        let mut page = range.start;
        while page < range.end {
            let bit = page % WORD_BITS;
            let count = (WORD_BITS - bit).min(range.end - page);
            let (word, _) = self.place(page);
            self.words[word] |= (u64::MAX >> (WORD_BITS - count)) << bit;
            page += count;
        }
    }

    /// Adds every page that the bytes `[offset, offset + len_bytes)` of the slot touch; what lies past the end is ignored.
    pub fn set_bytes(&mut self, offset: u64, len_bytes: u64) {
        if len_bytes > 0 {
            let start = (offset / self.page_bytes).min(self.pages);
            let end = offset.saturating_add(len_bytes).div_ceil(self.page_bytes).min(self.pages);
            self.set_range(start..end.max(start));
        }
    }

    /// Adds every page.
    pub fn set_all(&mut self) {
        self.words.fill(u64::MAX);
        self.trim();
    }

    /// Removes every page.
    pub fn clear_all(&mut self) {
        self.words.fill(0);
    }

    /// Adds every page of `other`.
    ///
    /// # Panics
    /// If the two range over different pages.
    pub fn or(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine | theirs);
    }

    /// Keeps the pages that are also in `other`.
    ///
    /// # Panics
    /// If the two range over different pages.
    pub fn and(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine & theirs);
    }

    /// Removes every page of `other`.
    ///
    /// # Panics
    /// If the two range over different pages.
    pub fn and_not(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine & !theirs);
    }

    /// The pages of this set that are not in `other`.
    ///
    /// # Panics
    /// If the two range over different pages.
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.and_not(other);
        rest
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether the set holds no page: what the replication tests call a clean bitmap.
    pub fn is_clean(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The pages of the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().zip(0_u64..).filter(|(word, _)| **word != 0).flat_map(|(word, index)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = u64::from(rest.trailing_zeros());
                    rest &= rest - 1;
                    index * WORD_BITS + bit
                })
            })
        })
    }

    /// The maximal half-open runs of set pages, in order: two runs are never adjacent.
    pub fn runs(&self) -> Runs<'_> {
        self.runs_within(0..self.pages)
    }

    /// As [`Self::runs`], of the pages of `range` alone: what of a run lies outside is left out.
    ///
    /// # Panics
    /// If the range ends past [`Self::pages`].
    pub fn runs_within(&self, range: Range<u64>) -> Runs<'_> {
        assert!(range.end <= self.pages, "page range {range:?} ends past {} pages", self.pages);
        Runs { bitmap: self, next: range.start, end: range.end }
    }

    /// Cuts the pages into at most `count` ranges that together are all of them and hold about as many pages of the set each:
    /// up to a word of bits more or less. At least one.
    pub fn shares(&self, count: u64) -> Vec<Range<u64>> {
        let quota = self.count().div_ceil(count.max(1)).max(1);
        let (mut out, mut start, mut held) = (Vec::new(), 0, 0);
        for (word, index) in self.words.iter().zip(1_u64..) {
            held += u64::from(word.count_ones());
            let end = index * WORD_BITS;
            if held >= quota && end < self.pages && out.len() as u64 + 1 < count {
                out.push(start..end);
                (start, held) = (end, 0);
            }
        }
        out.push(start..self.pages);
        out
    }

    /// The same set counted in pages of another size. A larger page is in the set if any page within it was; a smaller one if
    /// the page around it was. `len_bytes` is the slot's size, which bounds the last page.
    ///
    /// # Panics
    /// If `page_bytes` is not a power of two.
    pub fn rescaled(&self, page_bytes: u64, len_bytes: u64) -> Self {
        let mut scaled = Self::covering(len_bytes, page_bytes);
        for run in self.runs() {
            scaled.set_bytes(run.start * self.page_bytes, (run.end - run.start) * self.page_bytes);
        }
        scaled
    }

    /// Bytes that [`Self::to_bytes`] yields: one bit a page, rounded up.
    pub fn byte_len(&self) -> usize {
        usize::try_from(self.pages.div_ceil(8)).expect("a bitmap fits the address space")
    }

    /// The set as the file protocol carries it: page `8 * i + j` is bit `j` (least significant first) of byte `i`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.byte_len());
        bytes
    }

    /// The set that [`Self::to_bytes`] gave. Bits past the last page are ignored.
    ///
    /// # Errors
    /// [`BitmapSizeError`] where `bytes` is not exactly as long as that many pages take.
    pub fn from_bytes(bytes: &[u8], pages: u64, page_bytes: u64) -> Result<Self, BitmapSizeError> {
        let mut bitmap = Self::new(pages, page_bytes);
        if bytes.len() != bitmap.byte_len() {
            return Err(BitmapSizeError { pages, expected: bitmap.byte_len(), given: bytes.len() });
        }
        for (word, chunk) in bitmap.words.iter_mut().zip(bytes.chunks(8)) {
            let mut raw = [0; 8];
            raw[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(raw);
        }
        bitmap.trim();
        Ok(bitmap)
    }

    fn place(&self, page: u64) -> (usize, u64) {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        (usize::try_from(page / WORD_BITS).expect("a bitmap fits the address space"), 1 << (page % WORD_BITS))
    }

    fn combine(&mut self, other: &Self, op: impl Fn(u64, u64) -> u64) {
        assert_eq!(
            (self.pages, self.page_bytes),
            (other.pages, other.page_bytes),
            "bitmaps range over different pages"
        );
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine = op(*mine, *theirs);
        }
    }

    fn trim(&mut self) {
        let tail = self.pages % WORD_BITS;
        if tail != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << tail) - 1;
        }
    }

    /// First page at or after `from` whose bit is `value`, or the end.
    fn find(&self, from: u64, value: bool) -> u64 {
        let flip = if value { 0 } else { u64::MAX };
        let mut page = from;
        while page < self.pages {
            let (word, _) = self.place(page);
            let rest = (self.words[word] ^ flip) >> (page % WORD_BITS);
            if rest != 0 {
                return (page + u64::from(rest.trailing_zeros())).min(self.pages);
            }
            page = (page / WORD_BITS + 1) * WORD_BITS;
        }
        self.pages
    }
}

/// Iterator over the maximal runs of a [`PageBitmap`], or of a range of its pages.
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    bitmap: &'a PageBitmap,
    next: u64,
    end: u64,
}

impl Iterator for Runs<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let start = self.bitmap.find(self.next, true);
        if start >= self.end {
            self.next = self.end;
            return None;
        }
        self.next = self.bitmap.find(start, false).min(self.end);
        Some(start..self.next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn bitmap(pages: u64, set: &BTreeSet<u64>) -> PageBitmap {
        let mut bitmap = PageBitmap::new(pages, 4096);
        set.iter().for_each(|page| bitmap.set(*page));
        bitmap
    }

    fn sets() -> impl Strategy<Value = (u64, BTreeSet<u64>, BTreeSet<u64>)> {
        (1_u64..400).prop_flat_map(|pages| {
            let set = || prop::collection::btree_set(0..pages, 0..=usize::try_from(pages).unwrap());
            (Just(pages), set(), set())
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_numbers((pages, a, b) in sets()) {
            let (left, right) = (bitmap(pages, &a), bitmap(pages, &b));
            prop_assert_eq!(left.count(), a.len() as u64);
            prop_assert_eq!(left.is_clean(), a.is_empty());
            prop_assert_eq!(left.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert!((0..pages + 70).all(|page| left.test(page) == a.contains(&page)));
            let mut or = left.clone();
            or.or(&right);
            prop_assert_eq!(or, bitmap(pages, &(&a | &b)));
            let mut and = left.clone();
            and.and(&right);
            prop_assert_eq!(and, bitmap(pages, &(&a & &b)));
            prop_assert_eq!(left.without(&right), bitmap(pages, &(&a - &b)));
            let bytes = left.to_bytes();
            prop_assert_eq!(PageBitmap::from_bytes(&bytes, pages, 4096).unwrap(), left);
        }

        #[test]
        fn shares_are_all_pages_and_hold_as_many_of_the_set((pages, a, _) in sets(), count in 1_u64..6) {
            let bitmap = bitmap(pages, &a);
            let shares = bitmap.shares(count);
            prop_assert!(shares.len() as u64 <= count);
            prop_assert!(shares.iter().all(|share| !share.is_empty()));
            prop_assert_eq!(shares.iter().cloned().flatten().collect::<Vec<_>>(), (0..pages).collect::<Vec<_>>());
            let quota = bitmap.count().div_ceil(count);
            for share in shares {
                let held: Vec<_> = bitmap.runs_within(share.clone()).flatten().collect();
                prop_assert_eq!(&held, &a.range(share).copied().collect::<Vec<_>>());
                prop_assert!((held.len() as u64) < quota + WORD_BITS);
            }
        }

        #[test]
        fn runs_are_maximal_and_cover_the_set((pages, a, _) in sets()) {
            let set = bitmap(pages, &a);
            let runs: Vec<_> = set.runs().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(runs.into_iter().flatten().collect::<BTreeSet<_>>(), a);
        }

        #[test]
        fn ranges_agree_with_single_pages(pages in 1_u64..300, start in 0_u64..300, len in 0_u64..300) {
            let (start, end) = (start.min(pages), (start + len).min(pages).max(start.min(pages)));
            let mut set = PageBitmap::new(pages, 4096);
            set.set_range(start..end);
            prop_assert_eq!(set, bitmap(pages, &(start..end).collect()));
        }

        #[test]
        fn rescaling_down_and_up_keeps_the_set((pages, a, _) in sets()) {
            let len = pages * 16384;
            let mut set = PageBitmap::new(pages, 16384);
            a.iter().for_each(|page| set.set(*page));
            let fine = set.rescaled(4096, len);
            prop_assert_eq!(fine.count(), 4 * set.count());
            prop_assert_eq!(fine.rescaled(16384, len), set);
        }
    }

    #[test]
    fn bytes_are_least_significant_bit_first() {
        let set = bitmap(20, &BTreeSet::from([0, 9, 15, 19]));
        assert_eq!(set.to_bytes(), [0x01, 0x82, 0x08]);
    }

    #[test]
    fn bits_past_the_last_page_are_dropped() {
        let mut set = PageBitmap::new(70, 4096);
        set.fill_words(|words| words.fill(u64::MAX));
        assert_eq!(set.count(), 70);
        assert_eq!(PageBitmap::from_bytes(&[0xff; 9], 70, 4096).unwrap(), set);
        set.clear_all();
        set.set_all();
        assert_eq!(set.count(), 70);
        assert!(set.runs().eq(std::iter::once(0..70)));
    }

    #[test]
    fn bytes_of_another_length_are_refused() {
        assert!(PageBitmap::from_bytes(&[0; 8], 70, 4096).is_err());
        assert!(PageBitmap::from_bytes(&[0; 10], 70, 4096).is_err());
    }
}
