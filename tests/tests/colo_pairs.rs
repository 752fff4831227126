//! Pairs that an operator makes by hand, of processes: by options alone, over TLS, anew after one side was lost, with the
//! instruction clock; and what is left when either side is told to end.

use std::path::Path;
use std::time::{Duration, Instant};

use abi::packet::StepPacket;
use hostvmm::colo::outlet::{Kept, OutletServer};
use hostvmm::colo::output::StreamId;
use hostvmm::control::{Address, Client};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::vm::Vm;
use tests::{armv7_firmware_or_skip, expect_exact_checkpoints, firmware_or_skip, run};

/// A small machine, whose guest writes without end and says so.
const GUEST: [&str; 10] = [
    "--accel",
    "emulator",
    "--ram",
    "16M",
    "--region-size",
    "2M",
    "--workload",
    "dirtyram:pages=512,step=16,sleep_ms=1",
    "--guest-output",
    "steps",
];
/// Bytes of output that an outlet here keeps.
const KEPT_BYTES: usize = 64 << 20;
/// Far more than a side takes to end, and far less than anything that it might wait for in vain.
const SOON: Duration = Duration::from_secs(8);

/// Where pairs meet: a directory, and the outside world in this process.
struct Place {
    directory: TempDir,
    seen: Kept,
    _outlet: OutletServer,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let seen = Kept::new(KEPT_BYTES);
        let address = format!("unix:{}", directory.path().join("outlet").display()).parse().unwrap();
        let outlet = OutletServer::start(&address, Box::new(seen.clone())).unwrap();
        Self { directory, seen, _outlet: outlet }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn uri(&self, name: &str) -> String {
        format!("unix:{}", self.path(name))
    }

    /// Starts a side with the outlet and `more`.
    #[track_caller]
    fn start(&self, firmware: &Path, name: &str, more: &[&str]) -> Side {
        let outlet = self.uri("outlet");
        self.start_without_outlet(firmware, name, &[&["--colo-outlet", outlet.as_str()], more].concat())
    }

    #[track_caller]
    fn start_without_outlet(&self, firmware: &Path, name: &str, more: &[&str]) -> Side {
        let firmware = ["--firmware", firmware.to_str().unwrap()];
        let vm = Vm::start(self.directory.path(), name, [&firmware[..], &GUEST, more].concat());
        let qmp = Client::connect(&Address::Unix(vm.socket().to_owned())).unwrap();
        Side { vm, qmp }
    }

    /// The outside world has seen each step of vCPU 0 once and in order, and `epochs` one after the other.
    #[track_caller]
    fn expect_each_step_once(&self, epochs: &[u64]) {
        let seen = self.seen.records();
        let mut owners: Vec<u64> = seen.iter().map(|record| record.epoch).collect();
        owners.dedup();
        assert_eq!(owners, epochs, "who spoke");
        let link = StreamId::packets(0).unwrap();
        let packets = seen.iter().filter(|accepted| accepted.record.stream == link);
        let steps: Vec<u64> =
            packets.map(|accepted| StepPacket::read(&accepted.record.bytes).unwrap().step.get()).collect();
        assert!(!steps.is_empty() && steps.iter().copied().eq(0..steps.len() as u64), "{steps:?}");
    }
}

/// One side, and a connection to it.
struct Side {
    vm: Vm,
    qmp: Client,
}

impl Side {
    #[track_caller]
    fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.qmp.execute(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}: {}", self.vm.stderr()))
    }

    fn colo(&mut self) -> Value {
        self.execute("x-tidemark-colo", json!({ "after": 0 }))
    }

    #[track_caller]
    fn wait_phase(&mut self, phase: &str) {
        let Self { vm, qmp } = self;
        vm.until(phase, |_| {
            let colo = qmp.execute("x-tidemark-colo", json!({})).unwrap();
            (colo["phase"] == phase).then_some(())
        });
    }

    /// Waits for `count` checkpoints, and asks for each when the one before is there. All are exact.
    #[track_caller]
    fn expect_checkpoints(&mut self, count: u64) {
        let Self { vm, qmp } = self;
        let mut asked = 0;
        let colo = vm.until("checkpoints", |_| {
            let colo = qmp.execute("x-tidemark-colo", json!({ "after": 0 })).unwrap();
            let made = colo["checkpoints"].as_u64().unwrap();
            if made > asked && made < count {
                asked = made;
                qmp.execute("x-checkpoint", json!({})).unwrap();
            }
            (made >= count && colo["rounds"].as_array().is_some_and(|rounds| rounds.len() as u64 >= count))
                .then_some(colo)
        });
        expect_exact_checkpoints(&colo);
    }

    /// The guest executes steps.
    #[track_caller]
    fn expect_runs(&mut self) {
        let Self { vm, qmp } = self;
        let mut first = None;
        vm.until("steps", |_| {
            let status = qmp.execute("x-tidemark-status", json!({})).unwrap();
            let steps = status["vcpus"][0]["completed"].as_u64().unwrap();
            (steps > *first.get_or_insert(steps) + 1).then_some(())
        });
    }

    /// Makes this VM, which runs, the primary of whoever waits at `uri`.
    #[track_caller]
    fn protect(&mut self, uri: &str) {
        let on = json!({ "capabilities": [{ "capability": "x-colo", "state": true }] });
        self.execute("migrate-set-capabilities", on);
        self.execute("migrate", json!({ "uri": uri }));
    }

    /// Ends it as Ctrl-C does, soon; whoever has the guest verifies it.
    #[track_caller]
    fn end(self) -> tests::Run {
        drop(self.qmp);
        let begun = Instant::now();
        let run = self.vm.end();
        assert!(begun.elapsed() < SOON, "it took {:?} to end: {}", begun.elapsed(), run.stderr);
        run
    }

    /// Ends it as `quit` does, soon.
    #[track_caller]
    fn quit(mut self) -> tests::Run {
        // The answer may be lost as it ends.
        let _ = self.qmp.execute("quit", json!({}));
        drop(self.qmp);
        let begun = Instant::now();
        let run = self.vm.wait();
        assert!(begun.elapsed() < SOON, "it took {:?} to end: {}", begun.elapsed(), run.stderr);
        run
    }
}

/// The guest was verified here, whole.
#[track_caller]
fn expect_whole(run: &tests::Run) {
    run.expect_status(0);
    assert_eq!(run.ledger["verdict"], "pass");
    assert_eq!(run.ledger["passes"].as_array().map(Vec::len), Some(1), "{}", run.stderr);
}

/// It ended without the guest, which is elsewhere.
#[track_caller]
fn expect_without_guest(run: &tests::Run) {
    run.expect_status(0);
    assert_eq!(run.ledger["passes"].as_array().map(Vec::len), Some(0), "{}", run.stderr);
}

fn a_pair_by_options_alone(firmware: &Path, more: &[&str]) -> (Place, Side, Side) {
    let place = Place::new();
    let uri = place.uri("pair");
    let secondary =
        place.start(firmware, "secondary", &[&["--colo", "secondary", "--incoming", uri.as_str()], more].concat());
    let primary =
        place.start(firmware, "primary", &[&["--colo", "primary", "--colo-peer", uri.as_str()], more].concat());
    (place, primary, secondary)
}

#[test]
fn a_pair_begins_by_options_alone_and_the_secondary_goes_on_when_the_primary_is_told_to_end() {
    let Some(firmware) = firmware_or_skip() else { return };
    let (place, mut primary, mut secondary) = a_pair_by_options_alone(firmware, &[]);
    primary.expect_checkpoints(3);
    assert_eq!(primary.execute("query-colo-status", json!({}))["mode"], "primary");
    assert_eq!(primary.execute("query-migrate", json!({})), json!({ "status": "colo" }));
    expect_without_guest(&primary.end());
    secondary.wait_phase("alone");
    secondary.expect_runs();
    expect_whole(&secondary.end());
    place.expect_each_step_once(&[1, 2]);
}

#[test]
fn the_primary_goes_on_when_the_secondary_is_told_to_end() {
    let Some(firmware) = firmware_or_skip() else { return };
    for by_quit in [false, true] {
        let (place, mut primary, secondary) = a_pair_by_options_alone(firmware, &[]);
        primary.expect_checkpoints(2);
        expect_without_guest(&if by_quit { secondary.quit() } else { secondary.end() });
        primary.wait_phase("alone");
        primary.expect_runs();
        expect_whole(&primary.quit());
        place.expect_each_step_once(&[1, 2]);
    }
}

#[test]
fn a_side_that_waits_for_the_other_ends_when_it_is_told_to() {
    let Some(firmware) = firmware_or_skip() else { return };
    let place = Place::new();
    let uri = place.uri("pair");
    let mut secondary = place.start(firmware, "secondary", &["--colo", "secondary", "--incoming", &uri]);
    assert!(secondary.qmp.execute("x-checkpoint", json!({})).is_err(), "of nothing");
    assert_eq!(secondary.colo()["phase"], "setup", "it waits on");
    secondary.end().expect_status(4);
    // A peer that accepts and says nothing.
    let silent = std::os::unix::net::UnixListener::bind(place.path("silent")).unwrap();
    let uri = place.uri("silent");
    let mut primary = place.start(firmware, "primary", &["--colo", "primary", "--colo-peer", &uri]);
    let connection = silent.accept().unwrap();
    primary.expect_runs();
    expect_whole(&primary.end());
    drop(connection);
}

#[test]
fn without_an_outlet_nobody_goes_on_alone_before_an_operator_says_so() {
    let Some(firmware) = firmware_or_skip() else { return };
    for says_so in [true, false] {
        let place = Place::new();
        let uri = place.uri("pair");
        let wait = ["--colo", "secondary", "--incoming", uri.as_str()];
        let mut secondary = place.start_without_outlet(firmware, "secondary", &wait);
        let begin = ["--colo", "primary", "--colo-peer", uri.as_str()];
        let mut primary = place.start_without_outlet(firmware, "primary", &begin);
        primary.expect_checkpoints(2);
        expect_without_guest(&primary.quit());
        secondary.wait_phase("claiming");
        if says_so {
            secondary.execute("x-colo-lost-heartbeat", json!({}));
            secondary.wait_phase("alone");
            secondary.expect_runs();
            expect_whole(&secondary.end());
        } else {
            expect_without_guest(&secondary.end());
        }
    }
}

#[test]
fn a_survivor_is_protected_again_and_its_new_secondary_takes_over_in_turn() {
    let Some(firmware) = firmware_or_skip() else { return };
    let (place, mut first, mut second) = a_pair_by_options_alone(firmware, &[]);
    first.expect_checkpoints(2);
    // Killed.
    drop(first);
    second.wait_phase("alone");
    let uri = place.uri("again");
    let mut third = place.start(firmware, "third", &["--colo", "secondary", "--incoming", &uri]);
    second.protect(&uri);
    second.expect_checkpoints(4);
    assert_eq!((second.colo()["side"].clone(), third.colo()["side"].clone()), (json!("primary"), json!("secondary")));
    drop(second);
    third.wait_phase("alone");
    third.expect_runs();
    expect_whole(&third.end());
    place.expect_each_step_once(&[1, 2, 3]);
}

#[test]
fn over_tls_a_pair_is_made_with_the_right_certificate_alone_and_strangers_cost_nothing() {
    let Some(firmware) = firmware_or_skip() else { return };
    let place = Place::new();
    let keys = |name: &str| {
        let keys = place.path(name);
        run(["tls-keygen", keys.as_str()], false).expect_status(0);
        keys
    };
    let (ours, others) = (keys("ours"), keys("others"));
    let uri = place.uri("pair");
    let mut secondary =
        place.start(firmware, "secondary", &["--colo", "secondary", "--incoming", &uri, "--tls-creds", &ours]);
    let begin = ["--colo", "primary", "--colo-peer", uri.as_str()];
    for (name, more) in [("plain", [].as_slice()), ("stranger", &["--tls-creds", others.as_str()])] {
        let mut primary = place.start_without_outlet(firmware, name, &[&begin[..], more].concat());
        primary.wait_phase("alone");
        assert!(primary.colo()["error"].is_string(), "{}", primary.colo());
        primary.expect_runs();
        expect_whole(&primary.end());
        assert_eq!(secondary.colo()["phase"], "setup", "it waits on for who it is to wait for");
    }
    let mut primary = place.start(firmware, "primary", &[&begin[..], &["--tls-creds", ours.as_str()]].concat());
    primary.expect_checkpoints(3);
    drop(primary);
    secondary.wait_phase("alone");
    secondary.expect_runs();
    expect_whole(&secondary.end());
    place.expect_each_step_once(&[1, 2]);
}

#[test]
fn guests_that_count_instructions_for_time_are_a_pair_as_well() {
    let firmwares = [(firmware_or_skip(), "1"), (firmware_or_skip(), "2"), (armv7_firmware_or_skip(), "2")];
    for (firmware, vcpus) in firmwares {
        let Some(firmware) = firmware else { continue };
        let (place, mut primary, mut secondary) =
            a_pair_by_options_alone(firmware, &["--clock", "icount", "--vcpus", vcpus]);
        primary.expect_checkpoints(4);
        drop(primary);
        secondary.wait_phase("alone");
        secondary.expect_runs();
        expect_whole(&secondary.end());
        place.expect_each_step_once(&[1, 2]);
    }
}
