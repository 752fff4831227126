//! Faults planted at the boundaries of a migration, to prove that every one of them leaves exactly one guest, with all its
//! bytes: [`Boundary`], [`Action`], [`FaultPlan`].
//!
//! The boundaries are in the order in which a migration passes them. Without a plan a boundary costs a comparison.

use std::fmt;
use std::str::FromStr;

use rustix::process::{Signal, getpid, kill_process};

/// A point that every migration passes, at one of its sides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Boundary {
    /// Source: nothing was done yet.
    SourceSetup,
    /// Source: connected, the offer not yet sent.
    SourceConnected,
    /// Source: the destination has accepted, the log runs.
    SourceAccepted,
    /// Source: the first pages are on their way.
    SourcePass0,
    /// Source: pass 0 was sent.
    SourcePass0End,
    /// Source: the log was harvested, nothing of it sent.
    SourceHarvested,
    /// Source: the guest is stopped.
    SourceStopped,
    /// Source: the last pages were sent.
    SourceFinalPass,
    /// Source: the state was sent.
    SourceState,
    /// Source: the digests were sent.
    SourceDigest,
    /// Source: the destination has loaded and verified everything, the commit not yet sent.
    SourceLoaded,
    /// Source: the commit is on its way.
    SourceCommitted,
    /// Source: the destination runs the guest.
    SourceResumed,
    /// Source: all is done but the farewell.
    SourceFarewell,
    /// Destination: a source has connected.
    DestinationConnected,
    /// Destination: the offer was read, not yet accepted.
    DestinationOffered,
    /// Destination: accepted.
    DestinationAccepted,
    /// Destination: the first pages are in memory.
    DestinationPages,
    /// Destination: pass 0 is in memory, not acknowledged.
    DestinationPass0End,
    /// Destination: the source says that its guest is stopped.
    DestinationStopped,
    /// Destination: the state is here, not yet loaded.
    DestinationState,
    /// Destination: the state is loaded.
    DestinationLoaded,
    /// Destination: memory is verified, the source not yet told.
    DestinationVerified,
    /// Destination: the commit is here, the guest does not run yet.
    DestinationCommitted,
    /// Destination: the guest runs, the source not yet told.
    DestinationResumed,
    /// Destination: the source knows.
    DestinationTold,
}

impl Boundary {
    /// Every boundary, the source's first.
    pub const ALL: [Self; 26] = [
        Self::SourceSetup,
        Self::SourceConnected,
        Self::SourceAccepted,
        Self::SourcePass0,
        Self::SourcePass0End,
        Self::SourceHarvested,
        Self::SourceStopped,
        Self::SourceFinalPass,
        Self::SourceState,
        Self::SourceDigest,
        Self::SourceLoaded,
        Self::SourceCommitted,
        Self::SourceResumed,
        Self::SourceFarewell,
        Self::DestinationConnected,
        Self::DestinationOffered,
        Self::DestinationAccepted,
        Self::DestinationPages,
        Self::DestinationPass0End,
        Self::DestinationStopped,
        Self::DestinationState,
        Self::DestinationLoaded,
        Self::DestinationVerified,
        Self::DestinationCommitted,
        Self::DestinationResumed,
        Self::DestinationTold,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SourceSetup => "source-setup",
            Self::SourceConnected => "source-connected",
            Self::SourceAccepted => "source-accepted",
            Self::SourcePass0 => "source-pass-0",
            Self::SourcePass0End => "source-pass-0-end",
            Self::SourceHarvested => "source-harvested",
            Self::SourceStopped => "source-stopped",
            Self::SourceFinalPass => "source-final-pass",
            Self::SourceState => "source-state",
            Self::SourceDigest => "source-digest",
            Self::SourceLoaded => "source-loaded",
            Self::SourceCommitted => "source-committed",
            Self::SourceResumed => "source-resumed",
            Self::SourceFarewell => "source-farewell",
            Self::DestinationConnected => "destination-connected",
            Self::DestinationOffered => "destination-offered",
            Self::DestinationAccepted => "destination-accepted",
            Self::DestinationPages => "destination-pages",
            Self::DestinationPass0End => "destination-pass-0-end",
            Self::DestinationStopped => "destination-stopped",
            Self::DestinationState => "destination-state",
            Self::DestinationLoaded => "destination-loaded",
            Self::DestinationVerified => "destination-verified",
            Self::DestinationCommitted => "destination-committed",
            Self::DestinationResumed => "destination-resumed",
            Self::DestinationTold => "destination-told",
        }
    }

    /// Whether it is the source that passes it.
    pub fn is_source(self) -> bool {
        self < Self::DestinationConnected
    }

    /// Whether the source has sent its commit before this, so that only the destination may run the guest unless it is
    /// known not to.
    pub fn is_committed(self) -> bool {
        matches!(self, Self::SourceCommitted | Self::SourceResumed | Self::SourceFarewell)
            || self >= Self::DestinationCommitted
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What happens at a boundary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Action {
    /// The process is killed (SIGKILL).
    Kill,
    /// The process is stopped (SIGSTOP) until someone continues it.
    Stop,
    /// All connections are cut.
    Cut,
    /// The step fails as a full disk would let it.
    DiskFull,
    /// The step fails.
    Fail,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 5] = [Self::Kill, Self::Stop, Self::Cut, Self::DiskFull, Self::Fail];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Cut => "cut",
            Self::DiskFull => "disk-full",
            Self::Fail => "fail",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A fault to be planted, as `BOUNDARY=ACTION`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultPlan {
    /// Where.
    pub boundary: Boundary,
    /// What.
    pub action: Action,
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.boundary, self.action)
    }
}

impl FromStr for FaultPlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (boundary, action) = text.split_once('=').ok_or_else(|| format!("{text:?} is not BOUNDARY=ACTION"))?;
        let boundary = Boundary::ALL.into_iter().find(|it| it.name() == boundary).ok_or_else(|| {
            format!("no boundary {boundary:?}; there are {}", Boundary::ALL.map(Boundary::name).join(", "))
        })?;
        let action = Action::ALL
            .into_iter()
            .find(|it| it.name() == action)
            .ok_or_else(|| format!("no action {action:?}; there are {}", Action::ALL.map(Action::name).join(", ")))?;
        Ok(Self { boundary, action })
    }
}

/// What the step at a boundary has to do about a planted fault that did not end or stop the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Planted {
    /// Cut the connections and go on.
    Cut,
    /// Fail.
    Fail,
    /// Fail as for a full disk.
    DiskFull,
}

impl FaultPlan {
    /// Carries out what is planned at `boundary`, as far as that is a matter of the process.
    pub(super) fn strike(self, boundary: Boundary) -> Option<Planted> {
        if self.boundary != boundary {
            return None;
        }
        carry_out(self.action)
    }
}

/// Carries out `action`, as far as it is a matter of the process; what is left is for the step to do.
pub(crate) fn carry_out(action: Action) -> Option<Planted> {
    match action {
        Action::Kill => {
            let _ = kill_process(getpid(), Signal::KILL);
            None
        }
        Action::Stop => {
            // To this thread: one that is sent to the process stops another first, and this one goes on for a while.
            let _ = signal_hook::low_level::raise(signal_hook::consts::SIGSTOP);
            None
        }
        Action::Cut => Some(Planted::Cut),
        Action::DiskFull => Some(Planted::DiskFull),
        Action::Fail => Some(Planted::Fail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_back() {
        for boundary in Boundary::ALL {
            for action in Action::ALL {
                let plan = FaultPlan { boundary, action };
                assert_eq!(plan.to_string().parse(), Ok(plan));
            }
        }
        assert!("source-setup".parse::<FaultPlan>().is_err());
        assert!("nowhere=cut".parse::<FaultPlan>().unwrap_err().contains("destination-told"));
        assert!("source-setup=burn".parse::<FaultPlan>().unwrap_err().contains("disk-full"));
    }

    #[test]
    fn boundaries_are_listed_in_order() {
        assert!(Boundary::ALL.is_sorted());
        assert_eq!(Boundary::ALL.iter().filter(|boundary| boundary.is_source()).count(), 14);
        assert!(Boundary::ALL.iter().all(|boundary| boundary.name().starts_with("source") == boundary.is_source()));
    }
}
