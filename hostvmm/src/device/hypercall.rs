//! Hypercall requests: from a guest's claim to a checked [`Call`], or a [`Refusal`] with the status it is answered.
//!
//! [`decode`] is a pure function of guest memory, the vCPU's [`Phase`] and the GPA that the vCPU claims. Nothing that
//! the guest says is believed: each pointer must lie in RAM, each reserved field must be zero, each outcome must answer
//! the command that was given. It reads each block once, so another vCPU that changes it meanwhile changes nothing
//! that has been checked; it allocates at most [`PACKET_MAX`] bytes.
//!
//! ```text
//!   Fresh ── Ready ──▶ Waiting ── command ──▶ Executing(command) ── outcome ──▶ Waiting …
//!     └──── Exception or Panic, from any phase ────▶ Dead;      Executing(Stop) answers no Next
//!   Packet, from Fresh and Executing, changes nothing
//! ```

use abi::hypercall::{
    BACKTRACE_FRAMES, Command, ExceptionReport, FEATURE_GRANULE, Op, Outcome, PACKET_MAX, PANIC_TEXT_MAX, ProgressSlot,
    REQUEST_ALIGN, REQUEST_MAGIC, RESULTS_OFFSET, Request, STATUS_OFFSET, Status, VERSION, WORDS,
};
use abi::{Gpa, GuestRange};
use zerocopy::IntoBytes as _;
use zerocopy::little_endian::{U32, U64};

use super::pl011::printable;
use crate::memory::{GuestMemory, MemoryError, SlotId};

/// Where a vCPU is in the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It has not called yet.
    Fresh,
    /// It waits for a command; it cannot call.
    Waiting,
    /// It was given this command and has not answered.
    Executing(Command),
    /// It reported an exception or a panic.
    Dead,
}

/// A request that makes sense.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// The outcome of the last command; the block at `request` waits for the next one.
    Next {
        /// The block to answer in.
        request: Gpa,
        /// The outcome.
        outcome: Outcome,
    },
    /// An unexpected exception in the guest.
    Exception(Box<ExceptionReport>),
    /// A panic of the firmware; its text is safe to print.
    Panic(String),
    /// A packet on the vCPU's virtual link; the block at `request` is to be answered at once.
    Packet {
        /// The block to answer in.
        request: Gpa,
        /// What is in it.
        bytes: Vec<u8>,
    },
}

/// A request that is told no.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("hypercall with request block {claim}: {reason}")]
pub struct Refusal {
    /// The GPA that the vCPU gave.
    pub claim: Gpa,
    /// What it is answered, where it can be answered.
    pub status: Status,
    /// Whether the block lies in RAM, so that the status can be written to it.
    pub answerable: bool,
    /// What was wrong.
    pub reason: Reason,
}

/// What is wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Reason {
    /// The block is not aligned.
    #[error("not aligned to {REQUEST_ALIGN} bytes")]
    Misaligned,
    /// The block does not lie in RAM.
    #[error("not inside RAM")]
    OutsideRam,
    /// Wrong magic.
    #[error("magic {0:#010x}")]
    Magic(u32),
    /// A version this host does not speak.
    #[error("version {0}")]
    Version(u16),
    /// No such op.
    #[error("op {0}")]
    Op(u16),
    /// A reserved field or unused argument is not zero.
    #[error("a reserved field or unused argument is not zero")]
    Reserved,
    /// Words that are no outcome.
    #[error("argument words that are no outcome")]
    Words,
    /// A pointer in the arguments that reaches outside RAM.
    #[error("{what} of {len_bytes} bytes at {gpa} reaches outside RAM")]
    Pointer {
        /// What it points to.
        what: &'static str,
        /// Where.
        gpa: Gpa,
        /// How far.
        len_bytes: u64,
    },
    /// A number in the arguments that is out of range.
    #[error("{what} {value:#x} is out of range")]
    Value {
        /// Which.
        what: &'static str,
        /// The number.
        value: u64,
    },
    /// An outcome that does not answer the command given, or any call of a dead vCPU.
    #[error("a call that this vCPU must not make now")]
    State,
}

impl Reason {
    fn status(self) -> Status {
        match self {
            Self::Misaligned | Self::Reserved | Self::Words | Self::Value { .. } => Status::BadArgument,
            Self::OutsideRam | Self::Pointer { .. } => Status::BadAddress,
            Self::Magic(_) => Status::BadMagic,
            Self::Version(_) => Status::BadVersion,
            Self::Op(_) => Status::BadOp,
            Self::State => Status::BadState,
        }
    }
}

/// Checks the request block that a vCPU in `phase` claims to have at `claim`.
///
/// # Errors
/// [`Refusal`] with the status to answer, for everything that is not exactly as the ABI has it.
pub fn decode(memory: &GuestMemory, phase: Phase, claim: Gpa) -> Result<Call, Refusal> {
    let refuse =
        |answerable: bool| move |reason: Reason| Refusal { claim, status: reason.status(), answerable, reason };
    if !claim.is_aligned(REQUEST_ALIGN) {
        return Err(refuse(false)(Reason::Misaligned));
    }
    let request: Request = read_ram(memory, claim, "request block").map_err(|_| refuse(false)(Reason::OutsideRam))?;
    let op = check_header(&request).map_err(refuse(true))?;
    let args = request.args.map(U64::get);
    match op {
        Op::Next => check_outcome(memory, phase, args).map(|outcome| Call::Next { request: claim, outcome }),
        _ if phase == Phase::Dead => Err(Reason::State),
        Op::Exception => check_exception(memory, args),
        Op::Panic => check_panic(memory, args),
        Op::Packet if phase == Phase::Waiting => Err(Reason::State),
        Op::Packet => check_packet(memory, args).map(|bytes| Call::Packet { request: claim, bytes }),
    }
    .map_err(refuse(true))
}

/// Writes the answer to the request block at `request`, which [`decode`] has accepted or called answerable. Returns
/// what was written, for the dirty log.
///
/// # Errors
/// [`MemoryError`] if the block does not lie in guest memory.
pub fn answer(
    memory: &GuestMemory,
    request: Gpa,
    status: Status,
    results: [u64; WORDS],
) -> Result<Option<GuestRange>, MemoryError> {
    let at = |offset| request.checked_add(offset).ok_or(MemoryError::OutOfBounds { gpa: request, len_bytes: offset });
    memory.write(at(RESULTS_OFFSET)?, results.map(U64::new).as_bytes())?;
    memory.write(at(STATUS_OFFSET)?, U32::new(status as u32).as_bytes())?;
    Ok(GuestRange::new(request, size_of::<Request>() as u64))
}

fn check_header(request: &Request) -> Result<Op, Reason> {
    if request.magic.get() != REQUEST_MAGIC {
        return Err(Reason::Magic(request.magic.get()));
    }
    if request.version.get() != VERSION {
        return Err(Reason::Version(request.version.get()));
    }
    let op = Op::from_raw(request.op.get()).ok_or(Reason::Op(request.op.get()))?;
    if request.reserved0.get() != 0 || request.reserved1 != [0; 48] {
        return Err(Reason::Reserved);
    }
    Ok(op)
}

fn check_outcome(memory: &GuestMemory, phase: Phase, args: [u64; WORDS]) -> Result<Outcome, Reason> {
    let outcome = Outcome::decode(args).map_err(|_| Reason::Words)?;
    let command = match phase {
        Phase::Executing(command) => Some(command),
        Phase::Fresh => None,
        Phase::Waiting | Phase::Dead => return Err(Reason::State),
    };
    match (outcome, command) {
        (Outcome::Ready { progress }, None) => check_progress(memory, progress)?,
        (Outcome::Unsupported { feature }, None | Some(Command::RunSteps { .. })) => {
            check_value("feature", feature, (1..=FEATURE_GRANULE).contains(&feature))?;
        }
        (Outcome::Ran { next }, Some(Command::RunSteps { first, count })) => {
            check_value("step", next, next >= first && next - first <= count)?;
        }
        (Outcome::WrongResult { at, expected, found }, Some(Command::RunSteps { .. })) => {
            check_in_region(memory, at, 4)?;
            check_value("result", found, found != expected)?;
        }
        (Outcome::Digest { .. }, Some(Command::Digest { .. }))
        | (Outcome::SelfCheckPassed, Some(Command::SelfCheck { .. })) => {}
        (Outcome::SelfCheckFailed { at, expected, found }, Some(Command::SelfCheck { .. })) => {
            check_in_region(memory, at, 1)?;
            check_value("byte", u64::from(found), found != expected)?;
        }
        _ => return Err(Reason::State),
    }
    Ok(outcome)
}

fn check_progress(memory: &GuestMemory, progress: Gpa) -> Result<(), Reason> {
    check_value("progress slot", progress.raw(), progress.is_aligned(align_of::<ProgressSlot>() as u64))?;
    let len_bytes = size_of::<ProgressSlot>() as u64;
    if in_ram(memory, progress, len_bytes) {
        Ok(())
    } else {
        Err(Reason::Pointer { what: "progress slot", gpa: progress, len_bytes })
    }
}

fn check_exception(memory: &GuestMemory, args: [u64; WORDS]) -> Result<Call, Reason> {
    let [report, unused @ ..] = args;
    if unused != [0; WORDS - 1] {
        return Err(Reason::Reserved);
    }
    let report: ExceptionReport = read_ram(memory, Gpa::new(report), "exception report")?;
    let frames = report.frames.get();
    check_value("number of frames", frames, frames <= BACKTRACE_FRAMES as u64)?;
    if report.reserved != [U64::ZERO; 2] {
        return Err(Reason::Reserved);
    }
    Ok(Call::Exception(Box::new(report)))
}

fn check_panic(memory: &GuestMemory, args: [u64; WORDS]) -> Result<Call, Reason> {
    let (gpa, len_bytes) = place_and_length(args)?;
    check_value("text length", len_bytes, len_bytes <= PANIC_TEXT_MAX)?;
    Ok(Call::Panic(printable(&read_bytes(memory, gpa, len_bytes, "panic text")?)))
}

fn check_packet(memory: &GuestMemory, args: [u64; WORDS]) -> Result<Vec<u8>, Reason> {
    let (gpa, len_bytes) = place_and_length(args)?;
    check_value("packet length", len_bytes, (1..=PACKET_MAX).contains(&len_bytes))?;
    read_bytes(memory, gpa, len_bytes, "packet")
}

fn place_and_length(args: [u64; WORDS]) -> Result<(Gpa, u64), Reason> {
    match args {
        [gpa, len_bytes, 0, 0, 0, 0, 0, 0] => Ok((Gpa::new(gpa), len_bytes)),
        _ => Err(Reason::Reserved),
    }
}

fn check_value(what: &'static str, value: u64, fits: bool) -> Result<(), Reason> {
    if fits { Ok(()) } else { Err(Reason::Value { what, value }) }
}

fn check_in_region(memory: &GuestMemory, gpa: Gpa, len_bytes: u64) -> Result<(), Reason> {
    let region = memory.slot(SlotId::Region).range();
    let inside = GuestRange::new(gpa, len_bytes).is_some_and(|claim| region.contains_range(claim));
    check_value("address in the region", gpa.raw(), inside)
}

fn in_ram(memory: &GuestMemory, gpa: Gpa, len_bytes: u64) -> bool {
    let ram = memory.slot(SlotId::Ram).range();
    GuestRange::new(gpa, len_bytes).is_some_and(|claim| ram.contains_range(claim))
}

/// Reads `len_bytes`, which the caller has bounded.
fn read_bytes(memory: &GuestMemory, gpa: Gpa, len_bytes: u64, what: &'static str) -> Result<Vec<u8>, Reason> {
    let pointer = Reason::Pointer { what, gpa, len_bytes };
    if !in_ram(memory, gpa, len_bytes) {
        return Err(pointer);
    }
    let mut bytes = vec![0; len_bytes as usize];
    memory.read(gpa, &mut bytes).map_err(|_| pointer)?;
    Ok(bytes)
}

fn read_ram<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
    memory: &GuestMemory,
    gpa: Gpa,
    what: &'static str,
) -> Result<T, Reason> {
    let len_bytes = size_of::<T>() as u64;
    let pointer = Reason::Pointer { what, gpa, len_bytes };
    if !in_ram(memory, gpa, len_bytes) {
        return Err(pointer);
    }
    memory.read_obj(gpa).map_err(|_| pointer)
}
