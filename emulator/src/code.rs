//! Lowered code: [`CodeCache`], blocks of ops by page of code.
//!
//! A page is keyed by its virtual and its guest physical address, so that branch targets are absolute and an `IC IVAU` finds
//! it. A block is lowered when it is first entered; it ends at the page, at an op that ends blocks, or at [`BLOCK_OPS`].
//! Like a real instruction cache it may be stale: only instruction cache maintenance makes it forget. What it forgets is
//! freed by the run loop between two blocks, never under a running one.
#![expect(unsafe_code, reason = "blocks are run while the vCPU that owns them is borrowed")]

use std::collections::HashMap;
use std::ptr::NonNull;

use crate::op::Op;
use crate::tlb::PAGE_BYTES;

/// Most ops in a block.
pub const BLOCK_OPS: usize = 64;

/// Instructions in a page.
const PAGE_INSTRUCTIONS: usize = (PAGE_BYTES / 4) as usize;
/// Most pages of lowered code before all are forgotten.
const MAX_PAGES: usize = 2048;
/// Entries of the map from virtual pages to lowered pages.
const MAP_ENTRIES: usize = 64;
/// A tag that no page has: pages are aligned.
const NO_TAG: u64 = 1;

/// A block of a [`CodeCache`]. It is valid until the cache's next [`CodeCache::settle`].
#[derive(Clone, Copy)]
pub(crate) struct Block(NonNull<[Op]>);

// SAFETY: a block holds only plain data and function pointers, and is never written to once it is made.
unsafe impl Send for Block {}

impl Block {
    /// The ops: at least one.
    ///
    /// # Safety
    /// The cache that gave the block out must not have settled since, nor may it settle or be dropped while they are in use.
    #[inline(always)]
    pub(crate) unsafe fn ops<'a>(self) -> &'a [Op] {
        // SAFETY: the allocation lives as the caller promises, and is not written to.
        unsafe { self.0.as_ref() }
    }
}

/// One page of lowered code.
struct CodePage {
    /// By instruction: the block that starts there.
    blocks: Box<[Option<Block>; PAGE_INSTRUCTIONS]>,
    /// Host address of the page's bytes.
    host: u64,
}

impl Drop for CodePage {
    fn drop(&mut self) {
        for block in self.blocks.iter().flatten() {
            // SAFETY: each pointer came from `Box::leak` in `CodeCache::insert` and is freed once, here.
            drop(unsafe { Box::from_raw(block.0.as_ptr()) });
        }
    }
}

/// One entry of the map from virtual pages to lowered pages.
#[derive(Clone, Copy)]
struct Mapping {
    tag: u64,
    page: usize,
}

const NO_MAPPING: Mapping = Mapping { tag: NO_TAG, page: 0 };

/// The lowered code of one vCPU.
pub struct CodeCache {
    pages: Vec<CodePage>,
    by_address: HashMap<(u64, u64), usize>,
    map: [Mapping; MAP_ENTRIES],
    /// The TLB's generation that `map` was made from.
    generation: u64,
    /// A flush waits for the end of the block.
    stale: bool,
}

impl Default for CodeCache {
    fn default() -> Self {
        Self::new()
    }
}

impl CodeCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self {
            pages: Vec::new(),
            by_address: HashMap::new(),
            map: [NO_MAPPING; MAP_ENTRIES],
            generation: 0,
            stale: false,
        }
    }

    /// Forgets all lowered code, before the next block is run.
    pub fn flush(&mut self) {
        self.stale = true;
    }

    /// Forgets the code of the 4 KiB page at guest physical `gpa`, if there is any, before the next block is run.
    pub fn flush_page(&mut self, gpa: u64) {
        let page = gpa & !(PAGE_BYTES - 1);
        // Other pages' blocks are lowered anew soon enough; there is no order among pages to keep.
        self.stale |= self.by_address.keys().any(|&(_, of)| of == page);
    }

    /// Frees what was flushed, and drops the map where translations changed. Only between blocks.
    pub(crate) fn settle(&mut self, generation: u64) {
        if self.stale || self.pages.len() >= MAX_PAGES {
            self.pages.clear();
            self.by_address.clear();
        } else if self.generation == generation {
            return;
        }
        self.stale = false;
        self.generation = generation;
        self.map = [NO_MAPPING; MAP_ENTRIES];
    }

    /// Which entry of the map, and what tag, belongs to `pc`. Privileged fetches have other permissions.
    #[inline(always)]
    fn key(pc: u64, user: u64) -> (usize, u64) {
        let page = pc & !(PAGE_BYTES - 1);
        ((pc >> PAGE_BYTES.ilog2()) as usize & (MAP_ENTRIES - 1), page | user)
    }

    /// The lowered page of `pc`, if a translation for it is known. `user` is `tlb::USER` or 0.
    #[inline(always)]
    pub(crate) fn page(&self, pc: u64, user: u64) -> Option<usize> {
        let (entry, tag) = Self::key(pc, user);
        let mapping = self.map[entry];
        (mapping.tag == tag).then_some(mapping.page)
    }

    /// Notes that `pc` translates to the page at `gpa`, whose bytes are at `host`.
    pub(crate) fn map_page(&mut self, pc: u64, user: u64, gpa: u64, host: u64) -> usize {
        let (entry, tag) = Self::key(pc, user);
        let pages = &mut self.pages;
        let page = *self.by_address.entry((pc & !(PAGE_BYTES - 1), gpa)).or_insert_with(|| {
            pages.push(CodePage { blocks: Box::new([None; PAGE_INSTRUCTIONS]), host });
            pages.len() - 1
        });
        self.map[entry] = Mapping { tag, page };
        page
    }

    /// Host address of the bytes of a page.
    pub(crate) fn host(&self, page: usize) -> u64 {
        self.pages[page].host
    }

    /// The block at `pc` in `page`, if it is lowered. It stays valid until [`CodeCache::settle`].
    #[inline(always)]
    pub(crate) fn block(&self, page: usize, pc: u64) -> Option<Block> {
        self.pages.get(page)?.blocks[(pc % PAGE_BYTES / 4) as usize]
    }

    /// Keeps the block at `pc` in `page`.
    pub(crate) fn insert(&mut self, page: usize, pc: u64, ops: Vec<Op>) -> Block {
        let block = Block(NonNull::from(Box::leak(ops.into_boxed_slice())));
        let slot = &mut self.pages[page].blocks[(pc % PAGE_BYTES / 4) as usize];
        debug_assert!(slot.is_none(), "a block is lowered once");
        *slot = Some(block);
        block
    }
}
