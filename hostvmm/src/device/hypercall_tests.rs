//! Tests of [`super::hypercall`]: every field of a request turned hostile, one at a time and at random.

use abi::hypercall::{
    Command, ExceptionReport, Op, Outcome, REQUEST_MAGIC, Request, STATUS_OFFSET, Status, VERSION, WORDS,
};
use abi::{Gpa, GuestRange, map};
use proptest::prelude::*;
use zerocopy::little_endian::U64;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::hypercall::{Call, Phase, Reason, answer, decode};
use crate::memory::GuestMemory;

const RAM: u64 = map::RAM_BASE.raw();
const RAM_BYTES: u64 = 1 << 20;
const REGION: u64 = map::REGION_BASE.raw();
const BLOCK: Gpa = Gpa::new(RAM + 0x1000);
const PROGRESS: Gpa = Gpa::new(RAM + 0x2000);
const STEPS: Phase = Phase::Executing(Command::RunSteps { first: 5, count: 3 });
const CHECK: Phase = Phase::Executing(Command::SelfCheck { steps: 5 });

fn memory() -> GuestMemory {
    let ram = GuestRange::new(map::RAM_BASE, RAM_BYTES).unwrap();
    GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, 0x1_0000).unwrap(), None).unwrap()
}

fn request(op: Op, args: [u64; WORDS]) -> Request {
    let mut request = Request::new_zeroed();
    request.magic = REQUEST_MAGIC.into();
    request.version = VERSION.into();
    request.op = (op as u16).into();
    request.args = args.map(U64::new);
    request
}

fn ask(phase: Phase, request: &Request) -> Result<Call, (Status, Reason)> {
    let memory = memory();
    memory.write(BLOCK, request.as_bytes()).unwrap();
    decode(&memory, phase, BLOCK).map_err(|refusal| {
        assert!(refusal.answerable);
        (refusal.status, refusal.reason)
    })
}

fn outcome(phase: Phase, outcome: Outcome) -> Result<Call, Status> {
    ask(phase, &request(Op::Next, outcome.encode())).map_err(|(status, _)| status)
}

#[test]
fn a_first_call_hands_over_the_progress_slot() {
    let ready = Outcome::Ready { progress: PROGRESS };
    assert_eq!(outcome(Phase::Fresh, ready), Ok(Call::Next { request: BLOCK, outcome: ready }));
}

#[test]
fn an_outcome_must_answer_the_command_given() {
    let in_region = Gpa::new(REGION + 8);
    let legal = [
        (STEPS, Outcome::Ran { next: 5 }),
        (STEPS, Outcome::Ran { next: 8 }),
        (STEPS, Outcome::WrongResult { at: in_region, expected: 1, found: 2 }),
        (STEPS, Outcome::Unsupported { feature: 2 }),
        (Phase::Fresh, Outcome::Unsupported { feature: 5 }),
        (CHECK, Outcome::SelfCheckPassed),
        (CHECK, Outcome::SelfCheckFailed { at: in_region, expected: 1, found: 2 }),
    ];
    for (phase, answer) in legal {
        assert!(outcome(phase, answer).is_ok(), "{phase:?} {answer:?}");
    }
    let illegal = [
        (STEPS, Outcome::Ready { progress: PROGRESS }),
        (STEPS, Outcome::SelfCheckPassed),
        (CHECK, Outcome::Ran { next: 5 }),
        (Phase::Fresh, Outcome::Ran { next: 0 }),
        (Phase::Waiting, Outcome::Ran { next: 0 }),
        (Phase::Dead, Outcome::Ready { progress: PROGRESS }),
        (Phase::Executing(Command::Stop), Outcome::SelfCheckPassed),
    ];
    for (phase, answer) in illegal {
        assert_eq!(outcome(phase, answer), Err(Status::BadState), "{phase:?} {answer:?}");
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let outside = Gpa::new(REGION + 0x1_0000);
    let bad = [
        (STEPS, Outcome::Ran { next: 4 }),
        (STEPS, Outcome::Ran { next: 9 }),
        (STEPS, Outcome::Unsupported { feature: 99 }),
        (STEPS, Outcome::WrongResult { at: outside, expected: 1, found: 2 }),
        (STEPS, Outcome::WrongResult { at: Gpa::new(REGION), expected: 1, found: 1 }),
        (CHECK, Outcome::SelfCheckFailed { at: outside, expected: 1, found: 2 }),
        (CHECK, Outcome::SelfCheckFailed { at: Gpa::new(u64::MAX), expected: 1, found: 2 }),
        (Phase::Fresh, Outcome::Ready { progress: Gpa::new(RAM + 8) }),
    ];
    for (phase, answer) in bad {
        assert_eq!(outcome(phase, answer), Err(Status::BadArgument), "{answer:?}");
    }
    for wild in [REGION, RAM + RAM_BYTES, 0, !63, RAM - 64] {
        let ready = Outcome::Ready { progress: Gpa::new(wild) };
        assert_eq!(outcome(Phase::Fresh, ready), Err(Status::BadAddress), "{wild:#x}");
    }
}

#[test]
fn endless_steps_may_end_anywhere() {
    let endless = Phase::Executing(Command::RunSteps { first: 3, count: u64::MAX });
    assert!(outcome(endless, Outcome::Ran { next: u64::MAX }).is_ok());
    assert_eq!(outcome(endless, Outcome::Ran { next: 2 }), Err(Status::BadArgument));
}

#[test]
fn every_bad_header_field_has_its_status() {
    let good = || request(Op::Next, Outcome::Ready { progress: PROGRESS }.encode());
    let with = |change: fn(&mut Request)| {
        let mut request = good();
        change(&mut request);
        ask(Phase::Fresh, &request).unwrap_err().0
    };
    assert_eq!(with(|r| r.magic = 0.into()), Status::BadMagic);
    assert_eq!(with(|r| r.version = 2.into()), Status::BadVersion);
    assert_eq!(with(|r| r.op = 0.into()), Status::BadOp);
    assert_eq!(with(|r| r.op = 0xffff.into()), Status::BadOp);
    assert_eq!(with(|r| r.reserved0 = 1.into()), Status::BadArgument);
    assert_eq!(with(|r| r.reserved1[47] = 1), Status::BadArgument);
    assert_eq!(with(|r| r.args[0] = 99.into()), Status::BadArgument);
    assert_eq!(with(|r| r.args[7] = 1.into()), Status::BadArgument);
}

#[test]
fn blocks_outside_ram_are_refused_and_not_answered() {
    let memory = memory();
    for wild in [0, REGION, RAM - 64, RAM + RAM_BYTES - 128, RAM + RAM_BYTES, 0x3f_ffff_ffc0, !63] {
        let refusal = decode(&memory, Phase::Fresh, Gpa::new(wild)).unwrap_err();
        assert_eq!((refusal.status, refusal.answerable), (Status::BadAddress, false), "{wild:#x}");
    }
    let refusal = decode(&memory, Phase::Fresh, Gpa::new(RAM + 32)).unwrap_err();
    assert_eq!((refusal.reason, refusal.answerable), (Reason::Misaligned, false));
}

#[test]
fn a_panic_s_text_is_bounded_checked_and_printable() {
    let memory = memory();
    memory.write(PROGRESS, b"oops \x1b[31m").unwrap();
    let ask = |gpa: u64, len: u64| {
        memory.write(BLOCK, request(Op::Panic, [gpa, len, 0, 0, 0, 0, 0, 0]).as_bytes()).unwrap();
        decode(&memory, STEPS, BLOCK).map_err(|refusal| refusal.status)
    };
    assert_eq!(ask(PROGRESS.raw(), 10), Ok(Call::Panic("oops \u{fffd}[31m".into())));
    assert_eq!(ask(PROGRESS.raw(), 1025), Err(Status::BadArgument));
    assert_eq!(ask(PROGRESS.raw(), u64::MAX), Err(Status::BadArgument));
    assert_eq!(ask(RAM + RAM_BYTES - 5, 10), Err(Status::BadAddress));
    assert_eq!(ask(u64::MAX - 3, 10), Err(Status::BadAddress));
    assert_eq!(ask(REGION, 10), Err(Status::BadAddress));
}

#[test]
fn a_packet_is_bounded_and_taken_while_the_vcpu_has_something_to_do() {
    let memory = memory();
    memory.write(PROGRESS, b"\x00\xff packet").unwrap();
    let ask = |phase, gpa: u64, len: u64, more: u64| {
        memory.write(BLOCK, request(Op::Packet, [gpa, len, 0, 0, 0, 0, 0, more]).as_bytes()).unwrap();
        decode(&memory, phase, BLOCK).map_err(|refusal| refusal.status)
    };
    let at = PROGRESS.raw();
    for phase in [Phase::Fresh, STEPS, CHECK, Phase::Executing(Command::Stop)] {
        let packet = Call::Packet { request: BLOCK, bytes: b"\x00\xff pack".to_vec() };
        assert_eq!(ask(phase, at, 7, 0), Ok(packet), "{phase:?}");
    }
    assert!(ask(STEPS, at, 2048, 0).is_ok());
    for (gpa, len, more) in [(at, 0, 0), (at, 2049, 0), (at, u64::MAX, 0), (at, 7, 1)] {
        assert_eq!(ask(STEPS, gpa, len, more), Err(Status::BadArgument), "{len} {more}");
    }
    for gpa in [RAM + RAM_BYTES - 6, u64::MAX - 3, REGION, 0] {
        assert_eq!(ask(STEPS, gpa, 7, 0), Err(Status::BadAddress), "{gpa:#x}");
    }
    for phase in [Phase::Waiting, Phase::Dead] {
        assert_eq!(ask(phase, at, 7, 0), Err(Status::BadState), "{phase:?}");
    }
}

#[test]
fn an_exception_report_is_taken_whole_or_not_at_all() {
    let memory = memory();
    let mut report = ExceptionReport::new_zeroed();
    report.frames = 2.into();
    report.elr = 0x4020_0000.into();
    memory.write(PROGRESS, report.as_bytes()).unwrap();
    let ask = |gpa: u64| {
        memory.write(BLOCK, request(Op::Exception, [gpa, 0, 0, 0, 0, 0, 0, 0]).as_bytes()).unwrap();
        decode(&memory, STEPS, BLOCK).map_err(|refusal| refusal.status)
    };
    assert_eq!(ask(PROGRESS.raw()), Ok(Call::Exception(Box::new(report))));
    assert_eq!(ask(RAM + RAM_BYTES - 575), Err(Status::BadAddress));
    report.frames = 33.into();
    memory.write(PROGRESS, report.as_bytes()).unwrap();
    assert_eq!(ask(PROGRESS.raw()), Err(Status::BadArgument));
    assert!(matches!(decode(&memory, Phase::Dead, BLOCK), Err(refusal) if refusal.status == Status::BadState));
}

#[test]
fn an_answer_touches_status_and_results_only() {
    let memory = memory();
    let before = request(Op::Next, [0x55; WORDS]);
    memory.write(BLOCK, before.as_bytes()).unwrap();
    let words = Command::RunSteps { first: 1, count: 2 }.encode();
    let written = answer(&memory, BLOCK, Status::Ok, words).unwrap().unwrap();
    assert_eq!(written, GuestRange::new(BLOCK, 192).unwrap());
    let after: Request = memory.read_obj(BLOCK).unwrap();
    let expected = Request { status: (Status::Ok as u32).into(), results: words.map(U64::new), ..before };
    assert_eq!(after, expected);
    assert_eq!(STATUS_OFFSET, 8);
}

fn phases() -> impl Strategy<Value = Phase> {
    prop_oneof![Just(Phase::Fresh), Just(Phase::Waiting), Just(Phase::Dead), Just(STEPS), Just(CHECK)]
}

proptest! {
    #[test]
    fn no_bytes_make_the_host_panic(
        bytes in prop::collection::vec(any::<u8>(), 192),
        op in 0u16..6,
        arg in any::<u64>(),
        small in 0u64..2048,
        phase in phases(),
        claim in any::<u32>(),
    ) {
        let memory = memory();
        memory.write(BLOCK, &bytes).unwrap();
        let _ = decode(&memory, phase, BLOCK);
        let mut near = Request::new_zeroed();
        near.magic = REQUEST_MAGIC.into();
        near.version = VERSION.into();
        near.op = op.into();
        near.args[0] = arg.into();
        near.args[1] = small.into();
        memory.write(BLOCK, near.as_bytes()).unwrap();
        let _ = decode(&memory, phase, BLOCK);
        near.args[0] = (RAM + arg % (2 * RAM_BYTES)).into();
        memory.write(BLOCK, near.as_bytes()).unwrap();
        let _ = decode(&memory, phase, BLOCK);
        let _ = decode(&memory, phase, Gpa::new(u64::from(claim) << 6));
    }
}
