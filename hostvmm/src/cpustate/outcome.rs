//! What a translation comes to: [`Translation`] with its [`Note`]s, or a [`Refusal`] with every [`Reason`]. After the restore
//! [`Translation::unheld`] compares what was written with what the destination holds.

use std::fmt;

use thiserror::Error;

use super::Lack;
use super::table::lookup;

/// Who lists a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The vCPU that is moved.
    Source,
    /// The vCPU that it becomes.
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// How to restore a vCPU.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Translation {
    /// Id and value, to be written one after the other.
    pub writes: Vec<(u64, u128)>,
    /// Everything that was not simply copied, to be logged.
    pub notes: Vec<Note>,
}

/// A register that holds another value than was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unheld {
    /// The register's id.
    pub id: u64,
    /// What was written.
    pub written: u128,
    /// What it holds; `None` if it was not found.
    pub holds: Option<u128>,
}

impl Translation {
    /// The writes that the destination, read back as `found`, does not hold: what reserved bits and constants took away. Views that
    /// clear hold what is left and are not compared.
    pub fn unheld(&self, found: &[(u64, u128)]) -> Vec<Unheld> {
        let holds = |id| found.iter().find(|(found, _)| *found == id).map(|(_, value)| *value);
        let clears = |id| lookup(id).is_some_and(|entry| matches!(entry.rule, super::Rule::Clears { .. }));
        let writes = self.writes.iter().filter(|(id, _)| !clears(*id));
        let compared = writes.map(|&(id, written)| Unheld { id, written, holds: holds(id) });
        compared.filter(|unheld| unheld.holds != Some(unheld.written)).collect()
    }
}

impl fmt::Display for Unheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, written, holds } = self;
        write!(f, "{}: {written:#x} was written, ", Name(*id))?;
        match holds {
            Some(holds) => write!(f, "it holds {holds:#x}"),
            None => f.write_str("it is not there"),
        }
    }
}

/// One line of the log, about one register.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// The register's id.
    pub id: u64,
    /// What became of it.
    pub kind: NoteKind,
}

/// What became of a register that was not simply copied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoteKind {
    /// Both sides have it, the values differ, and the destination's stays.
    NotWritten {
        /// The source's value.
        source: u128,
        /// The destination's.
        destination: u128,
        /// The rule's words.
        why: &'static str,
    },
    /// Only some of its bits were copied, and others differ.
    Masked {
        /// The bits that differ.
        bits: u128,
        /// The rule's words.
        why: &'static str,
    },
    /// The destination shows the guest another constant than the source, and lacks nothing.
    ShownOtherwise {
        /// What the guest was shown.
        source: u128,
        /// What it will be shown.
        destination: u128,
    },
    /// The destination lacks what the guest may rely on, and the policy lets it pass.
    Lacks(Lack),
    /// The destination has none.
    LeftBehind {
        /// The source's value.
        value: u128,
        /// The rule's words.
        why: &'static str,
    },
    /// The source has none: the reset value was written.
    Reset {
        /// Which.
        value: u128,
    },
    /// The source has none, and the destination's stays.
    Kept {
        /// The destination's value.
        value: u128,
        /// The rule's words.
        why: &'static str,
    },
    /// The source has none: it was made of its views.
    Composed {
        /// Their ids.
        views: Vec<u64>,
        /// The bits that no view showed, which have their reset value.
        reset_bits: u128,
    },
    /// The destination has none, and has its views, which were written.
    Split {
        /// Their ids.
        views: Vec<u64>,
    },
    /// A view that differs from its generator, whose value counts.
    Overruled {
        /// The generator's id.
        generator: u64,
        /// The view's value.
        view: u128,
    },
    /// Not in the table, and left behind.
    Unknown {
        /// The source's value.
        source: Option<u128>,
        /// The destination's, which stays.
        destination: Option<u128>,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |ids: &[u64]| ids.iter().map(|id| Name(*id).to_string()).collect::<Vec<_>>().join(", ");
        if let NoteKind::Lacks(lack) = &self.kind {
            return lack.fmt(f);
        }
        write!(f, "{}: ", Name(self.id))?;
        match &self.kind {
            NoteKind::NotWritten { source, destination, why } => {
                write!(f, "{source:#x} is not written over {destination:#x}: {why}")
            }
            NoteKind::Masked { bits, why } => write!(f, "bits {bits:#x} stay the destination's: {why}"),
            NoteKind::ShownOtherwise { source, destination } => {
                write!(f, "the guest was shown {source:#x} and will be shown {destination:#x}")
            }
            NoteKind::Lacks(_) => Ok(()),
            NoteKind::LeftBehind { value, why } => write!(f, "{value:#x} is left behind: {why}"),
            NoteKind::Reset { value } => write!(f, "the source has none, it gets its reset value {value:#x}"),
            NoteKind::Kept { value, why } => write!(f, "the source has none, {value:#x} stays: {why}"),
            NoteKind::Composed { views, reset_bits: 0 } => write!(f, "made of {}", names(views)),
            NoteKind::Composed { views, reset_bits } => {
                write!(f, "made of {}, bits {reset_bits:#x} of its reset value", names(views))
            }
            NoteKind::Split { views } => write!(f, "the destination has it as {}", names(views)),
            NoteKind::Overruled { generator, view } => {
                write!(f, "a view that says {view:#x}, other than {}, which counts", Name(*generator))
            }
            NoteKind::Unknown { source, destination } => {
                let value = |value: &Option<u128>| value.map_or("none".to_owned(), |value| format!("{value:#x}"));
                write!(f, "unknown and left alone: source {}, destination {}", value(source), value(destination))
            }
        }
    }
}

/// A register's name, and its id where the table has no name.
pub(super) struct Name(pub(super) u64);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match lookup(self.0) {
            Some(entry) => f.write_str(&entry.name),
            None => write!(f, "register {:#018x}", self.0),
        }
    }
}

/// One reason why a vCPU cannot be moved.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Reason {
    /// Not in the table.
    #[error(
        "register {id:#018x} of the {side} is unknown, its value {value:#x}; --unknown-registers ignore-zero or ignore leaves it"
    )]
    Unknown {
        /// Who lists it.
        side: Side,
        /// Which.
        id: u64,
        /// Its value there.
        value: u128,
    },
    /// The destination has none, and it cannot be left behind.
    #[error("{}: the destination has none, and the guest's {value:#x} {why}", Name(*id))]
    Missing {
        /// Which.
        id: u64,
        /// The source's value.
        value: u128,
        /// Why it cannot be left behind.
        why: &'static str,
    },
    /// A constant that must be the same and is not.
    #[error("{}: {source_value:#x} at the source and {destination_value:#x} at the destination, which must be the same", Name(*id))]
    Constant {
        /// Which.
        id: u64,
        /// The source's value.
        source_value: u128,
        /// The destination's.
        destination_value: u128,
    },
    /// The guest may rely on what the destination lacks.
    #[error("{0}")]
    Lacks(Lack),
    /// The table says no.
    #[error("{} of the {side}: {why}", Name(*id))]
    Refused {
        /// Who lists it.
        side: Side,
        /// Which.
        id: u64,
        /// The rule's words.
        why: &'static str,
    },
    /// Listed twice.
    #[error("{} is listed twice by the {side}", Name(*id))]
    Twice {
        /// By whom.
        side: Side,
        /// Which.
        id: u64,
    },
    /// A value wider than its register.
    #[error("{} of the {side} cannot be {value:#x}: its id says how wide it is", Name(*id))]
    BadValue {
        /// Who lists it.
        side: Side,
        /// Which.
        id: u64,
        /// The value.
        value: u128,
    },
    /// No vCPU has so many.
    #[error("the {side} lists {count} registers, more than any vCPU has")]
    TooMany {
        /// Who.
        side: Side,
        /// How many.
        count: usize,
    },
}

/// Why a vCPU cannot be moved: every reason, in the order of the lists.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub struct Refusal {
    /// At least one.
    pub reasons: Vec<Reason>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the vCPU's registers cannot be moved: ")?;
        let mut gap = "";
        self.reasons.iter().try_for_each(|reason| write!(f, "{}{reason}", std::mem::replace(&mut gap, "; ")))
    }
}
