//! The bytes between the two sides of a migration: no input or output here. docs/wire.md has the format.
//!
//! ```text
//! source                                            destination
//! Hello ───────────────────────────────────────────►
//!       ◄─────────────────────────── Welcome | Refusal
//! Offer ───────────────────────────────────────────►
//!       ◄──────────────────────────── Accept | Refuse
//! Pages …, PassEnd ────────────────────────────────►  pass 0, 1, 2 … while the guest runs
//!       ◄──────────────────────────────────── PassAck
//! Stopped, Pages …, PassEnd, Section …, Digest ────►  the guest stands still
//!       ◄──────────────────────────────────── Loaded
//! Commit ──────────────────────────────────────────►  the guest is the destination's
//!       ◄─────────────────────────────────── Resumed
//! Farewell ────────────────────────────────────────►
//! ```
//!
//! - `greeting`: what opens a channel, and the version both speak;
//! - `frame`: headers, sequence, checksum; `message`: the messages; `batch`: pages; `section`: the state beside memory;
//! - `description`: what both sides must agree on;
//! - `order`: which message may come when;
//! - `colo`: the messages of a COLO pair, which has an order of its own.
//!
//! Everything is little-endian and fixed-width, reserved fields are zero, lengths are bounded before anything is
//! allocated, unknown numbers are errors. The peer is hostile until the end of the stream: nothing here panics on its
//! bytes, and what is allocated is bounded by what it has sent.

mod batch;
mod colo;
mod description;
mod error;
mod fields;
mod frame;
mod greeting;
mod message;
mod order;
mod section;

pub use batch::{Body, Encoding, Geometry, PageBatch, Run};
pub use colo::{ColoMessage, ColoOffer, MAX_DIRTY_WORDS, RECORDS_BYTES, VmstateLoaded, VmstateSize};
pub use description::{Description, Field, Mismatch};
pub use error::WireError;
pub use fields::Text;
pub use frame::{FrameDecoder, FrameEncoder, HEADER_BYTES, Header};
pub use greeting::{
    HELLO_BYTES, Hello, MAX_PAGE_CHANNELS, MAX_REFUSAL_BYTES, REPLY_BYTES, Refusal, RefusalCode, Reply, Role, Session,
    VersionRange, Welcome,
};
pub use message::{
    Features, GuestState, Loaded, MAX_CPU_REGISTERS, MAX_PENDING_WORDS, Message, Offer, PassEnd, Pending, Resumed,
    SlotPass, Tag,
};
pub use order::{Agreement, Incoming, Return};
pub use section::{Section, SectionKind, SectionPart, Sections};

/// Most bytes of a frame's meta.
pub const MAX_META_BYTES: u32 = 1 << 20;
/// Most bytes of a frame's payload, and of what it holds once decompressed.
pub const MAX_PAYLOAD_BYTES: u32 = 1 << 20;
/// Most bytes of a text.
pub const MAX_TEXT_BYTES: usize = 1024;
/// Most bytes of a section: the dirty history of 1 TiB in pages of 4 KiB.
pub const MAX_SECTION_BYTES: u32 = 32 << 20;
/// Most bytes of all sections of a migration.
pub const MAX_SECTIONS_BYTES: u64 = 48 << 20;

#[cfg(test)]
mod arbitrary;
#[cfg(test)]
mod colo_tests;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
