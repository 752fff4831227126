//! `hostvmm outlet` as a program: two sides at it, and what it writes down.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hostvmm::colo::Side;
use hostvmm::colo::outlet::{Claim, Outlet as _, OutletClient, OutletError};
use hostvmm::colo::output::{Record, StreamId};
use serde_json::{Value, json};
use tests::{hostvmm, run};

/// Only reached by a test that has already failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program; killed when this is dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_program_writes_down_every_record_once_and_fences_the_one_who_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, file) = (directory.path().join("outlet"), directory.path().join("seen.jsonl"));
    let address = format!("unix:{}", socket.display());
    let mut program = Command::new(hostvmm());
    program.args(["outlet", &address, "--record"]).arg(&file).stderr(Stdio::piped());
    let mut program = Program(program.spawn().unwrap());
    // It says so once it can be reached.
    let mut line = String::new();
    BufReader::new(program.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("outlet: {address}\n"));

    let client = || OutletClient::new(address.parse().unwrap(), PATIENCE).unwrap();
    let (mut primary, mut secondary) = (client(), client());
    let record = |sequence| Record { stream: StreamId::CONSOLE, sequence, bytes: b"a\n".to_vec() };
    let claim = |epoch, side| Claim { pair: 5, epoch, side };
    primary.claim(claim(1, Side::Primary)).unwrap();
    primary.deliver(1, &[record(0), record(1)]).unwrap();
    secondary.claim(claim(2, Side::Secondary)).unwrap();
    secondary.deliver(2, &[record(1), record(2)]).unwrap();
    assert!(matches!(primary.deliver(1, &[record(2)]), Err(OutletError::Fenced { current: 2 })));

    let text = std::fs::read_to_string(&file).unwrap();
    let seen: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |sequence: u64, epoch: u64, side: &str| json!({ "stream": 0, "sequence": sequence, "epoch": epoch, "side": side, "bytes": "610a" });
    assert_eq!(seen, [line(0, 1, "primary"), line(1, 1, "primary"), line(2, 2, "secondary")]);
}

#[test]
fn an_outlet_that_cannot_be_is_refused() {
    run(["outlet", "tcp:127.0.0.1:4321"], false).expect_refusal(2, "unix:PATH");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("precious");
    std::fs::write(&file, "precious").unwrap();
    run(["outlet".to_owned(), format!("unix:{}", file.display())], false).expect_refusal(2, "no socket");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}
