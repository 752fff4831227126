//! A hostile primary: whatever it sends, its secondary refuses it, or has pages inside its memory and goes on as the protocol says.
//!
//! Input: the records of [`migrate_frames`]. A record of one of the secondary's own messages is something that happens to it
//! in between: what its own work came to, the loss of the primary, the outlet's answer.
#![no_main]

mod migrate_frames;

use std::sync::LazyLock;

use hostvmm::colo::protocol::{SecondaryAction, SecondaryEvent, SecondaryMachine, SecondaryState};
use hostvmm::colo::{DirtyPages, RamCache, take_dirty};
use hostvmm::dirty::PageBitmap;
use hostvmm::memory::{GuestMemory, SlotId};
use hostvmm::migrate::pages::Unpacker;
use hostvmm::migrate::wire::{ColoMessage, FrameDecoder, MAX_SECTIONS_BYTES, Message, Sections, Tag};
use libfuzzer_sys::fuzz_target;
use migrate_frames::{Records, description};

static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    let boot = description().boot;
    GuestMemory::new(boot.ram, boot.region, None).expect("the host has memory")
});
static CACHE: LazyLock<RamCache> =
    LazyLock::new(|| RamCache::new(&MEMORY, 4096, 0).expect("the host has memory for a second one"));

fn no_pages() -> DirtyPages {
    SlotId::ALL.map(|slot| PageBitmap::covering(MEMORY.slot(slot).range().len_bytes(), 4096))
}

/// The machine, and whether it may ever run its guest again.
struct Secondary {
    machine: SecondaryMachine,
    is_ended: bool,
}

impl Secondary {
    /// False where the primary has broken the protocol.
    fn on(&mut self, event: SecondaryEvent) -> bool {
        let Ok(actions) = self.machine.on(event) else { return false };
        for action in actions {
            match action {
                SecondaryAction::Fence | SecondaryAction::Discard => self.is_ended = true,
                SecondaryAction::Resume | SecondaryAction::Survive(_) => assert!(!self.is_ended, "an ended guest runs"),
                _ => {}
            }
        }
        let ended = matches!(self.machine.state(), SecondaryState::Fenced | SecondaryState::Discarded);
        assert!(ended || !self.is_ended, "it came back");
        true
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let mut secondary = Secondary { machine: SecondaryMachine::new(u64::from(choice)), is_ended: false };
    let geometry = description().geometry();
    let (mut unpacker, mut sections, mut dirty) = (Unpacker::new(geometry), Sections::new(), no_pages());
    let mut decoder = FrameDecoder::new();
    for record in Records::new(bytes) {
        let Some(message) = record.message(&mut decoder) else { return };
        if record.is_destinations {
            let event = match message.tag() {
                Tag::VmstateReceived => SecondaryEvent::Verified,
                Tag::VmstateLoaded => SecondaryEvent::Placed,
                Tag::Inexact => SecondaryEvent::Broken,
                Tag::CheckpointFailed => SecondaryEvent::Failed,
                Tag::SecondaryAlive => SecondaryEvent::Lost,
                Tag::CheckpointReady => SecondaryEvent::Granted,
                Tag::Output => SecondaryEvent::Fenced,
                _ => SecondaryEvent::Dismissed,
            };
            let _ = secondary.on(event);
            continue;
        }
        let goes_on = match message {
            Message::Pages(batch) => CACHE.receive(&mut unpacker, &batch, record.payload).is_ok(),
            Message::PassEnd(end) => CACHE.end_pass(end.pass, end.slots).is_ok(),
            Message::Section(part) => sections.add(part).is_ok(),
            Message::Colo(ColoMessage::Dirty { slot, first, words }) => {
                let taken = take_dirty(&mut dirty, slot, first, &words).is_ok();
                let pages: u64 = dirty.iter().map(PageBitmap::count).sum();
                assert!(pages <= dirty.iter().map(PageBitmap::pages).sum(), "pages that there are not");
                taken
            }
            Message::Colo(ColoMessage::CheckpointRequest { n }) => secondary.on(SecondaryEvent::Request(n)),
            Message::Colo(ColoMessage::CheckpointAbort { n, text }) => {
                assert!(!text.as_str().chars().any(char::is_control), "unprintable text");
                secondary.on(SecondaryEvent::Abort(n))
            }
            Message::Colo(ColoMessage::VmstateSize(size)) => {
                if let Ok(sections) = std::mem::take(&mut sections).finish() {
                    let bytes: u64 = sections.iter().map(|section| section.bytes.len() as u64).sum();
                    assert!(bytes <= MAX_SECTIONS_BYTES);
                }
                secondary.on(SecondaryEvent::Size(size.n))
            }
            Message::Colo(ColoMessage::CheckpointCommit { n }) => secondary.on(SecondaryEvent::Commit(n)),
            _ => true,
        };
        if !goes_on {
            return;
        }
    }
});
