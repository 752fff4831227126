//! The ELF loader: whatever is accepted fits and loads, whatever is refused says so in one line.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use abi::{GuestRange, map};
use hostvmm::machine::Image;
use hostvmm::memory::GuestMemory;
use libfuzzer_sys::fuzz_target;

static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    let ram = GuestRange::new(map::RAM_BASE, map::RAM_MIN).expect("RAM does not wrap");
    let region = GuestRange::new(map::REGION_BASE, 0x1_0000).expect("the region does not wrap");
    GuestMemory::new(ram, region, None).expect("the host has memory")
});

fuzz_target!(|data: &[u8]| {
    let memory = &*MEMORY;
    let ram = GuestRange::new(map::RAM_BASE, map::RAM_MIN).expect("RAM does not wrap");
    let loaded = Image::parse(Path::new("fuzzed.elf"), data.to_vec()).and_then(|image| {
        image.check_fits(ram)?;
        assert!(ram.contains(image.entry()), "an entry point outside RAM was accepted");
        image.load(memory)
    });
    if let Err(error) = loaded {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
});
