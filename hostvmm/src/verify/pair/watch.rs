//! Waits that end: [`Watch`].

use std::time::{Duration, Instant};

use super::side::PairError;
use crate::verify::Interrupt;

/// Between two looks at another process.
const PAUSE: Duration = Duration::from_millis(3);

/// How long anything is waited for, and who may end it earlier.
#[derive(Clone, Copy)]
pub(in crate::verify) struct Watch<'a> {
    timeout: Duration,
    interrupt: &'a Interrupt,
}

impl<'a> Watch<'a> {
    /// Waits of up to `timeout`, which the user may end.
    pub(in crate::verify) fn new(timeout: Duration, interrupt: &'a Interrupt) -> Self {
        Self { timeout, interrupt }
    }

    /// Asks `look` until it has an answer.
    ///
    /// # Errors
    /// Those of `look`; [`PairError::TimedOut`] that names `what`, and [`PairError::Interrupted`].
    pub(in crate::verify) fn until<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Result<Option<T>, PairError>,
    ) -> Result<T, PairError> {
        let begun = Instant::now();
        loop {
            if let Some(answer) = look()? {
                return Ok(answer);
            }
            self.check()?;
            if begun.elapsed() >= self.timeout {
                return Err(PairError::TimedOut { what: what.to_owned(), waited: self.timeout, found: Vec::new() });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Lets `time` pass: it is the guest that is given it.
    ///
    /// # Errors
    /// [`PairError::Interrupted`].
    pub(in crate::verify) fn pass(&self, time: Duration) -> Result<(), PairError> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.check()?;
            std::thread::sleep(PAUSE.min(time.saturating_sub(begun.elapsed())));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), PairError> {
        if self.interrupt.is_raised() { Err(PairError::Interrupted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_in_vain_says_for_what() {
        let interrupt = Interrupt::default();
        let watch = Watch::new(Duration::from_millis(1), &interrupt);
        let error = watch.until("the end of the world", || Ok(None::<()>)).unwrap_err();
        assert!(error.to_string().contains("the end of the world"), "{error}");
        assert_eq!(watch.until("nothing", || Ok(Some(1))).unwrap(), 1);
    }

    #[test]
    fn the_user_ends_every_wait() {
        let interrupt = Interrupt::default();
        let watch = Watch::new(Duration::from_secs(3600), &interrupt);
        interrupt.raise();
        assert!(matches!(watch.until("this", || Ok(None::<()>)), Err(PairError::Interrupted)));
        assert!(matches!(watch.pass(Duration::from_secs(3600)), Err(PairError::Interrupted)));
    }
}
