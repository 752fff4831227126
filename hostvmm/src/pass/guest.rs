//! What a pass needs of a running guest: the trait [`Guest`], and the ways in which a guest can end a run.
//!
//! [`crate::vcpus`] implements it over real vCPUs; the engine's own tests implement it in a page of code.

use std::time::Duration;

use abi::hypercall::{Command, Outcome};
use abi::{Gpa, GuestRange};

/// A guest whose vCPUs take commands and park between them.
pub trait Guest {
    /// Number of vCPUs.
    fn vcpus(&self) -> usize;

    /// What the guest's own counter says. Where time is instructions, it is the same in every run of a seed.
    fn now(&self) -> Duration;

    /// Gives `command` to every vCPU and waits until all are parked again.
    ///
    /// # Errors
    /// [`GuestError`] where any vCPU ends otherwise than by [`Outcome::Ran`].
    fn run_all(&mut self, command: Command) -> Result<(), GuestError>;

    /// Gives `command` to every vCPU and returns at once.
    ///
    /// # Errors
    /// As [`Self::run_all`].
    fn start_all(&mut self, command: Command) -> Result<(), GuestError>;

    /// Lets the guest run for `interval` of its own time, unless all vCPUs park before; returns whether all are parked.
    /// If all were parked before, waits for `interval` of the host's time, in which the user may end the run.
    /// Where the guest's time is instructions, no vCPU executes anything between two calls.
    ///
    /// # Errors
    /// As [`Self::run_all`].
    fn run_for(&mut self, interval: Duration) -> Result<bool, GuestError>;

    /// Stops every vCPU between two instructions until [`Self::release`]: the host's own work is not the guest's time.
    fn hold(&mut self);

    /// Lets held vCPUs run on, as [`Self::run_for`] allows.
    fn release(&mut self);

    /// Ends the steps that [`Self::start_all`] began at the next step's boundary, lets the vCPUs that are behind catch up
    /// with the one furthest ahead, and waits until all are parked, all after the same number of steps.
    ///
    /// # Errors
    /// As [`Self::run_all`].
    fn stop_steps(&mut self) -> Result<(), GuestError>;

    /// Steps that each vCPU has started.
    ///
    /// # Errors
    /// As [`Self::run_all`].
    fn started(&self) -> Result<Vec<u64>, GuestError>;

    /// Steps that each vCPU has completed; what they wrote is visible.
    ///
    /// # Errors
    /// As [`Self::run_all`].
    fn completed(&self) -> Result<Vec<u64>, GuestError>;

    /// The digest that the parked guest computes over `range`, salted for `pass`.
    ///
    /// # Errors
    /// As [`Self::run_all`].
    fn digest(&mut self, range: GuestRange, pass: u64) -> Result<u64, GuestError>;

    /// Lets the parked guest compare its memory with the plan after `steps` steps of every vCPU.
    ///
    /// # Errors
    /// [`GuestError::SelfCheck`] with the first wrong byte, else as [`Self::run_all`].
    fn self_check(&mut self, steps: u64) -> Result<(), GuestError>;
}

/// Why a guest cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Its memory is not what the plan says.
    #[error("the guest's self-check found {found:#04x} at {at} where the plan says {expected:#04x}")]
    SelfCheck {
        /// Where.
        at: Gpa,
        /// What the plan says.
        expected: u8,
        /// What is there.
        found: u8,
    },
    /// Code that the plan wrote returned something else.
    #[error("vCPU {vcpu}: the code at {at} returned {found:#x} instead of {expected:#x}")]
    WrongResult {
        /// Which vCPU ran it.
        vcpu: usize,
        /// Where the code lies.
        at: Gpa,
        /// What it was written to return.
        expected: u64,
        /// What it returned.
        found: u64,
    },
    /// The workload needs what the machine lacks.
    #[error("the workload needs {0}, which the guest's CPU lacks")]
    Unsupported(&'static str),
    /// It took an exception that it does not expect; the text has the registers and a backtrace.
    #[error("{0}")]
    Exception(String),
    /// It panicked.
    #[error("vCPU {vcpu}: the firmware panicked: {text}")]
    Panic {
        /// Which vCPU.
        vcpu: usize,
        /// Its own words.
        text: String,
    },
    /// It ended, or answered a command with something else than what was asked.
    #[error("vCPU {vcpu}: {what}")]
    Unexpected {
        /// Which vCPU.
        vcpu: usize,
        /// What it did.
        what: String,
    },
    /// It turned its machine off, which only a kernel of its own may.
    #[error("the guest turned the machine off")]
    PoweredOff,
    /// The accelerator cannot run it on.
    #[error("the guest cannot be run on")]
    Backend(#[from] crate::backend::BackendError),
    /// Its vCPUs cannot be controlled.
    #[error("the guest's vCPUs cannot be controlled")]
    Control(#[source] crate::vcpus::VcpusError),
    /// Its progress slot cannot be read.
    #[error("the guest's progress cannot be read")]
    Memory(#[from] crate::memory::MemoryError),
    /// Its heartbeat cannot be read.
    #[error(transparent)]
    Heartbeat(#[from] crate::heartbeat::ReadError),
    /// The user asked for the run's end.
    #[error("interrupted")]
    Interrupted,
}

impl GuestError {
    /// The outcome of a command on `vcpu` that should have been something else.
    pub fn from_outcome(vcpu: usize, outcome: Outcome) -> Self {
        match outcome {
            Outcome::SelfCheckFailed { at, expected, found } => Self::SelfCheck { at, expected, found },
            Outcome::WrongResult { at, expected, found } => Self::WrongResult { vcpu, at, expected, found },
            Outcome::Unsupported { feature } => Self::Unsupported(feature_name(feature)),
            outcome => Self::Unexpected { vcpu, what: format!("answered a command with {outcome:?}") },
        }
    }

    /// What is wrong, in one line: of an exception what it was and where.
    pub fn reason(&self) -> String {
        match self {
            Self::Exception(text) => format!("the guest took an {}", text.lines().next().unwrap_or_default()),
            error => error.to_string(),
        }
    }
}

fn feature_name(feature: u64) -> &'static str {
    use abi::hypercall::{FEATURE_DC_ZVA, FEATURE_GRANULE, FEATURE_HAFDBS, FEATURE_LSE, FEATURE_SIMD};
    match feature {
        FEATURE_HAFDBS => "hardware update of the access flag and dirty state (FEAT_HAFDBS)",
        FEATURE_LSE => "atomic instructions (FEAT_LSE)",
        FEATURE_SIMD => "Advanced SIMD (FEAT_AdvSIMD)",
        FEATURE_DC_ZVA => "DC ZVA",
        FEATURE_GRANULE => "the translation granule asked for",
        _ => "a feature unknown to this hostvmm",
    }
}
