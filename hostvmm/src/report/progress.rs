//! Live progress on a terminal's standard error; silent where that is no terminal.

use std::io::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Progress of a scenario counted in passes or runs.
pub struct Progress {
    bar: ProgressBar,
    hidden: bool,
}

impl Progress {
    /// A bar of `len` units called `what`.
    pub fn new(what: &'static str, len: u64) -> Self {
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {elapsed} {wide_msg}")
            .expect("the template is a constant that indicatif accepts");
        let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::stderr())
            .with_style(style.progress_chars("=> "))
            .with_prefix(what);
        // A pass may take long: the clock must go on meanwhile.
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, hidden: false }
    }

    /// Nothing is shown: for a run that is one of many.
    pub fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), hidden: true }
    }

    /// No bar, only lines: for a run without an end to count towards.
    pub fn lines() -> Self {
        Self { bar: ProgressBar::hidden(), hidden: false }
    }

    /// One unit is done; `message` says what is of interest.
    pub fn advance(&self, message: String) {
        self.bar.set_message(message);
        self.bar.inc(1);
    }

    /// `units` more are done.
    pub fn advance_by(&self, units: u64) {
        self.bar.inc(units);
    }

    /// Prints a line above the bar (to standard error, whether or not it is a terminal).
    pub fn line(&self, text: &str) {
        if !self.hidden {
            // Whoever closed standard error does not want to know.
            self.bar.suspend(|| drop(writeln!(std::io::stderr(), "{text}")));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
