//! Saves and loads: what comes back, and what a file that is not whole is taken for.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use abi::boot::BootInfo;
use abi::packet::GuestOutput;
use abi::{GuestRange, Tables, VaBits, map};
use proptest::prelude::*;
use workload::PAGE_BYTES;

use super::*;
use crate::backend::Accelerator;
use crate::memory::GuestMemory;
use crate::migrate::digest::{PAGE, memory_digest};
use crate::migrate::vm::Moment;
use crate::migrate::wire::{Description, Features, Offer, Section, SectionKind};
use crate::migrate::{ClockOffset, CounterPolicy, DigestMode, HostTime};

const REGION_PAGES: u64 = 32;
const SALT: u64 = 0x5a17;
const SEAL_AT: u64 = super::layout::SEAL_AT;

fn region() -> GuestRange {
    GuestRange::new(map::REGION_BASE, REGION_PAGES * PAGE_BYTES).unwrap()
}

fn memory() -> GuestMemory {
    GuestMemory::new(GuestRange::new(map::RAM_BASE, map::RAM_MIN).unwrap(), region(), None).unwrap()
}

fn offer() -> Offer {
    let boot = BootInfo {
        tables: Tables::V8(VaBits::ALL[0]),
        vcpus: 1,
        flags: 0,
        region: region(),
        ram: GuestRange::new(map::RAM_BASE, map::RAM_MIN).unwrap(),
        seed: 7,
        pattern: 0,
        params: Default::default(),
        heartbeat_us: 0,
        output: GuestOutput::Off,
        points: 0,
    };
    let description = Description {
        accelerator: Accelerator::Emulator,
        boot,
        page_bytes: 4096,
        counter_hz: 62_500_000,
        track_dirty: false,
    };
    Offer {
        description,
        features: Features::NONE,
        page_channels: 0,
        digest: DigestMode::Full,
        counter: CounterPolicy::RunsOn,
        salt: SALT,
        clock: ClockOffset::SAME,
        cpu: Vec::new(),
    }
}

fn stopped() -> Moment {
    Moment { at: HostTime::from_ns(77), counter: 1234 }
}

fn sections() -> Vec<Section> {
    let section = |kind, bytes| Section { kind, index: 0, bytes };
    vec![
        section(SectionKind::Vcpu, vec![1; 3000]),
        section(SectionKind::Gic, vec![]),
        section(SectionKind::DirtyHistory, vec![9; 600_000]),
    ]
}

/// Writes `pages` of the region as `memory` has them.
fn write(writer: &mut FileWriter, memory: &GuestMemory, pages: std::ops::Range<u64>) -> u64 {
    let mut bytes = vec![0; (pages.end - pages.start) as usize * PAGE];
    memory.copy_from_slot(SlotId::Region, pages.start * PAGE_BYTES, &mut bytes).unwrap();
    writer.write(SlotId::Region, pages.start * PAGE_BYTES, &bytes).unwrap()
}

fn fill(memory: &GuestMemory, page: u64, byte: u8) {
    memory.write(map::REGION_BASE.checked_add(page * PAGE_BYTES).unwrap(), &[byte; PAGE]).unwrap();
}

/// A guest with some pages, saved.
fn save(path: &Path, offset: u64) -> GuestMemory {
    let memory = memory();
    let mut writer = FileWriter::create(path, offset, &offer()).unwrap();
    (0..REGION_PAGES).step_by(3).for_each(|page| fill(&memory, page, page as u8 + 1));
    memory.write(map::RAM_BASE, &[0xee; PAGE]).unwrap();
    writer.write(SlotId::Ram, 0, &[0xee; PAGE]).unwrap();
    write(&mut writer, &memory, 0..REGION_PAGES);
    writer.finish(stopped(), &sections(), memory_digest(&memory, SALT).unwrap()).unwrap();
    memory
}

fn assert_loads(path: &Path, offset: u64, saved: &GuestMemory) {
    let reader = FileReader::open(path, offset).unwrap();
    assert_eq!(reader.offer(), &offer());
    assert_eq!(reader.stopped(), stopped());
    assert_eq!(reader.sections(), sections());
    assert_eq!(reader.source_clock(), ClockOffset::SAME);
    let loaded = memory();
    let digests = reader.load_memory(&loaded).unwrap().digests;
    assert_eq!(digests, memory_digest(saved, SALT).unwrap());
    assert_eq!(memory_digest(&loaded, SALT).unwrap(), digests);
}

#[test]
fn a_saved_guest_loads_and_its_file_is_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let saved = save(&path, 0);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else stays");
    assert_loads(&path, 0, &saved);
    // A second save replaces the first.
    let saved = save(&path, 0);
    assert_loads(&path, 0, &saved);
}

#[test]
fn an_offset_leaves_what_is_before_it_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    fs::write(&path, vec![b'h'; 0x4_0000]).unwrap();
    let saved = save(&path, 0x1_0000);
    assert_loads(&path, 0x1_0000, &saved);
    let mut before = vec![0; 0x1_0000];
    File::open(&path).unwrap().read_exact_at(&mut before, 0).unwrap();
    assert!(before.iter().all(|byte| *byte == b'h'));
    assert!(matches!(FileReader::open(&path, 0), Err(FileError::NoGuest { .. })));
    assert!(matches!(FileReader::open(&path, 1 << 40), Err(FileError::NoGuest { .. })));
}

#[test]
fn pages_of_zeroes_are_holes_and_pages_rewritten_stay_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let memory = memory();
    let mut writer = FileWriter::create(&path, 0, &offer()).unwrap();
    let blocks = || fs::metadata(partial_path(&path)).unwrap().blocks();
    assert_eq!(write(&mut writer, &memory, 0..REGION_PAGES), 0, "nothing but zeroes");
    let empty = blocks();
    (0..REGION_PAGES).for_each(|page| fill(&memory, page, 1));
    assert_eq!(write(&mut writer, &memory, 0..REGION_PAGES), REGION_PAGES * PAGE_BYTES);
    writer.sync().unwrap();
    let full = blocks();
    assert_eq!(full - empty, REGION_PAGES * 8);
    for byte in 2..9 {
        (0..REGION_PAGES).for_each(|page| fill(&memory, page, byte));
        write(&mut writer, &memory, 0..REGION_PAGES);
    }
    assert_eq!(blocks(), full);
    (4..20).for_each(|page| fill(&memory, page, 0));
    write(&mut writer, &memory, 4..20);
    writer.write_zeroes(SlotId::Region, 20 * PAGE_BYTES, 2 * PAGE_BYTES).unwrap();
    [20, 21].into_iter().for_each(|page| fill(&memory, page, 0));
    // A file system may take a block to list the parts of a file with holes.
    let punched = blocks();
    assert!((full - 18 * 8..=full - 16 * 8).contains(&punched));
    let digests = memory_digest(&memory, SALT).unwrap();
    writer.finish(stopped(), &[], digests).unwrap();
    let loaded = self::memory();
    let read = FileReader::open(&path, 0).unwrap().load_memory(&loaded).unwrap();
    assert_eq!((read.pages, read.digests), (REGION_PAGES - 18, digests));
    let extents = loaded.data_extents(SlotId::Region, 0..region().len_bytes()).unwrap();
    assert_eq!(extents.len(), 2, "holes stay holes: {extents:?}");
}

#[test]
fn a_save_that_is_not_finished_leaves_no_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let mut writer = FileWriter::create(&path, 0, &offer()).unwrap();
    writer.write(SlotId::Region, 0, &[1; PAGE]).unwrap();
    let partial = partial_path(&path);
    assert!(matches!(FileReader::open(&partial, 0), Err(FileError::Busy { .. })), "it is being saved");
    // As a killed process would leave it.
    let left = directory.path().join("left");
    fs::copy(&partial, &left).unwrap();
    assert!(matches!(FileReader::open(&left, 0), Err(FileError::Unfinished { .. })));
    fs::remove_file(left).unwrap();
    assert!(matches!(FileWriter::create(&path, 0, &offer()), Err(FileError::Busy { .. })));
    drop(writer);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    fs::write(&partial, "left behind").unwrap();
    let saved = save(&path, 0);
    assert_loads(&path, 0, &saved);

    fs::write(&path, vec![b'h'; 0x1_0000]).unwrap();
    drop(FileWriter::create(&path, 0x1_0000, &offer()).unwrap());
    assert_eq!(fs::read(&path).unwrap(), vec![b'h'; 0x1_0000]);
}

#[test]
fn a_full_disk_leaves_no_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let saved = save(&path, 0);
    let before = fs::read(&path).unwrap();
    let mut writer = FileWriter::create(&path, 0, &offer()).unwrap();
    // A descriptor that every write to fails, as on a full disk.
    writer.write_through(File::open(partial_path(&path)).unwrap());
    assert!(matches!(writer.write(SlotId::Region, 0, &[1; PAGE]), Err(FileError::Io { what: "write", .. })));
    assert!(matches!(writer.finish(stopped(), &[], [0; 2]), Err(FileError::Io { .. })));
    assert_eq!(fs::read(&path).unwrap(), before, "the guest that was there still is");
    assert_loads(&path, 0, &saved);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    for path in [directory.path(), &fifo, Path::new("/dev/null")] {
        assert!(matches!(FileWriter::create(path, 0, &offer()), Err(FileError::NotAFile { .. })), "{path:?}");
        assert!(matches!(FileReader::open(path, 0), Err(FileError::NotAFile { .. })), "{path:?}");
    }
    assert!(matches!(FileReader::open(&directory.path().join("none"), 0), Err(FileError::Io { what: "open", .. })));
    std::os::unix::fs::symlink("/etc/passwd", directory.path().join("guest.partial")).unwrap();
    let trick = FileWriter::create(&directory.path().join("guest"), 0, &offer());
    assert!(matches!(trick, Err(FileError::Io { what: "create", .. })));
}

#[test]
fn a_machine_with_other_memory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    save(&path, 0);
    let ram = GuestRange::new(map::RAM_BASE, map::RAM_MIN).unwrap();
    let region = GuestRange::new(map::REGION_BASE, 2 * REGION_PAGES * PAGE_BYTES).unwrap();
    let other = GuestMemory::new(ram, region, None).unwrap();
    let error = FileReader::open(&path, 0).unwrap().load_memory(&other).unwrap_err();
    assert!(matches!(error, FileError::Geometry { slot: SlotId::Region, .. }), "{error}");
}

/// What becomes of a guest of which one byte was changed.
fn load_damaged(path: &Path, at: u64, flip: u8) -> Result<(), FileError> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ flip], at).unwrap();
    let result = FileReader::open(path, 0).and_then(|reader| reader.load_memory(&memory()).map(drop));
    file.write_all_at(&byte, at).unwrap();
    result
}

#[test]
fn no_byte_can_change_unnoticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let saved = save(&path, 0);
    let offer_bytes = {
        let mut head = [0; 16];
        File::open(&path).unwrap().read_exact_at(&mut head, 0).unwrap();
        u64::from(u32::from_le_bytes(head[12..].try_into().unwrap()))
    };
    let (ram, region_at) = (1 << 20, (1 << 20) + map::RAM_MIN.next_multiple_of(1 << 20));
    let state_at = region_at + (1 << 20);
    let len = fs::metadata(&path).unwrap().len();
    let places = (0..128)
        .chain((128..4096).step_by(61))
        .chain((SEAL_AT..SEAL_AT + 128).chain((SEAL_AT + 128..SEAL_AT + 4096).step_by(61)))
        .chain(2 * SEAL_AT..2 * SEAL_AT + offer_bytes)
        .chain([ram, ram + 4095, ram + 4096, ram + 0x8000])
        .chain((region_at..region_at + REGION_PAGES * PAGE_BYTES).step_by(1021))
        .chain((state_at..len).step_by(4001));
    for at in places {
        assert!(load_damaged(&path, at, 0x10).is_err(), "at {at:#x} of {len:#x}");
    }
    let error = |at| load_damaged(&path, at, 1).unwrap_err().to_string();
    assert!(error(0).contains("holds no guest"), "{}", error(0));
    assert!(error(8).contains("version 3"), "{}", error(8));
    assert!(error(region_at).contains("the region in"), "{}", error(region_at));
    assert!(error(len - 1).contains("state"), "{}", error(len - 1));
    assert_loads(&path, 0, &saved);
}

#[test]
fn a_file_that_is_too_short_or_too_long_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    save(&path, 0);
    let file = File::options().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    for other in [len + 1, len - 1, 1 << 20, 9000, 8192, 4096, 100, 0] {
        file.set_len(other).unwrap();
        assert!(FileReader::open(&path, 0).is_err(), "{other}");
    }
}

proptest! {
    /// The naive model: an array of pages.
    #[test]
    fn memory_is_what_was_written_last(
        writes in prop::collection::vec((0..REGION_PAGES, 1..8_u64, 0..3_u8), 0..40),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guest");
        let model = memory();
        let mut writer = FileWriter::create(&path, 0, &offer()).unwrap();
        for (first, count, byte) in writes {
            let pages = first..(first + count).min(REGION_PAGES);
            pages.clone().for_each(|page| fill(&model, page, byte));
            if byte == 0 && first % 2 == 0 {
                writer.write_zeroes(SlotId::Region, pages.start * PAGE_BYTES, (pages.end - pages.start) * PAGE_BYTES).unwrap();
            } else {
                write(&mut writer, &model, pages);
            }
        }
        let digests = memory_digest(&model, SALT).unwrap();
        writer.finish(stopped(), &[], digests).unwrap();
        let loaded = memory();
        prop_assert_eq!(FileReader::open(&path, 0).unwrap().load_memory(&loaded).unwrap().digests, digests);
        prop_assert_eq!(memory_digest(&loaded, SALT).unwrap(), digests);
    }
}
