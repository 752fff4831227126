//! Which migrations an instance has: one at a time, counted ([`Migrations`]), and told to whoever asked for it ([`watched`]).
//!
//! Neighbours: [`super::vm`] and [`super::colo`], whose threads begin and end them; a pair counts as one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::lock;
use crate::control::Events;
use crate::migrate::{Change, Monitor, Phase};

/// Which migrations there are.
#[derive(Debug, Default)]
pub(super) struct Migrations {
    count: Mutex<Count>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// How many have begun.
    begun: u64,
    /// Whether a thread is at one. It may be after the guest has moved: the sides take leave.
    busy: bool,
}

impl Migrations {
    pub(super) fn is_busy(&self) -> bool {
        lock(&self.count).busy
    }

    /// Lets a thread begin, unless another is at a migration, for whose last words `patience` is had. Returns how many have
    /// begun before.
    pub(super) fn enter(&self, patience: Duration) -> Option<u64> {
        let count = lock(&self.count);
        let wait = self.changed.wait_timeout_while(count, patience, |count| count.busy);
        let (mut count, _) = wait.unwrap_or_else(PoisonError::into_inner);
        (!std::mem::replace(&mut count.busy, true)).then_some(count.begun)
    }

    pub(super) fn begin(&self) {
        lock(&self.count).begun += 1;
        self.changed.notify_all();
    }

    pub(super) fn leave(&self) {
        lock(&self.count).busy = false;
        self.changed.notify_all();
    }

    /// Waits until no thread is at a migration.
    pub(super) fn wait_idle(&self, patience: Duration) {
        let wait = self.changed.wait_timeout_while(lock(&self.count), patience, |count| count.busy);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until one more than `before` has begun, or has ended before it began.
    pub(super) fn wait_begun(&self, before: u64) {
        let count = lock(&self.count);
        let wait = self.changed.wait_while(count, |count| count.busy && count.begun == before);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }
}

/// A monitor that tells clients who asked for it of each phase and pass, and `migrations` of each begin.
pub(super) fn watched(events: &Events, asked: &Arc<AtomicBool>, migrations: &Arc<Migrations>) -> Monitor {
    let (events, asked, migrations) = (events.clone(), Arc::clone(asked), Arc::clone(migrations));
    Monitor::new().watched(move |change| {
        if change == Change::Phase(Phase::Setup) {
            migrations.begin();
        }
        if asked.load(Ordering::SeqCst) {
            match change {
                Change::Phase(phase) => events.emit("MIGRATION", Some(json!({ "status": phase.name() }))),
                Change::Pass(pass) => events.emit("MIGRATION_PASS", Some(json!({ "pass": pass }))),
            }
        }
    })
}
