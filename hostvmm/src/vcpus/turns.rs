//! All vCPUs on one thread, in turns of a fixed number of instructions: the instruction clock.
//!
//! The order of turns depends on nothing but the guest: a turn ends when its instructions are used up, or when the vCPU
//! parks, idles or ends. A pause or the end of a slice in the middle of a turn keeps what is left of it, so that where
//! the controller stops the machine does not change what the guest does. When every vCPU that may run idles, time jumps
//! to the next timer.

use super::control::{Control, Shared, State, Via};
use super::exits::{After, complete, handle};
use super::{Event, VcpusError};
use crate::backend::Vcpu;

/// Instructions of one turn. Small enough to interleave stores of two vCPUs within a step, large enough that switching
/// costs nothing beside it.
pub(super) const TURN_INSTRUCTIONS: u64 = 10_000;

/// Whose turn it is, how much of it is left, and how many turns in a row had nothing to execute.
struct Turn {
    vcpu: usize,
    left: u64,
    idle: usize,
}

impl Turn {
    const FIRST: Self = Self { vcpu: 0, left: TURN_INSTRUCTIONS, idle: 0 };

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
    budget: u64,
    complete: Option<Via>,
}

/// Executes all `vcpus` until the machine is stopped.
pub(super) fn run(shared: &Shared, mut vcpus: Vec<Box<dyn Vcpu>>) {
    let mut turn = Turn::FIRST;
    while let Some(go) = next(shared, &mut turn) {
        let vcpu = vcpus[turn.vcpu].as_mut();
        if let Some(via) = go.complete {
            complete(vcpu, via);
        }
        let before = vcpu.instructions();
        let exit = vcpu.run(Some(go.budget));
        let Some(executed) = before.zip(vcpu.instructions()).map(|(before, now)| now.saturating_sub(before)) else {
            shared.post(Event::Diagnostic(VcpusError::NeedsIcount.to_string()));
            shared.end_seat(turn.vcpu);
            continue;
        };
        charge(shared, executed);
        let after = handle(shared, vcpu, exit);
        turn.spend(executed, after);
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
fn next(shared: &Shared, turn: &mut Turn) -> Option<Go> {
    let mut control = shared.lock();
    loop {
        if control.stopping {
            control.seats.iter_mut().for_each(|seat| seat.state = State::Ended);
            shared.announce();
            return None;
        }
        if control.slice == Some(0) {
            control.paused = true;
        }
        if std::mem::take(&mut control.fresh_turn) {
            *turn = Turn::FIRST;
        }
        if control.paused {
            hold(&mut control);
            shared.announce();
            control = shared.wait_change(control);
            continue;
        }
        if choose(&control, turn) && (turn.idle < runnable(&control) || warp(shared, turn)) {
            return Some(enter(&mut control, turn));
        }
        control.quiescent = true;
        shared.announce();
        control = shared.wait_change(control);
        // Idle vCPUs are asked again after each wake-up, of which there is no certain number: whose turn it was must
        // not depend on it.
        *turn = Turn::FIRST;
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
        }
    }
}

/// Passes the turn on if it is used up or cannot be used; `false` where no vCPU may run.
fn choose(control: &Control, turn: &mut Turn) -> bool {
    let count = control.seats.len();
    let first = turn.vcpu + usize::from(turn.left == 0);
    let Some(vcpu) = (first..first + count).map(|at| at % count).find(|at| may_run(control.seats[*at].state)) else {
        return false;
    };
    if vcpu != turn.vcpu || turn.left == 0 {
        turn.vcpu = vcpu;
        turn.left = TURN_INSTRUCTIONS;
    }
    true
}

/// Lets time jump to the next timer, if there is one.
fn warp(shared: &Shared, turn: &mut Turn) -> bool {
    turn.idle = 0;
    matches!(shared.vm().warp_to_next_deadline(), Ok(true))
}

fn enter(control: &mut Control, turn: &Turn) -> Go {
    let budget = control.slice.map_or(turn.left, |slice| slice.min(turn.left));
    let seat = &mut control.seats[turn.vcpu];
    let complete = match seat.state {
        State::Held { complete } => complete,
        _ => None,
    };
    seat.state = State::Running;
    Go { budget, complete }
}
