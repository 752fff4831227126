//! A VM under remote control for tests: `hostvmm run --qmp` in the background, commanded by hostvmm's own clients.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Run, hostvmm, run};

/// Any wait: far more than anything takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether somebody listens at a socket file, which is there a moment earlier.
pub fn listens(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// A VM; killed when this is dropped.
pub struct Vm {
    process: Child,
    socket: PathBuf,
    stderr: PathBuf,
    ledger: PathBuf,
}

impl Vm {
    /// Starts `hostvmm run` with `options` and waits for its control socket; its files are `name.*` in `directory`.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn start<S: AsRef<OsStr>>(directory: &Path, name: &str, options: impl IntoIterator<Item = S>) -> Self {
        let file = |suffix: &str| directory.join(format!("{name}.{suffix}"));
        let [socket, stderr, ledger] = [file("qmp"), file("stderr"), file("json")];
        let process = Command::new(hostvmm())
            .arg("run")
            .args(options)
            .arg("--qmp")
            .arg(format!("unix:{}", socket.display()))
            .arg("--json")
            .arg(&ledger)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&stderr).expect("a file for standard error"))
            .spawn()
            .expect("hostvmm starts");
        let mut vm = Self { process, socket, stderr, ledger };
        vm.until("its control socket", |vm| listens(&vm.socket).then_some(()));
        vm
    }

    /// Waits until `look` has an answer, and panics with all that the VM has said if it has none.
    ///
    /// # Panics
    /// After a minute, and where the process ends.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(answer) = look(self) {
                return answer;
            }
            let ended = self.process.try_wait().expect("the process can be waited for");
            assert!(ended.is_none(), "waiting for {what}: it ended with {ended:?}: {}", self.stderr());
            assert!(begun.elapsed() < PATIENCE, "no {what}: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs a client of the VM: `hostvmm ARGUMENTS --qmp SOCKET`.
    #[track_caller]
    pub fn client(&self, arguments: &[&str]) -> Run {
        let address = format!("unix:{}", self.socket.display());
        run(arguments.iter().copied().chain(["--qmp", address.as_str()]), false)
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has said so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Lets it end as Ctrl-C does, and returns what it left: a VM that has the guest verifies it.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn end(self) -> Run {
        let kill = Command::new("kill").args(["-INT", &self.process.id().to_string()]).status();
        assert!(kill.expect("kill starts").success());
        self.wait()
    }

    /// Waits for its own end.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn wait(mut self) -> Run {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.process.try_wait().expect("the process can be waited for") {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        };
        let ledger = std::fs::read(&self.ledger).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Run {
            status: status.code().unwrap_or(-1),
            stdout: String::new(),
            stderr: self.stderr(),
            ledger: ledger.unwrap_or(Value::Null),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
