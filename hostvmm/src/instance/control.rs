//! Whether the guest runs, and who may say so: [`RunControl`], QEMU's run states without any machine.
//!
//! ```text
//!                 cont            pause (migration)        moved
//!   prelaunch ──────────▶ running ────────────────▶ finish-migrate ──────▶ postmigrate
//!                          ▲  │ stop                  │       │ forsake
//!                     cont │  ▼         resume        │       ▼
//!                         paused ◀────────────────────┴──── paused (undecided)
//!   inmigrate ── arrive ──▶ running or paused
//! ```
//!
//! A guest that was saved to a file is *postmigrate* as well, but *kept*: `cont` lets it run on.
//!
//! In a COLO pair:
//!
//! ```text
//!            checkpoint               resume
//!   running ────────────▶ colo ──────────────────▶ running or paused
//!   inmigrate ───────────▶ │ moved (the other side goes on) ──▶ postmigrate
//! ```
//!
//! `stop` and `cont` are wishes where the guest is on its way: they decide how it goes on. *undecided* is a guest that the
//! source has committed to a destination of which nothing is heard: nobody but the operator may let it run.

use crate::control::types::RunState;

/// A refusal, in words for the operator.
pub(super) type Refused = &'static str;

/// What the vCPUs are to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// Let them run; `RESUME`.
    Run,
    /// Hold them; `STOP`.
    Hold,
    /// Nothing.
    Nothing,
}

/// A guest's run state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RunControl {
    state: RunState,
    /// Whether the guest is to run when it may.
    wanted: bool,
    undecided: bool,
    /// Whether a guest that has moved is here as well.
    kept: bool,
}

impl RunControl {
    /// A guest at its first instruction, or one that is waited for.
    pub(super) fn new(incoming: bool, wanted: bool) -> Self {
        let state = if incoming { RunState::Inmigrate } else { RunState::Prelaunch };
        Self { state, wanted, undecided: false, kept: false }
    }

    /// The state.
    pub(super) fn state(&self) -> RunState {
        self.state
    }

    /// Whether the guest is to run, or was before a migration stopped it.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether nobody knows if the guest runs elsewhere.
    pub(super) fn is_undecided(&self) -> bool {
        self.undecided
    }

    /// The command `stop`.
    pub(super) fn stop(&mut self) -> Order {
        match self.state {
            RunState::Running => {
                (self.state, self.wanted) = (RunState::Paused, false);
                Order::Hold
            }
            RunState::Inmigrate | RunState::FinishMigrate | RunState::Colo => {
                self.wanted = false;
                Order::Nothing
            }
            _ => Order::Nothing,
        }
    }

    /// The command `cont`.
    pub(super) fn cont(&mut self) -> Result<Order, Refused> {
        match self.state {
            RunState::Running => Ok(Order::Nothing),
            RunState::Inmigrate | RunState::Colo => {
                self.wanted = true;
                Ok(Order::Nothing)
            }
            RunState::Prelaunch | RunState::Paused => Ok(self.run()),
            RunState::Postmigrate if self.kept => Ok(self.run()),
            RunState::FinishMigrate => Err("Migration is not finalized yet"),
            RunState::Postmigrate => Err("The guest has moved away and runs at the migration's destination"),
            RunState::Shutdown | RunState::InternalError => Err("Resetting the Virtual Machine is required"),
        }
    }

    fn run(&mut self) -> Order {
        *self = Self { state: RunState::Running, wanted: true, undecided: false, kept: false };
        Order::Run
    }

    /// A migration stops the guest for its last pass.
    pub(super) fn pause(&mut self) -> Order {
        let order = if self.state == RunState::Running { Order::Hold } else { Order::Nothing };
        self.wanted = self.state == RunState::Running;
        self.state = RunState::FinishMigrate;
        order
    }

    /// A migration gives the guest back.
    pub(super) fn resume(&mut self) -> Order {
        self.give_back(RunState::FinishMigrate)
    }

    /// A checkpoint stops the guest, or a secondary that has none yet takes one over.
    pub(super) fn checkpoint(&mut self) -> Order {
        match self.state {
            RunState::Running => {
                (self.state, self.wanted) = (RunState::Colo, true);
                Order::Hold
            }
            RunState::Paused | RunState::Prelaunch => {
                (self.state, self.wanted) = (RunState::Colo, false);
                Order::Nothing
            }
            _ => Order::Nothing,
        }
    }

    /// A secondary has loaded a guest, which at the primary `ran`: it is here as it is there.
    pub(super) fn follow(&mut self, ran: bool) {
        if matches!(self.state, RunState::Colo | RunState::Inmigrate) {
            (self.state, self.wanted) = (RunState::Colo, ran);
        }
    }

    /// A checkpoint gives the guest back.
    pub(super) fn resume_checkpoint(&mut self) -> Order {
        self.give_back(RunState::Colo)
    }

    /// What has stopped the guest, in the state `by`, lets it be as the operator wants it.
    fn give_back(&mut self, by: RunState) -> Order {
        if self.state != by {
            return Order::Nothing;
        }
        if self.wanted {
            self.state = RunState::Running;
            Order::Run
        } else {
            self.state = RunState::Paused;
            Order::Nothing
        }
    }

    /// Nobody knows which side of the pair goes on: only the operator may let this one.
    pub(super) fn doubt(&mut self) {
        if matches!(self.state, RunState::Colo | RunState::Running | RunState::Paused) {
            *self = Self { state: RunState::Paused, wanted: false, undecided: true, kept: false };
        }
    }

    /// The guest is elsewhere.
    pub(super) fn moved(&mut self) {
        self.state = RunState::Postmigrate;
    }

    /// The guest is in a file, and here as well.
    pub(super) fn saved(&mut self) {
        (self.state, self.kept) = (RunState::Postmigrate, true);
    }

    /// Whether the guest is in a file, and has not run on here since.
    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }

    /// A migration has ended and neither gave the guest back nor knows it elsewhere.
    pub(super) fn forsake(&mut self) {
        if self.state == RunState::FinishMigrate {
            *self = Self { state: RunState::Paused, wanted: false, undecided: true, kept: false };
        }
    }

    /// The guest has arrived; at its source it `ran`.
    pub(super) fn arrive(&mut self, ran: bool) -> Order {
        if ran && self.wanted {
            self.state = RunState::Running;
            Order::Run
        } else {
            (self.state, self.wanted) = (RunState::Paused, false);
            Order::Nothing
        }
    }

    /// The guest has turned itself off, or cannot go on.
    pub(super) fn end(&mut self, state: RunState) {
        self.state = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> RunControl {
        let mut control = RunControl::new(false, true);
        assert_eq!(control.cont(), Ok(Order::Run));
        control
    }

    #[test]
    fn stop_and_cont_are_idempotent() {
        let mut control = running();
        assert_eq!((control.cont(), control.stop(), control.stop()), (Ok(Order::Nothing), Order::Hold, Order::Nothing));
        assert_eq!((control.state(), control.cont()), (RunState::Paused, Ok(Order::Run)));
    }

    #[test]
    fn a_failed_migration_leaves_the_guest_as_the_operator_wants_it() {
        let mut control = running();
        assert_eq!((control.pause(), control.state()), (Order::Hold, RunState::FinishMigrate));
        assert!(control.cont().is_err());
        assert_eq!(control.resume(), Order::Run);
        assert_eq!(control.pause(), Order::Hold);
        assert_eq!(control.stop(), Order::Nothing);
        assert_eq!((control.resume(), control.state()), (Order::Nothing, RunState::Paused));
        assert_eq!(control.pause(), Order::Nothing);
        assert_eq!((control.resume(), control.state()), (Order::Nothing, RunState::Paused), "it was paused before");
    }

    #[test]
    fn a_guest_that_moved_never_runs_here_again() {
        let mut control = running();
        control.pause();
        control.moved();
        assert_eq!((control.resume(), control.stop()), (Order::Nothing, Order::Nothing));
        assert!(control.cont().is_err());
        control.forsake();
        assert_eq!(control.state(), RunState::Postmigrate);
    }

    #[test]
    fn a_guest_that_was_saved_to_a_file_runs_on_when_it_is_told_to() {
        let mut control = running();
        control.pause();
        control.saved();
        control.forsake();
        assert_eq!(
            (control.state(), control.resume(), control.stop()),
            (RunState::Postmigrate, Order::Nothing, Order::Nothing)
        );
        assert_eq!((control.cont(), control.state(), control.is_kept()), (Ok(Order::Run), RunState::Running, false));
        control.pause();
        control.moved();
        assert!(control.cont().is_err(), "one that then has moved does not");
    }

    #[test]
    fn only_the_operator_lets_an_undecided_guest_run() {
        let mut control = running();
        control.pause();
        control.forsake();
        assert!(control.is_undecided());
        assert_eq!((control.state(), control.resume()), (RunState::Paused, Order::Nothing));
        assert_eq!(control.cont(), Ok(Order::Run));
        assert!(!control.is_undecided());
    }

    #[test]
    fn a_checkpoint_leaves_the_guest_as_the_operator_wants_it() {
        let mut control = running();
        assert_eq!((control.checkpoint(), control.state()), (Order::Hold, RunState::Colo));
        assert_eq!((control.checkpoint(), control.stop()), (Order::Nothing, Order::Nothing));
        assert_eq!((control.resume_checkpoint(), control.state()), (Order::Nothing, RunState::Paused));
        assert_eq!((control.checkpoint(), control.cont()), (Order::Nothing, Ok(Order::Nothing)));
        assert_eq!((control.resume_checkpoint(), control.state()), (Order::Run, RunState::Running));
        assert_eq!(control.resume_checkpoint(), Order::Nothing);
    }

    #[test]
    fn a_secondary_runs_what_its_primary_runs_and_never_after_it_was_fenced() {
        let mut control = RunControl::new(true, true);
        assert_eq!((control.checkpoint(), control.state()), (Order::Nothing, RunState::Inmigrate));
        control.follow(true);
        assert_eq!((control.resume_checkpoint(), control.state()), (Order::Run, RunState::Running));
        control.checkpoint();
        control.follow(false);
        assert_eq!((control.resume_checkpoint(), control.state()), (Order::Nothing, RunState::Paused));
        control.moved();
        control.follow(true);
        assert_eq!((control.checkpoint(), control.resume_checkpoint()), (Order::Nothing, Order::Nothing));
        assert!(control.cont().is_err());
        control.doubt();
        assert_eq!(control.state(), RunState::Postmigrate);
    }

    #[test]
    fn an_arriving_guest_runs_if_it_ran_and_nobody_said_stop() {
        for (ran, stop, order) in
            [(true, false, Order::Run), (false, false, Order::Nothing), (true, true, Order::Nothing)]
        {
            let mut control = RunControl::new(true, true);
            if stop {
                control.stop();
            }
            assert_eq!(control.arrive(ran), order);
        }
    }
}
