//! The hand-over itself: [`Safepoints`] and [`Work`]. What it guarantees and why is argued in the parent module.
//!
//! This file is compiled twice: over the standard library's atomics for use, and over `loom`'s for the model test. The
//! parent's `sync` says which.

use super::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence, relax};

/// What vCPUs are asked to do at their next instruction boundary; a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work(u32);

impl Work {
    /// Forget which pages' dirty bits are set: a harvest, or the start of logging.
    pub const DROP_WRITE_TAGS: Self = Self(1 << 0);
    /// Forget every translation: a broadcast TLBI.
    pub const FLUSH_TLB: Self = Self(1 << 1);
    /// Forget decoded code: a broadcast instruction-cache invalidation.
    pub const FLUSH_CODE: Self = Self(1 << 2);

    /// Whether everything in `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether there is nothing to do.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// One vCPU's side. On cache lines of its own: the owner writes it at every entry and exit.
#[derive(Debug)]
#[repr(align(128))]
struct Slot {
    /// Whether the vCPU is inside the run loop.
    running: AtomicBool,
    /// What it is asked to do and has not taken yet.
    work: AtomicU32,
    /// How many requests have reached this slot; a request's count is its ticket.
    asked: AtomicU64,
    /// The highest ticket whose work is done.
    done: AtomicU64,
}

/// The safepoints of a machine.
#[derive(Debug)]
pub struct Safepoints {
    slots: Box<[Slot]>,
}

impl Safepoints {
    /// For `vcpus` vCPUs, all outside the run loop.
    pub fn new(vcpus: usize) -> Self {
        let slot = |_| Slot {
            running: AtomicBool::new(false),
            work: AtomicU32::new(0),
            asked: AtomicU64::new(0),
            done: AtomicU64::new(0),
        };
        Self { slots: (0..vcpus).map(slot).collect() }
    }

    /// `vcpu` enters the run loop; `perform` does what was asked for while it was outside. To be paired with
    /// [`Self::leave`].
    ///
    /// # Panics
    /// For a vCPU that the machine does not have (as everywhere in this type).
    pub fn enter(&self, vcpu: usize, perform: impl FnMut(Work)) {
        self.slots[vcpu].running.store(true, Ordering::Relaxed);
        // Pairs with the fence in `ask`: either this vCPU sees the request below, or the requester sees it running.
        fence(Ordering::SeqCst);
        self.poll(vcpu, perform);
    }

    /// `vcpu` leaves the run loop, also to sleep in WFI: from here to the next [`Self::enter`] it must not touch guest memory
    /// through its TLB, and counts as having acknowledged everything.
    pub fn leave(&self, vcpu: usize) {
        self.slots[vcpu].running.store(false, Ordering::Release);
    }

    /// `vcpu` is at an instruction boundary inside the run loop: does what it is asked to and acknowledges it.
    pub fn poll(&self, vcpu: usize, mut perform: impl FnMut(Work)) {
        let slot = &self.slots[vcpu];
        let ticket = slot.asked.load(Ordering::Acquire);
        // Requests beyond `ticket` may add work that is taken here too: done early, acknowledged by the next poll.
        let work = Work(slot.work.swap(0, Ordering::AcqRel));
        if !work.is_empty() {
            perform(work);
        }
        slot.done.store(ticket, Ordering::Release);
    }

    /// Asks every vCPU to do `work` and waits until each has, or is outside the run loop and will before it runs guest code.
    /// For threads that are not a vCPU inside its run loop. `raise` gets a running vCPU's attention.
    pub fn request(&self, work: Work, raise: impl Fn(usize)) {
        let tickets = self.ask(None, work, &raise);
        self.wait(None, &tickets, || ());
    }

    /// As [`Self::request`], from `vcpu` inside its run loop and between two accesses to guest memory. `perform` does what *others* ask of it
    /// meanwhile, so that two requesters cannot wait for each other; its own `work` the caller does itself.
    pub fn request_from(&self, vcpu: usize, work: Work, raise: impl Fn(usize), mut perform: impl FnMut(Work)) {
        let tickets = self.ask(Some(vcpu), work, &raise);
        self.wait(Some(vcpu), &tickets, || self.poll(vcpu, &mut perform));
    }

    /// Leaves the request at every slot but `from` and returns the tickets; 0 where nobody need be waited for.
    fn ask(&self, from: Option<usize>, work: Work, raise: &impl Fn(usize)) -> Vec<u64> {
        let others = || self.slots.iter().enumerate().filter(|(vcpu, _)| Some(*vcpu) != from);
        let mut tickets = vec![0; self.slots.len()];
        for (vcpu, slot) in others() {
            slot.work.fetch_or(work.0, Ordering::Relaxed);
            tickets[vcpu] = slot.asked.fetch_add(1, Ordering::AcqRel) + 1;
        }
        // Pairs with the fence in `enter`.
        fence(Ordering::SeqCst);
        for (vcpu, slot) in others() {
            if slot.running.load(Ordering::Acquire) {
                raise(vcpu);
            } else {
                tickets[vcpu] = 0;
            }
        }
        tickets
    }

    fn wait(&self, from: Option<usize>, tickets: &[u64], mut meanwhile: impl FnMut()) {
        for (vcpu, slot) in self.slots.iter().enumerate().filter(|(vcpu, _)| Some(*vcpu) != from) {
            let mut rounds = 0;
            while slot.done.load(Ordering::Acquire) < tickets[vcpu] && slot.running.load(Ordering::Acquire) {
                meanwhile();
                relax(rounds);
                rounds += 1;
            }
        }
    }
}
