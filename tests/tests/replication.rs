//! The original test: an outside replicator keeps a file equal to the region of a running guest, by the file protocol.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::{armv7_firmware_or_skip, firmware_or_skip, hostvmm};

const REGION_BYTES: usize = 8 << 20;
const PAGE: usize = 4096;
const HEADER_BYTES: usize = 16;
const BITMAP_BYTES: usize = REGION_BYTES / PAGE / 8;

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { directory: tempfile::tempdir().unwrap() };
        for (name, len) in [("share", REGION_BYTES), ("dest", REGION_BYTES), ("bitmap", HEADER_BYTES + BITMAP_BYTES)] {
            File::create(files.path(name)).unwrap().set_len(len as u64).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start_vmm(&self, firmware: &Path, passes: &str) -> Child {
        Command::new(hostvmm())
            .args(["run", "--workload", "tstaeshm:sleep_ms=1", "--vcpus", "2", "--passes", passes, "--firmware"])
            .arg(firmware)
            .arg("--share")
            .arg(self.path("share"))
            .arg("--bitmap-file")
            .arg(self.path("bitmap"))
            .arg("--json")
            .arg(self.path("ledger.json"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn assert_equal(&self) {
        let [share, dest] = ["share", "dest"].map(|name| fs::read(self.path(name)).unwrap());
        assert!(share.iter().any(|&byte| byte != 0), "the guest wrote something");
        assert!(share == dest, "the copy differs from the region");
    }
}

/// A replicator that knows nothing of Tidemark: what the original one did, with plain reads and writes.
struct Replicator {
    share: File,
    dest: File,
    bitmap: File,
}

impl Replicator {
    /// Opens the files and copies everything once.
    fn start(files: &Files) -> Self {
        let open = |name| File::options().read(true).write(true).open(files.path(name)).unwrap();
        let replicator = Self { share: open("share"), dest: open("dest"), bitmap: open("bitmap") };
        replicator.copy(0, REGION_BYTES);
        replicator
    }

    fn copy(&self, offset: usize, len: usize) {
        let mut bytes = vec![0; len];
        self.share.read_exact_at(&mut bytes, offset as u64).unwrap();
        self.dest.write_all_at(&bytes, offset as u64).unwrap();
    }

    fn ask(&self) {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&1_u64.to_ne_bytes());
        self.bitmap.write_all_at(&header, 0).unwrap();
    }

    /// Polls the header until the answer is there, then returns the bitmap.
    fn answer(&self) -> Vec<u8> {
        loop {
            let mut header = [0; HEADER_BYTES];
            self.bitmap.read_exact_at(&mut header, 0).unwrap();
            if header[8..] != [0; 8] {
                assert_eq!(header[..8], [0; 8], "r2r is reset before p2r is set");
                let mut bitmap = vec![0; BITMAP_BYTES];
                self.bitmap.read_exact_at(&mut bitmap, HEADER_BYTES as u64).unwrap();
                return bitmap;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// One round; returns the number of pages copied.
    fn round(&self) -> usize {
        self.ask();
        let bitmap = self.answer();
        let dirty = |page: &usize| bitmap[page / 8] >> (page % 8) & 1 == 1;
        let pages: Vec<usize> = (0..REGION_BYTES / PAGE).filter(dirty).collect();
        for &page in &pages {
            self.copy(page * PAGE, PAGE);
        }
        pages.len()
    }

    fn until_clean(&self) -> usize {
        let mut copied = 0;
        loop {
            match self.round() {
                0 => return copied,
                pages => copied += pages,
            }
            // What the original does between two requests; the guest needs time to dirty something.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn an_unmodified_outside_replicator_ends_with_an_equal_file() {
    let Some(firmware) = firmware_or_skip() else { return };
    let files = Files::new();
    let mut vmm = files.start_vmm(firmware, "300");
    assert!(Replicator::start(&files).until_clean() > 0, "the guest dirtied pages");
    assert!(vmm.wait().unwrap().success());
    files.assert_equal();
    let ledger: serde_json::Value = serde_json::from_slice(&fs::read(files.path("ledger.json")).unwrap()).unwrap();
    assert_eq!(ledger["verdict"], "pass");
}

#[test]
fn a_replicator_that_dies_in_the_middle_is_followed_by_another() {
    let Some(firmware) = firmware_or_skip() else { return };
    let files = Files::new();
    let mut vmm = files.start_vmm(firmware, "300");
    let first = Replicator::start(&files);
    first.round();
    // It asks once more, and is gone before it copies what the answer says.
    first.ask();
    first.answer();
    drop(first);
    Replicator::start(&files).until_clean();
    assert!(vmm.wait().unwrap().success());
    files.assert_equal();
}

#[test]
fn our_own_replicator_does_the_same_and_prints_equal_checksums() {
    for firmware in [firmware_or_skip(), armv7_firmware_or_skip()].into_iter().flatten() {
        let files = Files::new();
        let mut vmm = files.start_vmm(firmware, "300");
        let replicate = Command::new(hostvmm())
            .args(["replicate", "--interval-ms", "10", "--share"])
            .arg(files.path("share"))
            .arg("--bitmap-file")
            .arg(files.path("bitmap"))
            .arg("--dest")
            .arg(files.path("dest"))
            .output()
            .unwrap();
        assert!(replicate.status.success(), "{}", String::from_utf8_lossy(&replicate.stderr));
        assert!(vmm.wait().unwrap().success());
        files.assert_equal();
    }
}

#[test]
fn an_interrupted_run_ends_cleanly_with_status_1() {
    let Some(firmware) = firmware_or_skip() else { return };
    let files = Files::new();
    // Nobody asks for a bitmap, so the run would never end by itself.
    let mut vmm = files.start_vmm(firmware, "1000000");
    let replicator = Replicator::start(&files);
    replicator.round();
    let kill = Command::new("kill").args(["-INT", &vmm.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(vmm.wait().unwrap().code(), Some(1));
    let ledger: serde_json::Value = serde_json::from_slice(&fs::read(files.path("ledger.json")).unwrap()).unwrap();
    assert_eq!(ledger["verdict"], "fail");
    assert!(ledger["reason"].as_str().unwrap().contains("interrupted"), "{ledger}");
}
