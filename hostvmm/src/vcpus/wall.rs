//! A vCPU's thread, with the wall clock.

use super::control::{Shared, State, Via};
use super::exits::{complete, handle};
use crate::backend::Vcpu;

/// Executes `vcpu` until it has ended or the machine is stopped.
pub(super) fn run(shared: &Shared, mut vcpu: Box<dyn Vcpu>) {
    while let Some(answered) = enter(shared, vcpu.index()) {
        if let Some(via) = answered {
            complete(vcpu.as_mut(), via);
        }
        let exit = vcpu.run(None);
        handle(shared, vcpu.as_mut(), exit);
    }
}

/// Waits until the vCPU may execute: `Some` with the call to complete first, `None` where it never will again.
fn enter(shared: &Shared, index: usize) -> Option<Option<Via>> {
    let mut control = shared.lock();
    loop {
        if control.stopping {
            control.seats[index].state = State::Ended;
            return None;
        }
        let paused = control.paused;
        let seat = &mut control.seats[index];
        match seat.state {
            State::Ended => return None,
            State::Running if !paused => return Some(None),
            State::Held { complete } if !paused => {
                seat.state = State::Running;
                return Some(complete);
            }
            State::Running => {
                seat.state = State::Held { complete: None };
                shared.announce();
            }
            State::Held { .. } | State::Parked { .. } => control = shared.wait_change(control),
        }
    }
}
