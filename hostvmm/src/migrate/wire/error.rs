//! Why bytes are refused: [`WireError`]. Each message names what was wrong and with which value.

use abi::boot::BootBlockError;

use super::message::Tag;
use super::{MAX_META_BYTES, MAX_PAYLOAD_BYTES, MAX_SECTION_BYTES, MAX_SECTIONS_BYTES, VersionRange};
use crate::colo::output::BadRecord;
use crate::memory::SlotId;

/// Bytes that break the format, or come when they must not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// What should open a channel or a frame does not.
    #[error(
        "the peer's {what} does not start as one of this protocol: it speaks another, or the stream lost its place"
    )]
    Magic {
        /// Which part.
        what: &'static str,
    },
    /// The two sides know no common version.
    #[error("no common version: this side speaks {ours} of the migration protocol, the peer {theirs}")]
    Version {
        /// Ours.
        ours: VersionRange,
        /// Theirs.
        theirs: VersionRange,
    },
    /// A field that must be zero is not.
    #[error("a reserved field of the {what} is not zero")]
    Reserved {
        /// Of which part.
        what: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("the {what} says {field} {value:#x}, which cannot be")]
    Value {
        /// Which part.
        what: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A part ends early.
    #[error("the {what} ends in the middle of a field")]
    Short {
        /// Which part.
        what: &'static str,
    },
    /// A part goes on where it should end.
    #[error("the {what} goes on for {excess_bytes} bytes past its end")]
    Trailing {
        /// Which part.
        what: &'static str,
        /// How far.
        excess_bytes: usize,
    },
    /// Text that is not UTF-8, is too long, or holds control characters.
    #[error("a text in the {what} is not printable UTF-8 of bounded length")]
    Text {
        /// Which part.
        what: &'static str,
    },
    /// A frame that is too long.
    #[error(
        "a frame of {meta_bytes} and {payload_bytes} bytes is refused: at most {MAX_META_BYTES} and {MAX_PAYLOAD_BYTES}"
    )]
    TooLong {
        /// Bytes of its meta.
        meta_bytes: u32,
        /// Bytes of its payload.
        payload_bytes: u32,
    },
    /// An unknown frame.
    #[error("unknown frame tag {tag:#x}")]
    Tag {
        /// The tag.
        tag: u16,
    },
    /// A frame was lost, repeated, or put in.
    #[error("frame {found} of the channel where {expected} should come: one was lost, repeated or put in")]
    Sequence {
        /// Which should come.
        expected: u64,
        /// Which came.
        found: u64,
    },
    /// Bytes that are not those that were sent.
    #[error("the checksum of the {what} is wrong: its bytes are not those that were sent")]
    Checksum {
        /// Which part.
        what: &'static str,
    },
    /// A boot block that cannot be.
    #[error("the description's boot block is refused: {reason:?}")]
    Boot {
        /// Why.
        reason: BootBlockError,
    },
    /// A record of output that is none.
    #[error("{reason}")]
    Record {
        /// Why.
        reason: BadRecord,
    },
    /// A frame that must not come now.
    #[error("a frame {tag} out of order: the migration is {state}")]
    Order {
        /// Which.
        tag: Tag,
        /// Where the migration is, in words.
        state: &'static str,
    },
    /// A frame of a pass that is not the current one.
    #[error("a frame {tag} of pass {found} in pass {expected}")]
    Pass {
        /// Which.
        tag: Tag,
        /// The current pass.
        expected: u32,
        /// The frame's.
        found: u32,
    },
    /// Pages that a slot does not have.
    #[error("pages {first} to {first} + {count} are refused: the {slot} has {pages}")]
    Pages {
        /// Of which slot.
        slot: SlotId,
        /// The first.
        first: u64,
        /// How many.
        count: u64,
        /// How many the slot has.
        pages: u64,
    },
    /// Runs of a batch that are empty, overlap, or are not in ascending order.
    #[error(
        "a batch of pages of the {slot} is refused: its run at page {first} is empty, or not after the one before it"
    )]
    Runs {
        /// Of which slot.
        slot: SlotId,
        /// Where.
        first: u64,
    },
    /// A batch whose payload is not as long as its runs say.
    #[error("a batch of pages needs {expected_bytes} bytes and has {found_bytes}")]
    Payload {
        /// What the runs add up to.
        expected_bytes: u64,
        /// What there is.
        found_bytes: u64,
    },
    /// A batch that is small and stands for much.
    #[error("a batch of pages that are {unpacked_bytes} bytes is refused: at most {MAX_PAYLOAD_BYTES}")]
    Unpacked {
        /// Bytes of its pages that are not zero.
        unpacked_bytes: u64,
    },
    /// Something that the two sides have not agreed on.
    #[error("a frame {tag} needs {feature}, which was not agreed on")]
    Feature {
        /// Which.
        tag: Tag,
        /// What it needs.
        feature: &'static str,
    },
    /// A section whose parts do not fit together.
    #[error("part of section {kind}/{index} at {offset} of {total_bytes} bytes does not continue what came before it")]
    Section {
        /// Number of its kind.
        kind: u16,
        /// Which of its kind.
        index: u16,
        /// Where the part starts.
        offset: u32,
        /// Size of the whole section.
        total_bytes: u32,
    },
    /// Too much state.
    #[error(
        "section {kind}/{index} of {total_bytes} bytes is refused: at most {MAX_SECTION_BYTES} each and {MAX_SECTIONS_BYTES} in all"
    )]
    Sections {
        /// Number of its kind.
        kind: u16,
        /// Which of its kind.
        index: u16,
        /// Size of the whole section.
        total_bytes: u32,
    },
}
