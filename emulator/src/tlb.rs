//! The software TLB: [`Tlb`].

/// The software TLB of one vCPU: 4 KiB sub-pages, direct-mapped, privileged and unprivileged accesses apart.
#[derive(Default)]
pub struct Tlb {}

impl Tlb {
    /// An empty TLB.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets every translation (TLBI of any kind, change of regime).
    pub fn flush(&mut self) {}

    /// Forgets the translations of the page of `va` in every context (TLBI VA*).
    pub fn flush_va(&mut self, _va: u64) {}

    /// Makes every next store to a page take the slow path, which marks the dirty log: the vCPU's part of a harvest.
    pub fn drop_write_tags(&mut self) {}
}
