//! What is moved: [`Guest`], the firmware with one of the original test's workloads, laid out alike for both VMMs.

use std::fmt;

/// The guest's RAM beside the region: enough for the firmware and its tables.
const RAM_MIB: u64 = 64;
const PAGE_BYTES: u64 = 4096;

/// A guest that writes each of `pages` once, and from then on `step` of them, one after the other, every `sleep_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Guest {
    pages: u64,
    step: u64,
    sleep_ms: u64,
}

impl Guest {
    /// The original test's guests, with so many pages.
    pub(crate) fn originals(pages: u64) -> [Self; 2] {
        [Self { pages, step: 2048, sleep_ms: 50 }, Self { pages, step: 8192, sleep_ms: 5 }]
    }

    /// The guest that is moved again and again.
    pub(crate) const SMALL: Self = Self { pages: 1024, step: 64, sleep_ms: 1 };

    /// Whether it is the guest that requirements are stated for.
    pub(crate) const fn is_required(&self) -> bool {
        self.step == 2048
    }

    /// hostvmm's options. The region follows RAM, where QEMU has its own RAM on end.
    pub(crate) fn options(&self) -> Vec<String> {
        let Self { pages, step, sleep_ms } = self;
        let region_mib = (pages * PAGE_BYTES).div_ceil(1 << 20);
        let base = 0x4000_0000 + (RAM_MIB << 20);
        [
            "--ram",
            &format!("{RAM_MIB}M"),
            "--region-size",
            &format!("{region_mib}M"),
            "--region-base",
            &format!("{base:#x}"),
            "--workload",
            &format!("dirtyram:pages={pages},step={step},sleep_ms={sleep_ms}"),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// MiB of RAM and region together.
    pub(crate) const fn memory_mib(&self) -> u64 {
        RAM_MIB + (self.pages * PAGE_BYTES).div_ceil(1 << 20)
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dirtyram {} {} {}", self.pages, self.step, self.sleep_ms)
    }
}
