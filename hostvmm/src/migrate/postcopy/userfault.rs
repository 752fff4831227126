//! userfaultfd(2) for missing pages: [`Userfault`] (Documentation/admin-guide/mm/userfaultfd.rst).
//!
//! Who touches a page of a registered range that is not there waits, and the descriptor tells of it. Under KVM it is the
//! kernel that touches pages for the guest, and in system calls it is the kernel for us: to be told of those takes a
//! privilege (CAP_SYS_PTRACE, `vm.unprivileged_userfaultfd`, or access to `/dev/userfaultfd`). The emulator's guest and all
//! that post-copy itself does get along without.
#![expect(unsafe_code, reason = "raw ioctls: no crate here wraps userfaultfd")]

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use crate::backend::Accelerator;
use crate::memory::{Backing, GuestMemory, SlotId, host_page_bytes};

// include/uapi/linux/userfaultfd.h
const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const UFFDIO_WAKE: u64 = 0x8010_aa02;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;
/// Bits of the ioctls of a registered range that are needed.
const RANGE_IOCTLS: u64 = 1 << 0x02 | 1 << 0x03 | 1 << 0x04;
const MESSAGE_BYTES: usize = 32;
/// Messages taken at a time.
const MESSAGES: usize = 16;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

const _: () = assert!(size_of::<UffdioApi>() == 0x18 && size_of::<UffdioRegister>() == 0x20);
const _: () = assert!(size_of::<UffdioCopy>() == 0x28 && size_of::<UffdioZeropage>() == 0x20);

/// Why this host cannot do post-copy. A migration without it is not touched by that.
#[derive(Debug, thiserror::Error)]
pub enum PostcopyUnavailable {
    /// userfaultfd(2) is refused.
    #[error(
        "post-copy: userfaultfd is refused: {source}; it needs CONFIG_USERFAULTFD and no seccomp filter against it"
    )]
    Refused {
        /// Why.
        source: io::Error,
    },
    /// The kernel's own accesses would not be told.
    #[error(
        "post-copy with KVM: faults that the kernel takes for the guest are told to the privileged alone; run `sysctl vm.unprivileged_userfaultfd=1`, or give hostvmm access to /dev/userfaultfd or CAP_SYS_PTRACE"
    )]
    UserModeOnly,
    /// Too old for the backing.
    #[error(
        "post-copy: userfaultfd does not tell of missing pages of --backing {backing}: {source}; it needs Linux 4.11, and --share a file in memory (/dev/shm)"
    )]
    Missing {
        /// What memory is mapped on.
        backing: Backing,
        /// Why.
        source: io::Error,
    },
    /// A page of the host's is not a page of the migration's.
    #[error(
        "post-copy: --backing {backing} is made of huge pages, which come as wholes only; use --backing memfd, anon or thp"
    )]
    HugePages {
        /// What memory is mapped on.
        backing: Backing,
    },
}

/// A descriptor that tells of missing pages. Closing it lets whoever waits go on, with zeroes.
#[derive(Debug)]
pub(super) struct Userfault {
    fd: File,
}

/// What became of a page that was to be placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Placed {
    /// It is there now, and who waited for it goes on.
    Now,
    /// One was there already.
    Before,
}

impl Userfault {
    /// For memory of `backing` whose guest `accelerator` runs.
    ///
    /// # Errors
    /// [`PostcopyUnavailable`]: the first reason that holds.
    pub(super) fn open(backing: Backing, accelerator: Accelerator) -> Result<Self, PostcopyUnavailable> {
        if let Backing::Hugetlb { .. } = backing {
            return Err(PostcopyUnavailable::HugePages { backing });
        }
        let fd = match privileged() {
            Ok(fd) => fd,
            Err(_) if accelerator == Accelerator::Emulator => {
                create(UFFD_USER_MODE_ONLY).map_err(|source| PostcopyUnavailable::Refused { source })?
            }
            Err(error) if is_denied(&error) => return Err(PostcopyUnavailable::UserModeOnly),
            Err(source) => return Err(PostcopyUnavailable::Refused { source }),
        };
        let mut api = UffdioApi { api: UFFD_API, features: UFFD_FEATURE_MISSING_SHMEM, ioctls: 0 };
        // SAFETY: the argument is the struct that the call reads and writes, of the size its number encodes.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API as libc::Ioctl, &raw mut api) };
        if result < 0 {
            return Err(PostcopyUnavailable::Missing { backing, source: io::Error::last_os_error() });
        }
        Ok(Self { fd: File::from(fd) })
    }

    /// Tells of missing pages of `slot` from here on.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub(super) fn register(&self, memory: &GuestMemory, slot: SlotId) -> io::Result<()> {
        let range = range(memory, slot, 0, memory.slot(slot).range().len_bytes());
        let mut register = UffdioRegister { range, mode: UFFDIO_REGISTER_MODE_MISSING, ioctls: 0 };
        // SAFETY: the argument is the struct that the call reads and writes, of the size its number encodes. The range is a
        // mapping that lives as long as `memory`; in this mode the registration only delays accesses to what is not there.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER as libc::Ioctl, &raw mut register) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        if register.ioctls & RANGE_IOCTLS != RANGE_IOCTLS {
            return Err(io::Error::other("the kernel cannot place pages there"));
        }
        Ok(())
    }

    /// Lets whoever waits for a page of `slot` go on with zeroes, and everybody after that.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub(super) fn unregister(&self, memory: &GuestMemory, slot: SlotId) -> io::Result<()> {
        let mut range = range(memory, slot, 0, memory.slot(slot).range().len_bytes());
        // SAFETY: the argument is the struct that the call reads, of the size its number encodes. The range becomes ordinary
        // memory again, whose missing pages read as zeroes.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_UNREGISTER as libc::Ioctl, &raw mut range) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The addresses of faults that were not told yet; `None` where there is none.
    ///
    /// # Errors
    /// What read(2) says.
    pub(super) fn faults(&self) -> io::Result<Option<Vec<u64>>> {
        let mut bytes = [0; MESSAGES * MESSAGE_BYTES];
        let len_bytes = match (&self.fd).read(&mut bytes) {
            Ok(len_bytes) => len_bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let messages = bytes[..len_bytes].as_chunks::<MESSAGE_BYTES>().0;
        // struct uffd_msg: the event at 0, a page fault's flags at 8 and its address at 16.
        let faults = messages.iter().filter(|message| message[0] == UFFD_EVENT_PAGEFAULT);
        Ok(Some(
            faults
                .map(|message| message[16..24].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
                .collect(),
        ))
    }

    /// Places `bytes`, whole host pages, at `offset` of `slot`, all at once for whoever looks.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub(super) fn copy(&self, memory: &GuestMemory, slot: SlotId, offset: u64, bytes: &[u8]) -> io::Result<Placed> {
        let len_bytes = bytes.len() as u64;
        let mut done = 0;
        self.place(memory, slot, offset, len_bytes, |at, left| {
            let from = &bytes[done as usize..];
            let mut copy = UffdioCopy {
                dst: at.start,
                src: from.as_ptr().expose_provenance() as u64,
                len: left,
                mode: 0,
                copy: 0,
            };
            // SAFETY: the argument is the struct that the call reads and writes, of the size its number encodes; `src` has
            // `left` bytes; `dst` to its end is registered, so that the kernel only fills what nobody has seen.
            let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_COPY as libc::Ioctl, &raw mut copy) };
            done += u64::try_from(copy.copy).unwrap_or(0);
            (result, copy.copy)
        })
    }

    /// Places zeroes at `[offset, offset + len_bytes)` of `slot`, whole host pages.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub(super) fn zero(&self, memory: &GuestMemory, slot: SlotId, offset: u64, len_bytes: u64) -> io::Result<Placed> {
        self.place(memory, slot, offset, len_bytes, |range, _| {
            let mut zero = UffdioZeropage { range, mode: 0, zeropage: 0 };
            // SAFETY: the argument is the struct that the call reads and writes, of the size its number encodes; the range is
            // registered, so that the kernel only fills what nobody has seen.
            let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_ZEROPAGE as libc::Ioctl, &raw mut zero) };
            (result, zero.zeropage)
        })
    }

    /// Calls `call` until all is placed: the kernel stops in between where the address space is being changed (EAGAIN).
    fn place(
        &self,
        memory: &GuestMemory,
        slot: SlotId,
        offset: u64,
        len_bytes: u64,
        mut call: impl FnMut(UffdioRange, u64) -> (libc::c_int, i64),
    ) -> io::Result<Placed> {
        let mut done = 0;
        while done < len_bytes {
            let left = range(memory, slot, offset + done, len_bytes - done);
            match call(left, len_bytes - done) {
                (0.., placed) if placed > 0 => done += placed as u64,
                (result, placed) => match io::Error::last_os_error() {
                    error if result < 0 && error.raw_os_error() == Some(libc::EAGAIN) => {
                        done += u64::try_from(placed).unwrap_or(0);
                    }
                    error if result < 0 && error.raw_os_error() == Some(libc::EEXIST) => {
                        // Whoever came too late to be woken with the page that is there must not wait for ever.
                        self.wake(left)?;
                        return Ok(Placed::Before);
                    }
                    error if result < 0 => return Err(error),
                    _ => return Err(io::Error::other("the kernel placed nothing")),
                },
            }
        }
        Ok(Placed::Now)
    }

    fn wake(&self, mut range: UffdioRange) -> io::Result<()> {
        // SAFETY: the argument is the struct that the call reads, of the size its number encodes; it changes no memory.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WAKE as libc::Ioctl, &raw mut range) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn range(memory: &GuestMemory, slot: SlotId, offset: u64, len_bytes: u64) -> UffdioRange {
    debug_assert!(offset.is_multiple_of(host_page_bytes()) && len_bytes.is_multiple_of(host_page_bytes()));
    UffdioRange { start: memory.slot(slot).host_base().addr().get() as u64 + offset, len: len_bytes }
}

/// One that is told of the kernel's accesses as well.
fn privileged() -> io::Result<OwnedFd> {
    match create(0) {
        Err(error) if is_denied(&error) => match File::open("/dev/userfaultfd") {
            Ok(device) => {
                let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
                // SAFETY: the call takes flags by value and touches no memory of ours.
                let raw = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as libc::Ioctl, flags) };
                owned(raw.into())
            }
            Err(_) => Err(error),
        },
        result => result,
    }
}

fn is_denied(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

fn create(flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags by value and touches no memory of ours.
    let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | flags) };
    owned(raw)
}

fn owned(raw: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(raw) {
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        Ok(raw) if raw >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        _ => Err(io::Error::last_os_error()),
    }
}
