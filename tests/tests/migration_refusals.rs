//! Migrations that cannot be: one clear error on both sides, and the source goes on.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use tests::vm::{Vm, listens};
use tests::{firmware_or_skip, run};

const WORKLOAD: &str = "dirtyram:pages=256,step=16,sleep_ms=1";

/// Options of a small VM.
fn options<'a>(firmware: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let base = ["--firmware", firmware.to_str().unwrap(), "--accel", "emulator", "--workload", WORKLOAD];
    let ram = if more.contains(&"--ram") { [].as_slice() } else { &["--ram", "32M"] };
    base.iter().chain(ram).chain(more).copied().collect()
}

/// The source still has the guest, and it is whole.
#[track_caller]
fn expect_goes_on(source: Vm) {
    let info = source.client(&["info", "migrate"]);
    info.expect_status(0);
    let end = source.end();
    end.expect_status(0);
    assert_eq!(end.ledger["verdict"], "pass", "{}", end.stderr);
    assert_eq!(end.ledger["passes"][0]["digest_guest"], end.ledger["passes"][0]["digest_model"]);
}

#[test]
fn a_destination_that_is_not_there_is_one_error() {
    let Some(firmware) = firmware_or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let source = Vm::start(directory.path(), "source", options(firmware, &[]));
    let nowhere = format!("unix:{}/nowhere", directory.path().display());
    source.client(&["migrate", &nowhere]).expect_refusal(1, "nowhere");
    source.client(&["migrate", "tcp:127.0.0.1:1"]).expect_refusal(1, "127.0.0.1:1");
    expect_goes_on(source);
}

#[test]
fn addresses_that_are_none_are_refused() {
    let Some(firmware) = firmware_or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let source = Vm::start(directory.path(), "source", options(firmware, &[]));
    for bad in ["nonsense", "", "tcp:", "tcp:host", "tcp:127.0.0.1:99999", "unix:", "carrier:pigeon"] {
        let refusal = source.client(&["migrate", bad]);
        assert!([1, 2].contains(&refusal.status), "{bad}: {} {}", refusal.status, refusal.stderr);
        refusal.expect_refusal(refusal.status, "error");
    }
    expect_goes_on(source);
}

#[test]
fn a_destination_that_differs_is_refused_by_name_on_both_sides() {
    let Some(firmware) = firmware_or_skip() else { return };
    for (more, word) in [
        (["--ram", "64M"].as_slice(), "ram"),
        (&["--region-size", "16M"], "region"),
        (&["--granule", "64k", "--va-bits", "42"], "granule"),
        (&["--vcpus", "2"], "vcpu"),
        (&["--seed", "9"], "seed"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let source = Vm::start(directory.path(), "source", options(firmware, &[]));
        let uri = format!("unix:{}/m", directory.path().display());
        let mut other = options(firmware, more);
        other.extend(["--incoming", &uri]);
        let destination = Vm::start(directory.path(), "destination", &other);
        source.client(&["migrate", &uri]).expect_refusal(1, word);
        let end = destination.wait();
        end.expect_status(1);
        let errors: Vec<&str> = end.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{}", end.stderr);
        assert!(errors[0].to_lowercase().contains(word), "{word}: {errors:?}");
        expect_goes_on(source);
    }
}

#[test]
fn a_listener_is_the_owners_alone_and_garbage_gets_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(firmware) = firmware_or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m");
    let uri = format!("unix:{}", path.display());
    let mut waiting = options(firmware, &[]);
    waiting.extend(["--incoming", &uri]);
    let mut destination = Vm::start(directory.path(), "destination", &waiting);
    destination.until("its listener", |_| listens(&path).then_some(()));
    for socket in [&path, &directory.path().join("destination.qmp")] {
        assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    }
    for garbage in [b"GET / HTTP/1.0\r\n\r\n".to_vec(), vec![0; 4096], vec![0xff; 100_000]] {
        // It may be turned away before it has said everything.
        let _ = UnixStream::connect(&path).unwrap().write_all(&garbage);
    }
    let source = Vm::start(directory.path(), "source", options(firmware, &[]));
    source.client(&["migrate", &uri]).expect_status(0);
    source.end().expect_status(0);
    destination.end().expect_status(0);
}

#[test]
fn without_a_certificate_nobody_comes_in_and_the_one_with_it_does() {
    let Some(firmware) = firmware_or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let keys = |name: &str| {
        let keys = directory.path().join(name).display().to_string();
        run(["tls-keygen", keys.as_str()], false).expect_status(0);
        keys
    };
    let (ours, others) = (keys("ours"), keys("others"));
    let uri = format!("unix:{}/m", directory.path().display());
    let destination =
        Vm::start(directory.path(), "destination", options(firmware, &["--tls-creds", &ours, "--incoming", &uri]));
    for (name, more, word) in
        [("plain", [].as_slice(), "error"), ("stranger", &["--tls-creds", others.as_str()], "certificate")]
    {
        let source = Vm::start(directory.path(), name, options(firmware, more));
        source.client(&["migrate", &uri]).expect_refusal(1, word);
        expect_goes_on(source);
    }
    let source = Vm::start(directory.path(), "source", options(firmware, &["--tls-creds", &ours]));
    source.client(&["migrate", &uri]).expect_status(0);
    source.end().expect_status(0);
    destination.end().expect_status(0);
}

#[test]
fn a_migration_to_a_stopped_destination_shows_its_silence_and_is_cancelled_at_once() {
    let Some(firmware) = firmware_or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let uri = format!("unix:{}/m", directory.path().display());
    let stops = ["--plant-migration-fault", "destination-pages=stop", "--incoming", &uri];
    let destination = Vm::start(directory.path(), "destination", options(firmware, &stops));
    let mut source = Vm::start(directory.path(), "source", options(firmware, &[]));
    source.client(&["migrate", "-d", &uri]).expect_status(0);
    source.until("silence", |source| {
        let info: serde_json::Value =
            serde_json::from_str(&source.client(&["info", "migrate", "--json"]).stdout).unwrap();
        match info["status"].as_str() {
            Some("setup" | "active") => info["x-silent"].as_u64().filter(|ms| *ms >= 50).map(drop),
            // What the guest had touched fits into the socket's buffers: it stands still until the destination answers.
            Some("device") => Some(()),
            _ => panic!("{info}"),
        }
    });
    source.client(&["migrate-cancel"]).expect_status(0);
    source.until("the end of the migration", |source| {
        source.client(&["info", "migrate"]).stdout.contains("cancelled").then_some(())
    });
    // It is killed as it is: stopped.
    drop(destination);
    expect_goes_on(source);
}

#[test]
fn a_guest_that_stands_still_beside_a_stopped_destination_is_taken_back_by_a_cancel() {
    let Some(firmware) = firmware_or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let uri = format!("unix:{}/m", directory.path().display());
    // It has everything, and stops before it says so: the guest stands still, and is not given away.
    let stops = ["--plant-migration-fault", "destination-verified=stop", "--incoming", &uri];
    let destination = Vm::start(directory.path(), "destination", options(firmware, &stops));
    let mut source = Vm::start(directory.path(), "source", options(firmware, &[]));
    source.client(&["migrate", "-d", &uri]).expect_status(0);
    let status = |source: &Vm| -> serde_json::Value {
        serde_json::from_str(&source.client(&["info", "migrate", "--json"]).stdout).unwrap()
    };
    // For a while, so that it is not on its way there.
    source.until("the guest to stand still", |source| {
        let info = status(source);
        (info["status"] == "device" && info["x-silent"].as_u64().is_some_and(|ms| ms >= 300)).then_some(())
    });
    source.client(&["migrate-cancel"]).expect_status(0);
    source.until("the end of the migration", |source| (status(source)["status"] == "cancelled").then_some(()));
    drop(destination);
    expect_goes_on(source);
}

#[test]
fn a_destination_does_not_clear_its_sources_memory() {
    let Some(firmware) = firmware_or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().join("region");
    std::fs::File::create(&share).unwrap().set_len(8 << 20).unwrap();
    let share = share.to_str().unwrap();
    let source = Vm::start(directory.path(), "source", options(firmware, &["--share", share]));
    let uri = format!("unix:{}/m", directory.path().display());
    let same = options(firmware, &["--share", share, "--incoming", &uri]);
    run(["run"].into_iter().chain(same), false).expect_refusal(2, "memory of a VM");
    expect_goes_on(source);
}

#[test]
fn options_that_no_migration_has_are_usage_errors() {
    let refuse = |arguments: &[&str], word: &str| run(arguments, false).expect_refusal(2, word);
    refuse(&["verify", "migrate", "--uri", "pigeon"], "pigeon");
    refuse(&["verify", "migrate", "--hops", "3"], "--hops");
    refuse(&["verify", "chain", "--hops", "0"], "hops");
    refuse(&["verify", "passes", "--pairs", "2"], "--pairs");
    refuse(&["verify", "passes", "--downtime-limit", "20"], "--downtime-limit");
    refuse(&["verify", "migrate", "--passes", "3"], "--passes");
    refuse(&["verify", "migrate", "--originals", "--region-size", "16M"], "--region-size");
    refuse(&["verify", "chain", "--self-check", "every"], "--self-check");
    refuse(&["verify", "cancel", "--settle-ms", "5"], "--settle-ms");
    refuse(&["verify", "cancel", "--kills", "some", "--uri", "fd"], "fd");
    refuse(&["verify", "cross", "--skew", "all", "--cpu", "baseline"], "--cpu");
    refuse(&["verify", "colo", "--postcopy"], "--postcopy");
    refuse(&["verify", "colo", "--kills", "some", "--failover", "primary"], "--failover");
    refuse(&["verify", "colo", "--kills", "some", "--settle-ms", "5"], "--settle-ms");
    refuse(&["verify", "cpu", "--vcpus", "2"], "--vcpus");
    refuse(&["verify", "cancel", "--at", "soon"], "soon");
    refuse(&["verify", "cancel", "--kills", "source-setup=burn"], "burn");
    refuse(&["verify", "migrate", "--clock", "icount"], "icount");
    refuse(&["verify", "migrate", "--downtime-limit", "-1"], "downtime-limit");
}
