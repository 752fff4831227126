//! The messages of a COLO pair: [`ColoMessage`]. docs/colo.md says who may say what when.
//!
//! They travel in the frames of a migration, between its batches of pages and its sections, on a channel of role
//! [`super::Role::Colo`]. QEMU's names are kept where it has the message.

use super::batch::{raw_slot, slot};
use super::description::Description;
use super::error::WireError;
use super::fields::{Reader, Text, Writer};
use super::message::Tag;
use crate::colo::output::{Positions, Record};
use crate::memory::SlotId;
use crate::migrate::{ClockOffset, DigestMode, HostTime, Moment};

/// Most words of a bitmap in one [`ColoMessage::Dirty`].
pub const MAX_DIRTY_WORDS: usize = 64 << 10;
/// Bytes of records that one message carries, but for one record more.
pub const RECORDS_BYTES: usize = 256 << 10;

/// What a primary proposes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ColoOffer {
    /// The pair, by a number that nobody can guess.
    pub pair: u128,
    /// The epoch of the outlet that the primary owns.
    pub epoch: u64,
    /// Whether both guests run, and outputs are compared.
    pub compare: bool,
    /// What is digested in a checkpoint.
    pub digest: DigestMode,
    /// In every digest, so that none can be made up beforehand.
    pub salt: u64,
    /// The secondary's clock less the primary's, as the primary measured it.
    pub clock: ClockOffset,
    /// The machine.
    pub description: Description,
}

/// Everything of a checkpoint has been sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmstateSize {
    /// Which checkpoint.
    pub n: u64,
    /// Bytes of its sections.
    pub bytes: u64,
    /// Digests of the primary's memory by slot.
    pub digests: [u64; SlotId::COUNT],
    /// Pages in the bitmaps of [`ColoMessage::Dirty`].
    pub dirty: u64,
    /// Where the primary's guest is in its output.
    pub positions: Positions,
}

/// The secondary is at the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmstateLoaded {
    /// Which.
    pub n: u64,
    /// Pages dirty at the primary.
    pub primary_dirty: u64,
    /// Pages dirty at the secondary.
    pub secondary_dirty: u64,
    /// Pages dirty on both.
    pub both_dirty: u64,
    /// Pages copied from the cache to RAM.
    pub flushed: u64,
    /// Digests of RAM; `None` where it was not digested.
    pub ram: Option<[u64; SlotId::COUNT]>,
    /// The flush took so long.
    pub flush_ns: u64,
    /// The load.
    pub load_ns: u64,
    /// The digest.
    pub check_ns: u64,
}

/// A message of a pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ColoMessage {
    /// Primary: be my secondary.
    Offer(Box<ColoOffer>),
    /// Primary: stop your guest for checkpoint `n`.
    CheckpointRequest {
        /// Counted from 1.
        n: u64,
    },
    /// Primary: its guest stands still too; the last pages and the state follow.
    VmstateSend {
        /// Which checkpoint.
        n: u64,
        /// When it stopped, on the primary's clock, and what its counter showed.
        stopped: Moment,
    },
    /// Primary: pages written there since the last committed checkpoint.
    Dirty {
        /// Of which slot.
        slot: SlotId,
        /// The first page that the words stand for: a multiple of 64.
        first: u64,
        /// A bit a page, least significant first; at most [`MAX_DIRTY_WORDS`].
        words: Vec<u64>,
    },
    /// Primary: output that the outlet has not accepted yet, though the guest emitted it before the checkpoint.
    Held(Vec<Record>),
    /// Primary: that was everything.
    VmstateSize(VmstateSize),
    /// Primary: the checkpoint holds; go on.
    CheckpointCommit {
        /// Which.
        n: u64,
    },
    /// Primary: there will be no such checkpoint; go on from where you were.
    CheckpointAbort {
        /// Which.
        n: u64,
        /// Why.
        text: Text,
    },
    /// Primary: still here.
    PrimaryAlive {
        /// How many records of each stream the outlet has accepted.
        accepted: Positions,
    },
    /// Secondary: all of the primary's memory has been in the cache once.
    CheckpointReady,
    /// Secondary: its guest stands still.
    CheckpointReply {
        /// For which checkpoint.
        n: u64,
        /// Where it is in its output.
        positions: Positions,
        /// Pages that it wrote since the last committed checkpoint.
        dirty: u64,
    },
    /// Secondary: its guest emitted this.
    Output(Vec<Record>),
    /// Secondary: the checkpoint is here and verified: it can go on from it without the primary.
    VmstateReceived {
        /// Which.
        n: u64,
        /// Digests of the cache by slot.
        cache: [u64; SlotId::COUNT],
        /// Their computation took so long.
        digest_ns: u64,
    },
    /// Secondary: it is at the checkpoint.
    VmstateLoaded(VmstateLoaded),
    /// Secondary: the checkpoint cannot be had; it goes on from where it was.
    CheckpointFailed {
        /// Which.
        n: u64,
        /// Why.
        text: Text,
    },
    /// Secondary: memories that should be equal are not, or pages were flushed that should not have been. It is nobody's
    /// secondary any more.
    Inexact {
        /// In which checkpoint.
        n: u64,
        /// What was found.
        text: Text,
    },
    /// Secondary: still here.
    SecondaryAlive,
}

impl ColoMessage {
    /// What its frame is.
    pub const fn tag(&self) -> Tag {
        match self {
            Self::Offer(_) => Tag::ColoOffer,
            Self::CheckpointRequest { .. } => Tag::CheckpointRequest,
            Self::VmstateSend { .. } => Tag::VmstateSend,
            Self::Dirty { .. } => Tag::Dirty,
            Self::Held(_) => Tag::Held,
            Self::VmstateSize(_) => Tag::VmstateSize,
            Self::CheckpointCommit { .. } => Tag::CheckpointCommit,
            Self::CheckpointAbort { .. } => Tag::CheckpointAbort,
            Self::PrimaryAlive { .. } => Tag::PrimaryAlive,
            Self::CheckpointReady => Tag::CheckpointReady,
            Self::CheckpointReply { .. } => Tag::CheckpointReply,
            Self::Output(_) => Tag::Output,
            Self::VmstateReceived { .. } => Tag::VmstateReceived,
            Self::VmstateLoaded(_) => Tag::VmstateLoaded,
            Self::CheckpointFailed { .. } => Tag::CheckpointFailed,
            Self::Inexact { .. } => Tag::Inexact,
            Self::SecondaryAlive => Tag::SecondaryAlive,
        }
    }

    /// Appends its meta.
    pub(super) fn encode(&self, fields: &mut Writer<'_>) {
        match self {
            Self::Offer(offer) => offer.encode(fields),
            Self::CheckpointRequest { n } | Self::CheckpointCommit { n } => fields.u64(*n),
            Self::VmstateSend { n, stopped } => {
                fields.u64(*n);
                fields.u64(stopped.at.ns());
                fields.u64(stopped.counter);
            }
            Self::Dirty { slot, first, words } => {
                fields.u8(raw_slot(*slot));
                fields.zeroes(7);
                fields.u64(*first);
                words.iter().for_each(|word| fields.u64(*word));
            }
            Self::Held(records) | Self::Output(records) => records.iter().for_each(|record| record.encode(fields.0)),
            Self::VmstateSize(size) => {
                fields.u64(size.n);
                fields.u64(size.bytes);
                size.digests.iter().for_each(|digest| fields.u64(*digest));
                fields.u64(size.dirty);
                fields.bytes(&size.positions.to_bytes());
            }
            Self::CheckpointAbort { n, text } | Self::CheckpointFailed { n, text } | Self::Inexact { n, text } => {
                fields.u64(*n);
                fields.text(text);
            }
            Self::PrimaryAlive { accepted } => fields.bytes(&accepted.to_bytes()),
            Self::CheckpointReady | Self::SecondaryAlive => {}
            Self::CheckpointReply { n, positions, dirty } => {
                fields.u64(*n);
                fields.u64(*dirty);
                fields.bytes(&positions.to_bytes());
            }
            Self::VmstateReceived { n, cache, digest_ns } => {
                fields.u64(*n);
                cache.iter().for_each(|digest| fields.u64(*digest));
                fields.u64(*digest_ns);
            }
            Self::VmstateLoaded(loaded) => {
                for word in [
                    loaded.n,
                    loaded.primary_dirty,
                    loaded.secondary_dirty,
                    loaded.both_dirty,
                    loaded.flushed,
                    loaded.flush_ns,
                    loaded.load_ns,
                    loaded.check_ns,
                ] {
                    fields.u64(word);
                }
                fields.words(loaded.ram);
            }
        }
    }

    /// What a frame `tag` says; `None` of one that is not of a pair.
    pub(super) fn decode(tag: Tag, what: &'static str, fields: &mut Reader<'_>) -> Result<Option<Self>, WireError> {
        Ok(Some(match tag {
            Tag::ColoOffer => Self::Offer(Box::new(ColoOffer::decode(fields)?)),
            Tag::CheckpointRequest => Self::CheckpointRequest { n: fields.u64()? },
            Tag::VmstateSend => {
                let n = fields.u64()?;
                let stopped = Moment { at: HostTime::from_ns(fields.u64()?), counter: fields.u64()? };
                Self::VmstateSend { n, stopped }
            }
            Tag::Dirty => {
                let slot = slot(fields, what)?;
                fields.zeroes(7)?;
                let first = fields.u64()?;
                if !first.is_multiple_of(64) {
                    return Err(fields.refused("first page", first));
                }
                let (words, odd) = fields.rest().as_chunks();
                if words.is_empty() || !odd.is_empty() || words.len() > MAX_DIRTY_WORDS {
                    return Err(fields.refused("words", words.len() as u64));
                }
                Self::Dirty { slot, first, words: words.iter().map(|word| u64::from_le_bytes(*word)).collect() }
            }
            Tag::Held => Self::Held(records(fields)?),
            Tag::VmstateSize => Self::VmstateSize(VmstateSize {
                n: fields.u64()?,
                bytes: fields.u64()?,
                digests: [fields.u64()?, fields.u64()?],
                dirty: fields.u64()?,
                positions: positions(fields)?,
            }),
            Tag::CheckpointCommit => Self::CheckpointCommit { n: fields.u64()? },
            Tag::CheckpointAbort => Self::CheckpointAbort { n: fields.u64()?, text: fields.text()? },
            Tag::PrimaryAlive => Self::PrimaryAlive { accepted: positions(fields)? },
            Tag::CheckpointReady => Self::CheckpointReady,
            Tag::CheckpointReply => {
                let (n, dirty) = (fields.u64()?, fields.u64()?);
                Self::CheckpointReply { n, positions: positions(fields)?, dirty }
            }
            Tag::Output => Self::Output(records(fields)?),
            Tag::VmstateReceived => Self::VmstateReceived {
                n: fields.u64()?,
                cache: [fields.u64()?, fields.u64()?],
                digest_ns: fields.u64()?,
            },
            Tag::VmstateLoaded => Self::VmstateLoaded(VmstateLoaded {
                n: fields.u64()?,
                primary_dirty: fields.u64()?,
                secondary_dirty: fields.u64()?,
                both_dirty: fields.u64()?,
                flushed: fields.u64()?,
                flush_ns: fields.u64()?,
                load_ns: fields.u64()?,
                check_ns: fields.u64()?,
                ram: fields.words()?,
            }),
            Tag::CheckpointFailed => Self::CheckpointFailed { n: fields.u64()?, text: fields.text()? },
            Tag::Inexact => Self::Inexact { n: fields.u64()?, text: fields.text()? },
            Tag::SecondaryAlive => Self::SecondaryAlive,
            _ => return Ok(None),
        }))
    }
}

impl ColoOffer {
    fn encode(&self, fields: &mut Writer<'_>) {
        fields.bytes(&self.pair.to_le_bytes());
        fields.u64(self.epoch);
        fields.u8(u8::from(self.compare));
        fields.u8(match self.digest {
            DigestMode::Full => 0,
            DigestMode::Deferred => 1,
        });
        fields.zeroes(6);
        fields.u64(self.salt);
        fields.bytes(&self.clock.offset_ns.to_le_bytes());
        fields.u64(self.clock.uncertainty_ns);
        self.description.encode(fields);
    }

    fn decode(fields: &mut Reader<'_>) -> Result<Self, WireError> {
        let pair = fields.array().map(u128::from_le_bytes)?;
        let epoch = fields.u64()?;
        let compare = match fields.u8()? {
            0 => false,
            1 => true,
            other => return Err(fields.refused("compare", other.into())),
        };
        let digest = match fields.u8()? {
            0 => DigestMode::Full,
            1 => DigestMode::Deferred,
            other => return Err(fields.refused("digest mode", other.into())),
        };
        fields.zeroes(6)?;
        let salt = fields.u64()?;
        let clock = ClockOffset { offset_ns: fields.array().map(i64::from_le_bytes)?, uncertainty_ns: fields.u64()? };
        Ok(Self { pair, epoch, compare, digest, salt, clock, description: Description::decode(fields)? })
    }
}

fn positions(fields: &mut Reader<'_>) -> Result<Positions, WireError> {
    fields.array().map(|bytes| Positions::from_bytes(&bytes))
}

/// As many as there are: the frame bounds them.
fn records(fields: &mut Reader<'_>) -> Result<Vec<Record>, WireError> {
    let mut bytes = fields.rest();
    let mut records = Vec::new();
    while !bytes.is_empty() {
        records.push(Record::decode(&mut bytes).map_err(|reason| WireError::Record { reason })?);
    }
    Ok(records)
}
