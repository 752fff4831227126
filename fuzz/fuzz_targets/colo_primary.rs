//! A hostile secondary: whatever it says, its primary refuses it or goes on as the protocol says.
//!
//! Input: the records of [`migrate_frames`]. A record of one of the primary's own messages is something that happens to it in
//! between: a wish for a checkpoint, that it was sent or could not be, the loss of the secondary, the outlet's answer.
#![no_main]

mod migrate_frames;

use hostvmm::colo::protocol::{PrimaryAction, PrimaryEvent, PrimaryMachine, PrimaryState};
use hostvmm::migrate::wire::{ColoMessage, FrameDecoder, Message, Tag};
use libfuzzer_sys::fuzz_target;
use migrate_frames::Records;

/// The machine, and what it has done.
struct Primary {
    machine: PrimaryMachine,
    is_fenced: bool,
    /// A checkpoint was committed, or its last message sent: the secondary may go on from it.
    is_protected: bool,
}

impl Primary {
    /// False where the secondary has broken the protocol.
    fn on(&mut self, event: PrimaryEvent) -> bool {
        let was_claiming = self.machine.state() == PrimaryState::Claiming;
        let Ok(actions) = self.machine.on(event) else { return false };
        for action in actions {
            match action {
                PrimaryAction::Size(_) => self.is_protected = true,
                PrimaryAction::Fence => self.is_fenced = true,
                PrimaryAction::Survive(_) => {
                    assert!(!self.is_fenced, "a fenced guest goes on");
                    let may = !self.is_protected || (was_claiming && event == PrimaryEvent::Granted);
                    assert!(may, "it goes on alone without an epoch");
                }
                PrimaryAction::Resume => assert!(!self.is_fenced, "a fenced guest runs"),
                _ => {}
            }
        }
        assert!(self.machine.state() == PrimaryState::Fenced || !self.is_fenced, "it came back");
        true
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let machine = PrimaryMachine::new(u64::from(choice));
    let mut primary = Primary { machine, is_fenced: false, is_protected: false };
    let mut decoder = FrameDecoder::new();
    for record in Records::new(bytes) {
        let Some(message) = record.message(&mut decoder) else { return };
        if !record.is_destinations {
            let event = match message.tag() {
                Tag::CheckpointRequest => PrimaryEvent::Want,
                Tag::VmstateSize => PrimaryEvent::Transferred,
                Tag::CheckpointAbort => PrimaryEvent::Failed,
                Tag::PrimaryAlive => PrimaryEvent::Lost,
                Tag::CheckpointCommit => PrimaryEvent::Granted,
                Tag::VmstateSend => PrimaryEvent::Fenced,
                _ => continue,
            };
            let _ = primary.on(event);
            continue;
        }
        let Message::Colo(message) = message else { return };
        let event = match message {
            ColoMessage::CheckpointReady => PrimaryEvent::Ready,
            ColoMessage::CheckpointReply { n, .. } => PrimaryEvent::Reply(n),
            ColoMessage::VmstateReceived { n, .. } => PrimaryEvent::Received(n),
            ColoMessage::VmstateLoaded(loaded) => PrimaryEvent::Loaded(loaded.n),
            ColoMessage::CheckpointFailed { n, text } => {
                assert!(!text.as_str().chars().any(char::is_control), "unprintable text");
                PrimaryEvent::PeerFailed(n)
            }
            ColoMessage::Inexact { .. } => PrimaryEvent::Lost,
            ColoMessage::Output(records) => {
                let bytes: usize = records.iter().map(|record| record.bytes.len()).sum();
                assert!(bytes <= record.meta.len(), "more than was sent");
                continue;
            }
            _ => continue,
        };
        if !primary.on(event) {
            return;
        }
    }
});
