//! Who owns the outlet, and which records it takes: [`Arbiter`], without input or output.
//!
//! ```text
//!   epoch 0, nobody's ── claim 1 ──▶ epoch 1, A's ── claim 2 ──▶ epoch 2, B's …
//!                                        │ deliver by A in epoch 1: in sequence → taken; before it → dropped; past it → refused
//!                                        └ anything by anybody else, or in another epoch → fenced
//! ```

use super::{Claim, OutletError};
use crate::colo::Side;
use crate::colo::output::{Positions, Record};

/// One process that claims, by a number that it alone knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claimant(pub u128);

/// No number: whoever knows it speaks for the process.
impl std::fmt::Debug for Claimant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Claimant(…)")
    }
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    pair: u128,
    claimant: Claimant,
    side: Side,
}

/// The outlet's state.
#[derive(Clone, Debug, Default)]
pub struct Arbiter {
    epoch: u64,
    owner: Option<Owner>,
    accepted: Positions,
}

/// What becomes of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// It is the next of its stream.
    New,
    /// It was accepted before.
    Duplicate,
}

impl Arbiter {
    /// The current epoch; 0 before the first claim.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The side that owns the outlet.
    pub fn owner(&self) -> Option<Side> {
        self.owner.map(|owner| owner.side)
    }

    /// How many records of each stream were accepted.
    pub const fn accepted(&self) -> Positions {
        self.accepted
    }

    /// Makes `claimant` the owner if `claim` is for the next epoch, or repeats the claim by which it owns the current one.
    ///
    /// # Errors
    /// [`OutletError::OtherPair`], [`OutletError::Fenced`] for an epoch that another one has or had, [`OutletError::Ahead`].
    pub fn claim(&mut self, claimant: Claimant, claim: Claim) -> Result<Positions, OutletError> {
        let Claim { pair, epoch, side } = claim;
        let current = self.epoch;
        if self.owner.is_some_and(|owner| owner.pair != pair) {
            return Err(OutletError::OtherPair);
        }
        if epoch > 0 && epoch - 1 == current {
            self.epoch = epoch;
            self.owner = Some(Owner { pair, claimant, side });
            return Ok(self.accepted);
        }
        match self.owner {
            Some(owner) if epoch == current && owner.claimant == claimant && owner.side == side => Ok(self.accepted),
            _ if epoch <= current => Err(OutletError::Fenced { current }),
            _ => Err(OutletError::Ahead { claimed: epoch, current }),
        }
    }

    /// Whether `claimant` may deliver in `epoch`.
    ///
    /// # Errors
    /// [`OutletError::NotClaimed`] before any claim, [`OutletError::Fenced`] for whoever is not the owner in this epoch.
    pub fn admit(&self, claimant: Claimant, epoch: u64) -> Result<(), OutletError> {
        match self.owner {
            None => Err(OutletError::NotClaimed),
            Some(owner) if owner.claimant == claimant && epoch == self.epoch => Ok(()),
            Some(_) => Err(OutletError::Fenced { current: self.epoch }),
        }
    }

    /// Whether an admitted `record` is to be taken.
    ///
    /// # Errors
    /// [`OutletError::Gap`] for one past the next of its stream.
    pub fn judge(&self, record: &Record) -> Result<Judgement, OutletError> {
        let (stream, expected, found) = (record.stream, self.accepted.get(record.stream), record.sequence);
        match found.cmp(&expected) {
            std::cmp::Ordering::Less => Ok(Judgement::Duplicate),
            std::cmp::Ordering::Equal => Ok(Judgement::New),
            std::cmp::Ordering::Greater => Err(OutletError::Gap { stream, expected, found }),
        }
    }

    /// A record that was judged new was taken.
    pub fn accept(&mut self, record: &Record) {
        self.accepted.set(record.stream, record.sequence.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::colo::output::StreamId;

    const PAIR: u128 = 7;
    const A: Claimant = Claimant(1);
    const B: Claimant = Claimant(2);

    fn claim(epoch: u64, side: Side) -> Claim {
        Claim { pair: PAIR, epoch, side }
    }

    fn record(stream: u16, sequence: u64) -> Record {
        Record { stream: StreamId::from_raw(stream).unwrap(), sequence, bytes: Vec::new() }
    }

    #[test]
    fn exactly_one_of_two_claimants_gets_the_epoch() {
        let mut arbiter = Arbiter::default();
        assert!(arbiter.claim(A, claim(1, Side::Primary)).is_ok());
        assert!(arbiter.claim(B, claim(2, Side::Secondary)).is_ok());
        assert!(matches!(arbiter.claim(A, claim(2, Side::Primary)), Err(OutletError::Fenced { current: 2 })));
        assert!(arbiter.claim(B, claim(2, Side::Secondary)).is_ok(), "whose answer was lost asks again");
        assert_eq!((arbiter.epoch(), arbiter.owner()), (2, Some(Side::Secondary)));
    }

    #[test]
    fn a_claim_that_is_not_the_next_one_gets_nothing() {
        let mut arbiter = Arbiter::default();
        assert!(matches!(
            arbiter.claim(A, claim(2, Side::Primary)),
            Err(OutletError::Ahead { claimed: 2, current: 0 })
        ));
        assert!(matches!(arbiter.claim(A, claim(0, Side::Primary)), Err(OutletError::Fenced { current: 0 })));
        arbiter.claim(A, claim(1, Side::Primary)).unwrap();
        let other = Claim { pair: 8, ..claim(2, Side::Secondary) };
        assert!(matches!(arbiter.claim(B, other), Err(OutletError::OtherPair)));
        assert!(matches!(arbiter.claim(A, claim(u64::MAX, Side::Primary)), Err(OutletError::Ahead { .. })));
    }

    #[test]
    fn a_stale_owner_is_fenced_and_a_stranger_too() {
        let mut arbiter = Arbiter::default();
        assert!(matches!(arbiter.admit(A, 1), Err(OutletError::NotClaimed)));
        arbiter.claim(A, claim(1, Side::Primary)).unwrap();
        assert!(arbiter.admit(A, 1).is_ok());
        assert!(matches!(arbiter.admit(B, 1), Err(OutletError::Fenced { current: 1 })));
        arbiter.claim(B, claim(2, Side::Secondary)).unwrap();
        for epoch in [1, 2] {
            assert!(matches!(arbiter.admit(A, epoch), Err(OutletError::Fenced { current: 2 })));
        }
        assert!(arbiter.admit(B, 2).is_ok());
    }

    #[derive(Clone, Debug)]
    enum Act {
        Claim { who: u128, epoch: u64 },
        Deliver { who: u128, epoch: u64, stream: u16, sequence: u64 },
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            1 => (0..3_u128, 0..6_u64).prop_map(|(who, epoch)| Act::Claim { who, epoch }),
            6 => (0..3_u128, 0..6_u64, 0..2_u16, 0..8_u64)
                .prop_map(|(who, epoch, stream, sequence)| Act::Deliver { who, epoch, stream, sequence }),
        ];
        prop::collection::vec(act, 0..300)
    }

    proptest! {
        /// Whatever three processes ask for: an epoch has one owner for ever, only the last one is heard, and of each stream the
        /// records are seen once and in order.
        #[test]
        fn nobody_gets_in_twice(acts in acts()) {
            let mut arbiter = Arbiter::default();
            let mut owners: Vec<u128> = Vec::new();
            let mut seen: [Vec<u64>; 2] = Default::default();
            for act in acts {
                match act {
                    Act::Claim { who, epoch } => {
                        let side = if who == 0 { Side::Primary } else { Side::Secondary };
                        let granted = arbiter.claim(Claimant(who), claim(epoch, side)).is_ok();
                        if epoch == owners.len() as u64 + 1 {
                            prop_assert!(granted);
                            owners.push(who);
                        } else {
                            let repeated = epoch > 0 && epoch == owners.len() as u64 && owners.last() == Some(&who);
                            prop_assert_eq!(granted, repeated);
                        }
                    }
                    Act::Deliver { who, epoch, stream, sequence } => {
                        let owns = epoch > 0 && epoch == owners.len() as u64 && owners.last() == Some(&who);
                        prop_assert_eq!(arbiter.admit(Claimant(who), epoch).is_ok(), owns);
                        if owns {
                            let lane = &mut seen[usize::from(stream)];
                            let record = record(stream, sequence);
                            match arbiter.judge(&record) {
                                Ok(Judgement::New) => {
                                    prop_assert_eq!(sequence, lane.len() as u64);
                                    lane.push(sequence);
                                    arbiter.accept(&record);
                                }
                                Ok(Judgement::Duplicate) => prop_assert!(lane.contains(&sequence)),
                                Err(_) => prop_assert!(sequence > lane.len() as u64),
                            }
                        }
                    }
                }
                prop_assert_eq!(arbiter.epoch(), owners.len() as u64);
            }
        }
    }
}
