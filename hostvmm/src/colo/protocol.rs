//! Who may do what when: [`PrimaryMachine`] and [`SecondaryMachine`], which decide, and do nothing themselves.
//!
//! ```text
//! primary                                              secondary
//! syncing ─ ready ─► running                           syncing ─ request 1 ─► stopped
//! running ─ want ─► requested ─ reply ─► sending       running ─ request ─► stopped ─ size ─► verifying
//!   ─ transferred ─► in doubt ─ received ─► received     ─ verified ─► prepared ─ flushed ─► loaded
//!   ─ loaded ─► running                                  ─ commit ─► running
//!        lost ─► claiming ─ granted ─► alone                  lost ─► claiming ─ granted ─► alone
//!                         └ fenced ──► fenced                               └ fenced ──► fenced
//! ```
//!
//! The engines feed them what happens ([`PrimaryEvent`], [`SecondaryEvent`]) and carry out what they answer
//! ([`PrimaryAction`], [`SecondaryAction`]), in that order. The same machines are explored with every order of messages,
//! crash and partition by `model`. What they hold to:
//!
//! - The primary is *in doubt* before the last message of a checkpoint leaves: from then on the secondary may go on from it.
//! - The secondary goes on from its own state before it has verified a checkpoint, and from the checkpoint afterwards.
//! - Nobody goes on alone without an epoch of the outlet: [`PrimaryAction::Claim`], [`SecondaryAction::Claim`]. The only
//!   exception is a primary whose secondary cannot have anything to go on from.

use thiserror::Error;

/// Something that a side did not expect: the other side, or the engine, breaks the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{what} of checkpoint {n} while this side is {state}")]
pub struct OutOfOrder {
    /// What came.
    pub what: &'static str,
    /// Of which checkpoint.
    pub n: u64,
    /// Where this side is, in words.
    pub state: &'static str,
}

/// Where a primary is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PrimaryState {
    /// All memory is on its way into the cache.
    Syncing,
    /// Both guests run.
    Running,
    /// The secondary was asked to stop.
    Requested,
    /// Both stand still, pages and state are on their way.
    Sending,
    /// The last message of the checkpoint was, or is about to be, sent.
    InDoubt,
    /// The secondary has the checkpoint.
    Received,
    /// The secondary is lost, the outlet is asked.
    Claiming,
    /// The only one.
    Alone,
    /// Never again.
    Fenced,
}

impl PrimaryState {
    const fn name(self) -> &'static str {
        match self {
            Self::Syncing => "syncing",
            Self::Running => "running",
            Self::Requested => "waiting for the secondary to stop",
            Self::Sending => "sending a checkpoint",
            Self::InDoubt => "waiting for the secondary to verify",
            Self::Received => "waiting for the secondary to load",
            Self::Claiming => "claiming the outlet",
            Self::Alone => "alone",
            Self::Fenced => "fenced",
        }
    }
}

/// What happens to a primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PrimaryEvent {
    /// The secondary: checkpoint-ready.
    Ready,
    /// A checkpoint is wanted.
    Want,
    /// The secondary: checkpoint-reply.
    Reply(u64),
    /// All of the checkpoint but its last message was sent.
    Transferred,
    /// This side could not send it.
    Failed,
    /// The secondary: vmstate-received.
    Received(u64),
    /// The secondary: checkpoint-failed.
    PeerFailed(u64),
    /// The secondary: vmstate-loaded, and it is exact.
    Loaded(u64),
    /// The secondary is lost: the channel is gone, it is silent, it has failed for good, it is not exact, or an operator says so.
    Lost,
    /// The outlet grants the claim.
    Granted,
    /// The outlet belongs to the other side.
    Fenced,
}

/// What a primary is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PrimaryAction {
    /// Send checkpoint-request.
    Request(u64),
    /// Stop the guest.
    Stop,
    /// Send everything but vmstate-size.
    Transfer(u64),
    /// Send vmstate-size.
    Size(u64),
    /// Send checkpoint-abort.
    Abort(u64),
    /// Send checkpoint-commit.
    Commit(u64),
    /// Deliver all output that was emitted before the checkpoint's stop.
    Release,
    /// Let the guest run on.
    Resume,
    /// Shut the channel down.
    HangUp,
    /// Claim this epoch until the outlet decides.
    Claim(u64),
    /// Deliver all output that there is, as the only one, in this epoch.
    Survive(u64),
    /// Never run or emit again.
    Fence,
}

/// Decides for a primary.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct PrimaryMachine {
    state: PrimaryState,
    epoch: u64,
    /// The last checkpoint that was begun.
    n: u64,
    /// The secondary may have something to go on from.
    is_protected: bool,
}

impl PrimaryMachine {
    /// Of a primary that owns `epoch`.
    pub const fn new(epoch: u64) -> Self {
        Self { state: PrimaryState::Syncing, epoch, n: 0, is_protected: false }
    }

    /// Where it is.
    pub const fn state(&self) -> PrimaryState {
        self.state
    }

    /// The epoch that it owns, or claims.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last checkpoint that was begun.
    pub const fn checkpoint(&self) -> u64 {
        self.n
    }

    /// Whether output that both guests emitted may be released.
    pub const fn may_compare(&self) -> bool {
        matches!(self.state, PrimaryState::Running | PrimaryState::Requested)
    }

    /// What is to be done about `event`.
    ///
    /// # Errors
    /// [`OutOfOrder`]; the caller then takes the secondary for lost.
    pub fn on(&mut self, event: PrimaryEvent) -> Result<Vec<PrimaryAction>, OutOfOrder> {
        use PrimaryAction as Do;
        use PrimaryEvent as On;
        use PrimaryState as Is;
        let n = self.n;
        let (next, actions) = match (self.state, event) {
            (Is::Syncing, On::Ready) => (Is::Running, vec![]),
            (Is::Running, On::Want) => {
                self.n += 1;
                (Is::Requested, vec![Do::Request(self.n)])
            }
            (Is::Requested, On::Reply(of)) if of == n => (Is::Sending, vec![Do::Stop, Do::Transfer(n)]),
            (Is::Requested, On::PeerFailed(of)) if of == n => (Is::Running, vec![]),
            (Is::Sending, On::Transferred) => {
                self.is_protected = true;
                (Is::InDoubt, vec![Do::Size(n)])
            }
            (Is::Sending, On::Failed) => (Is::Running, vec![Do::Abort(n), Do::Resume]),
            // The secondary has resumed its own guest already.
            (Is::Sending, On::PeerFailed(of)) if of == n => (Is::Running, vec![Do::Abort(n), Do::Resume]),
            (Is::InDoubt, On::PeerFailed(of)) if of == n => (Is::Running, vec![Do::Resume]),
            (Is::InDoubt, On::Received(of)) if of == n => (Is::Received, vec![]),
            (Is::Received, On::Loaded(of)) if of == n => (Is::Running, vec![Do::Commit(n), Do::Release, Do::Resume]),
            (Is::Claiming | Is::Alone | Is::Fenced, On::Lost) => (self.state, vec![]),
            (_, On::Lost) if self.is_protected => {
                self.epoch += 1;
                (Is::Claiming, vec![Do::HangUp, Do::Stop, Do::Claim(self.epoch)])
            }
            (_, On::Lost) => (Is::Alone, vec![Do::HangUp, Do::Survive(self.epoch), Do::Resume]),
            (Is::Claiming, On::Granted) => (Is::Alone, vec![Do::Survive(self.epoch), Do::Resume]),
            (Is::Fenced, On::Fenced) => (Is::Fenced, vec![]),
            (_, On::Fenced) => (Is::Fenced, vec![Do::HangUp, Do::Stop, Do::Fence]),
            (state, event) => {
                let (what, n) = primary_event(event);
                return Err(OutOfOrder { what, n, state: state.name() });
            }
        };
        self.state = next;
        Ok(actions)
    }
}

const fn primary_event(event: PrimaryEvent) -> (&'static str, u64) {
    match event {
        PrimaryEvent::Ready => ("checkpoint-ready", 0),
        PrimaryEvent::Want => ("a wish", 0),
        PrimaryEvent::Reply(n) => ("checkpoint-reply", n),
        PrimaryEvent::Transferred => ("the end", 0),
        PrimaryEvent::Failed => ("a failure", 0),
        PrimaryEvent::Received(n) => ("vmstate-received", n),
        PrimaryEvent::PeerFailed(n) => ("checkpoint-failed", n),
        PrimaryEvent::Loaded(n) => ("vmstate-loaded", n),
        PrimaryEvent::Lost => ("the loss", 0),
        PrimaryEvent::Granted => ("a granted claim", 0),
        PrimaryEvent::Fenced => ("a refused claim", 0),
    }
}

/// Where a secondary is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum SecondaryState {
    /// The primary's memory is on its way into the cache; there is nothing to go on from.
    Syncing,
    /// At the last committed checkpoint, or on from there.
    Running,
    /// Its guest stands still; what it is stays usable.
    Stopped,
    /// Everything of the checkpoint is here and is looked at.
    Verifying,
    /// The checkpoint is what it goes on from, and is being put in place.
    Prepared,
    /// As before, and the primary is lost.
    PreparedAlone,
    /// At the checkpoint, waiting for the commit.
    Loaded,
    /// The primary is lost, the outlet is asked.
    Claiming,
    /// The only one.
    Alone,
    /// Never again.
    Fenced,
    /// There is nothing to go on from.
    Discarded,
}

impl SecondaryState {
    const fn name(self) -> &'static str {
        match self {
            Self::Syncing => "syncing",
            Self::Running => "running",
            Self::Stopped => "stopped for a checkpoint",
            Self::Verifying => "verifying a checkpoint",
            Self::Prepared | Self::PreparedAlone => "loading a checkpoint",
            Self::Loaded => "waiting for the commit",
            Self::Claiming => "claiming the outlet",
            Self::Alone => "alone",
            Self::Fenced => "fenced",
            Self::Discarded => "discarded",
        }
    }
}

/// What happens to a secondary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum SecondaryEvent {
    /// The primary: checkpoint-request.
    Request(u64),
    /// The primary: checkpoint-abort.
    Abort(u64),
    /// This side could not stop, or what has come of the checkpoint cannot be used.
    Failed,
    /// The primary: vmstate-size, the last message of a checkpoint.
    Size(u64),
    /// The checkpoint is what was sent.
    Verified,
    /// Memory is flushed and the state is loaded, exactly.
    Placed,
    /// Memories that should be equal are not: this guest is nobody's. The primary was told.
    Broken,
    /// The primary: checkpoint-commit.
    Commit(u64),
    /// The primary is lost: the channel is gone, it is silent, or an operator says so.
    Lost,
    /// The primary has given this secondary up.
    Dismissed,
    /// The outlet grants the claim.
    Granted,
    /// The outlet belongs to the other side.
    Fenced,
}

/// What a secondary is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum SecondaryAction {
    /// Stop the guest.
    Stop,
    /// Send checkpoint-reply.
    Reply(u64),
    /// Look at everything that has come: [`SecondaryEvent::Verified`] or [`SecondaryEvent::Failed`].
    Verify(u64),
    /// Send vmstate-received.
    Received(u64),
    /// Flush, then load: [`SecondaryEvent::Placed`] or [`SecondaryEvent::Broken`].
    Place(u64),
    /// Send vmstate-loaded.
    Loaded(u64),
    /// Send checkpoint-failed.
    PeerFailed(u64),
    /// Let the guest run on.
    Resume,
    /// Shut the channel down.
    HangUp,
    /// Claim this epoch until the outlet decides.
    Claim(u64),
    /// Deliver what the outlet lacks of this guest's output, as the only one, in this epoch.
    Survive(u64),
    /// Never run or emit again.
    Fence,
    /// There is no guest here.
    Discard,
}

/// Decides for a secondary.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct SecondaryMachine {
    state: SecondaryState,
    epoch: u64,
    /// The checkpoint that is committed, as far as it knows, or under way.
    n: u64,
    /// There is a state of its own to go on from.
    has_state: bool,
}

impl SecondaryMachine {
    /// Of a secondary that joins a primary that owns `epoch`.
    pub const fn new(epoch: u64) -> Self {
        Self { state: SecondaryState::Syncing, epoch, n: 0, has_state: false }
    }

    /// Where it is.
    pub const fn state(&self) -> SecondaryState {
        self.state
    }

    /// The epoch that it belongs to, owns, or claims.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The checkpoint under way, or the last one.
    pub const fn checkpoint(&self) -> u64 {
        self.n
    }

    /// What is to be done about `event`.
    ///
    /// # Errors
    /// [`OutOfOrder`]; the caller then takes the primary for lost.
    pub fn on(&mut self, event: SecondaryEvent) -> Result<Vec<SecondaryAction>, OutOfOrder> {
        use SecondaryAction as Do;
        use SecondaryEvent as On;
        use SecondaryState as Is;
        let n = self.n;
        let before = if self.has_state { Is::Running } else { Is::Syncing };
        let back = if self.has_state { vec![Do::Resume] } else { vec![] };
        let (next, actions) = match (self.state, event) {
            (Is::Syncing | Is::Running, On::Request(of)) if of == n + 1 => {
                self.n = of;
                (Is::Stopped, vec![Do::Stop, Do::Reply(of)])
            }
            (Is::Stopped, On::Abort(of)) if of == n => (before, back),
            // It was given up here already.
            (Is::Running | Is::Syncing, On::Abort(of)) if of == n => (self.state, vec![]),
            (Is::Stopped | Is::Verifying, On::Failed) => (before, [vec![Do::PeerFailed(n)], back].concat()),
            // The rest of a checkpoint that was given up here.
            (Is::Running | Is::Syncing, On::Size(of)) if of == n => (self.state, vec![]),
            (Is::Stopped, On::Size(of)) if of == n => (Is::Verifying, vec![Do::Verify(n)]),
            (Is::Verifying, On::Verified) => (Is::Prepared, vec![Do::Received(n), Do::Place(n)]),
            (Is::Prepared, On::Placed) => {
                self.has_state = true;
                (Is::Loaded, vec![Do::Loaded(n)])
            }
            (Is::PreparedAlone, On::Placed) => {
                self.has_state = true;
                self.epoch += 1;
                (Is::Claiming, vec![Do::Claim(self.epoch)])
            }
            (Is::Verifying | Is::Prepared | Is::PreparedAlone, On::Broken) => {
                (Is::Discarded, vec![Do::HangUp, Do::Discard])
            }
            (Is::Loaded, On::Commit(of)) if of == n => (Is::Running, vec![Do::Resume]),
            (Is::Claiming | Is::Alone | Is::Fenced | Is::Discarded | Is::PreparedAlone, On::Lost) => {
                (self.state, vec![])
            }
            (Is::Prepared, On::Lost) => (Is::PreparedAlone, vec![Do::HangUp]),
            (_, On::Lost) if self.has_state => {
                self.epoch += 1;
                (Is::Claiming, vec![Do::HangUp, Do::Stop, Do::Claim(self.epoch)])
            }
            (Is::Syncing | Is::Stopped | Is::Verifying, On::Lost) => (Is::Discarded, vec![Do::HangUp, Do::Discard]),
            (Is::Alone | Is::Fenced | Is::Discarded, On::Dismissed) => (self.state, vec![]),
            (_, On::Dismissed) => (Is::Discarded, vec![Do::HangUp, Do::Stop, Do::Discard]),
            (Is::Claiming, On::Granted) => (Is::Alone, vec![Do::Survive(self.epoch), Do::Resume]),
            (Is::Fenced, On::Fenced) => (Is::Fenced, vec![]),
            (_, On::Fenced) => (Is::Fenced, vec![Do::HangUp, Do::Stop, Do::Fence]),
            (state, event) => {
                let (what, n) = secondary_event(event);
                return Err(OutOfOrder { what, n, state: state.name() });
            }
        };
        self.state = next;
        Ok(actions)
    }
}

const fn secondary_event(event: SecondaryEvent) -> (&'static str, u64) {
    match event {
        SecondaryEvent::Request(n) => ("checkpoint-request", n),
        SecondaryEvent::Abort(n) => ("checkpoint-abort", n),
        SecondaryEvent::Failed => ("a failure", 0),
        SecondaryEvent::Size(n) => ("vmstate-size", n),
        SecondaryEvent::Verified => ("a verified state", 0),
        SecondaryEvent::Placed => ("a loaded state", 0),
        SecondaryEvent::Broken => ("a broken state", 0),
        SecondaryEvent::Commit(n) => ("checkpoint-commit", n),
        SecondaryEvent::Lost => ("the loss", 0),
        SecondaryEvent::Dismissed => ("a dismissal", 0),
        SecondaryEvent::Granted => ("a granted claim", 0),
        SecondaryEvent::Fenced => ("a refused claim", 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_takes_its_steps_in_order() {
        let mut primary = PrimaryMachine::new(1);
        let mut secondary = SecondaryMachine::new(1);
        use {PrimaryAction as P, PrimaryEvent as ToP, SecondaryAction as S, SecondaryEvent as ToS};
        primary.on(ToP::Ready).unwrap();
        for n in 1..4 {
            assert_eq!(primary.on(ToP::Want), Ok(vec![P::Request(n)]));
            assert_eq!(secondary.on(ToS::Request(n)), Ok(vec![S::Stop, S::Reply(n)]));
            assert_eq!(primary.on(ToP::Reply(n)), Ok(vec![P::Stop, P::Transfer(n)]));
            assert_eq!(primary.on(ToP::Transferred), Ok(vec![P::Size(n)]));
            assert_eq!(secondary.on(ToS::Size(n)), Ok(vec![S::Verify(n)]));
            assert_eq!(secondary.on(ToS::Verified), Ok(vec![S::Received(n), S::Place(n)]));
            assert_eq!(primary.on(ToP::Received(n)), Ok(vec![]));
            assert_eq!(secondary.on(ToS::Placed), Ok(vec![S::Loaded(n)]));
            assert_eq!(primary.on(ToP::Loaded(n)), Ok(vec![P::Commit(n), P::Release, P::Resume]));
            assert_eq!(secondary.on(ToS::Commit(n)), Ok(vec![S::Resume]));
        }
        assert_eq!(secondary.on(ToS::Lost), Ok(vec![S::HangUp, S::Stop, S::Claim(2)]));
        assert_eq!(secondary.on(ToS::Granted), Ok(vec![S::Survive(2), S::Resume]));
        assert_eq!(primary.on(ToP::Lost), Ok(vec![P::HangUp, P::Stop, P::Claim(2)]));
        assert_eq!(primary.on(ToP::Fenced), Ok(vec![P::HangUp, P::Stop, P::Fence]));
    }

    #[test]
    fn a_primary_needs_no_claim_before_the_secondary_can_have_anything() {
        let mut primary = PrimaryMachine::new(4);
        primary.on(PrimaryEvent::Ready).unwrap();
        primary.on(PrimaryEvent::Want).unwrap();
        primary.on(PrimaryEvent::Reply(1)).unwrap();
        let mut in_doubt = primary.clone();
        let survives = vec![PrimaryAction::HangUp, PrimaryAction::Survive(4), PrimaryAction::Resume];
        assert_eq!(primary.on(PrimaryEvent::Lost), Ok(survives));
        in_doubt.on(PrimaryEvent::Transferred).unwrap();
        assert!(in_doubt.on(PrimaryEvent::Lost).unwrap().contains(&PrimaryAction::Claim(5)));
    }

    #[test]
    fn a_secondary_completes_a_checkpoint_that_it_has_verified() {
        let mut secondary = SecondaryMachine::new(1);
        for event in [SecondaryEvent::Request(1), SecondaryEvent::Size(1), SecondaryEvent::Verified] {
            secondary.on(event).unwrap();
        }
        assert_eq!(secondary.on(SecondaryEvent::Lost), Ok(vec![SecondaryAction::HangUp]));
        assert_eq!(secondary.on(SecondaryEvent::Placed), Ok(vec![SecondaryAction::Claim(2)]));
    }

    #[test]
    fn what_comes_out_of_order_is_refused_and_changes_nothing() {
        let mut primary = PrimaryMachine::new(1);
        assert!(primary.on(PrimaryEvent::Reply(1)).is_err());
        primary.on(PrimaryEvent::Ready).unwrap();
        primary.on(PrimaryEvent::Want).unwrap();
        let before = primary.clone();
        for event in [PrimaryEvent::Reply(2), PrimaryEvent::Received(1), PrimaryEvent::Loaded(1), PrimaryEvent::Ready] {
            assert!(primary.on(event).is_err(), "{event:?}");
        }
        assert_eq!(primary, before);
        let mut secondary = SecondaryMachine::new(1);
        for event in [SecondaryEvent::Request(2), SecondaryEvent::Size(1), SecondaryEvent::Commit(0)] {
            assert!(secondary.on(event).is_err(), "{event:?}");
        }
    }
}
