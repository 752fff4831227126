//! All vCPUs on one thread, in turns of a fixed number of instructions: the instruction clock.
//!
//! The order of turns depends on nothing but the guest: a turn ends when its instructions are used up, or when the vCPU
//! parks, idles or ends. A pause or the end of a slice in the middle of a turn keeps what is left of it, so that where
//! the controller stops the machine does not change what the guest does. When every vCPU that may run idles, time jumps
//! to the next timer.

use super::control::{Control, Shared, State, Via};
use super::exits::{After, handle, run_on};
use super::{Event, SharedVcpu, VcpusError, lock};
use crate::migrate::HostTime;

/// Instructions of one turn. Small enough to interleave stores of two vCPUs within a step, large enough that switching
/// costs nothing beside it.
pub(super) const TURN_INSTRUCTIONS: u64 = 10_000;

/// Whose turn it is, how much of it is left, and how many turns in a row had nothing to execute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Turn {
    pub(super) vcpu: usize,
    pub(super) left: u64,
    pub(super) idle: usize,
}

impl Turn {
    pub(super) const FIRST: Self = Self { vcpu: 0, left: TURN_INSTRUCTIONS, idle: 0 };

    fn spend(&mut self, executed: u64, after: After) {
        self.left = self.left.saturating_sub(executed);
        if executed > 0 {
            self.idle = 0;
        }
        match after {
            After::Idle => {
                self.idle += usize::from(executed == 0);
                self.left = 0;
            }
            After::Stand => self.left = 0,
            After::Continue => {}
        }
    }
}

/// What to execute next.
struct Go {
    vcpu: usize,
    budget: u64,
    complete: Option<Via>,
}

/// Executes all `vcpus` until the machine is stopped. Between two turns, and parts of them, they are free for the controller.
pub(super) fn run(shared: &Shared, vcpus: &[SharedVcpu]) {
    while let Some(go) = next(shared) {
        let mut vcpu = lock(&vcpus[go.vcpu]);
        if let Some(via) = go.complete
            && !run_on(shared, vcpu.as_mut(), via)
        {
            continue;
        }
        let before = vcpu.instructions();
        let exit = vcpu.run(Some(go.budget));
        shared.exits().stamp(go.vcpu);
        let Some(executed) = before.zip(vcpu.instructions()).map(|(before, now)| now.saturating_sub(before)) else {
            shared.post(Event::Diagnostic(VcpusError::NeedsIcount.to_string()));
            shared.end_seat(go.vcpu);
            continue;
        };
        charge(shared, executed);
        let after = handle(shared, vcpu.as_mut(), exit);
        shared.lock().turn.spend(executed, after);
        drop(vcpu);
        shared.tap().wait_room();
    }
}

/// Takes executed instructions off the slice. Before the exit is handled: handling it may tell the controller that the
/// vCPU is parked, and the next slice must not pay for what came before it.
fn charge(shared: &Shared, executed: u64) {
    if let Some(slice) = shared.lock().slice.as_mut() {
        *slice = slice.saturating_sub(executed);
    }
}

/// Waits until a vCPU may execute and says which; `None` once the machine is stopped.
fn next(shared: &Shared) -> Option<Go> {
    let mut control = shared.lock();
    loop {
        if control.stopping {
            control.seats.iter_mut().for_each(|seat| seat.state = State::Ended);
            shared.announce();
            return None;
        }
        if control.slice == Some(0) && !std::mem::replace(&mut control.paused, true) {
            control.stamps.last_exit = HostTime::now();
        }
        if std::mem::take(&mut control.fresh_turn) {
            control.turn = Turn::FIRST;
        }
        if control.paused {
            hold(&mut control);
            shared.announce();
            control = shared.wait_change(control);
            continue;
        }
        if choose(&mut control) && (control.turn.idle < runnable(&control) || warp(shared, &mut control.turn)) {
            let go = enter(&mut control);
            if control.note_entry(go.vcpu) {
                shared.announce();
            }
            return Some(go);
        }
        control.quiescent = true;
        // Idle vCPUs are asked again after each wake-up, of which there is no certain number: whose turn it was must
        // not depend on it.
        control.turn = Turn::FIRST;
        shared.announce();
        control = shared.wait_change(control);
    }
}

fn may_run(state: State) -> bool {
    matches!(state, State::Running | State::Held { .. })
}

fn runnable(control: &Control) -> usize {
    control.seats.iter().filter(|seat| may_run(seat.state)).count()
}

/// Everything that runs is held instead: the controller sees that nothing executes.
fn hold(control: &mut Control) {
    for seat in &mut control.seats {
        if seat.state == State::Running {
            seat.state = State::Held { complete: None };
            control.stamps.last_exit = HostTime::now();
        }
    }
}

/// Passes the turn on if it is used up or cannot be used; `false` where no vCPU may run.
fn choose(control: &mut Control) -> bool {
    let count = control.seats.len();
    let turn = control.turn;
    let first = turn.vcpu + usize::from(turn.left == 0);
    let Some(vcpu) = (first..first + count).map(|at| at % count).find(|at| may_run(control.seats[*at].state)) else {
        return false;
    };
    if vcpu != turn.vcpu || turn.left == 0 {
        control.turn = Turn { vcpu, left: TURN_INSTRUCTIONS, ..turn };
    }
    true
}

/// Lets time jump to the next timer, if there is one.
fn warp(shared: &Shared, turn: &mut Turn) -> bool {
    turn.idle = 0;
    matches!(shared.vm().warp_to_next_deadline(), Ok(true))
}

fn enter(control: &mut Control) -> Go {
    let Turn { vcpu, left, .. } = control.turn;
    let budget = control.slice.map_or(left, |slice| slice.min(left));
    let seat = &mut control.seats[vcpu];
    let complete = match seat.state {
        State::Held { complete } => complete,
        _ => None,
    };
    seat.state = State::Running;
    Go { vcpu, budget, complete }
}
