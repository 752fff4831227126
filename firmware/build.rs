//! Hands the target's linker script to the linker by an absolute path, so that the build works from any directory.

use std::env;
use std::path::Path;

fn main() {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let arm = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "arm");
    let name = if arm { "armv7a.ld" } else { "aarch64.ld" };
    let script = Path::new(&manifest).with_file_name("linker").join(name);
    println!("cargo::rerun-if-changed={}", script.display());
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        println!("cargo::rustc-link-arg-bins=-T{}", script.display());
        // Segments are aligned to 64 KiB, the largest granule, so that each can have its own permissions.
        println!("cargo::rustc-link-arg-bins=-zmax-page-size=0x10000");
    }
}
