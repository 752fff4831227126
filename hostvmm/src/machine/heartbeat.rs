//! The heartbeat that a machine's guest is asked for: [`Heartbeat`], as the command line spells it.

use std::fmt;
use std::str::FromStr;

use abi::boot::{HEARTBEAT_MAX_US, HEARTBEAT_MIN_US};

/// Period unless the command line says otherwise.
const DEFAULT_US: u32 = 1000;

/// How every vCPU shows that it runs (`abi::heartbeat`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Heartbeat {
    /// Not at all: its timer serves sleeps alone.
    #[default]
    Off,
    /// By its timer's interrupt.
    Timer {
        /// Every so many microseconds.
        period_us: u32,
    },
    /// By its timer's interrupt, and while it sleeps by looking at the counter without a pause.
    Spin {
        /// Every so many microseconds while it does not sleep.
        period_us: u32,
    },
}

/// Text that names no heartbeat.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "no such heartbeat: {text:?}; there are off, timer[:US] and spin[:US], with {HEARTBEAT_MIN_US} to {HEARTBEAT_MAX_US} µs"
)]
pub struct HeartbeatError {
    text: String,
}

impl Heartbeat {
    /// The period in microseconds, zero for none: an upper bound of the gap between two beats of a vCPU that runs.
    pub const fn period_us(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Timer { period_us } | Self::Spin { period_us } => period_us,
        }
    }

    /// Whether a sleeping vCPU looks at the counter all the time.
    pub const fn spins(self) -> bool {
        matches!(self, Self::Spin { .. })
    }
}

impl FromStr for Heartbeat {
    type Err = HeartbeatError;

    fn from_str(text: &str) -> Result<Self, HeartbeatError> {
        let refused = || HeartbeatError { text: text.to_owned() };
        let (name, period) = text.split_once(':').map_or((text, None), |(name, period)| (name, Some(period)));
        let period_us = period.map_or(Ok(DEFAULT_US), str::parse).map_err(|_| refused())?;
        match name {
            _ if !(HEARTBEAT_MIN_US..=HEARTBEAT_MAX_US).contains(&period_us) => Err(refused()),
            "off" if period.is_none() => Ok(Self::Off),
            "timer" => Ok(Self::Timer { period_us }),
            "spin" => Ok(Self::Spin { period_us }),
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Timer { period_us } => write!(f, "timer:{period_us}"),
            Self::Spin { period_us } => write!(f, "spin:{period_us}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_heartbeat_is_spelled_as_it_is_read() {
        for (text, heartbeat) in [
            ("off", Heartbeat::Off),
            ("timer:20", Heartbeat::Timer { period_us: 20 }),
            ("spin:1000000", Heartbeat::Spin { period_us: 1_000_000 }),
        ] {
            assert_eq!((text.parse(), heartbeat.to_string().as_str()), (Ok(heartbeat), text));
        }
        assert_eq!("timer".parse(), Ok(Heartbeat::Timer { period_us: DEFAULT_US }));
    }

    #[test]
    fn what_is_no_heartbeat_is_refused() {
        for text in ["", "on", "off:5", "timer:", "timer:19", "spin:1000001", "spin:-1", "timer:1:2"] {
            assert!(text.parse::<Heartbeat>().unwrap_err().to_string().contains("timer[:US]"), "{text}");
        }
    }
}
