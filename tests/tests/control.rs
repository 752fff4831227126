//! `run --qmp`, `migrate`, `info`: a VM under remote control as a user meets it, and what users get wrong.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tests::vm::listens;
use tests::{Run, firmware_or_skip, hostvmm, run};

const WORKLOAD: &str = "dirtyram:pages=64,step=8,sleep_ms=5";

/// A VM in a process of its own.
struct Vm {
    process: Child,
    socket: PathBuf,
    ledger: PathBuf,
}

impl Vm {
    /// A VM with `options`, which come before the defaults for what they do not name.
    fn start(directory: &Path, name: &str, options: &[&str]) -> Self {
        let (socket, ledger) = (directory.join(format!("{name}.qmp")), directory.join(format!("{name}.json")));
        let mut process = Command::new(hostvmm())
            .args(["run", "--accel", "emulator", "--workload", WORKLOAD, "--region-size", "1M"])
            .args(options)
            .arg("--json")
            .arg(&ledger)
            .arg(format!("--qmp=unix:{}", socket.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The control socket is there before the address at which a guest is waited for.
        let incoming = options.iter().skip_while(|option| **option != "--incoming").nth(1);
        let incoming = incoming.and_then(|uri| uri.strip_prefix("unix:")).map(Path::new);
        while !listens(&socket) || incoming.is_some_and(|path| !listens(path)) {
            assert!(process.try_wait().unwrap().is_none(), "{name} has ended");
            std::thread::yield_now();
        }
        Self { process, socket, ledger }
    }

    fn address(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// Executes commands, one a line, and returns the answers to them.
    fn qmp(&self, commands: &[&str]) -> Vec<Value> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.next().unwrap().unwrap();
        let mut answers = Vec::new();
        for command in ["qmp_capabilities"].iter().chain(commands) {
            let command =
                if command.starts_with('{') { (*command).to_owned() } else { format!("{{\"execute\":\"{command}\"}}") };
            stream.write_all(command.as_bytes()).unwrap();
            answers.push(loop {
                let message: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
                if message.get("event").is_none() {
                    break message;
                }
            });
        }
        answers.split_off(1)
    }

    fn end(mut self) -> (i32, String, Value) {
        let status = self.process.wait().unwrap().code().unwrap_or(-1);
        let mut stderr = String::new();
        std::io::Read::read_to_string(&mut self.process.stderr.take().unwrap(), &mut stderr).unwrap();
        let ledger = std::fs::read(&self.ledger).map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap());
        (status, stderr, ledger)
    }

    /// Ends the VM, whose guest must be whole.
    fn quit(self) {
        self.qmp(&["quit"]);
        let (status, stderr, ledger) = self.end();
        assert_eq!((status, &ledger["verdict"]), (0, &Value::from("pass")), "{stderr}");
    }
}

fn client(arguments: &[&str], vm: &Vm) -> Run {
    run(arguments.iter().map(|word| (*word).to_owned()).chain(["--qmp".to_owned(), vm.address()]), false)
}

#[test]
fn a_guest_runs_stops_and_is_whole_at_the_end() {
    if firmware_or_skip().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let vm = Vm::start(directory.path(), "a", &["--paused", "--track-dirty", "--vcpus", "2"]);
    let answers =
        vm.qmp(&["query-status", "cont", "query-status", "stop", "stop", "query-status", "cont", "query-migrate"]);
    let status = |answer: &Value| answer["return"]["status"].as_str().unwrap_or_default().to_owned();
    assert_eq!([&answers[0], &answers[2], &answers[5]].map(status), ["prelaunch", "running", "paused"]);
    assert_eq!(answers[7]["return"], serde_json::json!({}), "there was no migration");
    let info = client(&["info", "status"], &vm);
    assert!(info.expect_status(0).stdout.contains("VM status: running"), "{}", info.stdout);
    assert!(client(&["info", "migrate"], &vm).stdout.contains("no migration yet"));
    vm.quit();
}

#[test]
fn where_each_vcpu_stands_is_told_of_a_guest_that_runs_on() {
    if firmware_or_skip().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let vm = Vm::start(directory.path(), "a", &["--paused", "--vcpus", "2"]);
    let lines = |answer: &Value| -> Vec<String> {
        answer["return"]["vcpus"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    };
    let answers = vm.qmp(&["x-tidemark-vcpus", "cont", "x-tidemark-vcpus", "query-status"]);
    let fresh = lines(&answers[0]);
    assert!(
        fresh[0].starts_with("vCPU 0: on, has not called, pc 0x") && fresh[1].starts_with("vCPU 1: off"),
        "{fresh:?}"
    );
    assert!(lines(&answers[2])[0].contains("pstate 0x"), "{}", answers[2]);
    assert_eq!(answers[3]["return"]["running"], true);
    vm.quit();
}

#[test]
fn a_migration_that_cannot_begin_leaves_the_guest_running() {
    if firmware_or_skip().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let vm = Vm::start(directory.path(), "a", &[]);
    client(&["migrate", "foo:bar"], &vm).expect_refusal(2, "foo:bar");
    let nowhere = format!("unix:{}", directory.path().join("nobody").display());
    client(&["migrate", &nowhere], &vm).expect_refusal(1, "nobody listens");
    client(&["migrate", "tcp:127.0.0.1:1"], &vm).expect_refusal(1, "nobody listens");
    client(&["migrate", &nowhere, "--downtime-limit", "2000001"], &vm).expect_refusal(2, "--downtime-limit");
    let answers = vm.qmp(&["query-status", "query-migrate", "migrate_cancel"]);
    assert_eq!(answers[0]["return"]["running"], true);
    assert_eq!(answers[1]["return"]["status"], "failed");
    assert!(answers[2].get("return").is_some(), "as in QEMU, nothing to cancel is no error");
    vm.quit();
}

#[test]
fn a_destination_that_does_not_fit_says_why_on_both_sides() {
    if firmware_or_skip().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let source = Vm::start(directory.path(), "a", &[]);
    for (name, options, word) in [
        ("ram", &["--ram", "48M"][..], "RAM"),
        ("granule", &["--granule", "64k"], "granule"),
        ("vcpus", &["--vcpus", "2"], "vCPUs"),
        ("seed", &["--seed", "7"], "seed"),
    ] {
        // Without the word in its name, which an error of another kind would show as well.
        let uri = format!("unix:{}", directory.path().join(format!("{}.mig", options[1])).display());
        let mut options = options.to_vec();
        options.extend(["--incoming", &uri]);
        let destination = Vm::start(directory.path(), name, &options);
        client(&["migrate", &uri], &source).expect_refusal(1, word);
        let (status, stderr, _) = destination.end();
        assert_eq!(status, 1, "{stderr}");
        assert!(
            stderr.lines().any(|line| line.starts_with("error: incoming migration failed") && line.contains(word)),
            "{stderr}"
        );
    }
    assert_eq!(source.qmp(&["query-status"])[0]["return"]["running"], true);
    source.quit();
}

#[test]
fn a_guest_that_was_saved_runs_on_here_or_where_it_is_loaded() {
    if firmware_or_skip().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let vm = Vm::start(directory.path(), "a", &[]);
    let uri = format!("file:{}", directory.path().join("guest").display());
    let status = |vm: &Vm| vm.qmp(&["query-status"])[0]["return"]["status"].clone();
    client(&["migrate", &uri], &vm).expect_status(0);
    assert_eq!(status(&vm), "postmigrate");
    assert_eq!(vm.qmp(&["cont"])[0]["return"], serde_json::json!({}));
    assert_eq!(status(&vm), "running");
    // Saved once more, and then loaded: it runs there.
    client(&["migrate", &uri], &vm).expect_status(0);
    let other = Vm::start(directory.path(), "b", &["--incoming", &uri]);
    while status(&other) != "running" {
        std::thread::yield_now();
    }
    let refusal = vm.qmp(&["cont"])[0]["error"]["desc"].as_str().unwrap().to_owned();
    assert!(refusal.contains("loaded from the file"), "{refusal}");
    other.quit();
    assert_eq!(vm.qmp(&["cont"])[0]["return"], serde_json::json!({}), "that one has ended");
    vm.quit();
}

#[test]
fn options_that_contradict_each_other_are_usage_errors() {
    for (options, word) in [
        (&["--paused"][..], "--qmp"),
        (&["--incoming", "defer"], "--qmp"),
        (&["--incoming", "foo:bar"], "foo:bar"),
        (&["--track-dirty"], "--qmp"),
        (&["--verify-guest"], "--qmp"),
        (&["--qmp", "tcp:0.0.0.0:4444"], "loopback"),
        (&["--qmp", "/tmp/a.qmp"], "unix:PATH"),
        (&["--qmp", "unix:/nowhere/a.qmp", "--mode", "lockstep"], "lockstep"),
    ] {
        run(["run"].iter().chain(options), false).expect_refusal(2, word);
    }
}

#[test]
fn a_client_without_a_vm_says_what_to_do() {
    for arguments in [&["info", "migrate"][..], &["migrate-cancel"], &["migrate", "tcp:127.0.0.1:4321"]] {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--qmp", "unix:/nowhere/a.qmp"]).collect();
        run(arguments, false).expect_refusal(2, "hostvmm run --qmp");
    }
}
