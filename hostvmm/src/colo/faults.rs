//! Faults planted in a pair, to prove that each is survived or found: [`ColoBoundary`] with an [`Action`], and [`Omission`].
//!
//! The boundaries are those of one checkpoint, in the order in which each side passes them; a [`ColoFault`] says in which
//! checkpoint. An omission is a lie about dirty pages, which the digests and the counts of that checkpoint must find.

use std::fmt;
use std::str::FromStr;

use crate::migrate::Action;
use crate::migrate::faults::{Planted, carry_out};

/// A point that each side passes in every checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum ColoBoundary {
    /// Primary: a checkpoint is wanted, the secondary does not know.
    PrimaryRequest,
    /// Primary: asked for it.
    PrimaryRequested,
    /// Primary: the secondary stands still; the primary's guest still runs.
    PrimaryReplied,
    /// Primary: its guest stands still too.
    PrimaryStopped,
    /// Primary: the last pages were sent.
    PrimaryPages,
    /// Primary: everything was sent; the secondary may go on from here.
    PrimarySent,
    /// Primary: the secondary has everything.
    PrimaryReceived,
    /// Primary: the secondary has loaded everything and is exact; not yet committed.
    PrimaryLoaded,
    /// Primary: the commit is on its way, the held output is not yet released.
    PrimaryCommitted,
    /// Primary: the held output is released, the guest does not run yet.
    PrimaryReleased,
    /// Secondary: asked for a checkpoint, its guest still runs.
    SecondaryRequested,
    /// Secondary: its guest stands still, the primary does not know.
    SecondaryStopped,
    /// Secondary: the primary knows.
    SecondaryReplied,
    /// Secondary: all is in the cache, not yet verified.
    SecondaryArrived,
    /// Secondary: verified, the primary not yet told: from here on it goes on from this checkpoint.
    SecondaryVerified,
    /// Secondary: the primary was told; nothing is flushed.
    SecondaryReceived,
    /// Secondary: memory is flushed, the state is the old one.
    SecondaryFlushed,
    /// Secondary: the state is loaded, the primary not yet told.
    SecondaryLoaded,
    /// Secondary: the primary was told.
    SecondaryTold,
    /// Secondary: the commit is here, the guest does not run yet.
    SecondaryCommitted,
    /// Secondary: the guest runs on.
    SecondaryResumed,
}

impl ColoBoundary {
    /// Every boundary, the primary's first.
    pub const ALL: [Self; 21] = [
        Self::PrimaryRequest,
        Self::PrimaryRequested,
        Self::PrimaryReplied,
        Self::PrimaryStopped,
        Self::PrimaryPages,
        Self::PrimarySent,
        Self::PrimaryReceived,
        Self::PrimaryLoaded,
        Self::PrimaryCommitted,
        Self::PrimaryReleased,
        Self::SecondaryRequested,
        Self::SecondaryStopped,
        Self::SecondaryReplied,
        Self::SecondaryArrived,
        Self::SecondaryVerified,
        Self::SecondaryReceived,
        Self::SecondaryFlushed,
        Self::SecondaryLoaded,
        Self::SecondaryTold,
        Self::SecondaryCommitted,
        Self::SecondaryResumed,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PrimaryRequest => "primary-request",
            Self::PrimaryRequested => "primary-requested",
            Self::PrimaryReplied => "primary-replied",
            Self::PrimaryStopped => "primary-stopped",
            Self::PrimaryPages => "primary-pages",
            Self::PrimarySent => "primary-sent",
            Self::PrimaryReceived => "primary-received",
            Self::PrimaryLoaded => "primary-loaded",
            Self::PrimaryCommitted => "primary-committed",
            Self::PrimaryReleased => "primary-released",
            Self::SecondaryRequested => "secondary-requested",
            Self::SecondaryStopped => "secondary-stopped",
            Self::SecondaryReplied => "secondary-replied",
            Self::SecondaryArrived => "secondary-arrived",
            Self::SecondaryVerified => "secondary-verified",
            Self::SecondaryReceived => "secondary-received",
            Self::SecondaryFlushed => "secondary-flushed",
            Self::SecondaryLoaded => "secondary-loaded",
            Self::SecondaryTold => "secondary-told",
            Self::SecondaryCommitted => "secondary-committed",
            Self::SecondaryResumed => "secondary-resumed",
        }
    }

    /// Whether it is the primary that passes it.
    pub fn is_primary(self) -> bool {
        self < Self::SecondaryRequested
    }
}

impl fmt::Display for ColoBoundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A fault to be planted, as `BOUNDARY=ACTION@CHECKPOINT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ColoFault {
    /// Where.
    pub boundary: ColoBoundary,
    /// What.
    pub action: Action,
    /// In which checkpoint, from 1.
    pub checkpoint: u64,
}

impl fmt::Display for ColoFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}@{}", self.boundary, self.action, self.checkpoint)
    }
}

impl FromStr for ColoFault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not BOUNDARY=ACTION@CHECKPOINT");
        let (boundary, rest) = text.split_once('=').ok_or_else(form)?;
        let (action, checkpoint) = rest.split_once('@').ok_or_else(form)?;
        let boundary = ColoBoundary::ALL.into_iter().find(|it| it.name() == boundary).ok_or_else(|| {
            format!("no boundary {boundary:?}; there are {}", ColoBoundary::ALL.map(ColoBoundary::name).join(", "))
        })?;
        let action = Action::ALL
            .into_iter()
            .find(|it| it.name() == action)
            .ok_or_else(|| format!("no action {action:?}; there are {}", Action::ALL.map(Action::name).join(", ")))?;
        let checkpoint = checkpoint.parse().map_err(|_| form())?;
        Ok(Self { boundary, action, checkpoint })
    }
}

impl ColoFault {
    /// Carries out what is planned at `boundary` of `checkpoint`, as far as that is a matter of the process.
    pub(super) fn strike(self, boundary: ColoBoundary, checkpoint: u64) -> Option<Planted> {
        if (self.boundary, self.checkpoint) == (boundary, checkpoint) { carry_out(self.action) } else { None }
    }
}

/// A lie about dirty pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Omission {
    /// The primary forgets the first page that is dirty on it alone.
    Primary,
    /// The secondary forgets the first page that is dirty on it alone.
    Secondary,
    /// Both forget the first page that is dirty on both.
    Both,
    /// The secondary flushes a page that is dirty on neither.
    Extra,
    /// The secondary leaves the first page that it should flush.
    Flush,
}

impl Omission {
    /// Every omission.
    pub const ALL: [Self; 5] = [Self::Primary, Self::Secondary, Self::Both, Self::Extra, Self::Flush];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "omit-primary",
            Self::Secondary => "omit-secondary",
            Self::Both => "omit-both",
            Self::Extra => "flush-extra",
            Self::Flush => "omit-flush",
        }
    }
}

impl fmt::Display for Omission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An omission to be planted, as `OMISSION@CHECKPOINT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlantedOmission {
    /// What.
    pub omission: Omission,
    /// From which checkpoint on, from 1: the first in which there is such a page.
    pub checkpoint: u64,
}

impl fmt::Display for PlantedOmission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.omission, self.checkpoint)
    }
}

impl FromStr for PlantedOmission {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (omission, checkpoint) =
            text.split_once('@').ok_or_else(|| format!("{text:?} is not OMISSION@CHECKPOINT"))?;
        let omission = Omission::ALL.into_iter().find(|it| it.name() == omission).ok_or_else(|| {
            format!("no omission {omission:?}; there are {}", Omission::ALL.map(Omission::name).join(", "))
        })?;
        let checkpoint = checkpoint.parse().map_err(|_| format!("{checkpoint:?} is no checkpoint's number"))?;
        Ok(Self { omission, checkpoint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_back() {
        for boundary in ColoBoundary::ALL {
            for action in Action::ALL {
                let plan = ColoFault { boundary, action, checkpoint: 7 };
                assert_eq!(plan.to_string().parse(), Ok(plan));
            }
        }
        for omission in Omission::ALL {
            let plan = PlantedOmission { omission, checkpoint: 3 };
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
        assert!("primary-sent=cut".parse::<ColoFault>().is_err());
        assert!("nowhere=cut@1".parse::<ColoFault>().unwrap_err().contains("secondary-told"));
        assert!("omit-nothing@1".parse::<PlantedOmission>().unwrap_err().contains("flush-extra"));
    }

    #[test]
    fn boundaries_are_listed_in_order() {
        assert!(ColoBoundary::ALL.is_sorted());
        let named = |boundary: &ColoBoundary| boundary.name().starts_with("primary") == boundary.is_primary();
        assert!(ColoBoundary::ALL.iter().all(named));
    }
}
