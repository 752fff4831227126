//! Waits for a guest's output on a thread of its own, so that the thread that drives a pair has one queue to wait at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use super::link::Event;
use super::output::Tap;
use crate::migrate::transport::Handle;

/// Longest wait before it looks whether it is over.
const WAIT: Duration = Duration::from_secs(1);

/// Says when a tap has something to take.
pub(super) struct Watcher<'a> {
    tap: &'a Tap,
    is_over: AtomicBool,
}

impl<'a> Watcher<'a> {
    /// Of `tap`.
    pub(super) fn new(tap: &'a Tap) -> Self {
        Self { tap, is_over: AtomicBool::new(false) }
    }

    /// Sends a look whenever there is something, and then waits until `taken` says that it was.
    pub(super) fn run(&self, looks: &SyncSender<Event>, taken: &Receiver<()>) {
        while !self.is_over.load(Ordering::Acquire) {
            if self.tap.wait(WAIT) {
                // A full queue is looked at soon enough.
                let _ = looks.try_send(Event::Look);
                if taken.recv().is_err() {
                    return;
                }
            }
        }
    }

    /// Ends it.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.tap.wake();
    }
}

/// Ends the threads of one side when it is dropped. They are waited for, so a side that panics has to end them as well.
pub(super) struct Farewell<'a> {
    /// Of the channel that one of them reads.
    pub(super) channel: Handle,
    /// The other.
    pub(super) watcher: &'a Watcher<'a>,
}

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        self.channel.shutdown();
        self.watcher.end();
    }
}
