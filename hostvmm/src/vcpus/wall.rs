//! A vCPU's thread, with the wall clock.

use super::control::{Shared, State, Via};
use super::exits::{handle, run_on};
use super::{SharedVcpu, lock};
use crate::migrate::HostTime;

/// Executes vCPU `index` until it has ended or the machine is stopped. Between two runs the vCPU is free for the
/// controller.
pub(super) fn run(shared: &Shared, index: usize, vcpu: &SharedVcpu) {
    while let Some(answered) = enter(shared, index) {
        let mut vcpu = lock(vcpu);
        if let Some(via) = answered
            && !run_on(shared, vcpu.as_mut(), via)
        {
            continue;
        }
        let exit = vcpu.run(None);
        shared.exits().stamp(index);
        handle(shared, vcpu.as_mut(), exit);
        drop(vcpu);
        shared.tap().wait_room();
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
        let blocked = control.is_blocked();
        let complete = match control.seats[index].state {
            State::Ended => return None,
            State::Running if !blocked => None,
            State::Held { complete } if !blocked => {
                control.seats[index].state = State::Running;
                complete
            }
            State::Running => {
                control.seats[index].state = State::Held { complete: None };
                if control.paused {
                    control.stamps.last_exit = HostTime::now();
                }
                shared.announce();
                continue;
            }
            State::Held { .. } | State::Parked { .. } => {
                control = shared.wait_change(control);
                continue;
            }
        };
        if control.note_entry(index) {
            shared.announce();
        }
        return Some(complete);
    }
}
