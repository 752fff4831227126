//! Every order of messages, every crash, cut and partition, with the protocol's own machines: [`explore`] visits each state
//! that two sides, the channel between them and an outlet can reach, and checks what must hold in it.
//!
//! Memory and output are modelled by what matters about them: a guest is the list of what it emitted, an entry of which is
//! `true` where it is what only this side's guest would say. Stopped guests emit nothing. The secondary's guest is the
//! primary's again by a checkpoint. Bounds: histories of [`EMITS`] entries, one or two checkpoints, one cut, one crash, and
//! an outlet that one side may not reach, for ever or for a while. A side may take the other for lost at any time, rightly or not.

use std::collections::{HashSet, VecDeque};

use crate::colo::protocol::{
    PrimaryAction, PrimaryEvent, PrimaryMachine, PrimaryState, SecondaryAction, SecondaryEvent, SecondaryMachine,
    SecondaryState,
};

/// The most that a guest emits.
const EMITS: usize = 2;

/// What a guest has emitted: the `n`th entry is whose version of it, the primary's (0) or the secondary's (1); a version that
/// both would emit alike is 2.
type History = Vec<u8>;

/// From the primary.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Down {
    Request(u64),
    Abort(u64),
    /// With the guest as it is in the checkpoint, and what of its output the outlet had accepted.
    Size(u64, History),
    Commit(u64),
}

/// From the secondary.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Up {
    Ready,
    Reply(u64),
    Output(u8),
    Received(u64),
    Loaded(u64),
    Failed(u64),
}

/// One process.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Side<M> {
    machine: M,
    history: History,
    runs: bool,
    is_alive: bool,
    reaches_outlet: bool,
    has_hung_up: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    primary: Side<PrimaryMachine>,
    secondary: Side<SecondaryMachine>,
    /// What of the primary's output it may not show yet starts here.
    released: usize,
    /// The secondary's output, as the primary knows it, since the last commit.
    theirs: Vec<u8>,
    /// Where that begins.
    theirs_from: usize,
    /// A checkpoint that the secondary holds in its cache.
    arrived: Option<History>,
    down: VecDeque<Down>,
    up: VecDeque<Up>,
    is_cut: bool,
    has_crashed: bool,
    /// Checkpoints that are asked for.
    most_checkpoints: u64,
    /// Planted: the primary goes on without asking.
    is_reckless: bool,
    /// A side cannot reach the outlet, and may yet be able to.
    may_mend: bool,
    /// The outlet: its epoch, whether the secondary claimed it, and what was seen.
    epoch: u64,
    owner_is_secondary: bool,
    seen: History,
    seen_by: Vec<u64>,
}

/// Takes each step that is possible, as a change of the world.
type Steps<'a> = &'a mut dyn FnMut(&dyn Fn(&mut World));

impl World {
    fn new(parted: [bool; 2], most_checkpoints: u64) -> Self {
        fn side<M>(machine: M, runs: bool, is_parted: bool) -> Side<M> {
            let history = History::new();
            Side { machine, history, runs, is_alive: true, reaches_outlet: !is_parted, has_hung_up: false }
        }
        Self {
            primary: side(PrimaryMachine::new(1), true, parted[0]),
            secondary: side(SecondaryMachine::new(1), false, parted[1]),
            released: 0,
            theirs: Vec::new(),
            theirs_from: 0,
            arrived: None,
            down: VecDeque::new(),
            up: VecDeque::from([Up::Ready]),
            is_cut: false,
            has_crashed: false,
            most_checkpoints,
            is_reckless: false,
            may_mend: parted[0] || parted[1],
            epoch: 1,
            owner_is_secondary: false,
            seen: History::new(),
            seen_by: Vec::new(),
        }
    }

    /// The outlet takes what of `history` it lacks, up to `until`, from whoever speaks in `epoch`. False if that is over.
    fn deliver(&mut self, epoch: u64, history: &[u8], until: usize) -> bool {
        if epoch != self.epoch {
            return false;
        }
        for entry in history.iter().take(until).skip(self.seen.len()) {
            self.seen.push(*entry);
            self.seen_by.push(epoch);
        }
        true
    }

    fn claim(&mut self, epoch: u64, is_secondary: bool) -> bool {
        if epoch == self.epoch + 1 {
            (self.epoch, self.owner_is_secondary) = (epoch, is_secondary);
            return true;
        }
        epoch == self.epoch && self.owner_is_secondary == is_secondary
    }

    fn send_down(&mut self, message: Down) {
        if !self.is_cut && !self.primary.has_hung_up {
            self.down.push_back(message);
        }
    }

    fn send_up(&mut self, message: Up) {
        if !self.is_cut && !self.secondary.has_hung_up {
            self.up.push_back(message);
        }
    }

    /// Carries out what the primary's machine says about `event`.
    fn primary(&mut self, event: PrimaryEvent) {
        let Ok(actions) = self.primary.machine.on(event) else {
            if event != PrimaryEvent::Lost {
                self.primary(PrimaryEvent::Lost);
            }
            return;
        };
        for action in actions {
            match action {
                PrimaryAction::Request(n) => self.send_down(Down::Request(n)),
                PrimaryAction::Stop => self.primary.runs = false,
                PrimaryAction::Transfer(_) => self.primary(PrimaryEvent::Transferred),
                PrimaryAction::Size(n) => {
                    assert!(!self.primary.runs, "a checkpoint of a guest that runs");
                    self.send_down(Down::Size(n, self.primary.history.clone()));
                }
                PrimaryAction::Abort(n) => self.send_down(Down::Abort(n)),
                PrimaryAction::Commit(n) => self.send_down(Down::Commit(n)),
                PrimaryAction::Release => {
                    (self.theirs, self.theirs_from) = (Vec::new(), self.primary.history.len());
                    self.released = self.primary.history.len();
                }
                PrimaryAction::Resume => self.primary.runs = true,
                PrimaryAction::HangUp => self.primary.has_hung_up = true,
                PrimaryAction::Claim(_) if self.is_reckless => self.primary(PrimaryEvent::Granted),
                PrimaryAction::Claim(_) => {}
                PrimaryAction::Survive(_) => self.released = usize::MAX,
                PrimaryAction::Fence => self.primary.runs = false,
            }
        }
    }

    fn secondary(&mut self, event: SecondaryEvent) {
        let Ok(actions) = self.secondary.machine.on(event) else {
            if event != SecondaryEvent::Lost {
                self.secondary(SecondaryEvent::Lost);
            }
            return;
        };
        for action in actions {
            match action {
                SecondaryAction::Stop => self.secondary.runs = false,
                SecondaryAction::Reply(n) => self.send_up(Up::Reply(n)),
                // What comes of these is chosen by the exploration.
                SecondaryAction::Verify(_) | SecondaryAction::Place(_) => {}
                SecondaryAction::Received(n) => self.send_up(Up::Received(n)),
                SecondaryAction::Loaded(n) => self.send_up(Up::Loaded(n)),
                SecondaryAction::PeerFailed(n) => self.send_up(Up::Failed(n)),
                SecondaryAction::Resume => self.secondary.runs = true,
                SecondaryAction::HangUp => self.secondary.has_hung_up = true,
                SecondaryAction::Claim(_) | SecondaryAction::Survive(_) => {}
                SecondaryAction::Fence | SecondaryAction::Discard => self.secondary.runs = false,
            }
        }
    }

    /// What the primary may show now, of its own history.
    fn may_show(&self) -> usize {
        let is_alone = self.primary.machine.state() == PrimaryState::Alone;
        let mut shown = if is_alone { self.primary.history.len() } else { self.released };
        if self.primary.machine.may_compare() {
            let alike = self.primary.history[self.theirs_from.min(self.primary.history.len())..]
                .iter()
                .zip(&self.theirs)
                .take_while(|(ours, theirs)| ours == theirs)
                .count();
            shown = shown.max(self.theirs_from + alike);
        }
        shown.min(self.primary.history.len())
    }

    /// Every state that one step leads to.
    fn next(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut to = |change: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            if next != *self {
                all.push(next);
            }
        };
        self.guests(&mut to);
        self.messages(&mut to);
        self.losses(&mut to);
        self.outlet(&mut to);
        all
    }

    fn guests(&self, to: Steps<'_>) {
        // What it says is what the other would say at that place, or not.
        if self.primary.is_alive && self.primary.runs && self.primary.history.len() < EMITS {
            to(&|next| next.primary.history.push(2));
            to(&|next| next.primary.history.push(0));
        }
        if self.secondary.is_alive && self.secondary.runs && self.secondary.history.len() < EMITS {
            for entry in [2, 1] {
                to(&|next| {
                    next.secondary.history.push(entry);
                    if next.secondary.machine.state() == SecondaryState::Running {
                        next.send_up(Up::Output(entry));
                    }
                });
            }
        }
        if self.primary.is_alive
            && self.primary.machine.state() == PrimaryState::Running
            && self.primary.machine.checkpoint() < self.most_checkpoints
        {
            to(&|next| next.primary(PrimaryEvent::Want));
        }
    }

    fn messages(&self, to: Steps<'_>) {
        if self.secondary.is_alive && !self.secondary.has_hung_up && !self.down.is_empty() {
            to(&|next| match next.down.pop_front() {
                Some(Down::Request(n)) => next.secondary(SecondaryEvent::Request(n)),
                Some(Down::Abort(n)) => next.secondary(SecondaryEvent::Abort(n)),
                Some(Down::Size(n, history)) => {
                    next.arrived = Some(history);
                    next.secondary(SecondaryEvent::Size(n));
                }
                Some(Down::Commit(n)) => next.secondary(SecondaryEvent::Commit(n)),
                None => {}
            });
        }
        if self.primary.is_alive && !self.primary.has_hung_up && !self.up.is_empty() {
            to(&|next| match next.up.pop_front() {
                Some(Up::Ready) => next.primary(PrimaryEvent::Ready),
                Some(Up::Reply(n)) => next.primary(PrimaryEvent::Reply(n)),
                Some(Up::Output(entry)) => next.theirs.push(entry),
                Some(Up::Received(n)) => next.primary(PrimaryEvent::Received(n)),
                Some(Up::Loaded(n)) => next.primary(PrimaryEvent::Loaded(n)),
                Some(Up::Failed(n)) => next.primary(PrimaryEvent::PeerFailed(n)),
                None => {}
            });
        }
        if self.secondary.is_alive {
            match self.secondary.machine.state() {
                SecondaryState::Verifying => {
                    to(&|next| next.secondary(SecondaryEvent::Verified));
                    to(&|next| next.secondary(SecondaryEvent::Failed));
                }
                SecondaryState::Prepared | SecondaryState::PreparedAlone => to(&|next| {
                    if let Some(history) = next.arrived.take() {
                        next.secondary.history = history;
                    }
                    next.secondary(SecondaryEvent::Placed);
                }),
                _ => {}
            }
        }
    }

    fn losses(&self, to: Steps<'_>) {
        if !self.is_cut {
            // What is on its way is lost with it, or still arrives.
            to(&|next| {
                next.is_cut = true;
                next.down.clear();
                next.up.clear();
            });
            to(&|next| next.is_cut = true);
        }
        if !self.has_crashed {
            to(&|next| (next.has_crashed, next.primary.is_alive, next.primary.runs) = (true, false, false));
            to(&|next| (next.has_crashed, next.secondary.is_alive, next.secondary.runs) = (true, false, false));
        }
        // A side may find the other lost whenever it is silent: cut, dead, hung up, or only slow.
        if self.primary.is_alive && !matches!(self.primary.machine.state(), PrimaryState::Alone | PrimaryState::Fenced)
        {
            to(&|next| next.primary(PrimaryEvent::Lost));
        }
        if self.secondary.is_alive {
            to(&|next| next.secondary(SecondaryEvent::Lost));
        }
        if self.may_mend {
            to(&|next| {
                (next.may_mend, next.primary.reaches_outlet, next.secondary.reaches_outlet) = (false, true, true);
            });
        }
    }

    fn outlet(&self, to: Steps<'_>) {
        if self.primary.is_alive && self.primary.reaches_outlet {
            if self.primary.machine.state() == PrimaryState::Claiming {
                to(&|next| {
                    let is_granted = next.claim(next.primary.machine.epoch(), false);
                    next.primary(if is_granted { PrimaryEvent::Granted } else { PrimaryEvent::Fenced });
                });
                // The outlet has granted it, and nobody has heard of it.
                to(&|next| {
                    next.claim(next.primary.machine.epoch(), false);
                });
            } else if self.may_show() > self.seen.len() && self.primary.machine.state() != PrimaryState::Fenced {
                to(&|next| {
                    let (history, until) = (next.primary.history.clone(), next.may_show());
                    if !next.deliver(next.primary.machine.epoch(), &history, until) {
                        next.primary(PrimaryEvent::Fenced);
                    }
                });
            }
        }
        if self.secondary.is_alive && self.secondary.reaches_outlet {
            match self.secondary.machine.state() {
                SecondaryState::Claiming => {
                    to(&|next| {
                        let is_granted = next.claim(next.secondary.machine.epoch(), true);
                        next.secondary(if is_granted { SecondaryEvent::Granted } else { SecondaryEvent::Fenced });
                    });
                    to(&|next| {
                        next.claim(next.secondary.machine.epoch(), true);
                    });
                }
                SecondaryState::Alone => to(&|next| {
                    let history = next.secondary.history.clone();
                    if !next.deliver(next.secondary.machine.epoch(), &history, usize::MAX) {
                        next.secondary(SecondaryEvent::Fenced);
                    }
                }),
                _ => {}
            }
        }
    }

    /// What must hold everywhere.
    fn judge(&self) -> Result<(), &'static str> {
        let primary_alone = self.primary.is_alive && self.primary.machine.state() == PrimaryState::Alone;
        let secondary_alone = self.secondary.is_alive && self.secondary.machine.state() == SecondaryState::Alone;
        if primary_alone && secondary_alone {
            return Err("both go on alone");
        }
        // It may run until it hears of it, but nothing that it says is seen.
        if secondary_alone && self.primary.is_alive && self.primary.machine.epoch() == self.epoch && self.primary.runs {
            return Err("two own the outlet");
        }
        if !self.seen_by.is_sorted() {
            return Err("output of an epoch that was over");
        }
        for (is_alone, history) in [(primary_alone, &self.primary.history), (secondary_alone, &self.secondary.history)]
        {
            if is_alone && !history.starts_with(&self.seen) {
                return Err("what was seen is not what the survivor has emitted");
            }
        }
        Ok(())
    }

    /// What must hold where nothing more happens.
    fn judge_end(&self) -> Result<(), &'static str> {
        let primary_can = self.primary.is_alive && self.primary.reaches_outlet;
        let secondary_can = self.secondary.is_alive && self.secondary.reaches_outlet;
        let primary_alone = self.primary.machine.state() == PrimaryState::Alone;
        let secondary_alone = self.secondary.machine.state() == SecondaryState::Alone;
        let was_nothing = self.secondary.machine.state() == SecondaryState::Discarded;
        if (primary_can || (secondary_can && !was_nothing)) && !primary_alone && !secondary_alone {
            // Nobody goes on, though a side lives and reaches the outlet: only if it lost it to one that has died since.
            let is_owner_dead = if self.owner_is_secondary { !secondary_can } else { !primary_can };
            if !(self.epoch > 1 && is_owner_dead) {
                return Err("nobody goes on");
            }
        }
        let survivor = [
            (primary_alone && primary_can, &self.primary.history),
            (secondary_alone && secondary_can, &self.secondary.history),
        ];
        for (goes_on, history) in survivor {
            if goes_on && self.seen != *history {
                return Err("the survivor's output was not all seen");
            }
        }
        Ok(())
    }
}

/// Visits every state; how many there are, or the first thing that must not be.
fn explore(start: World) -> Result<usize, String> {
    let mut known = HashSet::from([start.clone()]);
    let mut queue = VecDeque::from([start]);
    while let Some(world) = queue.pop_front() {
        world.judge().map_err(|what| format!("{what}: {world:#?}"))?;
        let next = world.next();
        if next.is_empty() {
            world.judge_end().map_err(|what| format!("{what}, at the end: {world:#?}"))?;
        }
        for world in next {
            if known.insert(world.clone()) {
                queue.push_back(world);
            }
        }
    }
    Ok(known.len())
}

#[test]
fn whatever_is_lost_one_goes_on_and_all_is_seen_once() {
    let mut states = 0;
    for (parted, most_checkpoints) in [([false, false], 2), ([true, false], 1), ([false, true], 1)] {
        states += explore(World::new(parted, most_checkpoints)).unwrap();
    }
    println!("{states} states");
    assert!(states > 100_000, "{states} states: the model does too little");
}

#[test]
fn a_primary_that_does_not_ask_is_found_by_the_model() {
    let reckless = World { is_reckless: true, ..World::new([false, false], 1) };
    let found = explore(reckless).unwrap_err();
    assert!(["both go on alone", "nobody goes on"].iter().any(|what| found.starts_with(what)), "{found}");
}
