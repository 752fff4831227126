//! State beside memory: a [`Section`] each, cut into [`SectionPart`]s that fit a frame, and put together by [`Sections`].

use std::fmt;

use super::error::WireError;
use super::fields::{Reader, Writer};
use super::{MAX_SECTION_BYTES, MAX_SECTIONS_BYTES};

const WHAT: &str = "section";
/// Bytes of a section in one frame: with its fields below a frame's limit.
const PART_BYTES: usize = 512 << 10;
/// More sections than any machine has.
const MAX_SECTIONS: usize = 256;

/// What a section holds. Its bytes are its owner's; each kind opens with a version of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum SectionKind {
    /// Registers and power of the vCPU `index`.
    Vcpu,
    /// The interrupt controller.
    Gic,
    /// The console's UART.
    Uart,
    /// The guest's counter.
    Counter,
    /// Every page of slot `index` that the guest ever dirtied.
    DirtyHistory,
    /// How far each vCPU's workload is, and what it was asked to do.
    Progress,
    /// The hypercall device: who waits for an answer.
    Hypercall,
    /// Console output of which the line has not ended.
    Console,
    /// What the guest's heartbeats were as it left.
    Heartbeat,
}

impl SectionKind {
    const ALL: [(Self, u16, &'static str); 9] = [
        (Self::Vcpu, 1, "vcpu"),
        (Self::Gic, 2, "gic"),
        (Self::Uart, 3, "uart"),
        (Self::Counter, 4, "counter"),
        (Self::DirtyHistory, 5, "dirty-history"),
        (Self::Progress, 6, "progress"),
        (Self::Hypercall, 7, "hypercall"),
        (Self::Console, 8, "console"),
        (Self::Heartbeat, 9, "heartbeat"),
    ];

    fn row(self) -> (Self, u16, &'static str) {
        Self::ALL.into_iter().find(|row| row.0 == self).expect("every kind has a row")
    }

    /// Its number on the wire.
    pub fn raw(self) -> u16 {
        self.row().1
    }

    /// The kind numbered `raw`.
    pub fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.1 == raw).map(|row| row.0)
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

/// One piece of state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Which of its kind: a vCPU's or a slot's number, else 0.
    pub index: u16,
    /// The bytes, at most [`MAX_SECTION_BYTES`].
    pub bytes: Vec<u8>,
}

impl Section {
    /// The parts to send, in order. An empty section has one.
    pub fn parts(&self) -> impl Iterator<Item = SectionPart> + '_ {
        let total_bytes = self.bytes.len() as u32;
        let part = move |(bytes, at): (&[u8], usize)| SectionPart {
            kind: self.kind,
            index: self.index,
            total_bytes,
            offset: (at * PART_BYTES) as u32,
            bytes: bytes.to_vec(),
        };
        let empty = self.bytes.is_empty().then_some((self.bytes.as_slice(), 0));
        empty.into_iter().chain(self.bytes.chunks(PART_BYTES).zip(0..)).map(part)
    }
}

/// A part of a section, as one frame carries it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SectionPart {
    /// What the section holds.
    pub kind: SectionKind,
    /// Which of its kind.
    pub index: u16,
    /// Bytes of the whole section.
    pub total_bytes: u32,
    /// Where in it this part starts.
    pub offset: u32,
    /// The part's bytes.
    pub bytes: Vec<u8>,
}

impl SectionPart {
    pub(super) fn encode(&self, fields: &mut Writer<'_>) {
        fields.u16(self.kind.raw());
        fields.u16(self.index);
        fields.u32(self.total_bytes);
        fields.u32(self.offset);
        fields.bytes(&self.bytes);
    }

    pub(super) fn decode(fields: &mut Reader<'_>) -> Result<Self, WireError> {
        let kind = fields.u16()?;
        let kind =
            SectionKind::from_raw(kind).ok_or(WireError::Value { what: WHAT, field: "kind", value: kind.into() })?;
        let (index, total_bytes, offset) = (fields.u16()?, fields.u32()?, fields.u32()?);
        Ok(Self { kind, index, total_bytes, offset, bytes: fields.rest().to_vec() })
    }

    fn key(&self) -> (SectionKind, u16) {
        (self.kind, self.index)
    }
}

/// Sections as their parts arrive. Memory grows with what has arrived, never with what was announced.
#[derive(Clone, Debug, Default)]
pub struct Sections {
    whole: Vec<Section>,
    /// The one that is arriving, and its full size.
    arriving: Option<(Section, u32)>,
    bytes: u64,
}

impl Sections {
    /// None so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next part.
    ///
    /// # Errors
    /// [`WireError::Section`] where it does not continue what came before, is empty without need, or is of a section that
    /// came before; [`WireError::Sections`] where there is too much.
    pub fn add(&mut self, part: SectionPart) -> Result<(), WireError> {
        let (kind, index, offset, total_bytes) = (part.kind.raw(), part.index, part.offset, part.total_bytes);
        let odd = WireError::Section { kind, index, offset, total_bytes };
        let (mut section, total) = match self.arriving.take() {
            Some((section, total)) => (section, total),
            None => {
                self.check_new(&part)?;
                (Section { kind: part.kind, index: part.index, bytes: Vec::new() }, total_bytes)
            }
        };
        let end = u64::from(offset) + part.bytes.len() as u64;
        let continues = part.key() == (section.kind, section.index)
            && total == total_bytes
            && offset as usize == section.bytes.len()
            && end <= u64::from(total)
            && (total == 0 || !part.bytes.is_empty());
        if !continues {
            return Err(odd);
        }
        self.bytes += part.bytes.len() as u64;
        section.bytes.extend_from_slice(&part.bytes);
        if section.bytes.len() == total as usize {
            self.whole.push(section);
        } else {
            self.arriving = Some((section, total));
        }
        Ok(())
    }

    /// All sections, in the order in which they came.
    ///
    /// # Errors
    /// [`WireError::Section`] where one has not arrived as a whole.
    pub fn finish(self) -> Result<Vec<Section>, WireError> {
        match self.arriving {
            None => Ok(self.whole),
            Some((section, total_bytes)) => Err(WireError::Section {
                kind: section.kind.raw(),
                index: section.index,
                offset: section.bytes.len() as u32,
                total_bytes,
            }),
        }
    }

    fn check_new(&self, part: &SectionPart) -> Result<(), WireError> {
        let (kind, index, offset, total_bytes) = (part.kind.raw(), part.index, part.offset, part.total_bytes);
        if self.whole.iter().any(|section| (section.kind, section.index) == part.key()) {
            return Err(WireError::Section { kind, index, offset, total_bytes });
        }
        let all = self.bytes + u64::from(total_bytes);
        if total_bytes > MAX_SECTION_BYTES || all > MAX_SECTIONS_BYTES || self.whole.len() == MAX_SECTIONS {
            return Err(WireError::Sections { kind, index, total_bytes });
        }
        Ok(())
    }
}
