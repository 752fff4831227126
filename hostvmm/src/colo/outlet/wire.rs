//! The bytes between a side and the outlet: [`Request`], [`Answer`], and the frames that hold them. docs/colo-outlet.md has the format.
//!
//! A frame is 16 bytes of header, little-endian (magic, version, kind, length of the body, zero), and the body. Each request has one
//! answer. Lengths are bounded before anything is allocated; unknown numbers and reserved bytes that are not zero are errors, and
//! whoever sends them is told no more.

use std::io::{self, Read, Write};

use super::arbiter::Claimant;
use super::{Claim, OutletError};
use crate::colo::Side;
use crate::colo::output::{BadRecord, MAX_RECORD_BYTES, Positions, RECORD_HEADER_BYTES, Record, StreamId};

const MAGIC: [u8; 4] = *b"TDOL";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
/// Most bytes of a body.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Claimant, epoch, number of records and zero, before the records.
const DELIVER_BYTES: usize = 32;
/// Bytes of records that fit a delivery.
pub(super) const MAX_DELIVERY_BYTES: usize = MAX_BODY_BYTES - DELIVER_BYTES;
const _: () = assert!(MAX_DELIVERY_BYTES > RECORD_HEADER_BYTES + MAX_RECORD_BYTES);

/// What a side asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// To own the outlet.
    Claim(Claimant, Claim),
    /// To take records.
    Deliver {
        /// Who.
        claimant: Claimant,
        /// As the owner of this epoch.
        epoch: u64,
        /// What.
        records: Vec<Record>,
    },
}

/// What the outlet says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Done. So many records of each stream were accepted in all.
    Accepted(Positions),
    /// [`OutletError::Fenced`].
    Fenced {
        /// The outlet's epoch.
        current: u64,
    },
    /// [`OutletError::Ahead`].
    Ahead {
        /// The epoch asked for.
        claimed: u64,
        /// The outlet's.
        current: u64,
    },
    /// [`OutletError::OtherPair`].
    OtherPair,
    /// [`OutletError::NotClaimed`].
    NotClaimed,
    /// [`OutletError::Gap`].
    Gap {
        /// Of which stream.
        stream: StreamId,
        /// The next one.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// The outlet could not take the records; they may come again.
    Broken,
}

/// Bytes that are no request or no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Not a frame of this protocol and version.
    #[error("the frame's header is none of the outlet's protocol, version {VERSION}")]
    Header,
    /// A frame too long.
    #[error("a frame of {0} bytes; {MAX_BODY_BYTES} are the most")]
    TooLong(u32),
    /// An unknown kind, or one whose body has another length.
    #[error("a frame of kind {kind} with {len_bytes} bytes is none there is")]
    Kind {
        /// The kind.
        kind: u16,
        /// Its length.
        len_bytes: usize,
    },
    /// A field that cannot be.
    #[error("the frame's {0} cannot be")]
    Field(&'static str),
    /// A record that cannot be.
    #[error(transparent)]
    Record(#[from] BadRecord),
}

impl From<WireError> for io::Error {
    fn from(error: WireError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// The fields of a body, taken from its start. The length was checked, or is as the kind has it.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(WireError::Field("length"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.take().map(u64::from_le_bytes)
    }

    fn zero<const N: usize>(&mut self) -> Result<(), WireError> {
        if self.take()? == [0; N] { Ok(()) } else { Err(WireError::Field("reserved bytes")) }
    }

    fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Field("length")) }
    }
}

impl Request {
    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Claim(claimant, claim) => {
                let side = match claim.side {
                    Side::Primary => 1,
                    Side::Secondary => 2,
                };
                let mut body = Vec::with_capacity(48);
                body.extend(claimant.0.to_le_bytes());
                body.extend(claim.pair.to_le_bytes());
                body.extend(claim.epoch.to_le_bytes());
                body.extend([side, 0, 0, 0, 0, 0, 0, 0]);
                frame(1, &body)
            }
            Self::Deliver { claimant, epoch, records } => {
                let mut body = Vec::with_capacity(DELIVER_BYTES);
                body.extend(claimant.0.to_le_bytes());
                body.extend(epoch.to_le_bytes());
                body.extend((records.len() as u32).to_le_bytes());
                body.extend([0; 4]);
                records.iter().for_each(|record| record.encode(&mut body));
                frame(2, &body)
            }
        }
    }

    fn decode(kind: u16, body: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(body);
        match kind {
            1 => {
                let claimant = Claimant(u128::from_le_bytes(fields.take()?));
                let pair = u128::from_le_bytes(fields.take()?);
                let epoch = fields.u64()?;
                let side = match fields.take()? {
                    [1] => Side::Primary,
                    [2] => Side::Secondary,
                    _ => return Err(WireError::Field("side")),
                };
                fields.zero::<7>()?;
                fields.end()?;
                Ok(Self::Claim(claimant, Claim { pair, epoch, side }))
            }
            2 => {
                let claimant = Claimant(u128::from_le_bytes(fields.take()?));
                let epoch = fields.u64()?;
                let count = u32::from_le_bytes(fields.take()?);
                fields.zero::<4>()?;
                let mut records = Vec::new();
                for _ in 0..count {
                    records.push(Record::decode(&mut fields.0)?);
                }
                fields.end()?;
                Ok(Self::Deliver { claimant, epoch, records })
            }
            _ => Err(WireError::Kind { kind, len_bytes: body.len() }),
        }
    }

    /// Reads a request; `None` where the other end has left.
    ///
    /// # Errors
    /// The reader's; [`WireError`] as [`io::ErrorKind::InvalidData`].
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let Some((kind, body)) = read_frame(from)? else { return Ok(None) };
        Ok(Some(Self::decode(kind, &body)?))
    }
}

impl Answer {
    /// What the outlet's core has said.
    pub fn of(result: Result<Positions, OutletError>) -> Self {
        match result {
            Ok(accepted) => Self::Accepted(accepted),
            Err(OutletError::Fenced { current }) => Self::Fenced { current },
            Err(OutletError::Ahead { claimed, current }) => Self::Ahead { claimed, current },
            Err(OutletError::OtherPair) => Self::OtherPair,
            Err(OutletError::NotClaimed) => Self::NotClaimed,
            Err(OutletError::Gap { stream, expected, found }) => Self::Gap { stream, expected, found },
            Err(OutletError::Unreachable(_)) => Self::Broken,
        }
    }

    /// What it means to who asked.
    ///
    /// # Errors
    /// [`OutletError`], for everything but [`Self::Accepted`].
    pub fn into_result(self) -> Result<Positions, OutletError> {
        Err(match self {
            Self::Accepted(accepted) => return Ok(accepted),
            Self::Fenced { current } => OutletError::Fenced { current },
            Self::Ahead { claimed, current } => OutletError::Ahead { claimed, current },
            Self::OtherPair => OutletError::OtherPair,
            Self::NotClaimed => OutletError::NotClaimed,
            Self::Gap { stream, expected, found } => OutletError::Gap { stream, expected, found },
            Self::Broken => OutletError::Unreachable(io::Error::other("it could not take the records")),
        })
    }

    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        let words = |kind, words: &[u64]| {
            frame(kind, words.iter().map(|word| word.to_le_bytes()).collect::<Vec<_>>().as_flattened())
        };
        match *self {
            Self::Accepted(accepted) => frame(0x8001, &accepted.to_bytes()),
            Self::Fenced { current } => words(0x8002, &[current]),
            Self::Ahead { claimed, current } => words(0x8003, &[claimed, current]),
            Self::OtherPair => frame(0x8004, &[]),
            Self::NotClaimed => frame(0x8005, &[]),
            Self::Gap { stream, expected, found } => words(0x8006, &[u64::from(stream.raw()), expected, found]),
            Self::Broken => frame(0x8007, &[]),
        }
    }

    fn decode(kind: u16, body: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(body);
        let answer = match kind {
            0x8001 => Self::Accepted(Positions::from_bytes(&fields.take()?)),
            0x8002 => Self::Fenced { current: fields.u64()? },
            0x8003 => Self::Ahead { claimed: fields.u64()?, current: fields.u64()? },
            0x8004 => Self::OtherPair,
            0x8005 => Self::NotClaimed,
            0x8006 => {
                let stream = u16::try_from(fields.u64()?).ok().and_then(StreamId::from_raw);
                let stream = stream.ok_or(WireError::Field("stream"))?;
                Self::Gap { stream, expected: fields.u64()?, found: fields.u64()? }
            }
            0x8007 => Self::Broken,
            _ => return Err(WireError::Kind { kind, len_bytes: body.len() }),
        };
        fields.end()?;
        Ok(answer)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// The reader's; [`WireError`] as [`io::ErrorKind::InvalidData`]; `UnexpectedEof` where the outlet has left.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let (kind, body) = read_frame(from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Self::decode(kind, &body)?)
    }
}

/// Writes a whole frame.
///
/// # Errors
/// The writer's.
pub(super) fn write(to: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    to.write_all(frame)?;
    to.flush()
}

fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
    frame.extend(MAGIC);
    frame.extend(VERSION.to_le_bytes());
    frame.extend(kind.to_le_bytes());
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend([0; 4]);
    frame.extend(body);
    frame
}

/// `None` where the other end has left between two frames.
fn read_frame(from: &mut impl Read) -> io::Result<Option<(u16, Vec<u8>)>> {
    let mut header = [0; HEADER_BYTES];
    let first = loop {
        match from.read(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[first..])?;
    let mut fields = Fields(&header);
    if fields.take()? != MAGIC || fields.take()? != VERSION.to_le_bytes() {
        return Err(WireError::Header.into());
    }
    let kind = u16::from_le_bytes(fields.take()?);
    let len_bytes = u32::from_le_bytes(fields.take()?);
    fields.zero::<4>()?;
    if len_bytes as usize > MAX_BODY_BYTES {
        return Err(WireError::TooLong(len_bytes).into());
    }
    let mut body = vec![0; len_bytes as usize];
    from.read_exact(&mut body)?;
    Ok(Some((kind, body)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests() -> Vec<Request> {
        let record =
            |stream, sequence| Record { stream: StreamId::from_raw(stream).unwrap(), sequence, bytes: b"ab".to_vec() };
        let claim = Claim { pair: 0x0202, epoch: 3, side: Side::Secondary };
        vec![
            Request::Claim(Claimant(0x0101), claim),
            Request::Deliver { claimant: Claimant(5), epoch: 6, records: vec![record(0, 7), record(2, 8)] },
            Request::Deliver { claimant: Claimant(5), epoch: 6, records: Vec::new() },
        ]
    }

    fn answers() -> Vec<Answer> {
        let mut positions = Positions::default();
        positions.set(StreamId::CONSOLE, 9);
        vec![
            Answer::Accepted(positions),
            Answer::Fenced { current: 1 },
            Answer::Ahead { claimed: 3, current: 1 },
            Answer::OtherPair,
            Answer::NotClaimed,
            Answer::Gap { stream: StreamId::from_raw(8).unwrap(), expected: 1, found: 3 },
            Answer::Broken,
        ]
    }

    #[test]
    fn a_claim_has_golden_bytes() {
        let bytes = requests()[0].encode();
        assert_eq!(bytes[..16], *b"TDOL\x01\x00\x01\x00\x30\x00\x00\x00\x00\x00\x00\x00");
        assert_eq!((bytes[16], bytes[17], bytes[32], bytes[33], bytes[48], bytes[56]), (1, 1, 2, 2, 3, 2));
        assert_eq!(bytes.len(), 64);
    }

    #[test]
    fn messages_survive_the_wire_and_a_cut_one_is_refused() {
        for request in requests() {
            let bytes = request.encode();
            assert_eq!(Request::read(&mut &bytes[..]).unwrap(), Some(request));
            for cut in 1..bytes.len() {
                assert!(Request::read(&mut &bytes[..cut]).is_err(), "{cut}");
            }
        }
        for answer in answers() {
            assert_eq!(Answer::read(&mut &answer.encode()[..]).unwrap(), answer);
            assert_eq!(Answer::of(answer.into_result()), answer);
        }
        assert_eq!(Request::read(&mut &[][..]).unwrap(), None);
    }

    #[test]
    fn a_wrong_byte_is_refused() {
        let with = |at: usize, value: u8| {
            let mut bytes = requests()[0].encode();
            bytes[at] = value;
            Request::read(&mut &bytes[..]).map(drop).map_err(|error| error.kind())
        };
        for at in [0, 4, 6, 12, 56, 57, 63] {
            assert_eq!(with(at, 9), Err(io::ErrorKind::InvalidData), "{at}");
        }
        assert_eq!(with(11, 0xff), Err(io::ErrorKind::InvalidData), "a length past the bound is not allocated");
        assert_eq!(with(8, 0x2f), Err(io::ErrorKind::InvalidData), "another length");
    }

    proptest! {
        #[test]
        fn no_bytes_make_either_end_panic(kind in 0_u16..4, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::read(&mut &frame(kind, &body)[..]);
            let _ = Answer::read(&mut &frame(0x8000 + kind, &body)[..]);
            let _ = Request::read(&mut &body[..]);
        }
    }
}
