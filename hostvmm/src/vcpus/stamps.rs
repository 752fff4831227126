//! When vCPUs left the guest and entered it again: the two [`Stamps`] between which a machine stood still, and each vCPU's
//! own [`Stay`].

use std::sync::atomic::{AtomicU64, Ordering};

use super::Vcpus;
use super::control::State;
use crate::migrate::HostTime;

/// The ends of the last pause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamps {
    /// When the last vCPU that still executed left the guest, or when the pause was asked for where none did.
    pub(super) last_exit: HostTime,
    /// When the first vCPU entered the guest after the machine was started or resumed; `None` until one has.
    pub(super) first_entry: Option<HostTime>,
}

/// When one vCPU was inside the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stay {
    /// When it first entered the guest since the machine was started or its counter was set: its thread's last step before
    /// `run`. `None` if it never has.
    pub entered: Option<HostTime>,
    /// When it last left the guest: its thread's first step after `run`. `None` where it never was inside, and while it
    /// may be inside now.
    pub left: Option<HostTime>,
}

/// When each vCPU last left the guest. Apart from the lock: every exit is stamped.
#[derive(Debug)]
pub(super) struct Exits(Vec<AtomicU64>);

impl Exits {
    pub(super) fn new(vcpus: usize) -> Self {
        Self((0..vcpus).map(|_| AtomicU64::new(0)).collect())
    }

    /// `vcpu` has just left the guest. Whoever reads this has met its thread at the control lock since.
    pub(super) fn stamp(&self, vcpu: usize) {
        self.0[vcpu].store(HostTime::now().ns(), Ordering::Relaxed);
    }

    /// None has ever left it.
    pub(super) fn forget(&self) {
        self.0.iter().for_each(|exit| exit.store(0, Ordering::Relaxed));
    }

    fn of(&self, vcpu: usize) -> Option<HostTime> {
        let ns = self.0[vcpu].load(Ordering::Relaxed);
        (ns != 0).then_some(HostTime::from_ns(ns))
    }
}

impl Vcpus {
    /// When each vCPU was inside the guest.
    pub fn stays(&self) -> Vec<Stay> {
        let control = self.shared.lock();
        let seats = control.seats.iter().enumerate();
        let stay = |(vcpu, seat): (usize, &super::control::Seat)| Stay {
            entered: seat.entered,
            left: if seat.state == State::Running { None } else { self.shared.exits().of(vcpu) },
        };
        seats.map(stay).collect()
    }
}
