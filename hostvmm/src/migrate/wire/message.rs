//! The messages: [`Message`], each a frame's [`Tag`] and meta.

use std::fmt;

use super::batch::{PageBatch, raw_slot, slot};
use super::colo::ColoMessage;
use super::description::{Description, Field, Mismatch};
use super::error::WireError;
use super::fields::{Reader, Text, Writer};
use super::greeting::MAX_PAGE_CHANNELS;
use super::section::SectionPart;
use crate::memory::SlotId;
use crate::migrate::{ClockOffset, CounterPolicy, DigestMode, HostTime};

/// Most words of a bitmap in one [`Pending`].
pub const MAX_PENDING_WORDS: usize = 64 << 10;

/// Most registers in an [`Offer`].
pub const MAX_CPU_REGISTERS: usize = 1024;

/// What a frame is. Those from the destination have their highest bit set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Tag {
    /// [`Message::Offer`].
    Offer,
    /// [`Message::Pages`].
    Pages,
    /// [`Message::PassEnd`].
    PassEnd,
    /// [`Message::Sync`].
    Sync,
    /// [`Message::Stopped`].
    Stopped,
    /// [`Message::Section`].
    Section,
    /// [`Message::Digest`].
    Digest,
    /// [`Message::Commit`].
    Commit,
    /// [`Message::Pending`].
    Pending,
    /// [`Message::PostcopyRun`].
    PostcopyRun,
    /// [`Message::Abort`].
    Abort,
    /// [`Message::Farewell`].
    Farewell,
    /// [`Message::Query`].
    Query,
    /// [`Message::Accept`].
    Accept,
    /// [`Message::Refuse`].
    Refuse,
    /// [`Message::PassAck`].
    PassAck,
    /// [`Message::Loaded`].
    Loaded,
    /// [`Message::Resumed`].
    Resumed,
    /// [`Message::PageRequest`].
    PageRequest,
    /// [`Message::Failure`].
    Failure,
    /// [`Message::Answer`].
    Answer,
    /// [`ColoMessage::Offer`].
    ColoOffer,
    /// [`ColoMessage::CheckpointRequest`].
    CheckpointRequest,
    /// [`ColoMessage::VmstateSend`].
    VmstateSend,
    /// [`ColoMessage::Dirty`].
    Dirty,
    /// [`ColoMessage::Held`].
    Held,
    /// [`ColoMessage::VmstateSize`].
    VmstateSize,
    /// [`ColoMessage::CheckpointCommit`].
    CheckpointCommit,
    /// [`ColoMessage::CheckpointAbort`].
    CheckpointAbort,
    /// [`ColoMessage::PrimaryAlive`].
    PrimaryAlive,
    /// [`ColoMessage::CheckpointReady`].
    CheckpointReady,
    /// [`ColoMessage::CheckpointReply`].
    CheckpointReply,
    /// [`ColoMessage::Output`].
    Output,
    /// [`ColoMessage::VmstateReceived`].
    VmstateReceived,
    /// [`ColoMessage::VmstateLoaded`].
    VmstateLoaded,
    /// [`ColoMessage::CheckpointFailed`].
    CheckpointFailed,
    /// [`ColoMessage::Inexact`].
    Inexact,
    /// [`ColoMessage::SecondaryAlive`].
    SecondaryAlive,
}

impl Tag {
    /// Every tag, its number, its name.
    pub(super) const ALL: [(Self, u16, &'static str); 38] = [
        (Self::Offer, 0x01, "offer"),
        (Self::Pages, 0x02, "pages"),
        (Self::PassEnd, 0x03, "pass-end"),
        (Self::Sync, 0x04, "sync"),
        (Self::Stopped, 0x05, "stopped"),
        (Self::Section, 0x06, "section"),
        (Self::Digest, 0x07, "digest"),
        (Self::Commit, 0x08, "commit"),
        (Self::Pending, 0x09, "pending"),
        (Self::PostcopyRun, 0x0a, "postcopy-run"),
        (Self::Abort, 0x0b, "abort"),
        (Self::Farewell, 0x0c, "farewell"),
        (Self::Query, 0x0d, "query"),
        (Self::Accept, 0x8001, "accept"),
        (Self::Refuse, 0x8002, "refuse"),
        (Self::PassAck, 0x8003, "pass-ack"),
        (Self::Loaded, 0x8004, "loaded"),
        (Self::Resumed, 0x8005, "resumed"),
        (Self::PageRequest, 0x8006, "page-request"),
        (Self::Failure, 0x8007, "failure"),
        (Self::Answer, 0x8008, "answer"),
        (Self::ColoOffer, 0x20, "colo-offer"),
        (Self::CheckpointRequest, 0x21, "checkpoint-request"),
        (Self::VmstateSend, 0x22, "vmstate-send"),
        (Self::Dirty, 0x23, "dirty"),
        (Self::Held, 0x24, "held"),
        (Self::VmstateSize, 0x25, "vmstate-size"),
        (Self::CheckpointCommit, 0x26, "checkpoint-commit"),
        (Self::CheckpointAbort, 0x27, "checkpoint-abort"),
        (Self::PrimaryAlive, 0x28, "primary-alive"),
        (Self::CheckpointReady, 0x8020, "checkpoint-ready"),
        (Self::CheckpointReply, 0x8021, "checkpoint-reply"),
        (Self::Output, 0x8022, "output"),
        (Self::VmstateReceived, 0x8023, "vmstate-received"),
        (Self::VmstateLoaded, 0x8024, "vmstate-loaded"),
        (Self::CheckpointFailed, 0x8025, "checkpoint-failed"),
        (Self::Inexact, 0x8026, "inexact"),
        (Self::SecondaryAlive, 0x8027, "secondary-alive"),
    ];

    fn row(self) -> (Self, u16, &'static str) {
        Self::ALL.into_iter().find(|row| row.0 == self).expect("every tag has a row")
    }

    /// The name.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    pub(super) fn raw(self) -> u16 {
        self.row().1
    }

    pub(super) fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.1 == raw).map(|row| row.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

/// What a migration may make use of: the source offers a set, the destination accepts a subset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features(u32);

impl Features {
    /// None.
    pub const NONE: Self = Self(0);
    /// Pages by what differs from what was last sent.
    pub const DELTA: Self = Self(1 << 0);
    /// Bodies compressed by zstd.
    pub const ZSTD: Self = Self(1 << 1);
    /// The guest may run at the destination before all of its memory is there.
    pub const POSTCOPY: Self = Self(1 << 2);
    /// The memory itself is handed over, so no pages are sent.
    pub const SHARED_MEMORY: Self = Self(1 << 3);
    /// All that there are.
    pub const ALL: Self = Self(0b1111);

    /// Those of both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those of either.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are in it.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn decode(fields: &mut Reader<'_>) -> Result<Self, WireError> {
        let bits = fields.u32()?;
        if bits & !Self::ALL.0 == 0 { Ok(Self(bits)) } else { Err(fields.refused("features", bits.into())) }
    }
}

/// The source's proposal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The machine.
    pub description: Description,
    /// What the source would make use of.
    pub features: Features,
    /// Page channels that will be opened beside the main one.
    pub page_channels: u16,
    /// When all memory is compared.
    pub digest: DigestMode,
    /// What the guest's counter shows of the downtime.
    pub counter: CounterPolicy,
    /// In every digest, so that none can be made up beforehand.
    pub salt: u64,
    /// The destination's clock less the source's, as the source measured it.
    pub clock: ClockOffset,
    /// Of a vCPU's registers those that are compared before anything moves: KVM's id and the value
    /// ([`crate::cpustate::constants`]). At most [`MAX_CPU_REGISTERS`].
    pub cpu: Vec<(u64, u128)>,
}

/// The pages of one slot that were sent in a pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotPass {
    /// How many, zero pages too.
    pub pages: u64,
    /// Sum of the digests of their batches.
    pub digest: u64,
}

/// All pages of a pass have been sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PassEnd {
    /// Which pass.
    pub pass: u32,
    /// By slot.
    pub slots: [SlotPass; SlotId::COUNT],
}

/// Pages that the destination has not got when the guest starts to run there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Of which slot.
    pub slot: SlotId,
    /// The first page that the words stand for: a multiple of 64.
    pub first: u64,
    /// A bit a page, least significant first. At most [`MAX_PENDING_WORDS`].
    pub words: Vec<u64>,
}

/// The destination has everything and is ready to run the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// Digests of its memory by slot, made as those of [`Message::Digest`]; `None` where [`Message::Digest`] had none.
    pub digests: Option<[u64; SlotId::COUNT]>,
    /// Time from the last section's arrival until the state was loaded.
    pub load_ns: u64,
    /// Time that the digest of all memory took.
    pub digest_ns: u64,
}

/// The guest runs at the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resumed {
    /// When the first vCPU entered it, by the destination's clock.
    pub at: HostTime,
    /// The guest's counter at that instant.
    pub counter: u64,
    /// Time from the commit's arrival until then.
    pub resume_ns: u64,
}

/// What the destination says about the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum GuestState {
    /// It runs here: the source must not.
    Running,
    /// It never ran here and never will: the source may.
    Discarded,
    /// Nothing is decided.
    Waiting,
    /// It runs here with all the pages that post-copy owed it.
    Whole {
        /// Of its memory as it came, by slot.
        digests: [u64; SlotId::COUNT],
    },
    /// It ran here without all of its pages, and has been stopped for good.
    Lost,
}

/// A frame's meaning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Source: this guest.
    Offer(Box<Offer>),
    /// Source: these pages; their bytes are the frame's payload.
    Pages(PageBatch),
    /// Source: the pass is complete.
    PassEnd(PassEnd),
    /// Source, on a page channel: all of this channel's pages of the pass have been sent.
    Sync {
        /// Which pass.
        pass: u32,
    },
    /// Source: the guest stands still. One more pass may follow.
    Stopped {
        /// When the last vCPU left it, by the source's clock.
        at: HostTime,
        /// The guest's counter at that instant.
        counter: u64,
    },
    /// Source: a part of the state.
    Section(SectionPart),
    /// Source: all of the state has been sent, and memory's digests by slot are these; `None` where they cannot be
    /// known yet.
    Digest(Option<[u64; SlotId::COUNT]>),
    /// Source: the guest is yours.
    Commit,
    /// Source: these pages will come later.
    Pending(Pending),
    /// Source: the guest is yours; pages follow as they are asked for, and by themselves.
    PostcopyRun,
    /// Source: forget it.
    Abort {
        /// Why.
        text: Text,
    },
    /// Source: nothing more will be sent or asked.
    Farewell {
        /// What was found wrong after the guest had been handed over.
        fault: Option<Text>,
    },
    /// Source: what has become of the guest?
    Query,
    /// Destination: agreed.
    Accept {
        /// What may be made use of: those offered, or fewer.
        features: Features,
    },
    /// Destination: this guest cannot run here.
    Refuse(Mismatch),
    /// Destination: the pass has arrived.
    PassAck {
        /// Which.
        pass: u32,
        /// What it found, by slot.
        digests: [u64; SlotId::COUNT],
    },
    /// Destination: ready.
    Loaded(Loaded),
    /// Destination: it runs.
    Resumed(Resumed),
    /// Destination: the guest waits for this page.
    PageRequest {
        /// Of which slot.
        slot: SlotId,
        /// Which wire page.
        page: u64,
    },
    /// Destination: the migration has failed here.
    Failure {
        /// Why.
        text: Text,
    },
    /// Destination: to a query.
    Answer(GuestState),
    /// Either side of a COLO pair.
    Colo(ColoMessage),
}

impl Message {
    /// What its frame is.
    pub const fn tag(&self) -> Tag {
        match self {
            Self::Offer(_) => Tag::Offer,
            Self::Pages(_) => Tag::Pages,
            Self::PassEnd(_) => Tag::PassEnd,
            Self::Sync { .. } => Tag::Sync,
            Self::Stopped { .. } => Tag::Stopped,
            Self::Section(_) => Tag::Section,
            Self::Digest(_) => Tag::Digest,
            Self::Commit => Tag::Commit,
            Self::Pending(_) => Tag::Pending,
            Self::PostcopyRun => Tag::PostcopyRun,
            Self::Abort { .. } => Tag::Abort,
            Self::Farewell { .. } => Tag::Farewell,
            Self::Query => Tag::Query,
            Self::Accept { .. } => Tag::Accept,
            Self::Refuse(_) => Tag::Refuse,
            Self::PassAck { .. } => Tag::PassAck,
            Self::Loaded(_) => Tag::Loaded,
            Self::Resumed(_) => Tag::Resumed,
            Self::PageRequest { .. } => Tag::PageRequest,
            Self::Failure { .. } => Tag::Failure,
            Self::Answer(_) => Tag::Answer,
            Self::Colo(message) => message.tag(),
        }
    }

    /// Appends its meta.
    pub(super) fn encode(&self, meta: &mut Vec<u8>) {
        let mut fields = Writer(meta);
        match self {
            Self::Offer(offer) => offer.encode(&mut fields),
            Self::Pages(batch) => batch.encode(&mut fields),
            Self::PassEnd(end) => {
                fields.u32(end.pass);
                fields.zeroes(4);
                for slot in end.slots {
                    fields.u64(slot.pages);
                    fields.u64(slot.digest);
                }
            }
            Self::Sync { pass } => fields.u32(*pass),
            Self::Stopped { at, counter } => {
                fields.u64(at.ns());
                fields.u64(*counter);
            }
            Self::Section(part) => part.encode(&mut fields),
            Self::Digest(digests) => fields.words(*digests),
            Self::Commit | Self::PostcopyRun | Self::Query => {}
            Self::Pending(pending) => {
                fields.u8(raw_slot(pending.slot));
                fields.zeroes(7);
                fields.u64(pending.first);
                pending.words.iter().for_each(|word| fields.u64(*word));
            }
            Self::Abort { text } | Self::Failure { text } => fields.text(text),
            Self::Farewell { fault } => {
                fields.u8(u8::from(fault.is_some()));
                fields.text(fault.as_ref().unwrap_or(&Text::default()));
            }
            Self::Accept { features } => fields.u32(features.0),
            Self::Refuse(mismatch) => {
                fields.u16(mismatch.field.raw());
                fields.text(&mismatch.source_has);
                fields.text(&mismatch.destination_has);
            }
            Self::PassAck { pass, digests } => {
                fields.u32(*pass);
                fields.zeroes(4);
                digests.iter().for_each(|digest| fields.u64(*digest));
            }
            Self::Loaded(loaded) => {
                fields.words(loaded.digests);
                fields.u64(loaded.load_ns);
                fields.u64(loaded.digest_ns);
            }
            Self::Resumed(resumed) => {
                fields.u64(resumed.at.ns());
                fields.u64(resumed.counter);
                fields.u64(resumed.resume_ns);
            }
            Self::PageRequest { slot, page } => {
                fields.u8(raw_slot(*slot));
                fields.zeroes(7);
                fields.u64(*page);
            }
            Self::Answer(state) => {
                fields.u32(match state {
                    GuestState::Running => 1,
                    GuestState::Discarded => 2,
                    GuestState::Waiting => 3,
                    GuestState::Whole { .. } => 4,
                    GuestState::Lost => 5,
                });
                if let GuestState::Whole { digests } = state {
                    fields.zeroes(4);
                    digests.iter().for_each(|digest| fields.u64(*digest));
                }
            }
            Self::Colo(message) => message.encode(&mut fields),
        }
    }

    /// What the `meta` of a frame `tag` says, all of it.
    pub(super) fn decode(tag: Tag, meta: &[u8]) -> Result<Self, WireError> {
        let what = tag.row().2;
        let mut fields = Reader::new(meta, what);
        let message = match tag {
            Tag::Offer => Self::Offer(Box::new(Offer::decode(&mut fields)?)),
            Tag::Pages => Self::Pages(PageBatch::decode(&mut fields)?),
            Tag::PassEnd => {
                let pass = fields.u32()?;
                fields.zeroes(4)?;
                let mut slots = [SlotPass::default(); SlotId::COUNT];
                for slot in &mut slots {
                    *slot = SlotPass { pages: fields.u64()?, digest: fields.u64()? };
                }
                Self::PassEnd(PassEnd { pass, slots })
            }
            Tag::Sync => Self::Sync { pass: fields.u32()? },
            Tag::Stopped => Self::Stopped { at: HostTime::from_ns(fields.u64()?), counter: fields.u64()? },
            Tag::Section => Self::Section(SectionPart::decode(&mut fields)?),
            Tag::Digest => Self::Digest(fields.words()?),
            Tag::Commit => Self::Commit,
            Tag::Pending => Self::Pending(Pending::decode(&mut fields)?),
            Tag::PostcopyRun => Self::PostcopyRun,
            Tag::Abort => Self::Abort { text: fields.text()? },
            Tag::Farewell => {
                let (flag, text) = (fields.u8()?, fields.text()?);
                match flag {
                    0 if text.as_str().is_empty() => Self::Farewell { fault: None },
                    1 => Self::Farewell { fault: Some(text) },
                    other => return Err(fields.refused("flag", other.into())),
                }
            }
            Tag::Query => Self::Query,
            Tag::Accept => Self::Accept { features: Features::decode(&mut fields)? },
            Tag::Refuse => {
                let field = fields.u16()?;
                let field = Field::from_raw(field).ok_or_else(|| fields.refused("field", field.into()))?;
                Self::Refuse(Mismatch { field, source_has: fields.text()?, destination_has: fields.text()? })
            }
            Tag::PassAck => {
                let pass = fields.u32()?;
                fields.zeroes(4)?;
                Self::PassAck { pass, digests: [fields.u64()?, fields.u64()?] }
            }
            Tag::Loaded => {
                Self::Loaded(Loaded { digests: fields.words()?, load_ns: fields.u64()?, digest_ns: fields.u64()? })
            }
            Tag::Resumed => Self::Resumed(Resumed {
                at: HostTime::from_ns(fields.u64()?),
                counter: fields.u64()?,
                resume_ns: fields.u64()?,
            }),
            Tag::PageRequest => {
                let slot = slot(&mut fields, what)?;
                fields.zeroes(7)?;
                Self::PageRequest { slot, page: fields.u64()? }
            }
            Tag::Failure => Self::Failure { text: fields.text()? },
            Tag::Answer => Self::Answer(match fields.u32()? {
                1 => GuestState::Running,
                2 => GuestState::Discarded,
                3 => GuestState::Waiting,
                4 => {
                    fields.zeroes(4)?;
                    GuestState::Whole { digests: [fields.u64()?, fields.u64()?] }
                }
                5 => GuestState::Lost,
                other => return Err(fields.refused("state", other.into())),
            }),
            _ => match ColoMessage::decode(tag, what, &mut fields)? {
                Some(message) => Self::Colo(message),
                None => return Err(WireError::Tag { tag: tag.raw() }),
            },
        };
        fields.end()?;
        Ok(message)
    }
}

impl Offer {
    fn encode(&self, fields: &mut Writer<'_>) {
        self.description.encode(fields);
        fields.u32(self.features.0);
        fields.u16(self.page_channels);
        fields.u8(match self.digest {
            DigestMode::Full => 0,
            DigestMode::Deferred => 1,
        });
        fields.u8(match self.counter {
            CounterPolicy::RunsOn => 0,
            CounterPolicy::Stops => 1,
        });
        fields.u64(self.salt);
        fields.bytes(&self.clock.offset_ns.to_le_bytes());
        fields.u64(self.clock.uncertainty_ns);
        fields.u32(self.cpu.len() as u32);
        fields.zeroes(4);
        for (id, value) in &self.cpu {
            fields.u64(*id);
            fields.bytes(&value.to_le_bytes());
        }
    }

    fn decode(fields: &mut Reader<'_>) -> Result<Self, WireError> {
        let description = Description::decode(fields)?;
        let features = Features::decode(fields)?;
        let page_channels = fields.u16()?;
        if page_channels > MAX_PAGE_CHANNELS {
            return Err(fields.refused("page channels", page_channels.into()));
        }
        let digest = match fields.u8()? {
            0 => DigestMode::Full,
            1 => DigestMode::Deferred,
            other => return Err(fields.refused("digest mode", other.into())),
        };
        let counter = match fields.u8()? {
            0 => CounterPolicy::RunsOn,
            1 => CounterPolicy::Stops,
            other => return Err(fields.refused("counter policy", other.into())),
        };
        let salt = fields.u64()?;
        let clock = ClockOffset { offset_ns: fields.array().map(i64::from_le_bytes)?, uncertainty_ns: fields.u64()? };
        let count = fields.u32()?;
        if count as usize > MAX_CPU_REGISTERS {
            return Err(fields.refused("registers", count.into()));
        }
        fields.zeroes(4)?;
        let mut cpu = Vec::new();
        for _ in 0..count {
            cpu.push((fields.u64()?, fields.array().map(u128::from_le_bytes)?));
        }
        Ok(Self { description, features, page_channels, digest, counter, salt, clock, cpu })
    }
}

impl Pending {
    fn decode(fields: &mut Reader<'_>) -> Result<Self, WireError> {
        let slot = slot(fields, "pending")?;
        fields.zeroes(7)?;
        let first = fields.u64()?;
        if !first.is_multiple_of(64) {
            return Err(fields.refused("first page", first));
        }
        let (words, odd) = fields.rest().as_chunks();
        if words.is_empty() || !odd.is_empty() || words.len() > MAX_PENDING_WORDS {
            return Err(fields.refused("words", words.len() as u64));
        }
        Ok(Self { slot, first, words: words.iter().map(|word| u64::from_le_bytes(*word)).collect() })
    }
}
