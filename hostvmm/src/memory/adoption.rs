//! Memory that moves to another process of the host without being copied: the files that hold it are passed on
//! ([`GuestMemory::files`]) and taken over ([`GuestMemory::adopt`]).
//!
//! A file that comes from outside is believed nothing: it must be a memfd (or the very file that this machine was told to
//! share), of exactly the slot's size, and sealed so that it cannot shrink: an access past its end would kill this
//! process. Afterwards both processes see the same bytes, so only one of them may run the guest; the one that took it over says
//! so in the file itself before it does ([`GuestMemory::note_run`]), which a process that is killed cannot take back.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{Mode, SealFlags, fchmod, fcntl_get_seals, fstat};

use super::{GuestMemory, SlotId};
use crate::memory::Backing;

/// Why memory cannot be passed on or taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptionError {
    /// No file holds it, or not alone.
    #[error(
        "the {slot} on --backing {backing} is in no file that could be passed on; use --backing memfd, or a URI that copies"
    )]
    NoFile {
        /// Which slot.
        slot: SlotId,
        /// What it is on.
        backing: Backing,
    },
    /// This machine's memory is of another kind.
    #[error(
        "a machine on --backing {backing} cannot take over memory files; use --backing memfd, or a URI that copies"
    )]
    Backing {
        /// What it is on.
        backing: Backing,
    },
    /// Another size than the slot's.
    #[error("the file for the {slot} has {found_bytes} bytes, the slot has {expected_bytes}")]
    Size {
        /// Which slot.
        slot: SlotId,
        /// The file's.
        found_bytes: u64,
        /// The slot's.
        expected_bytes: u64,
    },
    /// It could become shorter at any time.
    #[error(
        "the file for the {slot} is not sealed against shrinking, and is not the file that --share names here; pass a memfd with F_SEAL_SHRINK"
    )]
    Unsealed {
        /// Which slot.
        slot: SlotId,
    },
    /// The kernel refuses.
    #[error("cannot {what} the file for the {slot}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// For which slot.
        slot: SlotId,
        /// Why.
        source: std::io::Error,
    },
}

/// Set on the RAM's file once its guest may have run where it was taken over: the sticky bit, which means nothing to a file in
/// memory, and outlives whoever has set it.
const HAS_RUN: Mode = Mode::SVTX;

impl GuestMemory {
    /// Notes, for every process that has this memory's files, whether the guest may have run in the process that took them over.
    ///
    /// # Errors
    /// [`AdoptionError`] where no file holds it, or the kernel refuses.
    pub fn note_run(&self, has_run: bool) -> Result<(), AdoptionError> {
        let mode = Mode::RUSR | Mode::WUSR | if has_run { HAS_RUN } else { Mode::empty() };
        fchmod(self.files()?[SlotId::Ram.index()], mode).map_err(|error| AdoptionError::Io {
            what: "mark",
            slot: SlotId::Ram,
            source: error.into(),
        })
    }

    /// What [`Self::note_run`] noted last, in any process.
    ///
    /// # Errors
    /// As there.
    pub fn has_run(&self) -> Result<bool, AdoptionError> {
        let stat = fstat(self.files()?[SlotId::Ram.index()]).map_err(|error| AdoptionError::Io {
            what: "inspect",
            slot: SlotId::Ram,
            source: error.into(),
        })?;
        Ok(Mode::from_raw_mode(stat.st_mode).contains(HAS_RUN))
    }

    /// The files that hold the slots, in the order of their [`SlotId`]s: whoever has them has the guest's memory.
    ///
    /// # Errors
    /// [`AdoptionError::NoFile`] for memory that is not on `--backing memfd`.
    pub fn files(&self) -> Result<[BorrowedFd<'_>; SlotId::COUNT], AdoptionError> {
        let file = |id: SlotId| {
            let file = self.slot(id).file().filter(|_| self.backing() == Backing::Memfd);
            file.map(|file| file.as_fd()).ok_or(AdoptionError::NoFile { slot: id, backing: self.backing() })
        };
        let [ram, region] = SlotId::ALL.map(file);
        Ok([ram?, region?])
    }

    /// Takes `files` for the slots' memory, in the order of their [`SlotId`]s; what was in memory is gone. No vCPU may have
    /// run, and it can be done once.
    ///
    /// # Errors
    /// [`AdoptionError`]. Nothing has changed, unless it is [`AdoptionError::Io`] that the mapping failed.
    pub fn adopt(&self, files: [File; SlotId::COUNT]) -> Result<(), AdoptionError> {
        if self.backing() != Backing::Memfd {
            return Err(AdoptionError::Backing { backing: self.backing() });
        }
        for (id, file) in SlotId::ALL.into_iter().zip(&files) {
            self.check_file(id, file)?;
        }
        SlotId::ALL.into_iter().zip(files).try_for_each(|(slot, file)| {
            self.slot(slot).adopt(file).map_err(|source| AdoptionError::Io { what: "map", slot, source })
        })
    }

    fn check_file(&self, slot: SlotId, file: &File) -> Result<(), AdoptionError> {
        let failed = |source| AdoptionError::Io { what: "inspect", slot, source };
        let metadata = file.metadata().map_err(failed)?;
        let (found_bytes, expected_bytes) = (metadata.len(), self.slot(slot).range().len_bytes());
        if !metadata.is_file() || found_bytes != expected_bytes {
            return Err(AdoptionError::Size { slot, found_bytes, expected_bytes });
        }
        // Only files in memory have seals.
        if fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
            return Ok(());
        }
        let same =
            |own: &File| own.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (metadata.dev(), metadata.ino()));
        if self.slot(slot).file().is_some_and(same) { Ok(()) } else { Err(AdoptionError::Unsealed { slot }) }
    }
}

#[cfg(test)]
mod tests {
    use abi::{Gpa, GuestRange, map};
    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};

    use super::*;

    fn memory(backing: Backing) -> GuestMemory {
        let ram = GuestRange::new(map::RAM_BASE, 1 << 20).unwrap();
        GuestMemory::on(backing, ram, GuestRange::new(map::REGION_BASE, 256 << 10).unwrap()).unwrap()
    }

    fn passed(giver: &GuestMemory) -> [File; 2] {
        giver.files().unwrap().map(|file| File::from(file.try_clone_to_owned().unwrap()))
    }

    #[test]
    fn memory_taken_over_is_the_giver_s_at_the_taker_s_addresses() {
        let (giver, taker) = (memory(Backing::Memfd), memory(Backing::Memfd));
        let at = Gpa::new(map::REGION_BASE.raw() + 0x5000);
        giver.write(at, b"moved").unwrap();
        taker.write(Gpa::new(map::REGION_BASE.raw()), b"old").unwrap();
        let bases = SlotId::ALL.map(|id| taker.slot(id).host_base());
        taker.adopt(passed(&giver)).unwrap();
        assert_eq!(SlotId::ALL.map(|id| taker.slot(id).host_base()), bases);
        drop(giver);
        let mut bytes = [0; 5];
        taker.read(at, &mut bytes).unwrap();
        assert_eq!(&bytes, b"moved");
        taker.read(Gpa::new(map::REGION_BASE.raw()), &mut bytes).unwrap();
        assert_eq!(bytes, [0; 5]);
        let extents = taker.data_extents(SlotId::Region, 0..256 << 10).unwrap();
        assert!(extents.iter().any(|data| data.contains(&0x5000)), "{extents:?}");
        // And on to the next one.
        let third = memory(Backing::Memfd);
        third.adopt(passed(&taker)).unwrap();
        third.read(at, &mut bytes).unwrap();
        assert_eq!(&bytes, b"moved");
        assert!(matches!(taker.adopt(passed(&third)), Err(AdoptionError::Io { .. })), "once");
    }

    #[test]
    fn memory_that_no_file_holds_is_refused_by_its_backing() {
        let anonymous = memory(Backing::Anonymous);
        let error = anonymous.files().unwrap_err();
        assert!(error.to_string().contains("--backing anon"), "{error}");
        let error = anonymous.adopt(passed(&memory(Backing::Memfd))).unwrap_err();
        assert!(matches!(error, AdoptionError::Backing { backing: Backing::Anonymous }));
    }

    #[test]
    fn files_of_another_size_or_that_may_shrink_are_refused_and_memory_is_as_it_was() {
        let taker = memory(Backing::Memfd);
        let at = Gpa::new(map::RAM_BASE.raw());
        taker.write(at, b"mine").unwrap();
        let file = |len_bytes: u64, seals: SealFlags| {
            let file = File::from(memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap());
            file.set_len(len_bytes).unwrap();
            fcntl_add_seals(&file, seals).unwrap();
            file
        };
        let good = || file(1 << 20, SealFlags::SHRINK);
        let error = taker.adopt([good(), file(512 << 10, SealFlags::SHRINK)]).unwrap_err();
        assert!(matches!(error, AdoptionError::Size { slot: SlotId::Region, found_bytes: 0x8_0000, .. }), "{error}");
        let error = taker.adopt([file(1 << 20, SealFlags::GROW), good()]).unwrap_err();
        assert!(matches!(error, AdoptionError::Unsealed { slot: SlotId::Ram }), "{error}");
        let directory = File::open("/").unwrap();
        assert!(matches!(taker.adopt([good(), directory]), Err(AdoptionError::Size { slot: SlotId::Region, .. })));
        let mut bytes = [0; 4];
        taker.read(at, &mut bytes).unwrap();
        assert_eq!(&bytes, b"mine");
    }

    #[test]
    fn a_shared_file_is_taken_over_only_where_it_is_the_one_named() {
        let ram = GuestRange::new(map::RAM_BASE, 1 << 20).unwrap();
        let region = GuestRange::new(map::REGION_BASE, 256 << 10).unwrap();
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().set_len(256 << 10).unwrap();
        let share = super::super::ShareFile::open(path.path()).unwrap();
        let taker = GuestMemory::new(ram, region, Some(share)).unwrap();
        let [sealed, _] = passed(&memory(Backing::Memfd));
        let other = tempfile::tempfile().unwrap();
        other.set_len(256 << 10).unwrap();
        let error = taker.adopt([sealed.try_clone().unwrap(), other]).unwrap_err();
        assert!(matches!(error, AdoptionError::Unsealed { slot: SlotId::Region }), "{error}");
        let same = File::options().read(true).write(true).open(path.path()).unwrap();
        taker.adopt([sealed, same]).unwrap();
    }
}
