//! Boots a machine, shows the command's output while it runs, and judges what came back: only a guest that powered off
//! by itself after handing over a whole archive with an exit code counts as one that ran the command.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use lab_init::{END_MARKER, EXIT_CODE, OUT, Port, newc};

use crate::command::last_lines;
use crate::error::Error;
use crate::qemu::{self, Machine, Output};

/// How often output is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// How timeout(1) ends after it had to use SIGKILL.
const KILLED: i32 = 128 + 9;

/// Boots `machine`, whose initramfs has the command, in the work directory `directory`, for at most `seconds`. The
/// command's standard output and error go to `sinks` while it runs, and what it left in its directory to `out`.
///
/// # Returns
/// The command's exit code.
///
/// # Errors
/// [`Error::TimedOut`], and [`Error::EndedEarly`] for a panic or anything else that kept the results from coming.
pub(crate) fn run(
    machine: &Machine,
    directory: &Path,
    out: Option<&Path>,
    seconds: u64,
    [stdout, stderr]: [&mut dyn Write; 2],
) -> Result<u8, Error> {
    let output = Output::Files(directory.to_owned());
    let mut child = bounded(seconds)
        .args(qemu::arguments(machine, &output))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(not_started)?;
    let mut streams: [(_, &mut dyn Write); 2] = [
        (Stream::new(&Output::port(directory, Port::Stdout)), stdout),
        (Stream::new(&Output::port(directory, Port::Stderr)), stderr),
    ];
    let status = loop {
        let ended = child.try_wait().map_err(not_started)?;
        // After the end once more, for what came since.
        for (stream, sink) in &mut streams {
            stream.copy_new(sink)?;
        }
        match ended {
            Some(status) => break status,
            None => thread::sleep(LOOK),
        }
    };

    let console_path = Output::console(directory);
    let console = fs::read(&console_path).unwrap_or_default();
    let console = printable(&String::from_utf8_lossy(&console));
    let results = fs::read(Output::port(directory, Port::Results)).unwrap_or_default();
    if let Some(out) = out {
        fs::create_dir_all(out).map_err(Error::file("create", out))?;
        let to = out.join("console.log");
        fs::write(&to, &console).map_err(Error::file("write", &to))?;
    }
    let (code, files) = judge(status, &console, &results, seconds)?;
    if let Some(out) = out {
        for file in files {
            let to = out.join(file.name.strip_prefix(OUT).unwrap_or(file.name).trim_start_matches('/'));
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
            }
            fs::write(&to, file.bytes).map_err(Error::file("write", &to))?;
        }
    }
    Ok(code)
}

/// A shell in `machine` on the caller's terminal, until it is left.
pub(crate) fn shell(machine: &Machine) -> Result<(), Error> {
    let mut qemu = Command::new(qemu::PROGRAM);
    let status = qemu.args(qemu::arguments(machine, &Output::Terminal)).status().map_err(not_started)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Program { program: qemu::PROGRAM.to_owned(), status: status.to_string(), output: String::new() })
}

/// Whether QEMU is there.
pub(crate) fn is_available() -> Result<(), Error> {
    let version = Command::new(qemu::PROGRAM).arg("--version").stdout(Stdio::null()).status();
    version.map(|_| ()).map_err(not_started)
}

/// timeout(1) keeps the bound even if the lab itself is killed. In the foreground, so that an interrupt reaches QEMU.
fn bounded(seconds: u64) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--signal=KILL", &seconds.to_string(), qemu::PROGRAM]);
    command
}

fn not_started(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NoProgram { program: qemu::PROGRAM, package: qemu::PACKAGE },
        _ => Error::Program { program: qemu::PROGRAM.to_owned(), status: error.to_string(), output: String::new() },
    }
}

/// The command's exit code and files, if all that must have come has come.
fn judge<'a>(
    status: ExitStatus,
    console: &str,
    results: &'a [u8],
    seconds: u64,
) -> Result<(u8, Vec<newc::File<'a>>), Error> {
    use std::os::unix::process::ExitStatusExt;
    let early = |why: String| Error::EndedEarly { why, console: last_lines(console) };
    if status.code() == Some(KILLED) || status.signal() == Some(9) {
        return Err(Error::TimedOut { seconds, console: last_lines(console) });
    }
    if !status.success() {
        return Err(early(format!("QEMU: {status}")));
    }
    // QEMU ends as well after a panic as after a power-off.
    if let Some(line) = console.lines().find(|line| line.contains("Kernel panic")) {
        return Err(early(line.to_owned()));
    }
    if !console.lines().any(|line| line.trim() == END_MARKER) {
        return Err(early("no end marker".to_owned()));
    }
    let files = newc::read(results).map_err(|error| early(error.to_string()))?;
    let code = files.iter().find(|file| file.name == EXIT_CODE).map(|file| String::from_utf8_lossy(file.bytes));
    let Some(code) = code.as_deref().and_then(|text| text.trim().parse().ok()) else {
        return Err(early("no exit code".to_owned()));
    };
    Ok((code, files.into_iter().filter(|file| file.name != EXIT_CODE).collect()))
}

/// Firmware and kernel move the cursor and end lines as terminals do.
fn printable(console: &str) -> String {
    console.chars().filter(|char| *char == '\n' || *char == '\t' || !char.is_control()).collect()
}

/// A file that grows.
struct Stream {
    path: std::path::PathBuf,
    file: Option<File>,
}

impl Stream {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None }
    }

    fn copy_new(&mut self, sink: &mut dyn Write) -> Result<(), Error> {
        if self.file.is_none() {
            // QEMU creates it.
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::file("read", &self.path))?;
        // Nobody may be reading; the exit code still counts.
        let _ = sink.write_all(&bytes).and_then(|()| sink.flush());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn archive(code: &str) -> Vec<u8> {
        let mut writer = newc::Writer::new(Vec::new());
        writer.file(EXIT_CODE, false, code.as_bytes()).unwrap();
        writer.file("out/ledger.json", false, b"{}").unwrap();
        writer.finish().unwrap()
    }

    fn console() -> String {
        format!("[ 0.0] booting\n{END_MARKER}\n[ 1.0] reboot: Power down\n")
    }

    fn why(status: i32, console: &str, results: &[u8]) -> String {
        judge(ExitStatus::from_raw(status), console, results, 9).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_run_gives_the_commands_exit_code_and_files() {
        let results = archive("3\n");
        let (code, files) = judge(ExitStatus::from_raw(0), &console(), &results, 9).unwrap();
        assert_eq!((code, files.len(), files[0].name), (3, 1, "out/ledger.json"));
    }

    #[test]
    fn a_panic_is_a_failure_even_after_the_results() {
        let console = console() + "[ 1.1] Kernel panic - not syncing: Attempted to kill init!\n";
        assert!(why(0, &console, &archive("0")).contains("Kernel panic"));
    }

    #[test]
    fn a_run_with_anything_missing_is_a_failure() {
        assert!(why(0, "booting\n", &archive("0")).contains("no end marker"));
        assert!(why(0, &console(), &[]).contains("breaks off"));
        assert!(why(0, &console(), &archive("0")[..200]).contains("breaks off"));
        assert!(why(0, &console(), &archive("none")).contains("no exit code"));
        assert!(why(1 << 8, &console(), &archive("0")).contains("exit status: 1"));
    }

    #[test]
    fn a_guest_that_hangs_is_a_failure() {
        assert!(why(KILLED << 8, "booting\n", &[]).contains("did not end within 9 s"));
    }
}
