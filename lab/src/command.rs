//! Running other programs to their end.

use std::io::ErrorKind;
use std::process::{Child, Command, Stdio};

use crate::error::Error;

const KEPT_LINES: usize = 20;

/// Runs `command` and gives its standard output; what it prints is shown only if it fails.
///
/// # Errors
/// [`Error::NoProgram`] with `package` if it is not installed, [`Error::Program`] if it fails.
pub(crate) fn output(command: &mut Command, program: &'static str, package: &'static str) -> Result<String, Error> {
    let ended = command.stdin(Stdio::null()).output();
    let ended = ended.map_err(|error| not_started(&error, program, package))?;
    if !ended.status.success() {
        let printed = [ended.stdout, ended.stderr].concat();
        return Err(failed(command, &ended.status.to_string(), &String::from_utf8_lossy(&printed)));
    }
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Runs `command` with its output going where the lab's goes.
///
/// # Errors
/// As [`output`].
pub(crate) fn visibly(command: &mut Command, program: &'static str, package: &'static str) -> Result<(), Error> {
    start(command, program, package)?.wait()
}

/// A program that runs beside the lab; one that is not waited for is ended.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    program: &'static str,
}

/// Starts `command` with its output going where the lab's goes.
///
/// # Errors
/// [`Error::NoProgram`] with `package` if it is not installed.
pub(crate) fn start(command: &mut Command, program: &'static str, package: &'static str) -> Result<Running, Error> {
    let child = command.stdin(Stdio::null()).spawn().map_err(|error| not_started(&error, program, package))?;
    Ok(Running { child, program })
}

impl Running {
    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Program`] if it fails.
    pub(crate) fn wait(mut self) -> Result<(), Error> {
        let failed =
            |status: String| Error::Program { program: self.program.to_owned(), status, output: String::new() };
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(status.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail where it has ended, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn not_started(error: &std::io::Error, program: &'static str, package: &'static str) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::NoProgram { program, package },
        _ => Error::Program { program: program.to_owned(), status: error.to_string(), output: String::new() },
    }
}

fn failed(command: &Command, status: &str, printed: &str) -> Error {
    Error::Program {
        program: command.get_program().to_string_lossy().into_owned(),
        status: status.to_owned(),
        output: last_lines(printed),
    }
}

/// The end of a text, which is where programs say why.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(KEPT_LINES)..].join("\n")
}
