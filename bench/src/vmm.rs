//! A process that runs the guest: [`Vm`], of a [`Program`], hostvmm or QEMU, with a QMP socket and the guest's console.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use hostvmm::control::{Address, Client};
use serde_json::{Value, json};

use crate::Arguments;
use crate::guest::Guest;
use crate::measure::BenchError;

/// Longest that a VM may take for anything: starting, the first touch of its memory, a second of its clock.
const PATIENCE: Duration = Duration::from_secs(120);
/// A bandwidth that nothing reaches, in bytes a second.
const UNLIMITED: u64 = 1 << 40;

/// How a guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Over a unix socket, as QEMU does it: without digests.
    Socket,
    /// Over a unix socket; the digest of all memory is finished after the guest runs again.
    Deferred,
    /// Over a unix socket; the digest of all memory is compared before the guest runs again.
    Full,
    /// The files that hold the memory are handed over: there is nothing to digest, it stays where it is.
    Descriptors,
}

impl Way {
    /// Its name in the table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Socket => "unix:",
            Self::Deferred => "unix:, digest deferred",
            Self::Full => "unix:, digest full",
            Self::Descriptors => "fd:",
        }
    }

    fn uri(self, socket: &Path) -> String {
        let scheme = if self == Self::Descriptors { "fd" } else { "unix" };
        format!("{scheme}:{}", socket.display())
    }
}

/// Which VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Ours.
    Hostvmm,
    /// The one it is measured beside.
    Qemu,
}

/// A VMM's executable, and what it is to run.
pub(crate) struct Program {
    /// Which.
    pub(crate) kind: Kind,
    /// The first line of what it says of its version.
    pub(crate) version: String,
    path: PathBuf,
    hostvmm: PathBuf,
    firmware: PathBuf,
    accel: String,
}

impl Program {
    /// hostvmm.
    pub(crate) fn hostvmm(arguments: &Arguments) -> Self {
        Self::new(Kind::Hostvmm, &arguments.hostvmm, arguments, String::new())
    }

    /// QEMU.
    ///
    /// # Errors
    /// [`BenchError::NoQemu`] where it cannot be run.
    pub(crate) fn qemu(arguments: &Arguments) -> Result<Self, BenchError> {
        let output = Command::new(&arguments.qemu)
            .arg("--version")
            .output()
            .map_err(|source| BenchError::NoQemu { program: arguments.qemu.clone(), source })?;
        let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        Ok(Self::new(Kind::Qemu, &arguments.qemu, arguments, version))
    }

    fn new(kind: Kind, path: &Path, arguments: &Arguments, version: String) -> Self {
        Self {
            kind,
            version,
            path: path.to_owned(),
            hostvmm: arguments.hostvmm.clone(),
            firmware: arguments.firmware.clone(),
            accel: arguments.accel.clone(),
        }
    }

    /// hostvmm's executable with its options of a guest; what follows is the subcommand's own.
    pub(crate) fn hostvmm_command(&self, subcommand: &[&str], guest: Vec<String>) -> Command {
        let mut command = Command::new(&self.hostvmm);
        command.args(subcommand).args(["--accel", &self.accel]).arg("--firmware").arg(&self.firmware);
        command.args(guest);
        command
    }

    fn command(&self, guest: &Guest, qmp: &Path, incoming: Option<&str>, files: &Path) -> Result<Command, BenchError> {
        match self.kind {
            Kind::Hostvmm => {
                let mut command = self.hostvmm_command(&["run"], guest.options());
                command.args(["--clock-line", "--qmp"]).arg(format!("unix:{}", qmp.display()));
                if let Some(uri) = incoming {
                    command.args(["--incoming", uri]);
                }
                Ok(command)
            }
            Kind::Qemu => {
                let devicetree = files.join("guest.dtb");
                let mut dump = self.hostvmm_command(&["run"], guest.options());
                dump.arg("--clock-line").arg("--dump-dtb").arg(&devicetree).stdout(Stdio::null());
                let status = dump.status().map_err(|source| self.failed(source))?;
                if !status.success() {
                    return Err(BenchError::Devicetree { status });
                }
                let mut command = Command::new(&self.path);
                let (accel, cpu) = if self.accel == "kvm" { ("kvm", "host") } else { ("tcg", "cortex-a57") };
                command.args(["-machine", "virt,gic-version=3", "-accel", accel, "-cpu", cpu, "-smp", "1"]);
                command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-m"]);
                command.arg(format!("{}M", guest.memory_mib()));
                command.arg("-kernel").arg(&self.firmware).arg("-dtb").arg(&devicetree);
                command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
                if let Some(uri) = incoming {
                    command.args(["-incoming", uri]);
                }
                Ok(command)
            }
        }
    }

    fn failed(&self, source: io::Error) -> BenchError {
        BenchError::Start { program: self.path.clone(), source }
    }
}

/// A running VM. Killed where it is dropped.
pub(crate) struct Vm {
    kind: Kind,
    child: Child,
    client: Client,
    /// Lines that it printed, with the guest's among them.
    lines: Receiver<String>,
}

impl Vm {
    /// Starts `program` with `guest`, or where `incoming` names an address to wait for it there. `name` is of this VM alone.
    ///
    /// # Errors
    /// [`BenchError`].
    pub(crate) fn start(
        program: &Program,
        guest: &Guest,
        incoming: Option<(Way, &Path)>,
        name: &str,
        files: &Path,
    ) -> Result<Self, BenchError> {
        let qmp = files.join(format!("{name}.qmp"));
        let uri = incoming.map(|(way, socket)| way.uri(socket));
        let command = program.command(guest, &qmp, uri.as_deref(), files)?;
        Self::spawn(program, command, qmp)
    }

    /// Starts `command`, which runs `program` with a control socket at `qmp`.
    ///
    /// # Errors
    /// [`BenchError`].
    pub(crate) fn spawn(program: &Program, mut command: Command, qmp: PathBuf) -> Result<Self, BenchError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| program.failed(source))?;
        let (sender, lines) = channel();
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>),
            child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>),
        ];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let address = Address::Unix(qmp);
        let connected = Client::connect_to_starting(&address, PATIENCE, || matches!(child.try_wait(), Ok(None)));
        match connected {
            Ok(client) => Ok(Self { kind: program.kind, child, client, lines }),
            Err(source) => {
                let _ends_either_way = child.kill();
                let _reaped = child.wait();
                let said: Vec<String> = lines.try_iter().collect();
                Err(BenchError::Qmp { said: said.join(" | "), source })
            }
        }
    }

    /// Waits for the guest's clock line of at least `second`; its first one, of second 0, comes after the first touch.
    ///
    /// # Errors
    /// [`BenchError::Silent`] where it does not come.
    pub(crate) fn wait_clock(&self, second: u64) -> Result<u64, BenchError> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match clock_second(&line) {
                    Some(seen) if seen >= second => return Ok(seen),
                    _ => last = line,
                },
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(BenchError::Silent { kind: self.kind, second, last });
                }
            }
        }
    }

    /// Sends the guest to `socket` and waits for the end; gives the reply of `query-migrate`.
    ///
    /// # Errors
    /// [`BenchError::Failed`] where it does not complete.
    pub(crate) fn migrate(&mut self, way: Way, socket: &Path) -> Result<Value, BenchError> {
        let mut parameters = json!({ "max-bandwidth": UNLIMITED });
        match way {
            Way::Deferred | Way::Descriptors => parameters["x-digest"] = json!("deferred"),
            Way::Full => parameters["x-digest"] = json!("full"),
            Way::Socket => {}
        }
        self.execute("migrate-set-parameters", parameters)?;
        self.execute("migrate", json!({ "uri": way.uri(socket) }))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let info = self.execute("query-migrate", json!({}))?;
            match info["status"].as_str() {
                Some("completed") => return Ok(info),
                Some("failed" | "cancelled") => return Err(BenchError::Failed { kind: self.kind, info }),
                _ if Instant::now() > deadline => return Err(BenchError::Failed { kind: self.kind, info }),
                // Looking takes time of the one that is measured.
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Peak of the process's resident memory beyond the guest's that is resident at the end, in bytes.
    pub(crate) fn overhead_bytes(&self) -> u64 {
        let smaps = self.proc("smaps");
        // A mapping's lines begin with its range and name; "Rss:" follows.
        let guest: u64 = match self.kind {
            Kind::Hostvmm => {
                let mut is_guest = false;
                smaps
                    .lines()
                    .filter(|line| {
                        if line.split_once(' ').is_some_and(|(first, _)| first.contains('-')) {
                            is_guest = line.contains("memfd:tidemark");
                        }
                        is_guest && line.starts_with("Rss:")
                    })
                    .flat_map(|line| kibibytes(line, "Rss:"))
                    .sum()
            }
            Kind::Qemu => kibibytes(&smaps, "Rss:").into_iter().max().unwrap_or_default(),
        };
        self.peak_bytes().saturating_sub(guest << 10)
    }

    /// Most bytes that the process ever had resident.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.proc_bytes("status", "VmHWM:")
    }

    /// Bytes that the process has resident, its share of what others have as well.
    pub(crate) fn pss_bytes(&self) -> u64 {
        self.proc_bytes("smaps_rollup", "Pss:")
    }

    /// The first figure behind `key` in a file of the process in /proc (proc_pid_status(5), proc_pid_smaps(5)).
    fn proc_bytes(&self, file: &str, key: &str) -> u64 {
        kibibytes(&self.proc(file), key).first().copied().unwrap_or_default() << 10
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }

    /// Ends the VM and waits for that; hostvmm verifies the guest first, if it has it.
    ///
    /// # Errors
    /// [`BenchError::Ended`] where hostvmm found something wrong.
    pub(crate) fn quit(mut self) -> Result<(), BenchError> {
        // The answer may be lost as the VM ends.
        let _ending = self.client.execute("quit", json!({}));
        let status: ExitStatus = self.child.wait().map_err(BenchError::Wait)?;
        if self.kind == Kind::Hostvmm && !status.success() {
            let said: Vec<String> = self.lines.try_iter().collect();
            return Err(BenchError::Ended { status, said: said.join(" | ") });
        }
        Ok(())
    }

    /// Executes a command.
    ///
    /// # Errors
    /// [`BenchError::Qmp`].
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, BenchError> {
        self.client.execute(command, arguments).map_err(|source| {
            let said: Vec<String> = self.lines.try_iter().collect();
            BenchError::Qmp { said: said.join(" | "), source }
        })
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It has ended already where all went well.
        let _ends_either_way = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hostvmm => "hostvmm",
            Self::Qemu => "qemu",
        })
    }
}

/// The second of a clock line, as QEMU's console has it or as hostvmm echoes it.
fn clock_second(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("clock ")?;
    rest.split_once(" s, counter ")?.0.parse().ok()
}

/// The numbers of KiB behind `key` at the start of a line, as /proc has them.
fn kibibytes(text: &str, key: &str) -> Vec<u64> {
    let number = |line: &str| line.strip_prefix(key)?.trim().trim_end_matches("kB").trim().parse().ok();
    text.lines().filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_lines_are_found_on_both_consoles() {
        assert_eq!(clock_second("guest: clock 3 s, counter 187512345 (line 2)"), Some(3));
        assert_eq!(clock_second("clock 12 s, counter 5 (line 12)\r"), Some(12));
        assert_eq!(clock_second("tidemark firmware: 1 vCPU(s)"), None);
    }

    #[test]
    fn sizes_are_read_as_proc_has_them() {
        assert_eq!(kibibytes("VmHWM:\t  10 kB\nRss:  7 kB\nRss: 8 kB\n", "Rss:"), [7, 8]);
    }
}
