//! One memslot: a guest range, its mapping and what is behind it.
#![expect(unsafe_code, reason = "accesses to a mapping that no Rust reference may cover")]

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;
use std::sync::OnceLock;

use abi::GuestRange;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom, fallocate, memfd_create, seek};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::backing::{Backing, BackingUnavailable};
use super::mapping::{Mapping, Source};
use super::{MemoryError, host_page_bytes};

// Documentation/admin-guide/mm/pagemap.rst
const PAGEMAP_ENTRY: usize = 8;
const PAGEMAP_PRESENT: u64 = 1 << 63;
const PAGEMAP_SWAPPED: u64 = 1 << 62;
/// Entries read at a time.
const PAGEMAP_CHUNK: usize = 8192;

/// Where memfd_create(2) has the logarithm of the huge page's size.
const MFD_HUGE_SHIFT: u32 = 26;

/// Name of a memslot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum SlotId {
    /// RAM: firmware, stacks, tables, request blocks.
    Ram,
    /// The region that the workload writes.
    Region,
}

impl SlotId {
    /// Number of slots.
    pub const COUNT: usize = 2;
    /// Every slot, in the order of their indices.
    pub const ALL: [Self; Self::COUNT] = [Self::Ram, Self::Region];

    /// Position among the slots; also KVM's slot number.
    pub const fn index(self) -> usize {
        match self {
            Self::Ram => 0,
            Self::Region => 1,
        }
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ram => "RAM",
            Self::Region => "region",
        })
    }
}

/// A memslot: guest range, mapping, what is behind it.
#[derive(Debug)]
pub struct Slot {
    id: SlotId,
    range: GuestRange,
    memory: GuestRegionMmap,
    base: SlotBase,
    store: Store,
    /// Whose memory it is now, where another machine's was taken over.
    adopted: OnceLock<File>,
    /// Where the memory is mapped; at least the slot.
    mapping: Mapping,
}

/// The mapping's first byte. Valid as long as the [`Slot`] that holds it.
#[derive(Clone, Copy, Debug)]
struct SlotBase(NonNull<u8>);

// SAFETY: the pointer is only a number here; every access through it is bounds-checked and is a raw-pointer or atomic
// access, and the mapping outlives it because both belong to one `Slot`.
unsafe impl Send for SlotBase {}
// SAFETY: as above; the memory behind it is shared with the guest by design.
unsafe impl Sync for SlotBase {}

/// What is behind a mapping: it knows the holes.
#[derive(Debug)]
enum Store {
    /// A file, whose byte `lead` is the slot's first.
    File { file: File, lead: u64 },
    /// Anonymous memory: only this process's page tables know what was ever touched.
    Anonymous,
}

impl Slot {
    /// A slot on fresh zeroed memory of kind `backing`, which the host has.
    pub(super) fn new(id: SlotId, range: GuestRange, backing: Backing) -> Result<Self, MemoryError> {
        let len_bytes = range.len_bytes();
        match backing {
            Backing::Memfd => Self::on_file(id, range, memory_file(id, MemfdFlags::empty(), len_bytes)?),
            Backing::Anonymous | Backing::Thp => {
                let mapping = map(id, range, Source::Anonymous)?;
                if backing == Backing::Thp {
                    mapping.advise_huge().map_err(|error| refused(id, backing, &error))?;
                }
                Self::within(id, range, mapping, 0, Store::Anonymous)
            }
            Backing::Hugetlb { .. } => {
                check_shape(id, range)?;
                // Whole huge pages: what the slot leaves of the first and the last is nobody's.
                let page_bytes = backing.page_bytes();
                let lead = range.start().raw() % page_bytes;
                let file_bytes =
                    lead.saturating_add(len_bytes).checked_next_multiple_of(page_bytes).unwrap_or(u64::MAX);
                let size = page_bytes.trailing_zeros() << MFD_HUGE_SHIFT;
                let file = memory_file(id, MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(size), file_bytes)?;
                let mapping = Mapping::new(Source::Reserved(&file), file_bytes, 0, page_bytes)
                    .map_err(|error| refused(id, backing, &error))?;
                Self::within(id, range, mapping, lead, Store::File { file, lead })
            }
        }
    }

    /// A slot on `file`, which has the range's length.
    pub(super) fn on_file(id: SlotId, range: GuestRange, file: File) -> Result<Self, MemoryError> {
        let mapping = map(id, range, Source::Shared(&file))?;
        Self::within(id, range, mapping, 0, Store::File { file, lead: 0 })
    }

    /// The slot that begins `lead` bytes into `mapping`, which reaches at least to its end.
    fn within(id: SlotId, range: GuestRange, mapping: Mapping, lead: u64, store: Store) -> Result<Self, MemoryError> {
        let unmappable = |source| MemoryError::Map { slot: id, len_bytes: range.len_bytes(), source };
        // SAFETY: the mapping is longer than `lead`, by the slot.
        let base = unsafe { mapping.base().add(lead as usize) };
        // SAFETY: the range's bytes from `base` on are mapped as long as `mapping` lives, which the slot holds.
        let builder =
            unsafe { MmapRegionBuilder::<()>::new(range.len_bytes() as usize).with_raw_mmap_pointer(base.as_ptr()) };
        let region = builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE).build().map_err(unmappable)?;
        let memory = GuestRegionMmap::new(region, GuestAddress(range.start().raw()))
            .ok_or_else(|| unmappable(vm_memory::mmap::MmapRegionError::InvalidOffsetLength))?;
        Ok(Self { id, range, memory, base: SlotBase(base), store, adopted: OnceLock::new(), mapping })
    }

    /// Which slot it is.
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// Where it lies in guest physical space.
    pub fn range(&self) -> GuestRange {
        self.range
    }

    /// Number of host pages in it: bits in its dirty bitmap.
    pub fn host_pages(&self) -> u64 {
        self.range.len_bytes() / host_page_bytes()
    }

    /// First byte of the mapping in this process, for a backend's memslot and for PAGEMAP_SCAN.
    ///
    /// Valid until the [`super::GuestMemory`] and its clones are gone. It is never to become a reference.
    pub(crate) fn host_base(&self) -> NonNull<u8> {
        self.base.0
    }

    pub(super) fn mapping(&self) -> &GuestRegionMmap {
        &self.memory
    }

    /// Checks that `[offset, offset + len_bytes)` lies in the slot.
    pub(super) fn check(&self, offset: u64, len_bytes: u64) -> Result<(), MemoryError> {
        match offset.checked_add(len_bytes) {
            Some(end) if end <= self.range.len_bytes() => Ok(()),
            _ => Err(MemoryError::OutOfSlot { slot: self.id, offset, len_bytes }),
        }
    }

    /// Writes `[offset, offset + len_bytes)`, which the caller has checked, to `target` at `at`.
    pub(super) fn pwrite(&self, offset: u64, len_bytes: u64, target: &File, at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len_bytes {
            // SAFETY: the caller checked that offset + len_bytes lies in the mapping, whose size fits usize.
            let from = unsafe { self.base.0.as_ptr().add((offset + done) as usize) };
            let to = libc::off_t::try_from(at + done).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
            // SAFETY: `from` is readable for the remaining bytes as long as `self` lives; the kernel copies them.
            let written = unsafe { libc::pwrite(target.as_raw_fd(), from.cast(), (len_bytes - done) as usize, to) };
            match written {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                1.. => done += written as u64,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// The file that holds exactly this slot, to be passed to another process; `None` for memory that no file holds, or
    /// that only a part of one does.
    pub(super) fn file(&self) -> Option<&File> {
        match (&self.store, self.adopted.get()) {
            (_, Some(adopted)) => Some(adopted),
            (Store::File { file, lead: 0 }, None) if self.mapping.len_bytes() as u64 == self.range.len_bytes() => {
                Some(file)
            }
            _ => None,
        }
    }

    /// Writes `bytes` at `offset`, which the caller has checked, through the file. A page that was never touched is then
    /// neither faulted in nor cleared first, which takes a quarter of the time. False where there is no such way.
    pub(super) fn write_file(&self, offset: u64, bytes: &[u8]) -> bool {
        self.file().is_some_and(|file| file.write_all_at(bytes, offset).is_ok())
    }

    /// Takes `file` for its memory, at the same addresses. It was checked ([`super::adoption`]).
    pub(super) fn adopt(&self, file: File) -> io::Result<()> {
        self.mapping.replace(&file)?;
        self.adopted.set(file).map_err(|_| io::Error::other("another file was taken over before"))
    }

    /// Makes `within`, which the caller has checked, a hole.
    pub(super) fn punch(&self, within: Range<u64>) -> io::Result<()> {
        let len_bytes = within.end - within.start;
        let (file, lead) = match (&self.store, self.adopted.get()) {
            (_, Some(adopted)) => (adopted, 0),
            (Store::File { file, lead }, None) => (file, *lead),
            (Store::Anonymous, None) => return self.mapping.discard(within.start, len_bytes),
        };
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(file, how, lead + within.start, len_bytes)?)
    }

    /// The extents of data in `within`, which the caller has checked.
    pub(super) fn data_extents(&self, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        if let Some(adopted) = self.adopted.get() {
            return file_extents(adopted, within);
        }
        match &self.store {
            Store::File { file, lead } => {
                let extents = file_extents(file, lead + within.start..lead + within.end)?;
                Ok(extents.into_iter().map(|extent| extent.start - lead..extent.end - lead).collect())
            }
            Store::Anonymous => Ok(touched_extents(self.base.0.addr().get() as u64, within)),
        }
    }
}

/// SEEK_DATA and SEEK_HOLE over `within` of `file`.
fn file_extents(file: &File, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut extents = Vec::new();
    let mut at = within.start;
    while at < within.end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) if data < within.end => data,
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(file, SeekFrom::Hole(data))?.min(within.end);
        extents.push(data..hole);
        at = hole;
    }
    Ok(extents)
}

/// The parts of `within` (offsets from the address `base`) that this process's page tables have an entry for
/// (Documentation/admin-guide/mm/pagemap.rst). Reading the others would give them one: the zero page, in whose place no
/// huge page comes any more. All of `within` where the page tables cannot be read.
fn touched_extents(base: u64, within: Range<u64>) -> Vec<Range<u64>> {
    let page_bytes = host_page_bytes();
    let Ok(pagemap) = File::open("/proc/self/pagemap") else { return vec![within] };
    let mut extents: Vec<Range<u64>> = Vec::new();
    let mut entries = vec![0; PAGEMAP_CHUNK * PAGEMAP_ENTRY];
    let (mut page, end) = (within.start / page_bytes, within.end.div_ceil(page_bytes));
    while page < end {
        let count = (end - page).min(PAGEMAP_CHUNK as u64);
        let bytes = &mut entries[..count as usize * PAGEMAP_ENTRY];
        if pagemap.read_exact_at(bytes, (base / page_bytes + page) * PAGEMAP_ENTRY as u64).is_err() {
            return vec![within];
        }
        for (entry, page) in bytes.as_chunks().0.iter().zip(page..) {
            if u64::from_ne_bytes(*entry) & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED) == 0 {
                continue;
            }
            let found = (page * page_bytes).max(within.start)..((page + 1) * page_bytes).min(within.end);
            match extents.last_mut() {
                Some(last) if last.end == found.start => last.end = found.end,
                _ => extents.push(found),
            }
        }
        page += count;
    }
    extents
}

/// A memfd of `len_bytes` for the slot `id`.
fn memory_file(id: SlotId, flags: MemfdFlags, len_bytes: u64) -> Result<File, MemoryError> {
    let refused = |source: rustix::io::Errno| MemoryError::Backing { slot: id, len_bytes, source: source.into() };
    let name = match id {
        SlotId::Ram => "tidemark-ram",
        SlotId::Region => "tidemark-region",
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags;
    let file = File::from(memfd_create(name, flags).map_err(refused)?);
    rustix::fs::ftruncate(&file, len_bytes).map_err(refused)?;
    // Whoever is given the file may rely on its size: an access past its end would be a SIGBUS.
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(refused)?;
    Ok(file)
}

/// Maps `source` for the slot `id`, by pages of the host's.
fn map(id: SlotId, range: GuestRange, source: Source<'_>) -> Result<Mapping, MemoryError> {
    check_shape(id, range)?;
    let len_bytes = range.len_bytes();
    Mapping::new(source, len_bytes, range.start().raw(), Backing::Memfd.block_bytes()).map_err(|source| {
        MemoryError::Map { slot: id, len_bytes, source: vm_memory::mmap::MmapRegionError::Mmap(source) }
    })
}

fn refused(slot: SlotId, backing: Backing, error: &io::Error) -> MemoryError {
    MemoryError::Lacks(BackingUnavailable::Refused { backing, slot, reason: error.to_string() })
}

fn check_shape(slot: SlotId, range: GuestRange) -> Result<(), MemoryError> {
    let host_page_bytes = host_page_bytes();
    let whole = range.start().is_aligned(host_page_bytes) && range.len_bytes().is_multiple_of(host_page_bytes);
    if range.is_empty() || !whole { Err(MemoryError::Shape { slot, range, host_page_bytes }) } else { Ok(()) }
}
