//! One VM of a scenario: a process of this program under remote control ([`Side`]).

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use super::clock_lines::ClockLine;
use super::far::{Afar, Far};
use super::guest_lines::GuestLines;
use super::point_lines::PointLine;
use super::{Place, Watch};
use crate::control::types::{RunState, TidemarkStatus};
use crate::control::{Address, Client, ClientError};
use crate::migrate::HostTime;
use crate::report::Ledger;
use crate::report::ledger::LedgerError;

/// How long a reply may take; the checksum of a large region is the slowest.
const REPLY: Duration = Duration::from_secs(60);
/// How long a reply that need not come is waited for.
const NO_REPLY: Duration = Duration::from_millis(5);
/// How often a process that may be stopped is told to go on.
const ALARM: Duration = Duration::from_millis(5);
/// Lines of a VM's standard error that are kept for a report.
const LINES_KEPT: usize = 40;
/// Of these, as many are told.
const LINES_TOLD: usize = 16;
/// Most clock lines that are kept: a day's.
const CLOCK_LINES: usize = 86_400;
/// Most lines about points that are kept: several times what a guest prints.
const POINT_LINES: usize = 1024;
/// A line that is longer is cut here; a guest may print without end.
const LINE_BYTES: u64 = 16 << 10;

/// Why a scenario could not be driven to its end.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// No directory, port or pipe to be had.
    #[error("cannot make a place for the VMs to meet: {0}")]
    Place(#[source] io::Error),
    /// A process could not be started.
    #[error("cannot start VM {side}: {source}")]
    Start {
        /// Which.
        side: String,
        /// Why.
        source: io::Error,
    },
    /// A process ended that was not to.
    #[error("VM {side} ended with {status}{}", said(.lines))]
    Ended {
        /// Which.
        side: String,
        /// How.
        status: ExitStatus,
        /// The end of its standard error.
        lines: Vec<String>,
    },
    /// A command was refused, or nobody knows.
    #[error("VM {side}, {command}: {source}{}", said(.lines))]
    Command {
        /// Which VM.
        side: String,
        /// Which command.
        command: String,
        /// Why.
        source: Box<ClientError>,
        /// The end of its standard error.
        lines: Vec<String>,
    },
    /// Something did not come.
    #[error("waited in vain for {what} for {} s{}", waited.as_secs_f64(), shown(.found))]
    TimedOut {
        /// For what.
        what: String,
        /// For how long.
        waited: Duration,
        /// What could be seen of it.
        found: Vec<String>,
    },
    /// A process left no ledger.
    #[error("VM {side} left no ledger: {source}")]
    NoLedger {
        /// Which.
        side: String,
        /// Why.
        source: Box<LedgerError>,
    },
    /// The user ended the run.
    #[error("interrupted")]
    Interrupted,
}

fn shown(found: &[String]) -> String {
    found.iter().map(|line| format!("; {line}")).collect()
}

fn said(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!("; it said: {}", lines.join(" | ")) }
}

impl PairError {
    /// The exit status of a VM that could not do what was asked of it.
    pub(in crate::verify) fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Ended { status, .. } => status.code(),
            _ => None,
        }
    }
}

/// What a VM has printed.
#[derive(Debug, Default)]
struct Printed {
    last: VecDeque<String>,
    clock: Vec<ClockLine>,
    guest: GuestLines,
    points: Vec<PointLine>,
}

/// A VM in a process of its own; killed when this is dropped.
#[derive(Debug)]
pub(in crate::verify) struct Side {
    name: String,
    process: Child,
    /// The process itself, whatever its number is later used for.
    handle: Arc<OwnedFd>,
    printed: Arc<Mutex<Printed>>,
    reader: Option<JoinHandle<()>>,
    address: Address,
    ledger: PathBuf,
    client: Option<Client>,
    status: Option<ExitStatus>,
    /// Its guest's steps are those that it prints.
    is_kernel: bool,
    /// Of a VM on another host, whose process here is the command that reaches it.
    afar: Option<Afar>,
    /// See [`Stay::due`](super::clock_lines::Stay::due).
    due: Option<HostTime>,
}

/// What a VM has left behind.
#[derive(Debug)]
pub(in crate::verify) struct Ended {
    /// How it ended.
    pub(in crate::verify) status: ExitStatus,
    /// Its ledger, where it wrote one.
    pub(in crate::verify) ledger: Result<Ledger, PairError>,
    /// The clock lines that it printed.
    pub(in crate::verify) clock: Vec<ClockLine>,
    /// What a guest without a plan said of itself.
    pub(in crate::verify) guest: GuestLines,
    /// What it printed of the points at which it asked to be moved.
    pub(in crate::verify) points: Vec<PointLine>,
    /// By when every second that was due in the clock lines had been printed; see [`Stay::due`](super::clock_lines::Stay::due).
    pub(in crate::verify) due: Option<HostTime>,
    /// The end of its standard error.
    pub(in crate::verify) lines: Vec<String>,
}

impl Side {
    /// Starts `hostvmm run` with `options` as VM `name`.
    ///
    /// # Errors
    /// [`PairError::Start`].
    pub(in crate::verify) fn start(place: &Place, name: &str, options: &[String]) -> Result<Self, PairError> {
        let failed = |source| PairError::Start { side: name.to_owned(), source };
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("run").args(options).arg("--qmp").arg(format!("unix:{}", socket(place, name).display()));
        command.arg("--json").arg(ledger(place, name));
        Self::spawn(place, name, command, options, None)
    }

    /// The same on the host that `far` reaches.
    ///
    /// # Errors
    /// [`PairError::Start`].
    pub(in crate::verify) fn start_far(
        place: &Place,
        far: &Far,
        name: &str,
        options: &[String],
    ) -> Result<Self, PairError> {
        Self::spawn(place, name, far.run(name, options), options, Some(Afar::new(far)))
    }

    fn spawn(
        place: &Place,
        name: &str,
        mut command: Command,
        options: &[String],
        afar: Option<Afar>,
    ) -> Result<Self, PairError> {
        let failed = |source| PairError::Start { side: name.to_owned(), source };
        let mut process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
        let pid = Pid::from_child(&process);
        let handle = pidfd_open(pid, PidfdFlags::empty()).map(Arc::new).map_err(|error| failed(error.into()))?;
        let printed = Arc::<Mutex<Printed>>::default();
        let reader = process.stderr.take().map(|stderr| {
            let printed = Arc::clone(&printed);
            std::thread::spawn(move || keep_lines(stderr, &printed))
        });
        let address = Address::Unix(socket(place, name));
        let (name, ledger) = (name.to_owned(), ledger(place, name));
        let (client, status, due) = (None, None, None);
        let is_kernel = options.iter().any(|option| option == "--kernel");
        Ok(Self { name, process, handle, printed, reader, address, ledger, client, status, is_kernel, afar, due })
    }

    /// Its name.
    pub(in crate::verify) fn name(&self) -> &str {
        &self.name
    }

    /// The last lines that it printed.
    pub(in crate::verify) fn lines(&self) -> Vec<String> {
        let printed = lock(&self.printed);
        printed.last.iter().skip(printed.last.len().saturating_sub(LINES_TOLD)).cloned().collect()
    }

    /// Executes a command.
    ///
    /// # Errors
    /// [`PairError::Ended`] where the process has, else [`PairError::Command`].
    pub(in crate::verify) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, PairError> {
        self.connect()?;
        let result = self.client.as_mut().map(|client| client.execute(command, arguments));
        match result {
            Some(Ok(value)) => Ok(value),
            Some(Err(source)) => Err(self.broken(command, source)),
            None => Err(self.broken(command, ClientError::Closed { address: self.address.clone() })),
        }
    }

    /// Sends a command to a process that is stopped, or that the command stops: it is done when the process goes on, and
    /// nobody waits for the answer.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub(in crate::verify) fn leave(&mut self, command: &str, arguments: Value) -> Result<(), PairError> {
        self.connect()?;
        if let Some(client) = &mut self.client {
            client.set_timeout(NO_REPLY);
            let result = client.execute(command, arguments);
            client.set_timeout(REPLY);
            if let Err(source) = result
                && !matches!(source, ClientError::TimedOut { .. })
            {
                return Err(self.broken(command, source));
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), PairError> {
        if self.client.is_none()
            && let Some(afar) = &mut self.afar
        {
            let connected = afar.connect(&self.name, &self.address, REPLY);
            match connected {
                Ok(client) => self.client = Some(client),
                Err(source) => return Err(self.broken("connect", source)),
            }
        }
        if self.client.is_none() {
            let process = &mut self.process;
            let is_alive = || matches!(process.try_wait(), Ok(None));
            match Client::connect_to_starting(&self.address, REPLY, is_alive) {
                Ok(mut client) => {
                    client.set_timeout(REPLY);
                    self.client = Some(client);
                }
                Err(source) => return Err(self.broken("connect", source)),
            }
        }
        Ok(())
    }

    /// The error of a command: what the process ended with says more than a connection that broke.
    fn broken(&mut self, command: &str, source: ClientError) -> PairError {
        let gone = !matches!(source, ClientError::Refused { .. } | ClientError::TimedOut { .. });
        if gone {
            self.client = None;
            // A process that ends closes its sockets first.
            let deadline = Instant::now() + Duration::from_secs(1);
            while Instant::now() < deadline {
                if let Some(status) = self.ended() {
                    self.join_reader();
                    return PairError::Ended { side: self.name.clone(), status, lines: self.lines() };
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let (side, command, source) = (self.name.clone(), command.to_owned(), Box::new(source));
        PairError::Command { side, command, source, lines: self.lines() }
    }

    /// Steps, log, dirty history.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub(in crate::verify) fn state(&mut self) -> Result<TidemarkStatus, PairError> {
        let value = self.execute("x-tidemark-status", json!({}))?;
        let read = serde_json::from_value(value);
        read.map_err(|error| {
            let (address, what) = (self.address.clone(), error.to_string());
            self.broken("x-tidemark-status", ClientError::Protocol { address, what })
        })
    }

    /// Whether the guest runs here; false where the process has ended.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub(in crate::verify) fn runs(&mut self) -> Result<bool, PairError> {
        match self.execute("query-status", json!({})) {
            Ok(status) => Ok(status["running"] == true),
            Err(PairError::Ended { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What `query-migrate` says.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub(in crate::verify) fn migration(&mut self) -> Result<Value, PairError> {
        self.execute("query-migrate", json!({}))
    }

    /// Steps that each vCPU has completed; of a kernel those that it last told of, nothing before.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub(in crate::verify) fn steps(&mut self) -> Result<Vec<u64>, PairError> {
        let state = self.state()?;
        Ok(self.steps_of(&state))
    }

    fn steps_of(&self, state: &TidemarkStatus) -> Vec<u64> {
        if self.is_kernel {
            return lock(&self.printed).guest.steps().into_iter().collect();
        }
        state.vcpus.iter().map(|vcpu| vcpu.completed).collect()
    }

    /// Waits until every vCPU has completed `more` steps from now on. In vain, the error tells where the vCPUs stand.
    ///
    /// # Errors
    /// As [`Self::execute`], and those of the wait.
    pub(in crate::verify) fn wait_steps(&mut self, watch: &Watch<'_>, more: u64) -> Result<(), PairError> {
        let what = format!("{more} steps of VM {}", self.name);
        let mut goal: Option<(HostTime, Vec<u64>)> = None;
        let waited = watch.until(&what, || {
            let asked = HostTime::now();
            let state = self.state()?;
            if state.status != RunState::Running {
                return Ok(None);
            }
            let steps = self.steps_of(&state);
            if steps.is_empty() {
                // A kernel boots, or its next line has not come.
                return Ok(None);
            }
            let (_, goal) = goal.get_or_insert_with(|| (asked, steps.iter().map(|step| step + more).collect()));
            Ok(steps.iter().zip(goal).all(|(step, goal)| *step >= *goal).then_some(()))
        });
        // The firmware looks at its clock between any two.
        if waited.is_ok() && more >= 2 && !self.is_kernel {
            self.due = goal.map(|(asked, _)| asked);
        }
        match waited {
            Err(PairError::TimedOut { what, waited, .. }) => {
                Err(PairError::TimedOut { what, waited, found: self.standing() })
            }
            waited => waited,
        }
    }

    /// Where the guest and each of its vCPUs stand, in lines.
    fn standing(&mut self) -> Vec<String> {
        let state = self.state().map(|state| {
            let steps = self.steps_of(&state);
            format!("the guest is {}, steps completed {steps:?}", state.status.name())
        });
        let mut lines = vec![state.unwrap_or_else(|error| error.to_string())];
        match self.execute("x-tidemark-vcpus", json!({})) {
            Ok(answer) => {
                let vcpus = answer["vcpus"].as_array().into_iter().flatten();
                lines.extend(vcpus.filter_map(Value::as_str).map(str::to_owned));
            }
            Err(error) => lines.push(error.to_string()),
        }
        lines
    }

    /// Steps that all vCPUs together complete in a second, measured over `time`.
    ///
    /// # Errors
    /// As [`Self::execute`], and those of the wait.
    pub(in crate::verify) fn speed(&mut self, watch: &Watch<'_>, time: Duration) -> Result<f64, PairError> {
        let begun = Instant::now();
        let before: u64 = self.steps()?.iter().sum();
        watch.pass(time)?;
        let after: u64 = self.steps()?.iter().sum();
        Ok(after.saturating_sub(before) as f64 / begun.elapsed().as_secs_f64())
    }

    /// How the process ended, if it has.
    pub(in crate::verify) fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.process.try_wait().ok().flatten();
        }
        self.status
    }

    /// The process's number.
    pub(in crate::verify) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Most bytes that it ever had resident; `None` where the host does not say.
    pub(in crate::verify) fn peak_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        // proc_pid_status(5): VmHWM, in KiB.
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    }

    /// Whether the process is stopped by a signal.
    pub(in crate::verify) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap_or_default();
        // The state follows the name, which stands in parentheses and may hold anything (proc_pid_stat(5)).
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
    }

    /// Lets a stopped process go on.
    pub(in crate::verify) fn go_on(&self) {
        go_on(&self.handle);
    }

    /// Lets the process go on whenever it is stopped, until what is returned is dropped: a process may stop between a
    /// command's arrival and its reply, which would never come.
    pub(in crate::verify) fn keep_awake(&self) -> Awake {
        let (handle, asleep) = (Arc::clone(&self.handle), Arc::<AtomicBool>::default());
        let until = Arc::clone(&asleep);
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                go_on(&handle);
                std::thread::park_timeout(ALARM);
            }
        });
        Awake { asleep, thread: Some(thread) }
    }

    /// Asks the process to end, which lets a VM that has the guest verify it, and returns what it leaves.
    ///
    /// # Errors
    /// As [`Self::execute`], and those of the wait.
    pub(in crate::verify) fn quit(mut self, watch: &Watch<'_>) -> Result<Ended, PairError> {
        match self.execute("quit", json!({})) {
            Ok(_) | Err(PairError::Ended { .. }) => self.wait(watch),
            Err(error) => Err(error),
        }
    }

    /// Waits for a process that ends by itself.
    ///
    /// # Errors
    /// Those of the wait.
    pub(in crate::verify) fn wait(mut self, watch: &Watch<'_>) -> Result<Ended, PairError> {
        let what = format!("the end of VM {}", self.name);
        let status = watch.until(&what, || Ok(self.ended()))?;
        self.join_reader();
        if let Some(afar) = &self.afar
            && let Ok(text) = afar.ledger(&self.name)
        {
            // One that is not there is missed below.
            let _ = std::fs::write(&self.ledger, text);
        }
        let side = self.name.clone();
        let ledger = Ledger::load(&self.ledger).map_err(|error| PairError::NoLedger { side, source: Box::new(error) });
        let mut printed = lock(&self.printed);
        let (clock, points) = (std::mem::take(&mut printed.clock), std::mem::take(&mut printed.points));
        let guest = printed.guest.clone();
        drop(printed);
        Ok(Ended { status, ledger, clock, guest, points, due: self.due, lines: self.lines() })
    }

    fn join_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            // It panics no more than the program does; what it has kept is there all the same.
            let _ = reader.join();
        }
    }
}

fn socket(place: &Place, name: &str) -> PathBuf {
    place.path(&format!("{name}.qmp"))
}

fn ledger(place: &Place, name: &str) -> PathBuf {
    place.path(&format!("{name}.json"))
}

/// Sees to it that a process is not stopped for long; see [`Side::keep_awake`].
#[derive(Debug)]
pub(in crate::verify) struct Awake {
    asleep: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.asleep.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot panic.
            let _ = thread.join();
        }
    }
}

fn go_on(handle: &OwnedFd) {
    // One that has ended needs nothing.
    let _ = pidfd_send_signal(handle, Signal::CONT);
}

impl Drop for Side {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

fn lock(printed: &Mutex<Printed>) -> MutexGuard<'_, Printed> {
    printed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads lines until the process closes its standard error.
fn keep_lines(stderr: impl Read, printed: &Mutex<Printed>) {
    let mut reader = BufReader::new(stderr);
    loop {
        let mut bytes = Vec::new();
        match reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let seen = HostTime::now();
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        let mut printed = lock(printed);
        printed.guest.note(&line);
        if let Some(line) = PointLine::parse(&line) {
            if printed.points.len() < POINT_LINES {
                printed.points.push(line);
            }
            continue;
        }
        match ClockLine::parse(&line, seen) {
            Some(line) if printed.clock.len() < CLOCK_LINES => printed.clock.push(line),
            Some(_) => {}
            None => {
                if printed.last.len() == LINES_KEPT {
                    printed.last.pop_front();
                }
                printed.last.push_back(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_lines_are_kept_apart_and_the_rest_is_bounded() {
        let printed = Mutex::default();
        let mut text = String::new();
        for n in 0..1000 {
            text.push_str(&format!("line {n}\nguest: clock {n} s, counter 1 (line {n})\n"));
        }
        keep_lines(text.as_bytes(), &printed);
        let printed = printed.into_inner().unwrap();
        assert_eq!((printed.last.len(), printed.clock.len()), (LINES_KEPT, 1000));
        assert_eq!(printed.last.back().unwrap(), "line 999");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let printed = Mutex::default();
        keep_lines(io::repeat(b'x').take(1 << 20), &printed);
        assert!(printed.into_inner().unwrap().last.iter().all(|line| line.len() as u64 <= LINE_BYTES));
    }
}
