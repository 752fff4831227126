//! Frames that get past checksum and sequence, from a fuzzer's records; and the machine that both sides have.
//!
//! The seal is made here by docs/wire.md's words, not by the codec's own code: the two must agree.

use abi::boot::BootInfo;
use abi::packet::GuestOutput;
use abi::{GuestRange, Tables, VaBits, map};
use hostvmm::backend::Accelerator;
use hostvmm::migrate::wire::{Description, Features, FrameDecoder, FrameEncoder, HEADER_BYTES, Message, Offer};
use hostvmm::migrate::{ClockOffset, CounterPolicy, DigestMode};
use twox_hash::XxHash3_64;

const RECORD_BYTES: usize = 6;

/// One frame.
pub struct Record<'a> {
    pub header: [u8; HEADER_BYTES],
    pub meta: &'a [u8],
    pub payload: &'a [u8],
    pub is_destinations: bool,
    pub is_broken: bool,
}

/// The frames of an input.
pub struct Records<'a> {
    rest: &'a [u8],
    sequence: u64,
}

impl<'a> Records<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, sequence: 0 }
    }

    fn take(&mut self, len: u16) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(usize::from(len).min(self.rest.len()));
        self.rest = rest;
        bytes
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let (&[tag, flags, meta_low, meta_high, payload_low, payload_high], rest) =
            self.rest.split_first_chunk::<RECORD_BYTES>()?;
        self.rest = rest;
        let meta = self.take(u16::from_le_bytes([meta_low, meta_high]));
        let payload = self.take(u16::from_le_bytes([payload_low, payload_high]));
        let is_destinations = tag & 0x80 != 0;
        let is_broken = flags & 1 != 0;
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(b"TDMF");
        header[4..6].copy_from_slice(&[tag & 0x7f, if is_destinations { 0x80 } else { 0 }]);
        header[8..12].copy_from_slice(&(meta.len() as u32).to_le_bytes());
        header[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        let checksum = XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&header[..24]), meta);
        let checksum = checksum ^ u64::from(is_broken) << (flags >> 1 & 63);
        header[24..].copy_from_slice(&checksum.to_le_bytes());
        self.sequence += 1;
        Some(Record { header, meta, payload, is_destinations, is_broken })
    }
}

impl Record<'_> {
    /// Its message, which encodes to the same bytes; `None` where `decoder` refuses it.
    pub fn message(&self, decoder: &mut FrameDecoder) -> Option<Message> {
        let header = decoder.header(&self.header).ok()?;
        let message = decoder.message(&header, self.meta).ok()?;
        assert!(!self.is_broken, "a broken seal was not noticed");
        let mut bytes = Vec::new();
        FrameEncoder::new().encode(&message, 0, &mut bytes);
        assert_eq!(bytes[HEADER_BYTES..], *self.meta, "{} is not what was sent", message.tag());
        Some(message)
    }
}

/// The machine of both sides: 64 pages of RAM, 32 of region.
pub fn description() -> Description {
    let range = |base, pages: u64| GuestRange::new(base, pages << 12).expect("the machine does not wrap");
    Description {
        accelerator: Accelerator::Emulator,
        boot: BootInfo {
            tables: Tables::V8(VaBits::ALL[0]),
            vcpus: 1,
            flags: 0,
            region: range(map::REGION_BASE, 32),
            ram: range(map::RAM_BASE, 64),
            seed: 0,
            pattern: 0,
            params: [0; 8],
            heartbeat_us: 0,
            output: GuestOutput::Off,
            points: 0,
        },
        page_bytes: 4096,
        counter_hz: 62_500_000,
        track_dirty: false,
    }
}

/// What the source offers: everything.
pub fn offer() -> Offer {
    Offer {
        description: description(),
        features: Features::DELTA.or(Features::ZSTD).or(Features::POSTCOPY),
        page_channels: 1,
        digest: DigestMode::Full,
        counter: CounterPolicy::RunsOn,
        salt: 0,
        clock: ClockOffset::SAME,
        cpu: Vec::new(),
    }
}
