//! A guest of six instructions for tests: it stores bytes at addresses that the test names ([`StoreGuest`]).
//!
//! It runs on any accelerator, without firmware, translation or caches.

use abi::{Arch, Gpa, map};

use super::{Exit, Vcpu, VmHandle};
use crate::memory::GuestMemory;

/// ```text
/// 0:  strb  w1, [x0]
///     add   x0, x0, x3
///     subs  x4, x4, #1
///     b.ne  0b
///     str   wzr, [x2]     // the doorbell: an exit
/// 1:  b     1b
/// ```
const CODE: [u32; 6] = [0x3900_0001, 0x8b03_0000, 0xf100_0484, 0x54ff_ffa1, 0xb900_005f, 0x1400_0000];
/// The same in A32:
///
/// ```text
/// 0:  strb  r1, [r0]
///     add   r0, r0, r3
///     subs  r4, r4, #1
///     bne   0b
///     str   r4, [r2]      // zero by now; the doorbell
/// 1:  b     1b
/// ```
const CODE_A32: [u32; 6] = [0xe5c0_1000, 0xe080_0003, 0xe254_4001, 0x1aff_fffb, 0xe582_4000, 0xeaff_fffe];
const SPIN: u64 = map::RAM_BASE.raw() + 20;

const REG_X0: u64 = 0x6030_0000_0010_0000;
const REG_PC: u64 = REG_X0 + 64;

/// vCPU 0, with the code at the start of RAM.
pub(crate) struct StoreGuest {
    vcpu: Box<dyn Vcpu>,
}

impl StoreGuest {
    /// Puts the code into `memory` and takes vCPU 0 of `vm`, a machine of AArch64.
    pub(crate) fn load(vm: &VmHandle, memory: &GuestMemory) -> Self {
        Self::load_for(Arch::Aarch64, vm, memory)
    }

    /// As [`StoreGuest::load`], on a machine of `arch`.
    pub(crate) fn load_for(arch: Arch, vm: &VmHandle, memory: &GuestMemory) -> Self {
        let code = match arch {
            Arch::Aarch64 => CODE,
            Arch::Armv7 => CODE_A32,
        };
        memory.write(map::RAM_BASE, &code.map(u32::to_le_bytes).concat()).unwrap();
        Self { vcpu: vm.take_vcpu(0).unwrap() }
    }

    /// Stores `value` at `gpa` and at `count - 1` further addresses, each `stride` bytes after the last.
    pub(crate) fn store(&mut self, gpa: Gpa, value: u8, stride: u64, count: u64) {
        self.set([gpa.raw(), value.into(), map::DOORBELL_BASE.raw(), stride, count], map::RAM_BASE.raw());
        loop {
            match self.vcpu.run(None).unwrap() {
                Exit::Kicked => {}
                Exit::MmioWrite { gpa, data: 0, .. } if gpa == map::DOORBELL_BASE => return,
                exit => panic!("{exit:?}"),
            }
        }
    }

    /// Makes the next run loop without end, and gives the vCPU to run it.
    pub(crate) fn spin(&mut self) -> &mut dyn Vcpu {
        self.set([0; 5], SPIN);
        self.vcpu.as_mut()
    }

    fn set(&mut self, x: [u64; 5], pc: u64) {
        for (register, value) in (REG_X0..).step_by(2).zip(x) {
            self.vcpu.set_reg(register, value.into()).unwrap();
        }
        self.vcpu.set_reg(REG_PC, pc.into()).unwrap();
    }
}
