//! One memslot: a guest range, its mapping and the file behind it.
#![expect(unsafe_code, reason = "pwrite from a mapping that no Rust reference may cover")]

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;

use abi::GuestRange;
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::MemoryError;

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

/// A memslot: guest range, mapping, backing file.
#[derive(Debug)]
pub struct Slot {
    id: SlotId,
    range: GuestRange,
    mapping: GuestRegionMmap,
    base: SlotBase,
    file: File,
}

/// The mapping's first byte. Valid as long as the [`Slot`] that holds it.
#[derive(Clone, Copy, Debug)]
struct SlotBase(NonNull<u8>);

// SAFETY: the pointer is only a number here; every access through it is bounds-checked and is a raw-pointer or atomic
// access, and the mapping outlives it because both belong to one `Slot`.
unsafe impl Send for SlotBase {}
// SAFETY: as above; the memory behind it is shared with the guest by design.
unsafe impl Sync for SlotBase {}

impl Slot {
    /// A slot on fresh zeroed memory.
    pub(super) fn on_memfd(id: SlotId, range: GuestRange, host_page_bytes: u64) -> Result<Self, MemoryError> {
        let len_bytes = range.len_bytes();
        let refused = |source: rustix::io::Errno| MemoryError::Backing { slot: id, len_bytes, source: source.into() };
        check_shape(id, range, host_page_bytes)?;
        let name = match id {
            SlotId::Ram => "tidemark-ram",
            SlotId::Region => "tidemark-region",
        };
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC).map_err(refused)?);
        rustix::fs::ftruncate(&file, len_bytes).map_err(refused)?;
        Self::on_file(id, range, host_page_bytes, file)
    }

    /// A slot on `file`, which has the range's length.
    pub(super) fn on_file(
        id: SlotId,
        range: GuestRange,
        host_page_bytes: u64,
        file: File,
    ) -> Result<Self, MemoryError> {
        let len_bytes = range.len_bytes();
        check_shape(id, range, host_page_bytes)?;
        let unmappable = |source| MemoryError::Map { slot: id, len_bytes, source };
        let size = usize::try_from(len_bytes)
            .map_err(|_| unmappable(vm_memory::mmap::MmapRegionError::InvalidOffsetLength))?;
        let backing = file.try_clone().map_err(|source| MemoryError::Backing { slot: id, len_bytes, source })?;
        let mapping = MmapRegionBuilder::<()>::new(size)
            .with_file_offset(FileOffset::new(backing, 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(unmappable)?;
        let base = NonNull::new(mapping.as_ptr())
            .map(SlotBase)
            .ok_or_else(|| unmappable(vm_memory::mmap::MmapRegionError::InvalidPointer))?;
        let mapping = GuestRegionMmap::new(mapping, GuestAddress(range.start().raw()))
            .ok_or_else(|| unmappable(vm_memory::mmap::MmapRegionError::InvalidOffsetLength))?;
        Ok(Self { id, range, mapping, base, file })
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
        self.range.len_bytes() / super::host_page_bytes()
    }

    /// The file behind the mapping; offset 0 is the slot's first byte.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// First byte of the mapping in this process, for a backend's memslot and for PAGEMAP_SCAN.
    ///
    /// Valid until the [`super::GuestMemory`] and its clones are gone. It is never to become a reference.
    pub(crate) fn host_base(&self) -> NonNull<u8> {
        self.base.0
    }

    pub(super) fn mapping(&self) -> &GuestRegionMmap {
        &self.mapping
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

    /// The extents of data in `within`, which the caller has checked.
    pub(super) fn data_extents(&self, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let mut extents = Vec::new();
        let mut at = within.start;
        while at < within.end {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) if data < within.end => data,
                Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let hole = seek(&self.file, SeekFrom::Hole(data))?.min(within.end);
            extents.push(data..hole);
            at = hole;
        }
        Ok(extents)
    }
}

fn check_shape(slot: SlotId, range: GuestRange, host_page_bytes: u64) -> Result<(), MemoryError> {
    let whole = range.start().is_aligned(host_page_bytes) && range.len_bytes().is_multiple_of(host_page_bytes);
    if range.is_empty() || !whole { Err(MemoryError::Shape { slot, range, host_page_bytes }) } else { Ok(()) }
}
