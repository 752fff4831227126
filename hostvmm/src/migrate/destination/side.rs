//! Page channels side by side, and where they meet at the end of each pass: [`Turnstile`].
//!
//! A page may come in one pass on one channel and in the next on another. So a channel that has said that its pass is over
//! waits until all have, and the main channel's account of the pass was compared.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::pages::Pages;
use crate::migrate::error::MigrateError;
use crate::migrate::frames::FrameReader;
use crate::migrate::transport::Handle;
use crate::migrate::wire::{Incoming, Message};

/// Where page channels wait for each other.
#[derive(Debug, Default)]
pub(super) struct Turnstile {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The pass that is under way.
    pass: u32,
    /// Channels that have ended it.
    waiting: usize,
    /// Nobody waits any more.
    is_closed: bool,
    failure: Option<MigrateError>,
}

impl Turnstile {
    /// A channel has ended `pass`. False if there will be no next one.
    fn pass_through(&self, pass: u32) -> bool {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        let waits = |state: &mut State| state.pass <= pass && !state.is_closed;
        state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        !state.is_closed
    }

    /// Waits until all `channels` have ended `pass`; [`Self::next`] lets them go on.
    pub(super) fn wait_for_all(&self, channels: usize) -> Result<(), MigrateError> {
        let waits = |state: &mut State| state.waiting < channels && !state.is_closed;
        let mut state = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        state.failure.take().map_or(Ok(()), Err)
    }

    /// The next pass begins.
    pub(super) fn next(&self) {
        let mut state = self.lock();
        state.pass += 1;
        state.waiting = 0;
        self.changed.notify_all();
    }

    /// Lets everybody go home.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// What has failed on a page channel, if that is why everything ended.
    pub(super) fn failure(&self) -> Option<MigrateError> {
        self.lock().failure.take()
    }

    /// Leaves `error` here, if it is the cause of the end and not its consequence.
    fn fail(&self, error: MigrateError) -> bool {
        let mut state = self.lock();
        let is_cause = !std::mem::replace(&mut state.is_closed, true);
        if is_cause {
            state.failure = Some(error);
        }
        self.changed.notify_all();
        is_cause
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receives pages on one channel until it ends. A failure is left at the turnstile, and ends the main channel's wait.
pub(super) fn receive(
    mut reader: FrameReader,
    mut order: Incoming,
    mut pages: Pages<'_>,
    turnstile: &Turnstile,
    main: &Handle,
) {
    let _alarm = Alarm { turnstile, main };
    let mut run = || loop {
        let (message, payload_bytes) = reader.next()?;
        order.accept(&message, payload_bytes)?;
        match message {
            Message::Pages(batch) => pages.receive(&batch, payload_bytes, &mut reader)?,
            Message::Sync { pass } if !turnstile.pass_through(pass) => return Ok(()),
            // On to the next pass; the order lets nothing else come.
            _ => {}
        }
    };
    let result: Result<(), MigrateError> = run();
    if let Err(error) = result
        && turnstile.fail(error)
    {
        main.shutdown();
    }
}

/// Ends the main channel's wait for a page channel whose thread panics.
struct Alarm<'a> {
    turnstile: &'a Turnstile,
    main: &'a Handle,
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.turnstile.close();
            self.main.shutdown();
        }
    }
}
