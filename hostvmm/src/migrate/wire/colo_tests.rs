//! The bytes of every message of a pair, by hand. A change here is a new version of the protocol.

use proptest::prelude::*;
use zerocopy::IntoBytes as _;

use super::arbitrary::description;
use super::golden_tests::{golden, le};
use super::*;
use crate::colo::output::{Positions, Record, StreamId};
use crate::memory::SlotId;
use crate::migrate::{ClockOffset, DigestMode, HostTime, Moment};

/// Stream s is at 0x10 + s.
fn positions() -> (Positions, Vec<u8>) {
    let mut positions = Positions::default();
    StreamId::all().for_each(|stream| positions.set(stream, 0x10 + u64::from(stream.raw())));
    (positions, le(&(0x10..0x10 + StreamId::COUNT as u64).collect::<Vec<_>>()))
}

fn pair(message: ColoMessage, tag: u16, meta: &[u8]) {
    golden(&Message::Colo(message), tag, meta);
}

#[test]
fn offer() {
    let offer = ColoOffer {
        pair: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        epoch: 3,
        compare: true,
        digest: DigestMode::Deferred,
        salt: 9,
        clock: ClockOffset { offset_ns: -2, uncertainty_ns: 5 },
        description: description(),
    };
    let mut meta =
        b"\x10\x0f\x0e\x0d\x0c\x0b\x0a\x09\x08\x07\x06\x05\x04\x03\x02\x01\x03\0\0\0\0\0\0\0\x01\x01\0\0\0\0\0\0"
            .to_vec();
    meta.extend(le(&[9, u64::MAX - 1, 5]));
    // The description is that of a migration's offer.
    let boot = description().boot.encode();
    meta.extend(b"\x02\0\x01\0\0\x10\0\0\xa0\xac\xb9\x03\0\0\0\0");
    meta.extend((boot.as_bytes().len() as u32).to_le_bytes());
    meta.extend(boot.as_bytes());
    pair(ColoMessage::Offer(Box::new(offer)), 0x20, &meta);
}

#[test]
fn a_checkpoint_from_the_primary() {
    let (positions, at) = positions();
    pair(ColoMessage::CheckpointRequest { n: 7 }, 0x21, &le(&[7]));
    let stopped = Moment { at: HostTime::from_ns(8), counter: 9 };
    pair(ColoMessage::VmstateSend { n: 7, stopped }, 0x22, &le(&[7, 8, 9]));
    let dirty = ColoMessage::Dirty { slot: SlotId::Region, first: 64, words: vec![3, 1 << 63] };
    pair(dirty, 0x23, &[b"\x01\0\0\0\0\0\0\0".as_slice(), &le(&[64, 3, 1 << 63])].concat());
    let record = Record { stream: StreamId::CONSOLE, sequence: 5, bytes: b"x\n".to_vec() };
    let bytes = b"\0\0\0\0\x02\0\0\0\x05\0\0\0\0\0\0\0x\n";
    pair(ColoMessage::Held(vec![record.clone()]), 0x24, bytes);
    pair(ColoMessage::Output(vec![record.clone(), record]), 0x8022, &bytes.repeat(2));
    let size = VmstateSize { n: 7, bytes: 1, digests: [2, 3], dirty: 4, positions };
    pair(ColoMessage::VmstateSize(size), 0x25, &[le(&[7, 1, 2, 3, 4]), at.clone()].concat());
    pair(ColoMessage::CheckpointCommit { n: 7 }, 0x26, &le(&[7]));
    let text = Text::new("no");
    let said = [le(&[7]), b"\x02\0no".to_vec()].concat();
    pair(ColoMessage::CheckpointAbort { n: 7, text: text.clone() }, 0x27, &said);
    pair(ColoMessage::CheckpointFailed { n: 7, text: text.clone() }, 0x8025, &said);
    pair(ColoMessage::Inexact { n: 7, text }, 0x8026, &said);
    pair(ColoMessage::PrimaryAlive { accepted: positions }, 0x28, &at);
}

#[test]
fn a_checkpoint_from_the_secondary() {
    let (positions, at) = positions();
    pair(ColoMessage::CheckpointReady, 0x8020, b"");
    pair(ColoMessage::CheckpointReply { n: 7, positions, dirty: 6 }, 0x8021, &[le(&[7, 6]), at].concat());
    pair(ColoMessage::VmstateReceived { n: 7, cache: [1, 2], digest_ns: 3 }, 0x8023, &le(&[7, 1, 2, 3]));
    let loaded = VmstateLoaded {
        n: 1,
        primary_dirty: 2,
        secondary_dirty: 3,
        both_dirty: 4,
        flushed: 5,
        ram: Some([9, 10]),
        flush_ns: 6,
        load_ns: 7,
        check_ns: 8,
    };
    pair(ColoMessage::VmstateLoaded(loaded), 0x8024, &le(&[1, 2, 3, 4, 5, 6, 7, 8, 1, 9, 10]));
    pair(ColoMessage::SecondaryAlive, 0x8027, b"");
}

proptest! {
    /// Outside bytes under the tag of every message of a pair: refused or understood, and what is understood is written as
    /// it was read.
    #[test]
    fn any_bytes_are_refused_or_read_back(tag in 0x20_u16..0x29, back: bool, meta in prop::collection::vec(any::<u8>(), 0..200)) {
        let tag = super::message::Tag::from_raw(if back { tag | 0x8000 } else { tag });
        if let Some(tag) = tag
            && let Ok(message) = Message::decode(tag, &meta)
        {
            let mut again = Vec::new();
            message.encode(&mut again);
            prop_assert_eq!(again, meta);
        }
    }
}
