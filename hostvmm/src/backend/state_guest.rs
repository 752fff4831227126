//! A guest for tests of a machine's state ([`StateGuest`]): it takes interrupts, nested ones too, sends SGIs, and does
//! arithmetic on what a device answers, stopping at every step so that it can be saved there.
//!
//! It runs on any accelerator, without firmware, translation or caches. Its stops are stores to the doorbell's page:
//! at offset 0 what a step is about, at [`WINDOW`] the point of a handler where further interrupts may come.

use abi::{Gpa, map};

use super::{Exit, Vcpu, VmHandle};
use crate::memory::GuestMemory;

/// Offset of the store by which a handler says that further interrupts may come.
pub(super) const WINDOW: u64 = 8;
/// Offset of the stores of a vCPU that idles.
const IDLE: u64 = 16;
/// How often a vCPU may be found idle before what is expected of it.
const IDLE_TURNS: u32 = 1000;
/// Offset of the store of ESR_EL1 by a vCPU with an unexpected exception.
const UNEXPECTED: u64 = 4;

/// From the start of RAM.
const CODE: &[u32] = &[
    0xd503_3fdf, // idle: isb
    0xb900_12bf, //       str   wzr, [x21, #16]
    0x17ff_fffe, //       b     idle
    0xd518_cba0, // sgi:  msr   ICC_SGI1R_EL1, x0
    0xd503_3fdf, //       isb
    0xb900_02bf, //       str   wzr, [x21]
    0x1400_0000, //       b     .
    0xb940_02a2, // sum:  ldr   w2, [x21]
    0x8b02_0021, //       add   x1, x1, x2
    0x4ee1_8400, //       add   v0.2d, v0.2d, v1.2d
    0xf100_0400, //       subs  x0, x0, #1
    0x54ff_ff81, //       b.ne  sum
    0xb900_02a1, //       str   w1, [x21]
    0x1400_0000, //       b     .
];
/// Vectors of synchronous exceptions and IRQs from EL1 with its own stack pointer (DDI 0487 D1.3.1).
const VECTORS: u64 = 0x800;
const SYNCHRONOUS: &[u32] = &[
    0xd538_5209, //       mrs   x9, ESR_EL1
    0xb900_06a9, //       str   w9, [x21, #4]
    0x1400_0000, //       b     .
];
const IRQ: &[u32] = &[
    0xa9bd_2be9, //       stp   x9, x10, [sp, #-48]!
    0xd538_402a, //       mrs   x10, ELR_EL1
    0xd538_4009, //       mrs   x9, SPSR_EL1
    0xa901_27ea, //       stp   x10, x9, [sp, #16]
    0xd538_cc09, //       mrs   x9, ICC_IAR1_EL1
    0xf900_13e9, //       str   x9, [sp, #32]
    0xb900_02a9, //       str   w9, [x21]
    0xd503_42ff, //       msr   DAIFClr, #2
    0xb900_0aa9, //       str   w9, [x21, #8]
    0xd503_42df, //       msr   DAIFSet, #2
    0xf940_13e9, //       ldr   x9, [sp, #32]
    0xb869_7a8a, //       ldr   w10, [x20, x9, lsl #2]
    0x1100_054a, //       add   w10, w10, #1
    0xb829_7a8a, //       str   w10, [x20, x9, lsl #2]
    0xd518_cc29, //       msr   ICC_EOIR1_EL1, x9
    0xd503_3fdf, //       isb
    0xa941_27ea, //       ldp   x10, x9, [sp, #16]
    0xd518_402a, //       msr   ELR_EL1, x10
    0xd518_4009, //       msr   SPSR_EL1, x9
    0xa8c3_2be9, //       ldp   x9, x10, [sp], #48
    0xd69f_03e0, //       eret
];
/// The same sum in A32, at [`SUM_A32`]: r0 loads of what r5 points to, added up in r1.
const CODE_A32: &[u32] = &[
    0xe595_2000, // sum:  ldr   r2, [r5]
    0xe081_1002, //       add   r1, r1, r2
    0xe250_0001, //       subs  r0, r0, #1
    0x1aff_fffb, //       bne   sum
    0xe585_1000, //       str   r1, [r5]
    0xeaff_fffe, //       b     .
];
const SUM_A32: u64 = 0x400;
const SGI: u64 = 0xc;
const SUM: u64 = 0x1c;

/// Where each vCPU counts the interrupts it has taken, and the top of its stack.
const COUNTS: u64 = 0x2000;
const STACKS: u64 = 0x8000;
const PER_VCPU: u64 = 0x400;

/// KVM's register ids.
pub(super) const X0: u64 = 0x6030_0000_0010_0000;
pub(super) const PC: u64 = X0 + 64;
const PSTATE: u64 = X0 + 66;
const SP_EL1: u64 = X0 + 68;
pub(super) const V0: u64 = 0x6040_0000_0010_0054;
const VBAR_EL1: u64 = 0x6030_0000_0013_c600;
const CPACR_EL1: u64 = 0x6030_0000_0013_c082;
/// EL1 with its own stack pointer; everything masked, or everything but IRQs.
const MASKED: u128 = 0x3c5;
const UNMASKED: u128 = 0x345;

/// One of its vCPUs.
pub(super) struct StateGuest {
    pub(super) vcpu: Box<dyn Vcpu>,
}

impl StateGuest {
    /// Puts the code into `memory`.
    pub(super) fn load(memory: &GuestMemory) {
        for (offset, code) in [(0, CODE), (SUM_A32, CODE_A32), (VECTORS + 0x200, SYNCHRONOUS), (VECTORS + 0x280, IRQ)] {
            let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
            memory.write(Gpa::new(map::RAM_BASE.raw() + offset), &bytes).unwrap();
        }
    }

    /// Takes vCPU `index` of `vm`, on, idle, with interrupts masked.
    pub(super) fn take(vm: &VmHandle, index: usize) -> Self {
        let mut guest = Self::take_as_it_is(vm, index);
        let (ram, offset) = (map::RAM_BASE.raw(), PER_VCPU * index as u64);
        guest.vcpu.set_on(true).unwrap();
        for (register, value) in [
            (X0 + 2 * 20, ram + COUNTS + offset),
            (X0 + 2 * 21, map::DOORBELL_BASE.raw()),
            (SP_EL1, ram + STACKS + PER_VCPU + offset),
            (VBAR_EL1, ram + VECTORS),
            // FPEN: vectors and floating point without traps.
            (CPACR_EL1, 3 << 20),
            (PC, ram),
        ] {
            guest.set(register, value.into());
        }
        guest.mask(true);
        guest
    }

    /// Takes vCPU `index` of `vm`, to be restored.
    pub(super) fn take_as_it_is(vm: &VmHandle, index: usize) -> Self {
        Self { vcpu: vm.take_vcpu(index).unwrap() }
    }

    pub(super) fn set(&mut self, register: u64, value: u128) {
        self.vcpu.set_reg(register, value).unwrap();
    }

    pub(super) fn get(&mut self, register: u64) -> u128 {
        self.vcpu.get_reg(register).unwrap()
    }

    /// Masks interrupts or lets them in.
    pub(super) fn mask(&mut self, masked: bool) {
        self.set(PSTATE, if masked { MASKED } else { UNMASKED });
    }

    /// Sends the SGI that `value` of ICC_SGI1R_EL1 names, and goes back to idling.
    pub(super) fn send_sgi(&mut self, value: u64) {
        self.set(X0, value.into());
        self.set(PC, u128::from(map::RAM_BASE.raw() + SGI));
        self.expect(0, 0);
        self.set(PC, map::RAM_BASE.raw().into());
    }

    /// Makes the next runs add up what `loads` loads of the doorbell's page are answered with, to x1, and as often v1 to v0.
    pub(super) fn sum(&mut self, loads: u64) {
        self.set(X0, loads.into());
        self.set(X0 + 2, 0);
        self.set(PC, u128::from(map::RAM_BASE.raw() + SUM));
    }

    /// The same on an AArch32 vCPU, with r0 to r2 and r5.
    pub(super) fn sum_a32(&mut self, loads: u64) {
        self.set(X0, loads.into());
        self.set(X0 + 2, 0);
        self.set(X0 + 2 * 5, map::DOORBELL_BASE.raw().into());
        self.set(PC, u128::from(map::RAM_BASE.raw() + SUM_A32));
    }

    /// Runs until the guest stops.
    pub(super) fn run(&mut self) -> Exit {
        loop {
            match self.vcpu.run(None).unwrap() {
                Exit::Kicked => {}
                Exit::MmioWrite { gpa, data, .. } if gpa.raw() == map::DOORBELL_BASE.raw() + UNEXPECTED => {
                    panic!("vCPU {}: unexpected exception, ESR_EL1 {data:#x}", self.vcpu.index());
                }
                exit => return exit,
            }
        }
    }

    /// Runs until the guest stops, which must be by storing `data` at `offset` of the doorbell's page, idle before or not.
    pub(super) fn expect(&mut self, offset: u64, data: u64) {
        let gpa = Gpa::new(map::DOORBELL_BASE.raw() + offset);
        let stop = (0..IDLE_TURNS).map(|_| self.run()).find(|exit| !is_idle(exit));
        assert_eq!(stop, Some(Exit::MmioWrite { gpa, len_bytes: 4, data }), "vCPU {}", self.vcpu.index());
    }

    /// Runs through the handler of `intid`, which nothing may interrupt.
    pub(super) fn expect_interrupt(&mut self, intid: u64) {
        self.expect(0, intid);
        self.expect(WINDOW, intid);
    }

    /// Runs until the guest idles, where a pending interrupt would be taken.
    pub(super) fn expect_nothing(&mut self) {
        for _ in 0..2 {
            let exit = self.run();
            assert!(is_idle(&exit), "vCPU {}: {exit:?}", self.vcpu.index());
        }
    }

    /// How often vCPU `index` has finished handling `intid`.
    pub(super) fn count(memory: &GuestMemory, index: usize, intid: u64) -> u32 {
        let mut count = [0; 4];
        let offset = COUNTS + PER_VCPU * index as u64 + 4 * intid;
        memory.read(Gpa::new(map::RAM_BASE.raw() + offset), &mut count).unwrap();
        u32::from_le_bytes(count)
    }
}

fn is_idle(exit: &Exit) -> bool {
    matches!(exit, Exit::MmioWrite { gpa, .. } if gpa.raw() == map::DOORBELL_BASE.raw() + IDLE)
}
