//! What the lab is doing, for whoever waits: lines on standard error, beside the command's own.

use std::fmt;
use std::time::Instant;

/// Tells each step with the time since the start, unless it is to be quiet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    start: Instant,
    quiet: bool,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { start: Instant::now(), quiet }
    }

    /// Says that something begins or has ended.
    pub(crate) fn step(&self, what: fmt::Arguments<'_>) {
        if !self.quiet {
            eprintln!("lab: {:4.1} s: {what}", self.start.elapsed().as_secs_f64());
        }
    }
}
