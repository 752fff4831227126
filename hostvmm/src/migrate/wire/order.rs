//! Which message may come when: [`Incoming`] judges what the destination receives, [`Return`] what the source receives.
//!
//! ```text
//! main channel      ┌──────────────┐ pages, pass-end
//!  offer ─► accept ─┤   active     ├─ stopped ─► stopped ─ digest ─► loading ─ loaded ─► ready ─ commit ──► committed ─ farewell ─► ended
//!                   └──────────────┘   pages, pass-end, section, pending               │                       ▲
//!         └► refuse ─► ended                                                           └ postcopy-run ─► postcopy ─ farewell
//!                      ▲                                                                   pages, pass-end, digest
//!  abort, at any time before the guest is handed over ┘
//! page channel      pages, sync …
//! query channel     query ─► answer
//! ```
//!
//! Both are told what their own side sends as well, because a peer may answer only what it was asked. Batches are checked
//! against the machine that was agreed on, so that what passes here lies inside guest memory.

use super::batch::{Body, Encoding, Geometry, PageBatch};
use super::error::WireError;
use super::greeting::Role;
use super::message::{Features, Message, Tag};
use crate::memory::SlotId;

/// Where a side is on one channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing was said.
    Fresh,
    /// An offer waits for an answer.
    Offered,
    /// Memory moves while the guest runs.
    Active,
    /// The guest stands still, memory and state move.
    Stopped,
    /// All of the state has been sent.
    Loading,
    /// The destination is ready.
    Ready,
    /// The guest is the destination's.
    Committed,
    /// The guest runs at the destination, memory follows.
    Postcopy,
    /// A channel for pages only.
    PageChannel,
    /// A query waits for an answer.
    Asked,
    /// Nothing more may be said.
    Ended,
}

impl State {
    const fn of(role: Role) -> Self {
        match role {
            Role::Main | Role::Query => Self::Fresh,
            // A pair has an order of its own (`colo::protocol`): nothing of it may come here.
            Role::Colo => Self::Ended,
            Role::Pages(_) => Self::PageChannel,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "not yet begun",
            Self::Offered => "waiting for the destination's consent",
            Self::Active => "moving memory",
            Self::Stopped => "moving the state",
            Self::Loading => "waiting until the destination has loaded",
            Self::Ready => "waiting for the commit",
            Self::Committed => "committed",
            Self::Postcopy => "in post-copy",
            Self::PageChannel => "on a channel for pages only",
            Self::Asked => "a query, waiting for its answer",
            Self::Ended => "over",
        }
    }
}

/// What both sides have agreed on, as far as the stream depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// The machine's pages.
    pub geometry: Geometry,
    /// What may be made use of.
    pub features: Features,
}

/// Judges one channel at the destination.
#[derive(Clone, Debug)]
pub struct Incoming {
    role: Role,
    state: State,
    geometry: Option<Geometry>,
    features: Features,
    pass: u32,
}

impl Incoming {
    /// The main channel or a query's.
    pub fn new(role: Role) -> Self {
        Self { role, state: State::of(role), geometry: None, features: Features::NONE, pass: 0 }
    }

    /// Page channel `index`, of the migration that was agreed on on the main channel.
    pub fn page_channel(index: u16, agreement: Agreement) -> Self {
        Self { geometry: Some(agreement.geometry), features: agreement.features, ..Self::new(Role::Pages(index)) }
    }

    /// What has been agreed on; `None` before this side's [`Message::Accept`].
    pub fn agreement(&self) -> Option<Agreement> {
        if matches!(self.state, State::Fresh | State::Offered) {
            return None;
        }
        self.geometry.map(|geometry| Agreement { geometry, features: self.features })
    }

    /// The pass whose pages come now: one more than has ended.
    pub fn pass(&self) -> u32 {
        self.pass
    }

    /// Whether the guest has been handed over: from here on this side alone decides.
    pub fn is_committed(&self) -> bool {
        matches!(self.state, State::Committed | State::Postcopy)
    }

    /// Whether the source has said all that it will.
    pub fn is_over(&self) -> bool {
        self.state == State::Ended
    }

    /// This side sends `message`.
    ///
    /// # Errors
    /// [`WireError::Order`] where the protocol does not let it.
    pub fn sent(&mut self, message: &Message) -> Result<(), WireError> {
        self.state = match (self.state, message) {
            (State::Offered, Message::Accept { features }) => {
                self.features = self.features.and(*features);
                State::Active
            }
            (State::Offered, Message::Refuse(_)) => State::Ended,
            (State::Loading, Message::Loaded(_)) => State::Ready,
            (State::Asked, Message::Answer(_)) => State::Ended,
            (State::Postcopy, Message::PageRequest { .. } | Message::Loaded(_))
            | (
                State::Active | State::Stopped | State::Loading | State::Ready | State::Postcopy,
                Message::PassAck { .. },
            )
            | (State::Committed | State::Postcopy, Message::Resumed(_)) => self.state,
            (State::Fresh | State::Ended, _) => return Err(self.order(message)),
            (_, Message::Failure { .. }) => State::Ended,
            _ => return Err(self.order(message)),
        };
        Ok(())
    }

    /// The source's `message`, which came with `payload_bytes`.
    ///
    /// # Errors
    /// [`WireError::Order`], [`WireError::Pass`], [`WireError::Feature`], and what [`PageBatch::check`] finds.
    pub fn accept(&mut self, message: &Message, payload_bytes: u32) -> Result<(), WireError> {
        self.state = match (self.state, message) {
            (State::Fresh, Message::Offer(offer)) if self.role == Role::Main => {
                self.geometry = Some(offer.description.geometry());
                self.features = offer.features;
                State::Offered
            }
            (State::Fresh, Message::Query) if self.role == Role::Query => State::Asked,
            (State::Active | State::Stopped | State::Postcopy | State::PageChannel, Message::Pages(batch)) => {
                self.check_batch(batch, payload_bytes)?;
                self.state
            }
            (State::PageChannel, Message::Sync { pass }) => self.end_pass(Tag::Sync, *pass)?,
            (State::Active | State::Stopped | State::Postcopy, Message::PassEnd(end)) => {
                self.end_pass(Tag::PassEnd, end.pass)?
            }
            (State::Active, Message::Stopped { .. }) => State::Stopped,
            (State::Stopped, Message::Section(_)) => State::Stopped,
            (State::Stopped, Message::Pending(pending)) => {
                self.require(Features::POSTCOPY, "post-copy", message)?;
                let pages = self.geometry.map_or(0, |geometry| geometry.pages(pending.slot));
                let past = pending.words.len() as u64 - 1;
                // The last word may reach past the slot's end, but must not start there.
                self.check_pages(pending.slot, pending.first.saturating_add(past.saturating_mul(64)), 1)?;
                if let Some(last) = pending.words.last()
                    && let Some(bits) = pages.checked_sub(pending.first + past * 64)
                    && bits < 64
                    && last >> bits != 0
                {
                    return Err(WireError::Reserved { what: "pending" });
                }
                State::Stopped
            }
            (State::Stopped, Message::Digest(digests)) => {
                if digests.is_none() {
                    self.require(Features::POSTCOPY, "post-copy", message)?;
                }
                State::Loading
            }
            (State::Ready, Message::Commit) => State::Committed,
            (State::Ready, Message::PostcopyRun) => {
                self.require(Features::POSTCOPY, "post-copy", message)?;
                State::Postcopy
            }
            (State::Postcopy, Message::Digest(Some(_))) => State::Postcopy,
            (State::Committed | State::Postcopy, Message::Farewell { .. }) => State::Ended,
            (
                State::Offered | State::Active | State::Stopped | State::Loading | State::Ready,
                Message::Abort { .. },
            ) => State::Ended,
            _ => return Err(self.order(message)),
        };
        Ok(())
    }

    fn check_batch(&self, batch: &PageBatch, payload_bytes: u32) -> Result<(), WireError> {
        let Some(geometry) = &self.geometry else {
            return Err(WireError::Order { tag: Tag::Pages, state: self.state.name() });
        };
        let feature = |feature| Err(WireError::Feature { tag: Tag::Pages, feature });
        if self.features.has(Features::SHARED_MEMORY) {
            return feature("memory that is not shared");
        }
        if batch.body == Body::Zstd && !self.features.has(Features::ZSTD) {
            return feature("zstd");
        }
        let has_delta = batch.runs.iter().any(|run| matches!(run.encoding, Encoding::Delta { .. }));
        if has_delta && !self.features.has(Features::DELTA) {
            return feature("deltas");
        }
        if has_delta && self.state == State::Postcopy {
            return feature("an old page, which is not there in post-copy");
        }
        if batch.pass != self.pass {
            return Err(WireError::Pass { tag: Tag::Pages, expected: self.pass, found: batch.pass });
        }
        batch.check(geometry, payload_bytes)
    }

    fn check_pages(&self, slot: SlotId, first: u64, count: u64) -> Result<(), WireError> {
        self.geometry.map_or(Ok(()), |geometry| geometry.check(slot, first, count))
    }

    fn end_pass(&mut self, tag: Tag, pass: u32) -> Result<State, WireError> {
        if pass != self.pass {
            return Err(WireError::Pass { tag, expected: self.pass, found: pass });
        }
        // A number that has no successor ends the migration, not the arithmetic.
        self.pass = self.pass.checked_add(1).ok_or(WireError::Pass { tag, expected: 0, found: pass })?;
        Ok(self.state)
    }

    fn require(&self, needed: Features, feature: &'static str, message: &Message) -> Result<(), WireError> {
        if self.features.has(needed) { Ok(()) } else { Err(WireError::Feature { tag: message.tag(), feature }) }
    }

    fn order(&self, message: &Message) -> WireError {
        WireError::Order { tag: message.tag(), state: self.state.name() }
    }
}

/// Judges one channel at the source.
#[derive(Clone, Debug)]
pub struct Return {
    role: Role,
    state: State,
    geometry: Option<Geometry>,
    features: Features,
    /// Passes that this side has ended.
    ended: u32,
    /// Passes that the destination has acknowledged.
    acked: u32,
    /// The destination has reported that the guest runs.
    resumed: bool,
    /// Digests sent that wait for [`Message::Loaded`].
    digests: u32,
}

impl Return {
    /// A channel that was just opened.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            state: State::of(role),
            geometry: None,
            features: Features::NONE,
            ended: 0,
            acked: 0,
            resumed: false,
            digests: 0,
        }
    }

    /// What has been agreed on; `None` before the destination's [`Message::Accept`].
    pub fn agreement(&self) -> Option<Agreement> {
        if matches!(self.state, State::Fresh | State::Offered) {
            return None;
        }
        self.geometry.map(|geometry| Agreement { geometry, features: self.features })
    }

    /// Passes that this side has ended and the destination has not acknowledged.
    pub fn unacknowledged(&self) -> u32 {
        self.ended - self.acked
    }

    /// Whether this side has given the guest away: it must not run here unless the destination says that it does not.
    pub fn is_committed(&self) -> bool {
        matches!(self.state, State::Committed | State::Postcopy)
    }

    /// Whether the destination has nothing more to say.
    pub fn is_over(&self) -> bool {
        self.state == State::Ended
    }

    /// This side sends `message`.
    ///
    /// # Errors
    /// [`WireError::Order`] where the protocol does not let it.
    pub fn sent(&mut self, message: &Message) -> Result<(), WireError> {
        self.state = match (self.state, message) {
            (State::Fresh, Message::Offer(offer)) if self.role == Role::Main => {
                self.geometry = Some(offer.description.geometry());
                self.features = offer.features;
                State::Offered
            }
            (State::Fresh, Message::Query) if self.role == Role::Query => State::Asked,
            (State::Active | State::Stopped | State::Postcopy, Message::Pages(_))
            | (State::PageChannel, Message::Pages(_) | Message::Sync { .. })
            | (State::Stopped, Message::Section(_) | Message::Pending(_)) => self.state,
            (State::Active | State::Stopped | State::Postcopy, Message::PassEnd(end)) if end.pass == self.ended => {
                self.ended = self.ended.saturating_add(1);
                self.state
            }
            (State::Active, Message::Stopped { .. }) => State::Stopped,
            (State::Stopped, Message::Digest(_)) => {
                self.digests += 1;
                State::Loading
            }
            (State::Postcopy, Message::Digest(Some(_))) => {
                self.digests += 1;
                State::Postcopy
            }
            (State::Ready, Message::Commit) => State::Committed,
            (State::Ready, Message::PostcopyRun) => State::Postcopy,
            (State::Committed | State::Postcopy, Message::Farewell { .. })
            | (
                State::Offered | State::Active | State::Stopped | State::Loading | State::Ready,
                Message::Abort { .. },
            ) => State::Ended,
            _ => return Err(self.order(message)),
        };
        Ok(())
    }

    /// The destination's `message`.
    ///
    /// Once this side has sent [`Message::Abort`] or [`Message::Farewell`], nothing is read any more.
    ///
    /// # Errors
    /// [`WireError::Order`], [`WireError::Pass`], [`WireError::Pages`], and [`WireError::Value`] where more is accepted than
    /// was offered.
    pub fn accept(&mut self, message: &Message) -> Result<(), WireError> {
        self.state = match (self.state, message) {
            (State::Offered, Message::Accept { features }) => {
                if !self.features.has(*features) {
                    return Err(WireError::Feature { tag: Tag::Accept, feature: "something that was not offered" });
                }
                self.features = *features;
                State::Active
            }
            (State::Offered, Message::Refuse(_)) => State::Ended,
            (
                State::Active | State::Stopped | State::Loading | State::Ready | State::Postcopy,
                Message::PassAck { pass, .. },
            ) if self.acked < self.ended => {
                if *pass != self.acked {
                    return Err(WireError::Pass { tag: Tag::PassAck, expected: self.acked, found: *pass });
                }
                self.acked += 1;
                self.state
            }
            (State::Loading | State::Postcopy, Message::Loaded(_)) if self.digests > 0 => {
                self.digests -= 1;
                if self.state == State::Loading { State::Ready } else { self.state }
            }
            (State::Committed | State::Postcopy, Message::Resumed(_)) if !self.resumed => {
                self.resumed = true;
                self.state
            }
            (State::Postcopy, Message::PageRequest { slot, page }) => {
                self.geometry.map_or(Ok(()), |geometry| geometry.check(*slot, *page, 1))?;
                self.state
            }
            (State::Asked, Message::Answer(_)) => State::Ended,
            (State::Fresh | State::Ended, _) => return Err(self.order(message)),
            (_, Message::Failure { .. }) => State::Ended,
            _ => return Err(self.order(message)),
        };
        Ok(())
    }

    fn order(&self, message: &Message) -> WireError {
        WireError::Order { tag: message.tag(), state: self.state.name() }
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
