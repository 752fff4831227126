//! A batch of pages: [`PageBatch`], the meta of a `Pages` frame, checked against the machine's [`Geometry`].

use abi::Gpa;

use super::MAX_PAYLOAD_BYTES;
use super::error::WireError;
use super::fields::{Reader, Writer};
use crate::memory::SlotId;

const WHAT: &str = "batch of pages";
const RUN_BYTES: usize = 16;

/// The pages of each slot, as both sides have agreed on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    page_bytes: u32,
    slots: [(Gpa, u64); SlotId::COUNT],
}

impl Geometry {
    pub(super) const fn new(page_bytes: u32, slots: [(Gpa, u64); SlotId::COUNT]) -> Self {
        Self { page_bytes, slots }
    }

    /// Bytes of a wire page: 4, 16 or 64 KiB.
    pub const fn page_bytes(&self) -> u32 {
        self.page_bytes
    }

    /// Wire pages of `slot`.
    pub const fn pages(&self, slot: SlotId) -> u64 {
        self.slots[slot.index()].1
    }

    /// Where `slot` starts.
    pub const fn base(&self, slot: SlotId) -> Gpa {
        self.slots[slot.index()].0
    }

    /// Checks that `slot` has the `count` pages from `first`.
    ///
    /// # Errors
    /// [`WireError::Pages`].
    pub fn check(&self, slot: SlotId, first: u64, count: u64) -> Result<(), WireError> {
        let pages = self.pages(slot);
        match first.checked_add(count) {
            Some(end) if end <= pages => Ok(()),
            _ => Err(WireError::Pages { slot, first, count, pages }),
        }
    }
}

/// How the pages of a run are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Encoding {
    /// They are zero; nothing is sent.
    Zero,
    /// All their bytes.
    Whole,
    /// One page, by what differs from what was last sent of it.
    Delta {
        /// Bytes of the delta, fewer than a page's.
        len_bytes: u16,
    },
}

/// Pages that follow one another, sent in one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first, counted in wire pages from the slot's start.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// How they are sent.
    pub encoding: Encoding,
}

impl Run {
    /// Bytes that it has in the body.
    pub const fn body_bytes(&self, page_bytes: u32) -> u64 {
        match self.encoding {
            Encoding::Zero => 0,
            Encoding::Whole => self.count as u64 * page_bytes as u64,
            Encoding::Delta { len_bytes } => len_bytes as u64,
        }
    }
}

/// What the payload is: the runs' bytes one after another, called the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Body {
    /// The body itself.
    Plain,
    /// The body as one zstd frame.
    Zstd,
}

/// Pages of one slot in one pass; the bytes are in the payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageBatch {
    /// Of which slot.
    pub slot: SlotId,
    /// In which pass.
    pub pass: u32,
    /// What the payload is.
    pub body: Body,
    /// Sum of the nodes of all pages in the runs, zero pages too: `workload::digest` with the salt's exclusive or with the
    /// pass in the pass's place.
    pub digest: u64,
    /// In ascending order, disjoint.
    pub runs: Vec<Run>,
}

impl PageBatch {
    /// Bytes of the body.
    pub fn body_bytes(&self, page_bytes: u32) -> u64 {
        self.runs.iter().fold(0, |sum, run| sum.saturating_add(run.body_bytes(page_bytes)))
    }

    /// Pages in its runs.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Checks that every page is one of the machine's, and comes once, that the payload is as long as it must be, and that
    /// the pages that are not zero take no more than [`MAX_PAYLOAD_BYTES`].
    ///
    /// # Errors
    /// [`WireError::Pages`], [`WireError::Runs`], [`WireError::Unpacked`], [`WireError::Payload`], [`WireError::Value`].
    pub fn check(&self, geometry: &Geometry, payload_bytes: u32) -> Result<(), WireError> {
        let mut next = 0;
        for run in &self.runs {
            geometry.check(self.slot, run.first, run.count.into())?;
            if run.count == 0 || run.first < next {
                return Err(WireError::Runs { slot: self.slot, first: run.first });
            }
            next = run.first + u64::from(run.count);
            if let Encoding::Delta { len_bytes } = run.encoding
                && (run.count != 1 || u32::from(len_bytes) >= geometry.page_bytes)
            {
                return Err(WireError::Value { what: WHAT, field: "delta bytes", value: len_bytes.into() });
            }
        }
        let unpacked_bytes = self
            .runs
            .iter()
            .filter(|run| run.encoding != Encoding::Zero)
            .fold(0, |sum: u64, run| sum.saturating_add(u64::from(run.count) * u64::from(geometry.page_bytes)));
        if unpacked_bytes > MAX_PAYLOAD_BYTES.into() {
            return Err(WireError::Unpacked { unpacked_bytes });
        }
        let (expected_bytes, found_bytes) = (self.body_bytes(geometry.page_bytes), u64::from(payload_bytes));
        let fits = match self.body {
            Body::Plain => expected_bytes == found_bytes,
            // The frame may be longer than what it holds, by little: that is the sender's loss.
            Body::Zstd => expected_bytes != 0 && found_bytes != 0,
        };
        if !fits {
            return Err(WireError::Payload { expected_bytes, found_bytes });
        }
        Ok(())
    }

    pub(super) fn encode(&self, fields: &mut Writer<'_>) {
        fields.u8(raw_slot(self.slot));
        fields.u8(match self.body {
            Body::Plain => 0,
            Body::Zstd => 1,
        });
        fields.zeroes(2);
        fields.u32(self.pass);
        fields.u64(self.digest);
        for run in &self.runs {
            let (encoding, len_bytes) = match run.encoding {
                Encoding::Zero => (0, 0),
                Encoding::Whole => (1, 0),
                Encoding::Delta { len_bytes } => (2, len_bytes),
            };
            fields.u64(run.first);
            fields.u32(run.count);
            fields.u16(encoding);
            fields.u16(len_bytes);
        }
    }

    pub(super) fn decode(fields: &mut Reader<'_>) -> Result<Self, WireError> {
        let slot = slot(fields, WHAT)?;
        let body = match fields.u8()? {
            0 => Body::Plain,
            1 => Body::Zstd,
            other => return Err(WireError::Value { what: WHAT, field: "body", value: other.into() }),
        };
        fields.zeroes(2)?;
        let pass = fields.u32()?;
        let digest = fields.u64()?;
        let (runs, odd) = fields.rest().as_chunks::<RUN_BYTES>();
        if runs.is_empty() || !odd.is_empty() {
            return Err(WireError::Short { what: WHAT });
        }
        let runs = runs.iter().map(decode_run).collect::<Result<_, _>>()?;
        Ok(Self { slot, pass, body, digest, runs })
    }
}

fn decode_run(bytes: &[u8; RUN_BYTES]) -> Result<Run, WireError> {
    let mut fields = Reader::new(bytes, WHAT);
    let (first, count) = (fields.u64()?, fields.u32()?);
    let encoding = match (fields.u16()?, fields.u16()?) {
        (0, 0) => Encoding::Zero,
        (1, 0) => Encoding::Whole,
        (2, len_bytes) => Encoding::Delta { len_bytes },
        (0 | 1, _) => return Err(WireError::Reserved { what: WHAT }),
        (other, _) => return Err(WireError::Value { what: WHAT, field: "encoding", value: other.into() }),
    };
    Ok(Run { first, count, encoding })
}

/// The slot's number on the wire: KVM's, which is its index.
pub(super) const fn raw_slot(slot: SlotId) -> u8 {
    slot.index() as u8
}

pub(super) fn slot(fields: &mut Reader<'_>, what: &'static str) -> Result<SlotId, WireError> {
    let raw = fields.u8()?;
    SlotId::ALL.into_iter().find(|slot| raw_slot(*slot) == raw).ok_or(WireError::Value {
        what,
        field: "slot",
        value: raw.into(),
    })
}
