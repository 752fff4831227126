//! Hypercalls: a request block of each vCPU's own, posted by doorbell or HVC. `abi::hypercall` has the layout and the
//! rules.
#![expect(unsafe_code, reason = "the request block is memory shared with the host, the doorbell a device register")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use abi::Gpa;
use abi::hypercall::{
    Command, ExceptionReport, Op, Outcome, PANIC_TEXT_MAX, REG_DOORBELL, REQUEST_ALIGN, REQUEST_MAGIC, Request, Status,
    VERSION, WORDS,
};
use abi::map::MAX_VCPUS;
use zerocopy::FromZeros;
use zerocopy::little_endian::U64;

use crate::guest::arch::cpu;
use crate::guest::console;

/// How requests reach the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A write to the doorbell page at this address.
    Doorbell(Gpa),
    /// HVC.
    Hvc,
}

/// The doorbell's address; zero for HVC. A number, not a [`Transport`], so that it needs no lock.
static DOORBELL: AtomicUsize = AtomicUsize::new(0);

/// A block in the image, one for each vCPU. The host reads and writes it during a call and at no other time.
#[repr(C, align(64))]
struct Block(UnsafeCell<Request>);

const _: () = assert!(align_of::<Block>() as u64 == REQUEST_ALIGN);

// SAFETY: block i is used by vCPU i alone, and by the host only while that vCPU waits in a call.
unsafe impl Sync for Block {}

static BLOCKS: [Block; MAX_VCPUS] = [const { Block(UnsafeCell::new(BLANK)) }; MAX_VCPUS];

const BLANK: Request = zerocopy::transmute!([0_u8; size_of::<Request>()]);

/// Chooses the transport, once, before the first call.
pub(crate) fn set_transport(transport: Transport) {
    let doorbell = match transport {
        Transport::Doorbell(base) => base.raw() as usize,
        Transport::Hvc => 0,
    };
    DOORBELL.store(doorbell, Ordering::Relaxed);
}

/// Hands over the last command's outcome and waits for the next command.
///
/// # Panics
/// If the host refuses the call or gives a command that makes no sense: the two ends disagree on the contract.
pub(crate) fn next(vcpu: usize, outcome: Outcome) -> Command {
    match call(vcpu, Op::Next, outcome.encode()) {
        Ok(results) => Command::decode(results).expect("the host gives commands that this firmware knows"),
        Err(status) => panic!("the host refused {outcome:?}: status {status}"),
    }
}

/// Sends a packet of at most [`abi::hypercall::PACKET_MAX`] bytes on this vCPU's virtual link.
///
/// # Panics
/// If the host refuses it: the two ends disagree on the contract.
pub(crate) fn send(vcpu: usize, packet: &[u8]) {
    let (at, len) = (packet.as_ptr() as u64, packet.len() as u64);
    if let Err(status) = call(vcpu, Op::Packet, [at, len, 0, 0, 0, 0, 0, 0]) {
        panic!("the host refused a packet: status {status}");
    }
}

/// Reports an unexpected exception and parks this vCPU for good.
pub(crate) fn report_exception(vcpu: usize, report: &ExceptionReport) -> ! {
    let at = core::ptr::from_ref(report) as u64;
    let _parked_either_way = call(vcpu, Op::Exception, [at, 0, 0, 0, 0, 0, 0, 0]);
    park()
}

/// Reports a panic and parks this vCPU for good. `text` is cut at what the host takes.
pub(crate) fn report_panic(vcpu: usize, text: &str) -> ! {
    let len = (text.len() as u64).min(PANIC_TEXT_MAX);
    let at = text.as_ptr() as u64;
    if call(vcpu, Op::Panic, [at, len, 0, 0, 0, 0, 0, 0]).is_err() {
        // There is no host, or one that does not understand: the console is what is left.
        console::say(format_args!("vCPU {vcpu} panicked: {text}\n"));
    }
    park()
}

/// Makes one call: `Ok` with the results, or the host's status.
fn call(vcpu: usize, op: Op, args: [u64; WORDS]) -> Result<[u64; WORDS], u32> {
    let block = BLOCKS[vcpu].0.get();
    let mut request = Request::new_zeroed();
    request.magic = REQUEST_MAGIC.into();
    request.version = VERSION.into();
    request.op = (op as u16).into();
    request.args = args.map(U64::new);
    // SAFETY: the block is this vCPU's, and the host does not touch it between calls.
    unsafe { block.write_volatile(request) };
    let at = block as u64;
    cpu::synchronize();
    match DOORBELL.load(Ordering::Relaxed) {
        0 => cpu::call_host(at),
        base => {
            let doorbell = Gpa::new(base as u64 + REG_DOORBELL);
            // SAFETY: the devicetree says that the doorbell is there, and it is mapped as device memory.
            unsafe { cpu::write_device(doorbell, (at / REQUEST_ALIGN) as u32) };
        }
    }
    cpu::synchronize();
    // SAFETY: the call is over, so the block is this vCPU's again.
    let answer = unsafe { block.read_volatile() };
    let status = answer.status.get();
    if Status::from_raw(status) == Some(Status::Ok) { Ok(answer.results.map(U64::get)) } else { Err(status) }
}

/// Nothing is left to do on this vCPU.
fn park() -> ! {
    loop {
        cpu::wait_for_interrupt();
    }
}
