//! Hypercalls: the doorbell registers, the request block, commands and outcomes.
//!
//! A vCPU fills a [`Request`] in its own memory, 64-byte aligned, and writes `gpa >> 6` to [`REG_DOORBELL`] (or calls
//! HVC with [`HVC_FUNCTION`] in x0 and the GPA in x1). The host has answered in the block when the instruction retires.
//! The guest is driven by the host: each vCPU loops on [`Op::Next`], handing over the [`Outcome`] of its last
//! [`Command`] and receiving the next one; the host parks a vCPU simply by not answering yet.
//!
//! ```text
//!   vCPU:  Next(Ready{progress}) ─▶ RunSteps ─▶ Next(Done) ─▶ Digest ─▶ Next(Digest) ─▶ … ─▶ Stop ─▶ PSCI off
//! ```
//!
//! Nothing here trusts the other end: the host checks GPA, magic, version, op and reserved bytes before it acts, and
//! answers [`Status`] otherwise; the guest checks the command it gets.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::addr::{Gpa, GuestRange};

/// Offset of the read-only register that holds [`DOORBELL_ID`].
pub const REG_ID: u64 = 0x00;
/// Offset of the read-only register that holds [`VERSION`].
pub const REG_VERSION: u64 = 0x04;
/// Offset of the write-only doorbell: the request block's GPA, shifted right by 6.
pub const REG_DOORBELL: u64 = 0x08;
/// Offset of the register at which a guest asks to be moved: a store of a [`crate::points::Point`]'s number. It reads as the number of the
/// last point behind which the guest went on by itself ([`crate::points::Point::goes_on`]), and as zero in any machine but the one that
/// was told of it: so the guest sees that it has been moved.
pub const REG_POINT: u64 = 0x0c;
/// What [`REG_ID`] reads as.
pub const DOORBELL_ID: u32 = u32::from_le_bytes(*b"TDMK");
/// Version of the request block and of every command in it.
pub const VERSION: u16 = 1;
/// Request blocks are aligned to this, and their GPA is shifted by its log2 in the doorbell write.
pub const REQUEST_ALIGN: u64 = 64;
/// First four bytes of a request block.
pub const REQUEST_MAGIC: u32 = u32::from_le_bytes(*b"TDHC");
/// Function id of the HVC transport: SMCCC fast call, 64-bit, owner 6 (vendor-specific hypervisor service), number 0x7444.
pub const HVC_FUNCTION: u32 = 0xC600_7444;
/// As [`HVC_FUNCTION`], for guests that have 32-bit calls only.
pub const HVC_FUNCTION_32: u32 = 0x8600_7444;
/// Arguments and results in a request block.
pub const WORDS: usize = 8;
/// Most frames in an [`ExceptionReport`]'s backtrace.
pub const BACKTRACE_FRAMES: usize = 32;

/// The request block as bytes: little-endian, no padding, 192 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Request {
    /// [`REQUEST_MAGIC`].
    pub magic: U32,
    /// [`VERSION`].
    pub version: U16,
    /// An [`Op`].
    pub op: U16,
    /// Written by the host: a [`Status`].
    pub status: U32,
    /// Must be zero.
    pub reserved0: U32,
    /// Arguments of the op.
    pub args: [U64; WORDS],
    /// Results, written by the host.
    pub results: [U64; WORDS],
    /// Must be zero.
    pub reserved1: [u8; 48],
}

const _: () = assert!(size_of::<Request>() == 192);
/// Offset of [`Request::status`] in the block.
pub const STATUS_OFFSET: u64 = 8;
/// Offset of [`Request::results`] in the block.
pub const RESULTS_OFFSET: u64 = 80;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Hand over the last command's [`Outcome`], receive the next [`Command`].
    Next = 1,
    /// An unexpected exception; `args[0]` is the GPA of an [`ExceptionReport`]. The vCPU is not resumed.
    Exception = 2,
    /// A panic of the firmware itself; `args[0]` is the GPA of UTF-8 text, `args[1]` its length in bytes
    /// (at most [`PANIC_TEXT_MAX`]). The vCPU is not resumed.
    Panic = 3,
    /// A packet on the vCPU's virtual link: `args[0]` is the GPA of its bytes, `args[1]` how many there are (1 to
    /// [`PACKET_MAX`]). Once the call is done the host has them, and the memory is the guest's again. Not while the vCPU waits for
    /// a command, for then it cannot call.
    Packet = 4,
}

/// Longest text of [`Op::Panic`], in bytes.
pub const PANIC_TEXT_MAX: u64 = 1024;
/// Longest packet of [`Op::Packet`], in bytes.
pub const PACKET_MAX: u64 = 2048;

impl Op {
    /// The op numbered `raw`.
    pub const fn from_raw(raw: u16) -> Option<Self> {
        match raw {
            1 => Some(Self::Next),
            2 => Some(Self::Exception),
            3 => Some(Self::Panic),
            4 => Some(Self::Packet),
            _ => None,
        }
    }
}

/// The host's answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done; results are valid.
    Ok = 1,
    /// Wrong magic.
    BadMagic = 2,
    /// A version the host does not speak.
    BadVersion = 3,
    /// No such op.
    BadOp = 4,
    /// An argument is out of range, or a reserved field is not zero.
    BadArgument = 5,
    /// A pointer or length reaches outside RAM.
    BadAddress = 6,
    /// This vCPU must not make this call now.
    BadState = 7,
}

impl Status {
    /// The status numbered `raw`.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Ok),
            2 => Some(Self::BadMagic),
            3 => Some(Self::BadVersion),
            4 => Some(Self::BadOp),
            5 => Some(Self::BadArgument),
            6 => Some(Self::BadAddress),
            7 => Some(Self::BadState),
            _ => None,
        }
    }
}

/// What a vCPU is to do next. On the wire: `results[0]` is the kind, `results[1..]` its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Execute this vCPU's part of the plan's steps `[first, first + count)`, one after the other, publishing each in
    /// its [`ProgressSlot`]; end early at a step's boundary once [`ProgressSlot::stop`] is not zero.
    RunSteps {
        /// First step.
        first: u64,
        /// Number of steps; `u64::MAX` runs until told to stop.
        count: u64,
    },
    /// Digest the range, salted for `pass`, as `workload::digest` defines it.
    Digest {
        /// What to digest: whole 4 KiB pages inside the region or RAM.
        range: GuestRange,
        /// Pass number in the salt.
        pass: u64,
    },
    /// Compare the whole region with what the plan says after the steps `[0, steps)` of every vCPU.
    SelfCheck {
        /// Number of steps that every vCPU has completed.
        steps: u64,
    },
    /// The run is over: vCPU 0 calls PSCI SYSTEM_OFF, the others CPU_OFF.
    Stop,
}

/// What became of a command. On the wire: `args[0]` is the kind, `args[1..]` its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// First call of this vCPU. `progress` is the GPA of its [`ProgressSlot`].
    Ready {
        /// Where the host follows and stops this vCPU.
        progress: Gpa,
    },
    /// Steps `[first, next)` were executed.
    Ran {
        /// First step that was not executed.
        next: u64,
    },
    /// The digest asked for.
    Digest {
        /// Its value.
        value: u64,
    },
    /// Memory holds what the plan says.
    SelfCheckPassed,
    /// The first byte that does not.
    SelfCheckFailed {
        /// Where.
        at: Gpa,
        /// What the plan says.
        expected: u8,
        /// What is there.
        found: u8,
    },
    /// Code written by the plan was run and returned something else than it was written to.
    WrongResult {
        /// Where the code lies.
        at: Gpa,
        /// What it should have returned.
        expected: u64,
        /// What it returned.
        found: u64,
    },
    /// The machine lacks a feature that the workload needs; a `FEATURE_…` number.
    Unsupported {
        /// Which.
        feature: u64,
    },
}

/// Hardware update of the access flag and dirty state (FEAT_HAFDBS).
pub const FEATURE_HAFDBS: u64 = 1;
/// Large System Extensions atomics (FEAT_LSE).
pub const FEATURE_LSE: u64 = 2;
/// Advanced SIMD.
pub const FEATURE_SIMD: u64 = 3;
/// DC ZVA permitted.
pub const FEATURE_DC_ZVA: u64 = 4;
/// The granule asked for.
pub const FEATURE_GRANULE: u64 = 5;

/// A command or outcome whose words make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadWords;

impl Command {
    /// The command as result words.
    pub fn encode(self) -> [u64; WORDS] {
        match self {
            Self::RunSteps { first, count } => [1, first, count, 0, 0, 0, 0, 0],
            Self::Digest { range, pass } => [2, range.start().raw(), range.len_bytes(), pass, 0, 0, 0, 0],
            Self::SelfCheck { steps } => [3, steps, 0, 0, 0, 0, 0, 0],
            Self::Stop => [4, 0, 0, 0, 0, 0, 0, 0],
        }
    }

    /// The command in `words`.
    ///
    /// # Errors
    /// [`BadWords`] for an unknown kind, a range that wraps, or an unused word that is not zero.
    pub fn decode(words: [u64; WORDS]) -> Result<Self, BadWords> {
        let [kind, a, b, c, unused @ ..] = words;
        let command = match kind {
            1 => Self::RunSteps { first: a, count: b },
            2 => Self::Digest { range: GuestRange::new(Gpa::new(a), b).ok_or(BadWords)?, pass: c },
            3 => Self::SelfCheck { steps: a },
            4 => Self::Stop,
            _ => return Err(BadWords),
        };
        if unused != [0; 4] || command.encode() != words {
            return Err(BadWords);
        }
        Ok(command)
    }
}

impl Outcome {
    /// The outcome as argument words.
    pub fn encode(self) -> [u64; WORDS] {
        match self {
            Self::Ready { progress } => [1, progress.raw(), 0, 0, 0, 0, 0, 0],
            Self::Ran { next } => [2, next, 0, 0, 0, 0, 0, 0],
            Self::Digest { value } => [3, value, 0, 0, 0, 0, 0, 0],
            Self::SelfCheckPassed => [4, 0, 0, 0, 0, 0, 0, 0],
            Self::SelfCheckFailed { at, expected, found } => {
                [5, at.raw(), u64::from(expected), u64::from(found), 0, 0, 0, 0]
            }
            Self::WrongResult { at, expected, found } => [6, at.raw(), expected, found, 0, 0, 0, 0],
            Self::Unsupported { feature } => [7, feature, 0, 0, 0, 0, 0, 0],
        }
    }

    /// The outcome in `words`.
    ///
    /// # Errors
    /// [`BadWords`] for an unknown kind, a byte above 255, or an unused word that is not zero.
    pub fn decode(words: [u64; WORDS]) -> Result<Self, BadWords> {
        let [kind, a, b, c, ..] = words;
        let byte = |word: u64| u8::try_from(word).map_err(|_| BadWords);
        let outcome = match kind {
            1 => Self::Ready { progress: Gpa::new(a) },
            2 => Self::Ran { next: a },
            3 => Self::Digest { value: a },
            4 => Self::SelfCheckPassed,
            5 => Self::SelfCheckFailed { at: Gpa::new(a), expected: byte(b)?, found: byte(c)? },
            6 => Self::WrongResult { at: Gpa::new(a), expected: b, found: c },
            7 => Self::Unsupported { feature: a },
            _ => return Err(BadWords),
        };
        if outcome.encode() != words { Err(BadWords) } else { Ok(outcome) }
    }
}

/// One vCPU's progress, in guest RAM, 64-byte aligned: the guest writes `started` and `completed`, the host `stop`.
///
/// The guest stores `started = s + 1` before the first write of step `s` and `completed = s + 1` after the last one,
/// both with release semantics, so that a host that reads `completed = n` with acquire semantics sees every byte of
/// the steps below `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(64))]
pub struct ProgressSlot {
    /// Number of steps begun, counted from step 0.
    pub started: u64,
    /// Number of steps completed, counted from step 0.
    pub completed: u64,
    /// Not zero: end the current [`Command::RunSteps`] at the next step boundary (a sleep ends early, too).
    pub stop: u64,
    /// GPA of the vCPU's [`crate::heartbeat::HeartbeatBlock`]; zero where the boot block asked for no heartbeat. Written before
    /// the vCPU's first call.
    pub heartbeat: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

const _: () = assert!(size_of::<ProgressSlot>() == 64);
/// Offset of [`ProgressSlot::started`].
pub const PROGRESS_STARTED: u64 = 0;
/// Offset of [`ProgressSlot::completed`].
pub const PROGRESS_COMPLETED: u64 = 8;
/// Offset of [`ProgressSlot::stop`].
pub const PROGRESS_STOP: u64 = 16;
/// Offset of [`ProgressSlot::heartbeat`].
pub const PROGRESS_HEARTBEAT: u64 = 24;

/// An unexpected exception as the guest reports it: little-endian, no padding, 576 bytes.
///
/// An ARMv7 guest has DFSR and DFAR of a data abort, or IFSR and IFAR of a prefetch abort, in `esr` and `far`, and zeroes
/// there otherwise; the address of the instruction at fault in `elr`; r0 to r14 of the interrupted mode, of which r13 is the
/// stack pointer, in `x[0..15]`, and zeroes above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExceptionReport {
    /// Vector offset that was taken: 0x000 to 0x780, on ARMv7 0x00 to 0x1c.
    pub vector: U64,
    /// ESR_EL1.
    pub esr: U64,
    /// FAR_EL1.
    pub far: U64,
    /// ELR_EL1.
    pub elr: U64,
    /// SPSR_EL1.
    pub spsr: U64,
    /// Stack pointer at the exception.
    pub sp: U64,
    /// x0 to x30 at the exception.
    pub x: [U64; 31],
    /// Entries of `backtrace` that are valid.
    pub frames: U64,
    /// Return addresses, innermost first.
    pub backtrace: [U64; BACKTRACE_FRAMES],
    /// Must be zero.
    pub reserved: [U64; 2],
}

const _: () = assert!(size_of::<ExceptionReport>() == 576);

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn commands_and_outcomes_survive_the_wire() {
        let range = GuestRange::new(Gpa::new(0x2000_0000), 0x80_0000).unwrap();
        for command in [
            Command::RunSteps { first: 3, count: u64::MAX },
            Command::Digest { range, pass: 9 },
            Command::SelfCheck { steps: 4 },
            Command::Stop,
        ] {
            assert_eq!(Command::decode(command.encode()), Ok(command));
        }
        for outcome in [
            Outcome::Ready { progress: Gpa::new(0x4030_0000) },
            Outcome::Ran { next: 7 },
            Outcome::Digest { value: u64::MAX },
            Outcome::SelfCheckPassed,
            Outcome::SelfCheckFailed { at: Gpa::new(1), expected: 2, found: 3 },
            Outcome::WrongResult { at: Gpa::new(1), expected: 2, found: 3 },
            Outcome::Unsupported { feature: FEATURE_LSE },
        ] {
            assert_eq!(Outcome::decode(outcome.encode()), Ok(outcome));
        }
    }

    #[test]
    fn every_op_has_its_number() {
        for (number, op) in [(1, Op::Next), (2, Op::Exception), (3, Op::Panic), (4, Op::Packet)] {
            assert_eq!((op as u16, Op::from_raw(number)), (number, Some(op)));
        }
        assert_eq!((Op::from_raw(0), Op::from_raw(5)), (None, None));
    }

    #[test]
    fn words_that_mean_nothing_are_refused() {
        assert_eq!(Command::decode([0; WORDS]), Err(BadWords));
        assert_eq!(Command::decode([4, 0, 0, 0, 0, 0, 0, 1]), Err(BadWords));
        assert_eq!(Command::decode([2, u64::MAX, 2, 0, 0, 0, 0, 0]), Err(BadWords));
        assert_eq!(Outcome::decode([5, 0, 256, 0, 0, 0, 0, 0]), Err(BadWords));
        assert_eq!(Outcome::decode([4, 1, 0, 0, 0, 0, 0, 0]), Err(BadWords));
    }

    #[test]
    fn request_layout_is_golden() {
        let mut request = Request::new_zeroed();
        request.magic = REQUEST_MAGIC.into();
        request.version = VERSION.into();
        request.op = (Op::Next as u16).into();
        request.args = Outcome::Ran { next: 0x1122 }.encode().map(U64::new);
        let bytes = request.as_bytes();
        assert_eq!(&bytes[..16], b"TDHC\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00");
        assert_eq!(&bytes[16..32], [2, 0, 0, 0, 0, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0]);
        assert_eq!(core::mem::offset_of!(Request, status) as u64, STATUS_OFFSET);
        assert_eq!(core::mem::offset_of!(Request, results) as u64, RESULTS_OFFSET);
    }
}
