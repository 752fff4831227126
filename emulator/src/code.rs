//! Lowered code by page: [`CodeCache`].

/// The lowered code of one vCPU.
#[derive(Default)]
pub struct CodeCache {}

impl CodeCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all lowered code.
    pub fn flush(&mut self) {}

    /// Forgets the code of the 4 KiB page at guest physical `gpa`.
    pub fn flush_page(&mut self, _gpa: u64) {}
}
