//! `hostvmm verify hugepages` on the lab's KVM: it passes on huge pages, and fails on memory without them. Where this
//! machine has no lab it reports "skipped: …", as `boot.rs` does.

use std::process::Command;

const UNAVAILABLE: i32 = 126;

#[test]
fn blocks_come_go_and_return_on_thp_and_their_absence_on_a_memfd_is_found() {
    let script = "hostvmm verify hugepages --region-size 16M --passes 2 || exit 9; \
                  hostvmm verify hugepages --region-size 16M --passes 2 --backing memfd";
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["run", "--no-build", "--quiet", "--timeout", "300", "--", "sh", "-c", script])
        .output()
        .unwrap();
    if output.status.code() == Some(UNAVAILABLE) {
        print!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("PASS: blocks before logging"), "{stdout}");
    assert!(stdout.contains("MISMATCH blocks-before") && stdout.contains("no blocks"), "{stdout}");
}
