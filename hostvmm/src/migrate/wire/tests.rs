//! What is encoded decodes to the same; whatever is bent, cut, repeated or too large on the way is refused.

use abi::packet::GuestOutput;
use abi::{Granule, GuestRange, Tables, VaBits, map};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::arbitrary::{description, messages};
use super::*;
use crate::backend::Accelerator;
use crate::memory::SlotId;
use crate::migrate::{ClockOffset, HostTime};

/// The first frame of a channel, read.
fn read(frame: &[u8]) -> Result<Message, WireError> {
    let mut decoder = FrameDecoder::new();
    let short = WireError::Short { what: "frame" };
    let (header, meta) = frame.split_first_chunk().ok_or(short)?;
    let header = decoder.header(header)?;
    decoder.message(&header, meta)
}

fn hello(versions: VersionRange) -> Hello {
    Hello { versions, role: Role::Main, session: Session::from_raw(99), sent_at: HostTime::from_ns(1000) }
}

fn versions(oldest: u16, newest: u16) -> VersionRange {
    VersionRange::new(oldest, newest).unwrap()
}

proptest! {
    #[test]
    fn messages_survive_the_wire(sent in vec(messages(), 1..8)) {
        let (mut encoder, mut decoder) = (FrameEncoder::new(), FrameDecoder::new());
        let mut stream = Vec::new();
        sent.iter().for_each(|message| encoder.encode(message, 0, &mut stream));
        let mut rest = stream.as_slice();
        for message in &sent {
            let (header, after) = rest.split_first_chunk().unwrap();
            let header = decoder.header(header).unwrap();
            let (meta, after) = after.split_at(header.meta_bytes());
            prop_assert_eq!(&decoder.message(&header, meta).unwrap(), message);
            rest = after;
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn any_flipped_bit_of_a_frame_is_refused(message in messages(), at: Index, bit in 0..8_u32) {
        let mut frame = FrameEncoder::new().frame(&message);
        let at = at.index(frame.len());
        frame[at] ^= 1 << bit;
        prop_assert!(read(&frame).is_err());
    }

    #[test]
    fn a_frame_that_is_cut_or_goes_on_is_refused(message in messages(), at: Index, more in 1_usize..9) {
        let mut frame = FrameEncoder::new().frame(&message);
        prop_assert!(read(&frame[..at.index(frame.len())]).is_err());
        frame.resize(frame.len() + more, 0);
        prop_assert!(read(&frame).is_err());
    }

    #[test]
    fn frames_lost_repeated_or_swapped_are_noticed(sent in vec(messages(), 2..6), which: Index) {
        let mut encoder = FrameEncoder::new();
        let frames: Vec<_> = sent.iter().map(|message| encoder.frame(message)).collect();
        let lost = which.index(frames.len() - 1);
        let mut decoder = FrameDecoder::new();
        for frame in &frames[..lost] {
            let (header, meta) = frame.split_first_chunk().unwrap();
            let header = decoder.header(header).unwrap();
            decoder.message(&header, meta).unwrap();
        }
        let next = frames[lost + 1].first_chunk().unwrap();
        let expected = lost as u64;
        prop_assert_eq!(decoder.header(next), Err(WireError::Sequence { expected, found: expected + 1 }));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
        if let Some(hello) = bytes.first_chunk() {
            prop_assert!(Hello::decode(hello).is_err());
        }
        if let Some(reply) = bytes.first_chunk() {
            prop_assert!(Reply::decode(reply).is_err());
        }
    }

    #[test]
    fn any_flipped_bit_of_a_greeting_is_refused(at: Index, bit in 0..8_u32, text in "[a-z ]{0,192}") {
        let mut bytes = hello(VersionRange::OURS).encode();
        bytes[at.index(HELLO_BYTES)] ^= 1 << bit;
        prop_assert!(Hello::decode(&bytes).is_err());
        let refusal = Reply::Refusal(Refusal::new(RefusalCode::Session, text));
        let mut bytes = refusal.encode();
        prop_assert_eq!(Reply::decode(&bytes), Ok(refusal));
        bytes[at.index(REPLY_BYTES)] ^= 1 << bit;
        prop_assert!(Reply::decode(&bytes).is_err());
    }

    #[test]
    fn the_newest_version_that_both_know_is_spoken(a in 1_u16..9, b in 0_u16..9, c in 1_u16..9, d in 0_u16..9) {
        let (ours, theirs) = (versions(a, a + b), versions(c, c + d));
        let naive = (0..20).filter(|version| (a..=a + b).contains(version) && (c..=c + d).contains(version)).max();
        prop_assert_eq!(ours.newest_common(theirs).ok(), naive);
        prop_assert_eq!(theirs.newest_common(ours).ok(), naive);
    }

    #[test]
    fn sections_come_out_as_they_went_in(sizes in vec((1_u16..=8, prop_oneof![0_usize..10, 524_000_usize..1_100_000]), 0..5)) {
        let sections: Vec<_> = sizes.iter().zip(0_u16..).map(|((kind, size), index)| Section {
            kind: SectionKind::from_raw(*kind).unwrap(),
            index,
            bytes: (0..*size).map(|at| (at % 251) as u8).collect(),
        }).collect();
        let mut received = Sections::new();
        for part in sections.iter().flat_map(Section::parts) {
            prop_assert!(part.bytes.len() < MAX_META_BYTES as usize / 2 + 1);
            received.add(part).unwrap();
        }
        prop_assert_eq!(received.finish().unwrap(), sections);
    }
}

#[test]
fn a_peer_of_the_future_is_spoken_to_in_what_both_know() {
    let future = hello(versions(1, 7));
    let read = Hello::decode(&future.encode()).unwrap();
    assert_eq!(VersionRange::OURS.newest_common(read.versions), Ok(2));
    assert_eq!(versions(1, 5).newest_common(read.versions), Ok(5));
    let stranger = Hello::decode(&hello(versions(6, 7)).encode()).unwrap();
    let error = VersionRange::OURS.newest_common(stranger.versions).unwrap_err().to_string();
    assert!(error.contains("version 2 ") && error.contains("versions 6 to 7"), "{error}");
    assert_eq!(VersionRange::new(0, 3), None);
    assert_eq!(VersionRange::new(3, 2), None);
}

#[test]
fn a_welcome_must_answer_the_hello() {
    let hello = hello(versions(1, 3));
    let welcome = Welcome {
        version: 2,
        session: hello.session,
        received_at: HostTime::from_ns(5_000_000_100),
        sent_at: HostTime::from_ns(5_000_000_300),
    };
    let offset = welcome.answers(&hello, HostTime::from_ns(1600)).unwrap();
    assert_eq!(offset, ClockOffset { offset_ns: 5_000_000_200 - 1300, uncertainty_ns: 300 });
    assert!(Welcome { version: 4, ..welcome }.answers(&hello, HostTime::from_ns(1600)).is_err());
    let other = Welcome { session: Session::from_raw(98), ..welcome };
    let error = other.answers(&hello, HostTime::from_ns(1600)).unwrap_err();
    assert!(!format!("{error} {error:?} {other:?}").contains("98"), "a session stays secret: {error} {other:?}");
}

#[test]
fn sessions_are_not_guessed() {
    assert_ne!(Session::random().unwrap(), Session::random().unwrap());
}

#[test]
fn lengths_are_bounded_before_anything_is_allocated() {
    let frame = FrameEncoder::new().frame(&Message::Commit);
    let header = |at: usize, bytes: &[u8]| {
        let mut header: [u8; HEADER_BYTES] = *frame.first_chunk().unwrap();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        FrameDecoder::new().header(&header)
    };
    assert!(matches!(header(8, &(MAX_META_BYTES + 1).to_le_bytes()), Err(WireError::TooLong { .. })));
    assert!(matches!(header(12, &1_u32.to_le_bytes()), Err(WireError::TooLong { .. })), "a commit has no payload");
    assert_eq!(header(4, &[0x0e]), Err(WireError::Tag { tag: 0x0e }));
    assert_eq!(header(6, &[1]), Err(WireError::Reserved { what: "header" }));
    assert_eq!(header(0, b"X"), Err(WireError::Magic { what: "frame" }));
}

#[test]
fn text_from_outside_cannot_control_a_terminal() {
    assert_eq!(Text::new("a\x1b[31m\nb").as_str(), "a [31m b");
    let long = Text::new("ä".repeat(MAX_TEXT_BYTES));
    assert_eq!(long.as_str().len(), MAX_TEXT_BYTES);
    for text in [b"\x1b[2J".as_slice(), b"\xff", &[b'a'; MAX_TEXT_BYTES + 1]] {
        let mut meta = (text.len() as u16).to_le_bytes().to_vec();
        meta.extend(text);
        assert!(Message::decode(Tag::Failure, &meta).is_err(), "{text:?}");
    }
}

#[test]
fn batches_stay_inside_the_machine_and_within_a_payload() {
    let geometry = description().geometry();
    let pages = geometry.pages(SlotId::Region);
    let check = |runs: &[Run], body, payload_bytes| {
        let batch = PageBatch { slot: SlotId::Region, pass: 0, body, digest: 0, runs: runs.to_vec() };
        batch.check(&geometry, payload_bytes)
    };
    let run = |first, count, encoding| Run { first, count, encoding };
    let delta = |first, len_bytes| run(first, 1, Encoding::Delta { len_bytes });
    let (zero, whole) = (Encoding::Zero, Encoding::Whole);
    assert_eq!(check(&[run(0, 2, whole), run(2, 5, zero), delta(9, 7)], Body::Plain, 8199), Ok(()));
    assert_eq!(check(&[run(0, pages as u32, zero)], Body::Plain, 0), Ok(()));
    assert_eq!(check(&[run(0, 256, whole)], Body::Zstd, 1), Ok(()));
    for (first, count) in [(pages, 1), (pages - 1, 2), (u64::MAX, 1), (u64::MAX, u32::MAX)] {
        assert!(matches!(check(&[run(first, count, zero)], Body::Plain, 0), Err(WireError::Pages { .. })));
    }
    for runs in [[run(3, 2, zero), run(4, 1, zero)], [run(3, 2, zero), run(0, 1, zero)], [run(3, 0, zero); 2]] {
        assert!(matches!(check(&runs, Body::Plain, 0), Err(WireError::Runs { .. })));
    }
    let many: Vec<_> = (0..257).map(|page| delta(page, 0)).collect();
    assert!(matches!(check(&many, Body::Plain, 0), Err(WireError::Unpacked { .. })));
    assert_eq!(check(&many[..256], Body::Plain, 0), Ok(()));
    assert!(matches!(check(&[run(0, 257, whole)], Body::Zstd, 9), Err(WireError::Unpacked { .. })));
    assert!(check(&[delta(0, 4096)], Body::Plain, 4096).is_err());
    assert!(check(&[run(0, 2, Encoding::Delta { len_bytes: 5 })], Body::Plain, 5).is_err());
    for payload_bytes in [0, 4095, 4097] {
        assert!(matches!(check(&[run(0, 1, whole)], Body::Plain, payload_bytes), Err(WireError::Payload { .. })));
    }
    assert!(matches!(check(&[run(0, 1, zero)], Body::Zstd, 5), Err(WireError::Payload { .. })));
}

#[test]
fn every_field_that_differs_is_named_with_both_values() {
    let source = description();
    assert_eq!(source.mismatch(&source), None);
    let with = |change: fn(&mut Description)| {
        let mut destination = source;
        change(&mut destination);
        let mismatch = destination.mismatch(&source).expect("they differ");
        (mismatch.field, mismatch.to_string())
    };
    let range = |base, mib: u64| GuestRange::new(base, mib << 20).unwrap();
    assert_eq!(range(map::RAM_BASE, 64), source.boot.ram);
    for (change, field, source_has, destination_has) in [
        ((|it| it.boot.tables = Tables::Lpae) as fn(&mut Description), Field::Arch, "aarch64", "armv7"),
        (|it| it.boot.tables = Tables::V8(VaBits::new(Granule::K64, 48).unwrap()), Field::Granule, "4k", "64k"),
        (|it| it.boot.tables = Tables::V8(VaBits::new(Granule::K4, 39).unwrap()), Field::VaBits, "48", "39"),
        (|it| it.boot.vcpus = 8, Field::Vcpus, "2", "8"),
        (|it| it.boot.ram = GuestRange::new(map::RAM_BASE, 32 << 20).unwrap(), Field::Ram, "64M", "32M"),
        (|it| it.boot.region = GuestRange::new(map::REGION_BASE, 1 << 20).unwrap(), Field::Region, "8M", "1M"),
        (|it| it.page_bytes = 65536, Field::PageBytes, "4K", "64K"),
        (|it| (it.accelerator, it.counter_hz) = (Accelerator::Kvm, 1000), Field::CounterHz, "62500000 Hz", "1000 Hz"),
        (|it| it.boot.seed = 1, Field::Seed, "0x5eed", "0x1"),
        (|it| it.boot.params[0] = 77, Field::Workload, "", "77"),
        (|it| it.boot.heartbeat_us = 500, Field::Heartbeat, "none", "every 500 µs"),
        (|it| it.boot.output = GuestOutput::Counter, Field::Output, "off", "counter"),
        (|it| it.boot.flags = 3, Field::BootFlags, "0x1", "0x3"),
        (|it| it.track_dirty = false, Field::TrackDirty, "one", "none"),
    ] {
        let (found, text) = with(change);
        assert_eq!(found, field);
        let (source_says, destination_says) = text.split_once(", the destination ").expect("both are named");
        assert!(source_says.contains(source_has) && destination_says.contains(destination_has), "{text}");
    }
}

#[test]
fn accelerators_differ_in_a_migration_and_not_in_a_pair() {
    let source = description();
    let other = Description { accelerator: Accelerator::Kvm, ..source };
    assert_eq!(other.mismatch(&source), None);
    let mismatch = other.mismatch_of_pair(&source).expect("they differ");
    assert_eq!((mismatch.field, mismatch.source_has.as_str()), (Field::Accelerator, "emulator"));
    // The emulator goes on at the frequency of a guest that arrives.
    let slower = Description { counter_hz: 1000, ..source };
    assert_eq!(slower.mismatch(&other), None);
    assert_eq!(slower.mismatch_of_pair(&source).expect("they differ").field, Field::CounterHz);
    assert_eq!(other.mismatch_of_pair(&other), None);
}

#[test]
fn a_cpu_that_does_not_fit_is_refused_in_one_line() {
    let mismatch = Mismatch::of_cpu("FEAT_LSE\nand more");
    assert_eq!(mismatch.to_string(), "CPU: FEAT_LSE and more");
    let mut message = FrameEncoder::new().frame(&Message::Refuse(mismatch.clone()));
    let mut decoder = FrameDecoder::new();
    let header = decoder.header(message.first_chunk().unwrap()).unwrap();
    assert_eq!(decoder.message(&header, &message.split_off(HEADER_BYTES)), Ok(Message::Refuse(mismatch)));
}

#[test]
fn sections_must_be_whole_bounded_and_unlike_each_other() {
    let part = |index, total_bytes, offset, bytes: &[u8]| SectionPart {
        kind: SectionKind::Vcpu,
        index,
        total_bytes,
        offset,
        bytes: bytes.to_vec(),
    };
    let refused = |parts: &[SectionPart]| {
        let mut sections = Sections::new();
        let (last, before) = parts.split_last().unwrap();
        before.iter().for_each(|part| sections.add(part.clone()).unwrap());
        sections.add(last.clone()).unwrap_err()
    };
    let start = part(0, 4, 0, &[1, 2]);
    for odd in [
        part(0, 4, 0, &[1, 2]),
        part(0, 4, 3, &[4]),
        part(0, 5, 2, &[3]),
        part(1, 4, 2, &[3]),
        part(0, 4, 2, &[]),
        part(0, 4, 2, &[3, 4, 5]),
    ] {
        assert!(matches!(refused(&[start.clone(), odd]), WireError::Section { .. }));
    }
    assert!(matches!(refused(&[part(0, 1, 0, &[1]), part(0, 1, 0, &[1])]), WireError::Section { .. }));
    assert!(matches!(refused(&[part(0, MAX_SECTION_BYTES + 1, 0, &[1])]), WireError::Sections { .. }));
    let mut half = Sections::new();
    half.add(start).unwrap();
    assert!(matches!(half.finish(), Err(WireError::Section { offset: 2, total_bytes: 4, .. })));
    let mut many: Vec<_> = (0..256).map(|index| part(index, 0, 0, &[])).collect();
    many.push(part(256, 0, 0, &[]));
    assert!(matches!(refused(&many), WireError::Sections { .. }));
}
