//! What a guest emits: [`Record`]s of [`Stream`](StreamId)s, each with a sequence number, and the [`Tap`] that takes them.
//!
//! Stream 0 is the console, a record of it what was written up to the end of a line, this included. Stream 1 + v holds the
//! packets that vCPU v sent on its virtual link. Within a stream the order is the guest's; between streams there is none.
//! The line that the console has not ended is part of the machine's state and moves with it, so a checkpoint in the middle of
//! a line cuts no record in two.
//!
//! [`Positions`] say how far each stream is. Records go between processes as [`Record::encode`] writes them: 16 bytes of
//! header and the record's own, little-endian.
//!
//! Neighbours: [`crate::vcpus`] fills the tap; `colo::compare` compares two sides' records, `colo::outlet` is where they go.

mod tap;

use abi::hypercall::PACKET_MAX;
use abi::map::MAX_VCPUS;

use crate::device::pl011::MAX_LINE_BYTES;
pub use tap::Tap;

/// Most bytes of a record.
pub const MAX_RECORD_BYTES: usize = 2048;
const _: () = assert!(MAX_LINE_BYTES <= MAX_RECORD_BYTES && PACKET_MAX as usize <= MAX_RECORD_BYTES);
/// Bytes of a record's header on the wire.
pub const RECORD_HEADER_BYTES: usize = 16;

/// One of the streams that a guest can emit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId(u16);

impl StreamId {
    /// Streams of a machine with as many vCPUs as there can be.
    pub const COUNT: usize = 1 + MAX_VCPUS;
    /// The console.
    pub const CONSOLE: Self = Self(0);

    /// The packets of `vcpu`; `None` where there is no such vCPU.
    pub const fn packets(vcpu: usize) -> Option<Self> {
        if vcpu < MAX_VCPUS { Some(Self(1 + vcpu as u16)) } else { None }
    }

    /// The stream numbered `raw`.
    pub const fn from_raw(raw: u16) -> Option<Self> {
        if (raw as usize) < Self::COUNT { Some(Self(raw)) } else { None }
    }

    /// Its number.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Its number, below [`Self::COUNT`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Every stream, in the order of the numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u16).map(Self)
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("console"),
            stream => write!(f, "packets of vCPU {}", stream - 1),
        }
    }
}

/// Something that a guest emitted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// On which stream.
    pub stream: StreamId,
    /// Its number in the stream, counted from 0.
    pub sequence: u64,
    /// What; at most [`MAX_RECORD_BYTES`].
    pub bytes: Vec<u8>,
}

/// Bytes that are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRecord {
    /// They end in the middle of one.
    #[error("a record of output ends in the middle")]
    Short,
    /// A stream that there is none of.
    #[error("a record of output on stream {0}, which there is none of")]
    Stream(u16),
    /// A reserved field is not zero.
    #[error("a reserved field of a record of output is not zero")]
    Reserved,
    /// Too long.
    #[error("a record of output of {0} bytes; {MAX_RECORD_BYTES} are the most")]
    TooLong(u32),
}

impl Record {
    /// Bytes that [`Self::encode`] appends.
    pub fn encoded_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.bytes.len()
    }

    /// Appends stream (2 bytes), zero (2), length (4), sequence (8) and the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.stream.raw().to_le_bytes());
        out.extend(0_u16.to_le_bytes());
        out.extend((self.bytes.len() as u32).to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        out.extend(&self.bytes);
    }

    /// Takes one record from the start of `bytes`.
    ///
    /// # Errors
    /// [`BadRecord`]; `bytes` is then of no more use.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, BadRecord> {
        let stream = u16::from_le_bytes(take(bytes)?);
        let stream = StreamId::from_raw(stream).ok_or(BadRecord::Stream(stream))?;
        if take::<2>(bytes)? != [0; 2] {
            return Err(BadRecord::Reserved);
        }
        let len_bytes = u32::from_le_bytes(take(bytes)?);
        if len_bytes as usize > MAX_RECORD_BYTES {
            return Err(BadRecord::TooLong(len_bytes));
        }
        let sequence = u64::from_le_bytes(take(bytes)?);
        let (record, rest) = bytes.split_at_checked(len_bytes as usize).ok_or(BadRecord::Short)?;
        *bytes = rest;
        Ok(Self { stream, sequence, bytes: record.to_vec() })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], BadRecord> {
    let (array, rest) = bytes.split_first_chunk().ok_or(BadRecord::Short)?;
    *bytes = rest;
    Ok(*array)
}

/// How far each stream is: the sequence number of its next record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Positions([u64; StreamId::COUNT]);

impl Positions {
    /// Bytes on the wire: 8 for each stream.
    pub const BYTES: usize = 8 * StreamId::COUNT;

    /// The next record's number in `stream`.
    pub const fn get(&self, stream: StreamId) -> u64 {
        self.0[stream.index()]
    }

    /// Sets the next record's number in `stream`.
    pub const fn set(&mut self, stream: StreamId, next: u64) {
        self.0[stream.index()] = next;
    }

    /// Whether `record` comes before these positions.
    pub const fn has(&self, record: &Record) -> bool {
        record.sequence < self.get(record.stream)
    }

    /// Records before these positions, of all streams; positions that come from outside may be any.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |all, next| all.saturating_add(*next))
    }

    /// Takes the number of the next record of `stream`.
    pub(crate) const fn advance(&mut self, stream: StreamId) -> u64 {
        let sequence = self.get(stream);
        // A stream has no 2^64 records: at one a nanosecond that is 584 years.
        self.set(stream, sequence.wrapping_add(1));
        sequence
    }

    /// Little-endian words in the order of the streams.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (out, next) in bytes.chunks_exact_mut(8).zip(self.0) {
            out.copy_from_slice(&next.to_le_bytes());
        }
        bytes
    }

    /// What [`Self::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut positions = Self::default();
        for (next, word) in positions.0.iter_mut().zip(bytes.as_chunks().0) {
            *next = u64::from_le_bytes(*word);
        }
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_golden_bytes() {
        let record = Record { stream: StreamId::packets(1).unwrap(), sequence: 0x0102, bytes: b"hi".to_vec() };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(bytes, [2, 0, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, b'h', b'i']);
        assert_eq!(bytes.len(), record.encoded_bytes());
        let mut rest = &bytes[..];
        assert_eq!(Record::decode(&mut rest), Ok(record));
        assert!(rest.is_empty());
    }

    #[test]
    fn bytes_that_are_no_record_are_refused() {
        let with = |at: usize, value: u8| {
            let mut bytes = [0; RECORD_HEADER_BYTES];
            bytes[at] = value;
            Record::decode(&mut &bytes[..])
        };
        assert!(with(0, 8).is_ok());
        assert_eq!(with(0, 9), Err(BadRecord::Stream(9)));
        assert_eq!(with(2, 1), Err(BadRecord::Reserved));
        assert_eq!(with(4, 1), Err(BadRecord::Short));
        assert_eq!(with(5, 9), Err(BadRecord::TooLong(0x900)));
        assert_eq!(with(7, 0xff), Err(BadRecord::TooLong(0xff00_0000)));
        assert_eq!(Record::decode(&mut &[0; RECORD_HEADER_BYTES - 1][..]), Err(BadRecord::Short));
    }

    #[test]
    fn positions_survive_the_wire() {
        let mut positions = Positions::default();
        for stream in StreamId::all() {
            positions.set(stream, 0x100 + u64::from(stream.raw()));
        }
        let bytes = positions.to_bytes();
        assert_eq!(bytes[..10], [0, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(Positions::from_bytes(&bytes), positions);
        assert_eq!(
            Positions::from_bytes(&[0xff; Positions::BYTES]).total(),
            u64::MAX,
            "from a peer that makes them up"
        );
    }

    #[test]
    fn every_vcpu_has_a_stream_and_no_other() {
        assert_eq!(StreamId::packets(0).unwrap().raw(), 1);
        assert_eq!(StreamId::packets(MAX_VCPUS), None);
        assert_eq!(StreamId::from_raw(StreamId::COUNT as u16), None);
        assert_eq!(StreamId::all().count(), StreamId::COUNT);
        assert_eq!(StreamId::packets(3).unwrap().to_string(), "packets of vCPU 3");
    }
}
