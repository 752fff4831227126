//! Executes the plan: every write by the instruction that the plan names.
//!
//! One file for each mechanism: here where all architectures do it alike, else in [`crate::guest::arch::pattern`]. The
//! patterns of the command line are made of them: `dirtyram`, `stream`, `hotcold` and `tstaeshm` of [`increment`] and
//! [`store`], `full` of [`store`], `shared` of whatever its lines ask for, `mixed` of all. Contract: no byte of the
//! region outside the plan's writes is ever stored to.

mod code;
mod increment;
mod readback;
mod readonly;
mod store;

use abi::hypercall::{FEATURE_SIMD, Outcome};
use abi::packet::{GuestOutput, StepDigest, StepPacket};
use workload::{Data, How, Write};
use zerocopy::IntoBytes;

use crate::guest::arch::pattern::{self, exclusive, pair, unaligned, vector};
use crate::guest::arch::timer;
use crate::guest::{Machine, hypercall};

/// One vCPU's part of the plan, and where its writes go.
pub(crate) struct Executor {
    machine: &'static Machine,
    vcpu: usize,
}

impl Executor {
    /// The executor of `vcpu`.
    pub(crate) const fn new(machine: &'static Machine, vcpu: usize) -> Self {
        Self { machine, vcpu }
    }

    /// Executes `step`, and sends the packet that tells of it where the host wants packets.
    ///
    /// # Errors
    /// [`Outcome::Unsupported`] and [`Outcome::WrongResult`].
    pub(crate) fn step(&mut self, step: u64) -> Result<(), Outcome> {
        let plan = &self.machine.plan;
        let vcpu = self.vcpu as u32;
        let aliases = Aliases::new(self.machine, self.vcpu, step);
        let sends = self.machine.boot.output != GuestOutput::Off;
        let mut digest = StepDigest::new();
        let mut result = Ok(());
        plan.for_each_write(vcpu, step, |write| {
            if result.is_ok() {
                result = aliases.perform(&write);
                if sends {
                    readback::add(&mut digest, aliases.place(write.offset, u64::from(write.len)), &write);
                }
            }
        });
        plan.reads(vcpu, step, |offset| readonly::read(aliases.place(offset, size_of::<u64>() as u64)));
        if sends && result.is_ok() {
            self.send(step, digest);
        }
        result
    }

    fn send(&self, step: u64, digest: StepDigest) {
        let clock = self.machine.boot.output.clock(timer::now(), timer::frequency());
        let packet = StepPacket {
            step: step.into(),
            digest: digest.value().into(),
            clock: clock.into(),
            vcpu: (self.vcpu as u32).into(),
            reserved: 0.into(),
        };
        hypercall::send(self.vcpu, packet.as_bytes());
    }
}

/// An address in a writable alias of the region, from which as many bytes as were asked for lie in the region.
#[derive(Clone, Copy)]
pub(crate) struct Place(usize);

impl Place {
    /// The address.
    pub(crate) const fn va(self) -> usize {
        self.0
    }
}

/// How the region is reached in one step.
struct Aliases {
    machine: &'static Machine,
    vcpu: usize,
    /// The writable alias in use: the two take turns, and differ between neighbouring vCPUs. Each serves two steps on
    /// end, so that a TLB entry that a broken harvest left behind is used again, and seen.
    data: usize,
}

impl Aliases {
    fn new(machine: &'static Machine, vcpu: usize, step: u64) -> Self {
        let layout = machine.space.layout();
        let first = (step / 2 + vcpu as u64).is_multiple_of(2);
        let data = if first { layout.region_first() } else { layout.region_second() } as usize;
        Self { machine, vcpu, data }
    }

    /// The place at `offset` in the region.
    ///
    /// # Panics
    /// If `len_bytes` from there are not all in the region: the plan is broken.
    fn place(&self, offset: u64, len_bytes: u64) -> Place {
        let region_len = self.machine.boot.region.len_bytes();
        assert!(offset <= region_len && len_bytes <= region_len - offset, "the plan stays in its region");
        Place(self.data + offset as usize)
    }

    /// Performs one write by the instruction it names.
    #[inline]
    fn perform(&self, write: &Write) -> Result<(), Outcome> {
        let simd = || needs(self.machine.features.simd, FEATURE_SIMD);
        let place = self.place(write.offset, u64::from(write.len));
        match (write.how, write.data) {
            (How::Store, data) => store::store(place, write.len, data),
            (How::Unaligned, Data::Bytes(bytes)) => unaligned::store(place, write.len, bytes),
            (How::Pair, Data::Bytes(bytes)) => pair::store(place, bytes),
            (How::Vector, Data::Bytes(bytes)) => {
                simd()?;
                vector::store(place, bytes);
            }
            (How::VectorPair, _) => {
                simd()?;
                vector::store_pair(place, write);
            }
            (How::Increment, Data::Add(addend)) => increment::add(place, addend),
            (How::Exclusive, Data::Add(addend)) => exclusive::add(place, addend),
            (How::Code { returns }, Data::Bytes(bytes)) => {
                let alias = self.machine.space.layout().region_code();
                let code = alias.expect("a plan that writes functions has an alias to run them from") + write.offset;
                let found = code::write_and_call(place, code as usize, bytes);
                if found != returns {
                    let region = self.machine.boot.region;
                    let at = region.start().checked_add(write.offset).expect("the plan stays in its region");
                    return Err(Outcome::WrongResult { at, expected: returns, found });
                }
            }
            _ => return pattern::perform(self.machine, self.vcpu, place, write),
        }
        Ok(())
    }
}

/// Refuses a write for which the machine lacks a `FEATURE_…`.
pub(crate) fn needs(present: bool, feature: u64) -> Result<(), Outcome> {
    if present { Ok(()) } else { Err(Outcome::Unsupported { feature }) }
}

/// The 64-bit word that is stored as the first eight bytes.
pub(crate) fn word(bytes: [u8; 16]) -> u64 {
    u128::from_le_bytes(bytes) as u64
}
