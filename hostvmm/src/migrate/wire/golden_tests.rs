//! The bytes of every message, by hand. A change here is a new version of the protocol.

use twox_hash::XxHash3_64;
use zerocopy::IntoBytes as _;

use super::arbitrary::{description, offer};
use super::*;
use crate::memory::SlotId;
use crate::migrate::{ClockOffset, CounterPolicy, DigestMode, HostTime};

/// `message` has this tag and this meta, in a frame as the format says, and reads back.
pub(super) fn golden(message: &Message, tag: u16, meta: &[u8]) {
    let mut expected = b"TDMF".to_vec();
    expected.extend(tag.to_le_bytes());
    expected.extend([0, 0]);
    expected.extend((meta.len() as u32).to_le_bytes());
    expected.extend([0; 4]);
    expected.extend([0; 8]);
    let checksum = XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&expected), meta);
    expected.extend(checksum.to_le_bytes());
    expected.extend(meta);
    let frame = FrameEncoder::new().frame(message);
    assert_eq!(frame, expected, "{}", message.tag());
    let mut decoder = FrameDecoder::new();
    let header = decoder.header(frame.first_chunk().unwrap()).unwrap();
    assert_eq!(decoder.message(&header, &frame[HEADER_BYTES..]).as_ref(), Ok(message));
}

pub(super) fn le(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn hello() {
    let hello = Hello {
        versions: VersionRange::new(1, 3).unwrap(),
        role: Role::Pages(2),
        session: Session::from_raw(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        sent_at: HostTime::from_ns(0x1122),
    };
    let mut bytes = *b"TDMKMIGR\x01\0\x03\0\x02\0\x02\0\
        \x10\x0f\x0e\x0d\x0c\x0b\x0a\x09\x08\x07\x06\x05\x04\x03\x02\x01\
        \x22\x11\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0--------";
    let checksum = XxHash3_64::oneshot(&bytes[..56]);
    bytes[56..].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(hello.encode(), bytes);
    assert_eq!(Hello::decode(&bytes), Ok(hello));
}

#[test]
fn welcome_and_refusal() {
    let welcome = Reply::Welcome(Welcome {
        version: 2,
        session: Session::from_raw(7),
        received_at: HostTime::from_ns(8),
        sent_at: HostTime::from_ns(9),
    });
    let refusal = Reply::Refusal(Refusal::new(RefusalCode::Busy, "busy\n"));
    let mut welcomed = b"TDMKWELC\x02\0\0\0\0\0\0\0".to_vec();
    welcomed.extend(le(&[7, 0, 8, 9]));
    let refused = b"TDMKDENY\0\0\x03\0\x05\0busy ".to_vec();
    for (reply, mut bytes) in [(welcome, welcomed), (refusal, refused)] {
        bytes.resize(REPLY_BYTES - 8, 0);
        let checksum = XxHash3_64::oneshot(&bytes);
        bytes.extend(checksum.to_le_bytes());
        assert_eq!(reply.encode().as_slice(), bytes);
        assert_eq!(Reply::decode(bytes.first_chunk().unwrap()), Ok(reply));
    }
}

/// The whole frame, checksum too, as another implementation of XXH3 has it.
#[test]
fn a_frame_with_its_checksum() {
    let frame = FrameEncoder::new().frame(&Message::Sync { pass: 0x0403_0201 });
    assert_eq!(frame[..24], *b"TDMF\x04\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(frame[24..], *b"\xcd\x3d\x4f\x94\x34\xa6\xd7\x5d\x01\x02\x03\x04");
}

#[test]
fn offer_and_its_answers() {
    let offer = Offer {
        features: Features::DELTA.or(Features::POSTCOPY),
        page_channels: 3,
        digest: DigestMode::Deferred,
        counter: CounterPolicy::Stops,
        salt: 0x0102_0304_0506_0708,
        clock: ClockOffset { offset_ns: -2, uncertainty_ns: 5 },
        cpu: vec![(0x6030_0000_0013_c000, 0x410f_d034), (0x6040_0000_0010_0054, 1 << 127 | 2)],
        ..offer(Features::NONE)
    };
    // Emulator, dirty history, pages of 4 KiB, counter frequency; the boot block has golden bytes of its own.
    let boot = description().boot.encode();
    let mut meta = b"\x02\0\x01\0\0\x10\0\0\xa0\xac\xb9\x03\0\0\0\0".to_vec();
    meta.extend((boot.as_bytes().len() as u32).to_le_bytes());
    meta.extend(boot.as_bytes());
    meta.extend(b"\x05\0\0\0\x03\0\x01\x01\x08\x07\x06\x05\x04\x03\x02\x01");
    meta.extend(le(&[u64::MAX - 1, 5]));
    // Two registers, id and value each.
    meta.extend(b"\x02\0\0\0\0\0\0\0");
    meta.extend(le(&[0x6030_0000_0013_c000, 0x410f_d034, 0, 0x6040_0000_0010_0054, 2, 1 << 63]));
    golden(&Message::Offer(Box::new(offer)), 1, &meta);
    golden(&Message::Accept { features: Features::ZSTD.or(Features::SHARED_MEMORY) }, 0x8001, b"\x0a\0\0\0");
    let mismatch = Mismatch { field: Field::Vcpus, source_has: Text::new("4"), destination_has: Text::new("eight") };
    golden(&Message::Refuse(mismatch), 0x8002, b"\x06\0\x01\x004\x05\0eight");
}

#[test]
fn pages() {
    let batch = PageBatch {
        slot: SlotId::Region,
        pass: 9,
        body: Body::Zstd,
        digest: 0x1234,
        runs: vec![
            Run { first: 0x10, count: 2, encoding: Encoding::Zero },
            Run { first: 0x20, count: 3, encoding: Encoding::Whole },
            Run { first: 0x30, count: 1, encoding: Encoding::Delta { len_bytes: 0x0506 } },
        ],
    };
    let meta = b"\x01\x01\0\0\x09\0\0\0\x34\x12\0\0\0\0\0\0\
        \x10\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\
        \x20\0\0\0\0\0\0\0\x03\0\0\0\x01\0\0\0\
        \x30\0\0\0\0\0\0\0\x01\0\0\0\x02\0\x06\x05";
    golden(&Message::Pages(batch), 2, meta);
}

#[test]
fn passes() {
    let end = PassEnd { pass: 7, slots: [SlotPass { pages: 1, digest: 2 }, SlotPass { pages: 3, digest: 4 }] };
    golden(&Message::PassEnd(end), 3, &[b"\x07\0\0\0\0\0\0\0".as_slice(), &le(&[1, 2, 3, 4])].concat());
    golden(&Message::Sync { pass: 5 }, 4, b"\x05\0\0\0");
    golden(&Message::PassAck { pass: 6, digests: [8, 9] }, 0x8003, &le(&[6, 8, 9]));
}

#[test]
fn stop_and_state() {
    golden(&Message::Stopped { at: HostTime::from_ns(3), counter: 4 }, 5, &le(&[3, 4]));
    let part = SectionPart { kind: SectionKind::Gic, index: 1, total_bytes: 9, offset: 6, bytes: vec![0xa, 0xb, 0xc] };
    golden(&Message::Section(part), 6, b"\x02\0\x01\0\x09\0\0\0\x06\0\0\0\x0a\x0b\x0c");
    golden(&Message::Digest(Some([5, 6])), 7, &le(&[1, 5, 6]));
    golden(&Message::Digest(None), 7, &le(&[0, 0, 0]));
    let loaded = Loaded { digests: Some([1, 2]), load_ns: 3, digest_ns: 4 };
    golden(&Message::Loaded(loaded), 0x8004, &le(&[1, 1, 2, 3, 4]));
    let resumed = Resumed { at: HostTime::from_ns(7), counter: 8, resume_ns: 9 };
    golden(&Message::Resumed(resumed), 0x8005, &le(&[7, 8, 9]));
}

#[test]
fn postcopy() {
    let pending = Pending { slot: SlotId::Region, first: 128, words: vec![3, 1 << 63] };
    golden(&Message::Pending(pending), 9, &[b"\x01\0\0\0\0\0\0\0".as_slice(), &le(&[128, 3, 1 << 63])].concat());
    golden(&Message::PostcopyRun, 10, b"");
    golden(&Message::PageRequest { slot: SlotId::Region, page: 5 }, 0x8006, b"\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
}

#[test]
fn endings() {
    golden(&Message::Commit, 8, b"");
    golden(&Message::Abort { text: Text::new("no") }, 11, b"\x02\0no");
    golden(&Message::Farewell { fault: None }, 12, b"\0\0\0");
    golden(&Message::Farewell { fault: Some(Text::new("bad")) }, 12, b"\x01\x03\0bad");
    golden(&Message::Query, 13, b"");
    golden(&Message::Failure { text: Text::new("disk") }, 0x8007, b"\x04\0disk");
    let short = [(GuestState::Running, 1), (GuestState::Discarded, 2), (GuestState::Waiting, 3), (GuestState::Lost, 5)];
    for (state, raw) in short {
        golden(&Message::Answer(state), 0x8008, &[raw, 0, 0, 0]);
    }
    let whole = GuestState::Whole { digests: [0x0807_0605_0403_0201, 9] };
    let bytes = [4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0];
    golden(&Message::Answer(whole), 0x8008, &bytes);
}
