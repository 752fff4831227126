//! The clock line: vCPU 0 prints the time by its own counter, every second, between steps and while it sleeps.
//!
//! ```text
//! clock 3 s, counter 187512345 (line 3)
//! ```
//!
//! A guest whose counter jumps, stands still or goes back shows it here to whoever reads the console. It is never printed from
//! an interrupt: the console is slow, and may be in use. Neighbours: [`crate::guest::command`] looks at it,
//! [`crate::guest::console`] prints it.

use abi::boot::FLAG_CLOCK_LINE;

use crate::guest::arch::timer;
use crate::guest::{Machine, console};

/// When the next line is due.
pub(crate) struct ClockLine {
    is_on: bool,
    /// The counter at the first line, and at the start of the last line's second.
    started: Option<(u64, u64)>,
    /// Lines printed, told in each: a late line leaves out seconds, and must not look like one that was lost.
    lines: u64,
}

impl ClockLine {
    /// The line of `vcpu`: only vCPU 0's is ever printed, and only where the host wants it.
    pub(crate) fn new(machine: &Machine, vcpu: usize) -> Self {
        Self { is_on: vcpu == 0 && machine.boot.flags & FLAG_CLOCK_LINE != 0, started: None, lines: 0 }
    }

    /// Prints the line if it is due; the first one at once.
    pub(crate) fn look(&mut self) {
        if !self.is_on {
            return;
        }
        let (now, second) = (timer::now(), timer::frequency());
        let (epoch, last) = match self.started {
            None => (now, now),
            // A counter that went back is past any second by this measure.
            Some((_, last)) if now.wrapping_sub(last) < second => return,
            Some((epoch, _)) => (epoch, now - now.saturating_sub(epoch) % second),
        };
        self.started = Some((epoch, last));
        let (seconds, line) = (now.saturating_sub(epoch) / second, self.lines);
        self.lines += 1;
        console::say(format_args!("clock {seconds} s, counter {now} (line {line})\n"));
    }
}
