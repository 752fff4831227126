//! How a command ends: an exit status, and one line of why where it is not 0.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

/// Exit status for usage errors and bad input.
const USAGE: u8 = 2;
/// Exit status where the host lacks what was asked for.
const SKIPPED: u8 = 4;
/// Exit status where a check failed or a run could not be finished.
const FAILED: u8 = 1;

/// An ending other than success.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    status: u8,
    message: String,
}

impl Ending {
    /// Bad usage, in words of our own.
    pub(crate) fn usage(message: String) -> Self {
        Self { status: USAGE, message }
    }

    /// Bad input: an error with its causes.
    pub(crate) fn input(error: impl Error) -> Self {
        Self { status: USAGE, message: with_causes(&error) }
    }

    /// The host or this build lacks something, in words of our own.
    pub(crate) fn skip(message: String) -> Self {
        Self { status: SKIPPED, message }
    }

    /// The host or this build lacks something: an error with its causes.
    pub(crate) fn unavailable(error: impl Error) -> Self {
        Self { status: SKIPPED, message: with_causes(&error) }
    }

    /// The run failed: an error with its causes.
    pub(crate) fn failed(error: impl Error) -> Self {
        Self { status: FAILED, message: with_causes(&error) }
    }

    /// The run failed, in words of our own.
    pub(crate) fn run_failed(message: &str) -> Self {
        Self { status: FAILED, message: message.to_owned() }
    }

    /// The run failed: an error with its causes, and what to do about it.
    pub(crate) fn failed_with(error: &dyn Error, advice: &str) -> Self {
        Self { status: FAILED, message: format!("{}; {advice}", with_causes(error)) }
    }

    /// Whether the ending means bad usage or input.
    pub(crate) fn is_usage(&self) -> bool {
        self.status == USAGE
    }

    /// Whether the ending means "skipped".
    pub(crate) fn is_skip(&self) -> bool {
        self.status == SKIPPED
    }

    /// What happened.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Prints the line and gives the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        let label = if self.is_skip() { "skipped" } else { "error" };
        tell(&format!("{label}: {}", self.message.trim_end().replace('\n', " ")));
        ExitCode::from(self.status)
    }
}

/// Prints a line to standard output. A reader that closed the pipe early has seen what it wanted: no error, no panic.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line to standard error, likewise.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// An error's text followed by its causes', unless it already ends with them.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open it{}", if *.tells { ": no such file" } else { "" })]
        struct Outer {
            tells: bool,
            source: Inner,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("no such file")]
        struct Inner;
        for tells in [false, true] {
            assert_eq!(with_causes(&Outer { tells, source: Inner }), "cannot open it: no such file");
        }
    }
}
