//! The software TLB: [`Tlb`], from guest virtual addresses to host addresses of RAM.
//!
//! Direct-mapped, in sub-pages of 4 KiB whatever the guest's granule. One comparison checks the page, the context
//! (privileged or not) and natural alignment: the low bits of a tag are zero, so that a misaligned address never matches.
//!
//! An entry's write tag is valid only while the page's bit in the dirty log has been set since the last harvest;
//! [`Tlb::drop_write_tags`] is the vCPU's part of a harvest. `exec::access` fills entries.

/// log2 of the number of entries: enough for 8 MiB, the default region, at one privilege.
const ENTRIES_SHIFT: u32 = 11;
const ENTRIES: usize = 1 << ENTRIES_SHIFT;

/// log2 of the size of a sub-page in bytes.
pub(crate) const PAGE_SHIFT: u32 = 12;
pub(crate) const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
const PAGE_MASK: u64 = !(PAGE_BYTES - 1);

/// The context bit of a tag: an unprivileged translation. It lies below the page number and above any alignment mask.
pub(crate) const USER: u64 = 1 << 11;

/// A tag that no address matches: an alignment bit is set in it.
const NO_TAG: u64 = u64::MAX;

/// In [`Entry::gpa`]: the memory type is Device.
const DEVICE: u64 = 1;
/// In [`Entry::gpa`]: permissions allow stores, whatever the dirty log.
const WRITABLE: u64 = 2;

/// One translation of a sub-page.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// Tag for loads.
    read: u64,
    /// Tag for stores, valid only while the page's dirty bit is set.
    write: u64,
    /// What to add to a virtual address to get the host address.
    addend: u64,
    /// Guest physical address of the sub-page, with [`DEVICE`] and [`WRITABLE`].
    gpa: u64,
}

/// A sub-page as the slow path sees it.
#[derive(Clone, Copy)]
pub(crate) struct SubPage {
    /// Host address of the byte asked for.
    pub(crate) host: u64,
    /// Guest physical address of the byte asked for.
    pub(crate) gpa: u64,
    /// Whether the memory type is Device, where a misaligned access faults.
    pub(crate) device: bool,
    /// Whether the write tag is valid: no need to mark the dirty log.
    pub(crate) marked: bool,
}

const NO_ENTRY: Entry = Entry { read: NO_TAG, write: NO_TAG, addend: 0, gpa: 0 };

/// The software TLB of one vCPU.
pub struct Tlb {
    entries: [Entry; ENTRIES],
    /// [`USER`] or 0: the context of ordinary loads and stores.
    context: u64,
    /// Counts the flushes, so that whoever derives something from a translation can tell that it is stale.
    generation: u64,
}

impl Default for Tlb {
    fn default() -> Self {
        Self::new()
    }
}

impl Tlb {
    /// An empty TLB.
    pub fn new() -> Self {
        Self { entries: [NO_ENTRY; ENTRIES], context: 0, generation: 0 }
    }

    /// Forgets every translation (TLBI of any kind, change of regime).
    pub fn flush(&mut self) {
        self.entries.fill(NO_ENTRY);
        self.generation += 1;
    }

    /// Makes every next store to a page take the slow path, which marks the dirty log: the vCPU's part of a harvest.
    pub fn drop_write_tags(&mut self) {
        for entry in &mut self.entries {
            entry.write = NO_TAG;
        }
    }

    /// A planted fault: as [`Tlb::drop_write_tags`], but the tags of the pages that `keep` names by guest physical address
    /// stay, stale.
    pub fn drop_write_tags_but(&mut self, keep: impl Fn(u64) -> bool) {
        for entry in &mut self.entries {
            if entry.write != NO_TAG && !keep(entry.gpa & PAGE_MASK) {
                entry.write = NO_TAG;
            }
        }
    }

    /// Sets the context of ordinary loads and stores.
    pub(crate) fn set_user(&mut self, user: bool) {
        self.context = if user { USER } else { 0 };
    }

    /// [`USER`] or 0: the context of ordinary loads and stores.
    #[inline(always)]
    pub(crate) fn context(&self) -> u64 {
        self.context
    }

    /// The number of flushes so far.
    #[inline(always)]
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    #[inline(always)]
    fn slot(va: u64, context: u64) -> usize {
        // The unprivileged half is the other one, so that EL0 and EL1 working on the same page do not evict each other.
        let half = (context >> 11) << (ENTRIES_SHIFT - 1);
        ((va >> PAGE_SHIFT ^ half) & (ENTRIES as u64 - 1)) as usize
    }

    /// The host address for a load of `1 << ALIGN` bytes, naturally aligned, if the TLB has it.
    #[inline(always)]
    pub(crate) fn read<const ALIGN: u32>(&self, va: u64) -> Option<u64> {
        let entry = &self.entries[Self::slot(va, self.context)];
        (entry.read == va & (PAGE_MASK | ((1 << ALIGN) - 1)) | self.context).then(|| va.wrapping_add(entry.addend))
    }

    /// The host address for a store of `1 << ALIGN` bytes, naturally aligned, if the TLB has it with a valid write tag.
    #[inline(always)]
    pub(crate) fn write<const ALIGN: u32>(&self, va: u64) -> Option<u64> {
        let entry = &self.entries[Self::slot(va, self.context)];
        (entry.write == va & (PAGE_MASK | ((1 << ALIGN) - 1)) | self.context).then(|| va.wrapping_add(entry.addend))
    }

    /// The host address for a load of two words of `1 << SHIFT` bytes in one page, each naturally aligned, if the TLB has it.
    #[inline(always)]
    pub(crate) fn read_pair<const SHIFT: u32>(&self, va: u64) -> Option<u64> {
        let entry = &self.entries[Self::slot(va, self.context)];
        (entry.read == Self::pair_tag::<SHIFT>(va) | self.context).then(|| va.wrapping_add(entry.addend))
    }

    /// The host address for a store as [`Tlb::read_pair`] loads, if the TLB has it with a valid write tag.
    #[inline(always)]
    pub(crate) fn write_pair<const SHIFT: u32>(&self, va: u64) -> Option<u64> {
        let entry = &self.entries[Self::slot(va, self.context)];
        (entry.write == Self::pair_tag::<SHIFT>(va) | self.context).then(|| va.wrapping_add(entry.addend))
    }

    /// What the tag of the first word's entry must be: the second word's page, which is another one where the pair crosses.
    #[inline(always)]
    fn pair_tag<const SHIFT: u32>(va: u64) -> u64 {
        va.wrapping_add(1 << SHIFT) & (PAGE_MASK | ((1 << SHIFT) - 1))
    }

    /// The slow path's look-up: any alignment, any context, and for `write` whatever the dirty log.
    pub(crate) fn find(&self, va: u64, context: u64, write: bool) -> Option<SubPage> {
        let entry = &self.entries[Self::slot(va, context)];
        let tag = va & PAGE_MASK | context;
        (entry.read == tag && (!write || entry.gpa & WRITABLE != 0)).then(|| SubPage {
            host: va.wrapping_add(entry.addend),
            gpa: entry.gpa & PAGE_MASK | va & !PAGE_MASK,
            device: entry.gpa & DEVICE != 0,
            marked: entry.write == tag,
        })
    }

    /// Installs the translation of the sub-page of `va`, whose bytes are at `page.host`.
    pub(crate) fn install(&mut self, va: u64, context: u64, page: SubPage, writable: bool) {
        let tag = va & PAGE_MASK | context;
        self.entries[Self::slot(va, context)] = Entry {
            read: tag,
            write: if writable && page.marked { tag } else { NO_TAG },
            addend: page.host.wrapping_sub(va),
            gpa: page.gpa & PAGE_MASK | if page.device { DEVICE } else { 0 } | if writable { WRITABLE } else { 0 },
        };
    }

    /// Validates the write tag of the sub-page of `va`: its dirty bit is set.
    pub(crate) fn marked(&mut self, va: u64, context: u64) {
        let entry = &mut self.entries[Self::slot(va, context)];
        if entry.read == va & PAGE_MASK | context && entry.gpa & WRITABLE != 0 {
            entry.write = entry.read;
        }
    }
}
