//! The reader of guests in files: a whole file, some bytes of which are changed, some of its checksums mended, its end cut. It must not
//! panic, and what it accepts has the digests of the saved guest.
//!
//! Input: one byte of flags (1 mends head and offer, 2 the seal, 4 cuts the file at the last change), then changes of three
//! bytes: a place, low byte first, and a value.
#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::LazyLock;

use abi::boot::BootInfo;
use abi::packet::GuestOutput;
use abi::{GuestRange, Tables, VaBits, map};
use hostvmm::backend::Accelerator;
use hostvmm::memory::{GuestMemory, SlotId};
use hostvmm::migrate::file::{FileReader, FileWriter};
use hostvmm::migrate::wire::{Description, Features, Offer, Section, SectionKind};
use hostvmm::migrate::{ClockOffset, CounterPolicy, DigestMode, HostTime, Moment};
use libfuzzer_sys::fuzz_target;
use workload::digest::{leaf, node};

const PAGE: usize = 4096;
const SEAL: usize = PAGE;
const OFFER: usize = 2 * PAGE;
/// Head, seal and offer; changes past them are of the state.
const FRONT: usize = 3 * PAGE;
const SALT: u64 = 7;

struct Rig {
    file: File,
    path: PathBuf,
    memory: GuestMemory,
    len: u64,
    front: Vec<u8>,
    state_at: u64,
    state: Vec<u8>,
    digests: [u64; 2],
}

static RIG: LazyLock<Rig> = LazyLock::new(|| {
    let ram = GuestRange::new(map::RAM_BASE, map::RAM_MIN).expect("RAM does not wrap");
    let region = GuestRange::new(map::REGION_BASE, 0x1_0000).expect("the region does not wrap");
    let tables = Tables::V8(VaBits::ALL[0]);
    let boot = BootInfo {
        tables,
        vcpus: 1,
        flags: 0,
        region,
        ram,
        seed: 1,
        pattern: 0,
        params: Default::default(),
        heartbeat_us: 0,
        output: GuestOutput::Off,
        points: 0,
    };
    let description = Description {
        accelerator: Accelerator::Emulator,
        boot,
        page_bytes: PAGE as u32,
        counter_hz: 62_500_000,
        track_dirty: false,
    };
    let offer = Offer {
        description,
        features: Features::NONE,
        page_channels: 0,
        digest: DigestMode::Full,
        counter: CounterPolicy::RunsOn,
        salt: SALT,
        clock: ClockOffset::SAME,
        cpu: Vec::new(),
    };
    let path = std::env::temp_dir().join(format!("tidemark-fuzz-{}", std::process::id()));
    let mut writer = FileWriter::create(&path, 0, &offer).expect("the host has a disk");
    writer.write(SlotId::Region, 0, &[1; PAGE]).expect("the host has a disk");
    let digests = [0, node(leaf(&[1; PAGE]), region.start(), SALT ^ u64::MAX)];
    let sections = [SectionKind::Vcpu, SectionKind::Gic].map(|kind| Section { kind, index: 0, bytes: vec![3; 100] });
    let stopped = Moment { at: HostTime::from_ns(1), counter: 2 };
    writer.finish(stopped, &sections, digests).expect("the host has a disk");

    let file = File::options().read(true).write(true).open(&path).expect("it was just written");
    std::fs::remove_file(&path).expect("it was just written");
    let len = file.metadata().expect("an open file has a size").len();
    let mut front = vec![0; FRONT];
    file.read_exact_at(&mut front, 0).expect("it was just written");
    let state_at = u64::from_le_bytes(front[40..48].try_into().expect("eight bytes"));
    let mut state = vec![0; (len - state_at) as usize];
    file.read_exact_at(&mut state, state_at).expect("it was just written");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    let memory = GuestMemory::new(ram, region, None).expect("the host has memory");
    Rig { file, path, memory, len, front, state_at, state, digests }
});

/// XXH3 of `bytes` as eight bytes.
fn checksum(bytes: &[u8]) -> [u8; 8] {
    leaf(bytes).to_le_bytes()
}

fuzz_target!(|data: &[u8]| {
    let rig = &*RIG;
    let Some((flags, changes)) = data.split_first() else { return };
    let (mut front, mut state, mut cut) = (rig.front.clone(), rig.state.clone(), rig.len);
    for change in changes.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]]));
        let (part, at) = match place.checked_sub(FRONT) {
            Some(past) => (&mut state, past % rig.state.len()),
            None => (&mut front, place),
        };
        part[at] = change[2];
        if flags & 4 != 0 {
            cut = if place < FRONT { place as u64 } else { rig.state_at + at as u64 };
        }
    }
    if flags & 1 != 0 {
        let offer_bytes = u32::from_le_bytes(front[12..16].try_into().expect("four bytes")) as usize;
        if let Some(offer) = front.get(OFFER..OFFER.saturating_add(offer_bytes)) {
            let sum = checksum(offer);
            front[16..24].copy_from_slice(&sum);
        }
        let sum = checksum(&front[..48]);
        front[48..56].copy_from_slice(&sum);
    }
    if flags & 2 != 0 {
        front.copy_within(48..56, SEAL + 16);
        front[SEAL + 32..SEAL + 40].copy_from_slice(&checksum(&state));
        let sum = checksum(&front[SEAL..SEAL + 80]);
        front[SEAL + 80..SEAL + 88].copy_from_slice(&sum);
    }
    rig.file.write_all_at(&state, rig.state_at).expect("the file is ours");
    rig.file.write_all_at(&front, 0).expect("the file is ours");
    rig.file.set_len(cut).expect("the file is ours");
    match FileReader::open(&rig.path, 0).and_then(|reader| reader.load_memory(&rig.memory)) {
        Ok(loaded) => assert_eq!(loaded.digests, rig.digests, "a guest that was not saved was accepted"),
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
    // Memory's page is in the part that a cut takes away.
    if cut < rig.len {
        rig.file.set_len(rig.len).expect("the file is ours");
        rig.file.write_all_at(&[1; PAGE], region_at(rig)).expect("the file is ours");
    }
});

fn region_at(rig: &Rig) -> u64 {
    u64::from_le_bytes(rig.front[32..40].try_into().expect("eight bytes"))
}
