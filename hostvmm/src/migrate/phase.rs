//! The phases of a migration, by QEMU's names ([`Phase`]), and the moves between them that exist ([`Stage`]).
//!
//! ```text
//!            activate          stop             commit            complete
//!  setup ─────────────► active ─────► device ──────────► device ──────────► completed
//!    │                  ▲  │ │ ▲         │            (committed)
//!    │         resume   └──┼─┼─┘ ◄───────┤                 │
//!    │                     │ │ post_copy │                 │
//!    │                     │ └──────────────► postcopy-active ────────────► completed
//!    ▼                     ▼             ▼                 ▼
//!    └── cancelling ── cancelled   or   failed ◄───────────┘ (failed only)
//! ```
//!
//! A [`Stage`] is the right to move on; a move consumes it, so a migration cannot stop the guest before it is active or
//! complete before it has committed: there is no such method. What others may do at any time, that is to cancel, is
//! settled under one lock with the moves: a move fails with [`Cancelled`] once someone has cancelled, and after
//! [`Stage::commit`] nobody can. The state itself is the [`Monitor`]'s.

use std::fmt;
use std::marker::PhantomData;

use serde::{Serialize, Serializer};

use super::monitor::Monitor;

/// Where a migration is, as QEMU's `MigrationStatus` names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Phase {
    /// There was none yet.
    #[default]
    None,
    /// Connecting; both sides agree on what is moved.
    Setup,
    /// Memory is moved while the guest runs.
    Active,
    /// The guest runs at the destination and fetches what is missing.
    PostcopyActive,
    /// The guest is stopped: the last pages, the state, the digests, the commit.
    Device,
    /// The guest runs at the destination with all its bytes.
    Completed,
    /// Someone has cancelled, and the migration is on its way back.
    Cancelling,
    /// The guest runs on at the source because someone cancelled.
    Cancelled,
    /// It failed.
    Failed,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Setup,
        Self::Active,
        Self::PostcopyActive,
        Self::Device,
        Self::Completed,
        Self::Cancelling,
        Self::Cancelled,
        Self::Failed,
    ];

    /// QEMU's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::PostcopyActive => "postcopy-active",
            Self::Device => "device",
            Self::Completed => "completed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// Whether a migration is under way: neither ended nor not begun.
    pub const fn is_running(self) -> bool {
        matches!(self, Self::Setup | Self::Active | Self::PostcopyActive | Self::Device | Self::Cancelling)
    }

    /// Whether a migration has come to its end, good or bad.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Failed)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Phase {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Someone has cancelled the migration, so it cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the migration was cancelled")]
pub struct Cancelled;

/// Type-level name of [`Phase::Setup`].
#[derive(Debug)]
pub enum Setup {}
/// Type-level name of [`Phase::Active`].
#[derive(Debug)]
pub enum Active {}
/// Type-level name of [`Phase::Device`] before the commit: the source may still take its guest back.
#[derive(Debug)]
pub enum Device {}
/// Type-level name of [`Phase::Device`] after the commit: only the destination may run the guest, until it is known not to.
#[derive(Debug)]
pub enum Committed {}
/// Type-level name of [`Phase::PostcopyActive`].
#[derive(Debug)]
pub enum PostcopyActive {}

/// A migration in the phase `P`, and the right to move it on.
#[derive(Debug)]
#[must_use = "a migration that is not moved on or ended stays where it is"]
pub struct Stage<'m, P> {
    monitor: &'m Monitor,
    phase: PhantomData<P>,
}

impl<'m, P> Stage<'m, P> {
    pub(super) fn of(monitor: &'m Monitor) -> Self {
        Self { monitor, phase: PhantomData }
    }

    /// Who watches it.
    pub fn monitor(&self) -> &'m Monitor {
        self.monitor
    }

    fn to<Q>(self, phase: Phase) -> Result<Stage<'m, Q>, Cancelled> {
        self.monitor.enter(phase, false)?;
        Ok(Stage::of(self.monitor))
    }
}

impl<'m> Stage<'m, Setup> {
    /// Both sides have agreed.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn activate(self) -> Result<Stage<'m, Active>, Cancelled> {
        self.to(Phase::Active)
    }
}

impl<'m> Stage<'m, Active> {
    /// The guest is to be stopped.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn stop(self) -> Result<Stage<'m, Device>, Cancelled> {
        self.to(Phase::Device)
    }
}

impl<'m> Stage<'m, Device> {
    /// Too much was left to be moved within the limit: the guest runs on here.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn resume(self) -> Result<Stage<'m, Active>, Cancelled> {
        self.to(Phase::Active)
    }

    /// From here on only the destination may run the guest, and nobody can cancel.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn commit(self) -> Result<Stage<'m, Committed>, Cancelled> {
        self.monitor.enter(Phase::Device, true)?;
        Ok(Stage::of(self.monitor))
    }

    /// As [`Self::commit`], for a guest that fetches the rest of its memory from there.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn post_copy(self) -> Result<Stage<'m, PostcopyActive>, Cancelled> {
        self.monitor.enter(Phase::PostcopyActive, true)?;
        Ok(Stage::of(self.monitor))
    }
}

impl Stage<'_, Committed> {
    /// The guest runs at the destination.
    pub fn complete(self) {
        self.monitor.end(Phase::Completed, None);
    }
}

impl Stage<'_, PostcopyActive> {
    /// The destination has every page.
    pub fn complete(self) {
        self.monitor.end(Phase::Completed, None);
    }
}
