//! Where vCPU threads leave events for the one who controls them: [`Mailbox`].
//!
//! Unbounded for events that the protocol bounds (each vCPU leaves at most one until it is commanded again), bounded
//! for lines of text, which a guest can produce without end: what does not fit is counted and told.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Event;

/// Most lines of text that wait to be fetched.
const MAX_LINES: usize = 4096;

/// What [`super::Vcpus::wait_event`] returned for.
#[derive(Debug)]
pub enum Wait {
    /// This happened.
    Event(Event),
    /// Nothing happened in the time given.
    TimedOut,
    /// [`super::Interrupter::interrupt`] was called.
    Interrupted,
}

#[derive(Debug, Default)]
struct Contents {
    events: VecDeque<Event>,
    lines: usize,
    lost_lines: u64,
    interrupted: bool,
}

/// A queue of events with an interruptible wait.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    contents: Mutex<Contents>,
    arrived: Condvar,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an event.
    pub(super) fn post(&self, event: Event) {
        let mut contents = self.lock();
        if event.is_line() {
            if contents.lines == MAX_LINES {
                contents.lost_lines += 1;
                return;
            }
            contents.lines += 1;
        }
        contents.events.push_back(event);
        drop(contents);
        self.arrived.notify_all();
    }

    /// Drops every event that is no line.
    pub(super) fn forget_events(&self) {
        self.lock().events.retain(Event::is_line);
    }

    /// Ends the current wait, or the next one.
    pub(super) fn interrupt(&self) {
        self.lock().interrupted = true;
        self.arrived.notify_all();
    }

    /// Whether there was an interruption; resets it.
    pub(super) fn take_interrupt(&self) -> bool {
        std::mem::take(&mut self.lock().interrupted)
    }

    /// Waits for an event; without `timeout` for as long as it takes.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> Wait {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut contents = self.lock();
        loop {
            if std::mem::take(&mut contents.interrupted) {
                return Wait::Interrupted;
            }
            if let Some(event) = contents.next() {
                return Wait::Event(event);
            }
            contents = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.arrived.wait(contents).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Wait::TimedOut,
                Some(left) => self.arrived.wait_timeout(contents, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }
}

impl Contents {
    fn next(&mut self) -> Option<Event> {
        if self.lines == 0 && self.lost_lines > 0 {
            let lost = std::mem::take(&mut self.lost_lines);
            return Some(Event::Diagnostic(format!("{lost} lines of the guest's output were dropped")));
        }
        let event = self.events.pop_front()?;
        if event.is_line() {
            self.lines -= 1;
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_bounded_and_counted() {
        let mailbox = Mailbox::default();
        for line in 0..MAX_LINES + 10 {
            mailbox.post(Event::Console(line.to_string()));
        }
        mailbox.post(Event::SystemOff);
        let mut lines = 0;
        let mut rest = Vec::new();
        while let Wait::Event(event) = mailbox.wait(Some(Duration::ZERO)) {
            if matches!(event, Event::Console(_)) {
                lines += 1;
            } else {
                rest.push(format!("{event:?}"));
            }
        }
        assert_eq!(lines, MAX_LINES);
        assert_eq!(rest.len(), 2);
        assert!(rest.iter().any(|text| text.contains("10 lines")), "{rest:?}");
    }

    #[test]
    fn an_interruption_ends_one_wait() {
        let mailbox = Mailbox::default();
        mailbox.interrupt();
        assert!(matches!(mailbox.wait(None), Wait::Interrupted));
        assert!(matches!(mailbox.wait(Some(Duration::ZERO)), Wait::TimedOut));
    }
}
