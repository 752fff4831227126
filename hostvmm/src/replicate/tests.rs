//! VMM, replicator and receiver together, on a region that this process writes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use abi::{GuestRange, map};

use super::*;
use crate::dirty::{DirtyLog as _, PagemapScanLog};
use crate::memory::{GuestMemory, ShareFile, SlotId, host_page_bytes};

const PAGES: u64 = 77;

fn options(dir: &Path, dest: Destination) -> ReplicateOptions {
    ReplicateOptions {
        share: dir.join("share"),
        bitmap_file: dir.join("bitmap"),
        dest,
        interval: Duration::from_millis(1),
        timeout: Duration::from_secs(20),
    }
}

/// Replicates to `dest` while the VMM's thread writes the region; `None` where this host has no log for it.
fn while_a_writer_runs(dir: &Path, dest: Destination) -> Option<Result<Replicated, ReplicateError>> {
    let len_bytes = PAGES * host_page_bytes();
    std::fs::File::create(dir.join("share")).unwrap().set_len(len_bytes).unwrap();
    std::fs::write(dir.join("bitmap"), []).unwrap();
    let share = ShareFile::open(&dir.join("share")).unwrap();
    let ram = GuestRange::new(map::RAM_BASE, 16 * host_page_bytes()).unwrap();
    let region = GuestRange::new(map::REGION_BASE, len_bytes).unwrap();
    let memory = GuestMemory::new(ram, region, Some(share)).unwrap();
    let mut log = match PagemapScanLog::new(&memory, &[SlotId::Region]) {
        Ok(log) => log,
        Err(error) => {
            println!("skipped: {error}");
            return None;
        }
    };
    log.start().unwrap();
    let file = BitmapFile::open(&dir.join("bitmap"), len_bytes, host_page_bytes()).unwrap();
    let mut server = FileServer::new(file, SlotId::Region).unwrap();
    let stop = AtomicBool::new(false);
    Some(thread::scope(|scope| {
        scope.spawn(|| {
            let (mut value, mut answers) = (0_u64, 0);
            while !stop.load(Ordering::Acquire) {
                // Writes before each look, until a few bitmaps have been asked for: so those are not clean, and the
                // replicator copies pages while they are written.
                if answers < 4 {
                    value += 1;
                    let offset = value.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (len_bytes - 8);
                    memory.write(map::REGION_BASE.checked_add(offset).unwrap(), &value.to_le_bytes()).unwrap();
                } else {
                    thread::sleep(POLL);
                }
                answers += u32::from(server.poll(&mut log).unwrap().is_some());
            }
        });
        let result = replicate(&options(dir, dest));
        stop.store(true, Ordering::Release);
        result
    }))
}

#[test]
fn a_file_becomes_equal_to_the_region() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("dest");
    let Some(result) = while_a_writer_runs(dir.path(), Destination::File(dest.clone())) else { return };
    let result = result.unwrap();
    assert!(result.equal && result.passes > 3 && result.pages > 0, "{result:?}");
    assert_eq!(result.sum_r_source, result.sum_r_dest);
    assert!(std::fs::read(dest).unwrap() == std::fs::read(dir.path().join("share")).unwrap());
}

#[test]
fn peers_over_unix_and_tcp_become_equal_to_the_region() {
    for listen in ["unix", "tcp:0"] {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("dest");
        let listen = match listen {
            "unix" => Endpoint::Unix(dir.path().join("socket")),
            tcp => tcp.parse().unwrap(),
        };
        let timeout = Duration::from_secs(20);
        let receive = ReceiveOptions { listen, dest: dest.clone(), limit_bytes: 1 << 30, timeout };
        let receiver = Receiver::bind(receive).unwrap();
        let endpoint = receiver.endpoint().unwrap();
        let received = thread::spawn(|| receiver.receive());
        let Some(result) = while_a_writer_runs(dir.path(), Destination::Peer(endpoint)) else { return };
        let (result, received) = (result.unwrap(), received.join().unwrap().unwrap());
        assert!(result.equal && received.equal, "{result:?} {received:?}");
        assert_eq!(received.sum_r_dest, result.sum_r_source);
        assert!(std::fs::read(dest).unwrap() == std::fs::read(dir.path().join("share")).unwrap());
    }
}

#[test]
fn a_vmm_that_is_gone_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("share"), vec![1; host_page_bytes() as usize]).unwrap();
    std::fs::write(dir.path().join("bitmap"), []).unwrap();
    let mut options = options(dir.path(), Destination::File(dir.path().join("dest")));
    options.timeout = Duration::from_millis(5);
    let error = replicate(&options).unwrap_err();
    assert!(matches!(error, ReplicateError::NoAnswer { pass: 0, .. }), "{error}");
}

#[test]
fn the_shared_file_is_not_its_own_destination() {
    let dir = tempfile::tempdir().unwrap();
    let content = vec![1; host_page_bytes() as usize];
    std::fs::write(dir.path().join("share"), &content).unwrap();
    std::fs::write(dir.path().join("bitmap"), []).unwrap();
    let error = replicate(&options(dir.path(), Destination::File(dir.path().join("share")))).unwrap_err();
    assert!(matches!(error, ReplicateError::Target(crate::pass::TargetError::SameFile { .. })), "{error}");
    assert_eq!(std::fs::read(dir.path().join("share")).unwrap(), content);
}
