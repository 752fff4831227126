//! A hostile source: whatever it sends, the destination refuses it or ends up with pages inside guest memory.
//!
//! Input: one byte chooses where the conversation stands, the rest is what the source sends: raw bytes, or records that are
//! sealed into frames so that they get past checksum and sequence:
//!
//! ```text
//! tag u8 (bit 7: one of the destination's) │ flags u8 (bit 0: break the seal) │ meta bytes u16 │ payload bytes u16 │ meta │ payload
//! ```
#![no_main]

mod migrate_frames;

use std::sync::LazyLock;

use hostvmm::memory::{GuestMemory, SlotId};
use hostvmm::migrate::pages::{LEAF_PAGE, LeafTable, Unpacker, apply, encode};
use hostvmm::migrate::wire::{
    Agreement, FrameDecoder, Geometry, GuestState, HEADER_BYTES, HELLO_BYTES, Hello, Incoming, Loaded, MAX_META_BYTES,
    MAX_PAYLOAD_BYTES, MAX_SECTIONS_BYTES, Message, Role, Sections, VersionRange,
};
use libfuzzer_sys::fuzz_target;
use migrate_frames::{Records, description, offer};

static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    let boot = description().boot;
    GuestMemory::new(boot.ram, boot.region, None).expect("the host has memory")
});

/// Leaves without digests: a source that knows the digest of its lies.
struct Trusting(Geometry);

impl LeafTable for Trusting {
    fn set(&self, slot: SlotId, first: u64, leaves: &[u64], _pass: u32) -> u64 {
        let pages = self.0.pages(slot) * u64::from(self.0.page_bytes()) / LEAF_PAGE as u64;
        assert!(first + leaves.len() as u64 <= pages, "leaves outside the {slot}");
        0
    }

    fn is_zero(&self, _slot: SlotId, page: u64) -> bool {
        page.is_multiple_of(3)
    }
}

/// One channel of a destination.
struct Destination {
    order: Incoming,
    sections: Sections,
    unpacker: Option<(Unpacker, Trusting)>,
    postcopy: bool,
}

impl Destination {
    fn new(order: Incoming) -> Self {
        let unpacker = order.agreement().map(|agreement| unpacker(agreement.geometry));
        Self { order, sections: Sections::new(), unpacker, postcopy: false }
    }

    /// As a destination does: judge, act, answer. `None` ends the channel.
    fn receive(&mut self, message: Message, payload: &[u8]) -> Option<()> {
        let was_committed = self.order.is_committed();
        let over = self.order.is_over();
        self.order.accept(&message, payload.len() as u32).ok()?;
        assert!(!over, "{} after the end", message.tag());
        if self.order.is_committed() && !was_committed {
            assert!(matches!(message, Message::Commit | Message::PostcopyRun), "handed over by {}", message.tag());
        }
        let answer = match message {
            Message::Offer(offer) => match description().mismatch(&offer.description) {
                None => Some(Message::Accept { features: offer.features }),
                Some(mismatch) => Some(Message::Refuse(mismatch)),
            },
            Message::Pages(batch) => {
                let (unpacker, table) = self.unpacker.as_mut().expect("pages come after consent");
                let old = (!self.postcopy).then_some(&*MEMORY);
                let unpacked = unpacker.unpack(&batch, payload, old, table).ok()?;
                unpacked.write(&MEMORY).expect("what was checked lies in memory");
                None
            }
            Message::Section(part) => {
                self.sections.add(part).ok()?;
                None
            }
            Message::Digest(_) if self.postcopy => None,
            Message::Digest(digests) => {
                let sections = std::mem::take(&mut self.sections).finish().ok()?;
                let bytes: u64 = sections.iter().map(|section| section.bytes.len() as u64).sum();
                assert!(bytes <= MAX_SECTIONS_BYTES);
                Some(Message::Loaded(Loaded { digests, load_ns: 0, digest_ns: 0 }))
            }
            Message::PostcopyRun => {
                self.postcopy = true;
                None
            }
            Message::Query => Some(Message::Answer(GuestState::Waiting)),
            _ => None,
        };
        if let Some(answer) = answer {
            self.order.sent(&answer).expect("an answer is due");
            if let Some(Agreement { geometry, .. }) = self.order.agreement() {
                self.unpacker.get_or_insert_with(|| unpacker(geometry));
            }
        }
        Some(())
    }
}

fn unpacker(geometry: Geometry) -> (Unpacker, Trusting) {
    (Unpacker::new(geometry), Trusting(geometry))
}

/// A main channel on which everything has been agreed.
fn agreed() -> Incoming {
    let mut order = Incoming::new(Role::Main);
    let offer = Message::Offer(Box::new(offer()));
    order.accept(&offer, 0).expect("an offer comes first");
    let Message::Offer(offer) = offer else { unreachable!("it is an offer") };
    order.sent(&Message::Accept { features: offer.features }).expect("an offer is answered");
    order
}

/// The bytes as they are.
fn raw(bytes: &[u8]) {
    if let Some(hello) = bytes.first_chunk::<HELLO_BYTES>()
        && let Ok(hello) = Hello::decode(hello)
    {
        assert_eq!(hello.encode(), bytes[..HELLO_BYTES]);
        if let Ok(version) = VersionRange::OURS.newest_common(hello.versions) {
            assert!(VersionRange::OURS.contains(version) && hello.versions.contains(version));
        }
    }
    let mut decoder = FrameDecoder::new();
    let mut rest = bytes;
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Ok(header) = decoder.header(header) else { return };
        assert!(header.meta_bytes() <= MAX_META_BYTES as usize && header.payload_bytes() <= MAX_PAYLOAD_BYTES);
        let Some((meta, after)) = after.split_at_checked(header.meta_bytes()) else { return };
        if decoder.message(&header, meta).is_err() {
            return;
        }
        rest = after.get(header.payload_bytes() as usize..).unwrap_or_default();
    }
}

/// Any bytes as a delta, and the delta of any two pages.
fn deltas(bytes: &[u8]) {
    let mut page = [0x5a; 256];
    let _ = apply(bytes, &mut page);
    let (old, new) = bytes.split_at(bytes.len() / 2);
    let new = &new[..old.len()];
    let mut delta = Vec::new();
    if encode(old, new, old.len().saturating_sub(1), &mut delta) {
        assert!(delta.len() < old.len() || old.is_empty());
        let mut page = old.to_vec();
        apply(&delta, &mut page).expect("a delta that was made");
        assert_eq!(page, new);
    }
}

fuzz_target!(|data: &[u8]| {
    let [choice, bytes @ ..] = data else { return };
    let order = match choice % 8 {
        0 => return raw(bytes),
        1 => return deltas(bytes),
        2 => Incoming::new(Role::Main),
        3 => Incoming::new(Role::Query),
        4 => Incoming::page_channel(1, agreed().agreement().expect("it is agreed")),
        _ => agreed(),
    };
    let mut destination = Destination::new(order);
    let mut decoder = FrameDecoder::new();
    for record in Records::new(bytes) {
        let Some(message) = record.message(&mut decoder) else { return };
        let tag = message.tag();
        if destination.receive(message, record.payload).is_none() {
            return;
        }
        assert!(!record.is_destinations, "{tag} was taken from a source");
    }
});
