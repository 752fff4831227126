//! System registers.

/// The system registers of one vCPU.
#[derive(Default)]
pub struct SysRegs {}

impl SysRegs {
    /// The reset state of vCPU `index`.
    pub fn new(_index: usize) -> Self {
        Self::default()
    }
}
