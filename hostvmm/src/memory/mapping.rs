//! One mapping of this process, placed where stage 2 can make blocks of it: [`Mapping`].
#![expect(unsafe_code, reason = "mmap at an address of our choice, madvise; vm-memory's builder knows neither")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;

/// What is mapped.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// A file, shared; its memory is taken as it is touched.
    Shared(&'a File),
    /// A file of huge pages, shared. They are reserved now: a page that is not there at the guest's first touch would be
    /// a SIGBUS of ours.
    Reserved(&'a File),
    /// Private anonymous memory.
    Anonymous,
}

/// A readable and writable mapping; unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    /// The address space that was set aside, of which the mapping is a part.
    reserved: NonNull<libc::c_void>,
    reserved_bytes: usize,
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the pointers are only numbers here; nothing is accessed through them.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len_bytes` of `source` at an address that is congruent with `congruent_to` modulo `align_bytes`, a power of
    /// two and a multiple of the host's page.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub(super) fn new(source: Source<'_>, len_bytes: u64, congruent_to: u64, align_bytes: u64) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let size = usize::try_from(len_bytes).map_err(|_| too_large())?;
        let align = usize::try_from(align_bytes).map_err(|_| too_large())?;
        let reserved_bytes = size.checked_add(align).ok_or_else(too_large)?;
        let nowhere = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let reserved = unsafe { libc::mmap(std::ptr::null_mut(), reserved_bytes, libc::PROT_NONE, nowhere, -1, 0) };
        let reserved = mapped(reserved)?;
        let start = reserved.addr().get();
        let skip = (congruent_to as usize).wrapping_sub(start) % align;
        // SAFETY: `skip` < `align`, so this and the `size` bytes after it lie in what was just set aside.
        let base = unsafe { reserved.cast::<u8>().add(skip) };
        // From here on a failure unmaps.
        let mapping = Self { reserved, reserved_bytes, base, len_bytes: size };
        let (flags, file) = match source {
            Source::Shared(file) => (libc::MAP_SHARED | libc::MAP_NORESERVE, file.as_raw_fd()),
            Source::Reserved(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            Source::Anonymous => (nowhere, -1),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: MAP_FIXED replaces only pages of what was set aside above, which nobody else knows.
        let result = unsafe { libc::mmap(base.as_ptr().cast(), size, access, flags | libc::MAP_FIXED, file, 0) };
        mapped(result).map(|_| mapping)
    }

    /// First byte.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Its length.
    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Maps `file`, shared, in the place of what is mapped. The addresses stay; what was there is gone.
    ///
    /// # Errors
    /// What mmap(2) says; then nothing has changed.
    pub(super) fn replace(&self, file: &File) -> io::Result<()> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let base = self.base.as_ptr().cast();
        // SAFETY: MAP_FIXED replaces exactly this mapping, which stays readable and writable at the same address, so every
        // pointer into it remains as good as it was.
        let result = unsafe { libc::mmap(base, self.len_bytes, access, flags, file.as_raw_fd(), 0) };
        mapped(result).map(drop)
    }

    /// Forgets what is at `[offset, offset + len_bytes)`, whole pages of private memory, which reads as zeroes then.
    ///
    /// # Errors
    /// What madvise(2) says.
    ///
    /// # Panics
    /// If that is not inside the mapping.
    pub(super) fn discard(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        assert!(offset.checked_add(len_bytes).is_some_and(|end| end <= self.len_bytes as u64), "inside the mapping");
        // SAFETY: `offset` lies in the mapping.
        let start = unsafe { self.base.as_ptr().add(offset as usize) };
        // SAFETY: the range is part of this mapping; its bytes change as by a store of zeroes, which guest memory allows at
        // any time.
        let result = unsafe { libc::madvise(start.cast(), len_bytes as usize, libc::MADV_DONTNEED) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Asks for transparent huge pages.
    ///
    /// # Errors
    /// What madvise(2) says: EINVAL from a kernel without them.
    pub(super) fn advise_huge(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping; the advice changes no contents.
        let result = unsafe { libc::madvise(self.base.as_ptr().cast(), self.len_bytes, libc::MADV_HUGEPAGE) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and belongs to `self` alone; whoever uses the memory keeps `self` alive.
        unsafe { libc::munmap(self.reserved.as_ptr(), self.reserved_bytes) };
    }
}

/// Whether transparent huge pages are switched off for this process.
pub(super) fn is_thp_disabled_here() -> bool {
    // SAFETY: the call takes numbers and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1 }
}

fn mapped(address: *mut libc::c_void) -> io::Result<NonNull<libc::c_void>> {
    match NonNull::new(address) {
        Some(address) if address.as_ptr() != libc::MAP_FAILED => Ok(address),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_congruent_with_what_is_asked_for() {
        let page = crate::memory::host_page_bytes();
        for (congruent_to, align) in
            [(0x4000_0000, 2 << 20), (0x2000_0000 + page, 2 << 20), (3 * page, 512 << 20), (7 * page, page)]
        {
            let mapping = Mapping::new(Source::Anonymous, 5 * page, congruent_to, align).unwrap();
            assert_eq!(mapping.base().addr().get() as u64 % align, congruent_to % align);
            // SAFETY: the mapping is five pages long.
            let last = unsafe { mapping.base().add(5 * page as usize - 1) };
            for byte in [mapping.base(), last] {
                // SAFETY: a byte of a mapping that is writable and nobody else's.
                unsafe { byte.write(1) };
            }
        }
    }

    #[test]
    fn more_than_there_is_of_address_space_is_an_error() {
        for len_bytes in [1 << 62, u64::MAX] {
            assert!(Mapping::new(Source::Anonymous, len_bytes, 0, 4096).is_err());
        }
    }
}
