//! Several commands in one boot, each with a bound of its own: one that hangs or fails does not take the others with it.
//!
//! The guest runs a shell script of them; each command's output and exit code come back as files among its own.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The exit code of a command that timeout(1) had to end by SIGKILL.
pub(crate) const ENDED_BY_TIMEOUT: i32 = 128 + 9;
/// The file that says which kernel the guest had, as `uname -r` does.
const KERNEL: &str = "kernel";

/// A command of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    /// What its files begin with: letters, digits and `-`.
    pub(crate) name: String,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// It is ended after this long.
    pub(crate) seconds: u64,
}

/// What a job left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    /// Standard output and error.
    pub(crate) output: String,
}

/// The script that runs the jobs in turn, and tells of each on standard output.
pub(crate) fn script(jobs: &[Job]) -> String {
    let mut text = format!(
        "uname -r >{KERNEL}\n\
         job() {{\n\
         name=$1 seconds=$2; shift 2\n\
         timeout -s KILL \"$seconds\" \"$@\" >\"$name.txt\" 2>&1; code=$?\n\
         echo \"$code\" >\"$name.code\"; echo \"$name: exit code $code\"\n\
         }}\n"
    );
    for job in jobs {
        write!(text, "job {} {}", job.name, job.seconds).expect("writing to a String cannot fail");
        for argument in &job.command {
            write!(text, " {}", quoted(argument)).expect("writing to a String cannot fail");
        }
        text.push('\n');
    }
    text
}

/// The guest's kernel by the files of a batch, if they are there.
pub(crate) fn kernel(directory: &Path) -> Option<String> {
    fs::read_to_string(directory.join(KERNEL)).ok().map(|text| text.trim().to_owned())
}

/// How the job called `name` ended by the files of a batch; none if it was not run.
pub(crate) fn ended(directory: &Path, name: &str) -> Option<Ended> {
    let code = fs::read_to_string(directory.join(format!("{name}.code"))).ok()?.trim().parse().ok()?;
    let output = fs::read(directory.join(format!("{name}.txt"))).unwrap_or_default();
    Some(Ended { code, output: String::from_utf8_lossy(&output).into_owned() })
}

fn quoted(argument: &str) -> String {
    format!("'{}'", argument.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn every_job_is_run_whatever_becomes_of_another() {
        let directory = tempfile::tempdir().unwrap();
        let job = |name: &str, command: &[&str]| Job {
            name: name.to_owned(),
            command: command.iter().map(|&text| text.to_owned()).collect(),
            seconds: 1,
        };
        let jobs =
            [job("a", &["sh", "-c", "echo \"it's\"; exit 3"]), job("hangs", &["sleep", "100"]), job("b", &["true"])];
        let output = Command::new("sh").args(["-c", &script(&jobs)]).current_dir(&directory).output().unwrap();
        assert_eq!(output.stdout, b"a: exit code 3\nhangs: exit code 137\nb: exit code 0\n");
        let ended = |name| ended(directory.path(), name);
        assert_eq!(ended("a"), Some(Ended { code: 3, output: "it's\n".to_owned() }));
        assert_eq!(ended("hangs").unwrap().code, ENDED_BY_TIMEOUT);
        assert_eq!(ended("b").unwrap().code, 0);
        assert_eq!(ended("c"), None);
        assert!(kernel(directory.path()).is_some_and(|release| !release.is_empty()));
    }
}
