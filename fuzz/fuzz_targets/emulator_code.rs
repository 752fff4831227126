//! Arbitrary A64 instructions on the emulator: it must not panic, not run longer than it was told, and not touch the
//! host's memory outside guest RAM (which AddressSanitizer sees, RAM being one heap block).
//!
//! Input: one byte of options, 32 words of 8 bytes for X0–X30 and SP's place in RAM, then instructions. Exceptions go to a
//! vector that skips the instruction, so that one bad word does not hide what follows it.
#![no_main]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::LazyLock;

use abi::{Gpa, Granule, VaBits};
use emulator::{ClockMode, Config, Exit, Machine, RamSlot, Vcpu};
use libfuzzer_sys::fuzz_target;
use pagetable::{
    Attributes, Execute, HardwareUpdate, MAIR_EL1, Mapper, PaSize, Sizes, TableMemory, Va, Write, tcr_el1,
};

const RAM: u64 = 0x4000_0000;
const RAM_BYTES: usize = 0x1_0000;
const CODE: u64 = RAM + 0x1000;
const CODE_BYTES: usize = 0x1000;
const VECTORS: u64 = RAM + 0x3000;
const TABLES: u64 = RAM + 0x8000;
/// Instructions in one run, the vectors' included.
const BUDGET: u64 = 160;
/// Exits answered in one run.
const EXITS: u32 = 32;

const OPTION_MMU: u8 = 1 << 0;
const OPTION_EL0: u8 = 1 << 1;
/// Registers hold addresses in RAM instead of the input's values.
const OPTION_POINTERS: u8 = 1 << 2;
const OPTION_DIRTY_LOG: u8 = 1 << 3;

/// `mrs x30, elr_el1; add x30, x30, #4; msr elr_el1, x30; eret`.
const SKIP: [u32; 4] = [0xd538_403e, 0x9100_13de, 0xd518_403e, 0xd69f_03e0];

/// Guest RAM: one block, never freed, zeroed for each input.
struct Ram(NonNull<u8>);

// SAFETY: libFuzzer calls the target from one thread.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

static MEMORY: LazyLock<Ram> = LazyLock::new(|| {
    let layout = Layout::from_size_align(RAM_BYTES, 4096).expect("a valid layout");
    // SAFETY: the layout is not empty.
    let block = unsafe { alloc_zeroed(layout) };
    Ram(NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout)))
});

impl Ram {
    fn clear(&self) {
        // SAFETY: the block has RAM_BYTES bytes and no vCPU exists.
        unsafe { self.0.write_bytes(0, RAM_BYTES) };
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        let offset = (gpa - RAM) as usize;
        assert!(offset + bytes.len() <= RAM_BYTES);
        // SAFETY: in bounds as asserted; no vCPU exists.
        unsafe { self.0.add(offset).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    fn words(&self, gpa: u64, words: &[u32]) {
        for (index, word) in words.iter().enumerate() {
            self.put(gpa + index as u64 * 4, &word.to_le_bytes());
        }
    }
}

/// Tables in guest RAM, from [`TABLES`] on.
struct Arena<'a> {
    ram: &'a Ram,
    next: u64,
}

impl TableMemory for Arena<'_> {
    fn alloc_table(&mut self) -> Option<Gpa> {
        let table = self.next;
        self.next += 4096;
        (self.next <= RAM + RAM_BYTES as u64).then(|| Gpa::new(table))
    }

    fn read(&self, gpa: Gpa) -> u64 {
        let offset = (gpa.raw() - RAM) as usize;
        assert!(offset + 8 <= RAM_BYTES);
        // SAFETY: in bounds as asserted, aligned since the mapper aligns; no vCPU exists.
        unsafe { self.ram.0.add(offset).cast::<u64>().read() }
    }

    fn write(&mut self, gpa: Gpa, descriptor: u64) {
        self.ram.put(gpa.raw(), &descriptor.to_le_bytes());
    }
}

fn enable_mmu(ram: &Ram, vcpu: &mut Vcpu) {
    let space = VaBits::new(Granule::K4, 39).expect("a supported pair");
    let mut arena = Arena { ram, next: TABLES };
    let mapper = Mapper::new(space, &mut arena).expect("RAM holds the tables");
    let code = Attributes { execute: Execute::El1, ..Attributes::DATA };
    let tracked = Attributes { write: Write::Tracked, accessed: false, ..Attributes::DATA };
    // Everything but the last page, which faults; the page before it is marked dirty by the walker.
    let pages = RAM_BYTES as u64 - 0x2000;
    let mut map = |va, len, attributes| {
        mapper.map(&mut arena, Va::new(va), Gpa::new(va), len, attributes, Sizes::Pages).expect("RAM holds the tables");
    };
    map(RAM, pages, code);
    map(RAM + pages, 0x1000, tracked);
    let sys = &mut vcpu.cpu().sys;
    sys.ttbr = [mapper.ttbr0().raw(), mapper.ttbr1().raw()];
    sys.tcr = tcr_el1(space, PaSize::Bits40, HardwareUpdate::AccessFlagAndDirty);
    sys.mair = MAIR_EL1;
    sys.sctlr |= 0x1005; // I, C, M
    vcpu.cpu().translation_changed();
}

fuzz_target!(|data: &[u8]| {
    let [options, rest @ ..] = data else { return };
    let Some((registers, code)) = rest.split_at_checked(32 * 8) else { return };
    let ram = &*MEMORY;
    ram.clear();
    ram.put(CODE, &code[..code.len().min(CODE_BYTES)]);
    for vector in (0..0x800).step_by(0x80) {
        ram.words(VECTORS + vector, &SKIP);
    }

    let config = Config { clock: ClockMode::Icount { ns_per_instruction: 1 }, quantum: 64, ..Config::default() };
    let slot = RamSlot { gpa: Gpa::new(RAM), len_bytes: RAM_BYTES as u64, host: ram.0 };
    // SAFETY: the block is never freed and nobody else touches it while the machine lives.
    let machine = unsafe { Machine::new(config, &[slot]) }.expect("the configuration is valid");
    let mut vcpu = machine.take_vcpu(0).expect("vCPU 0 exists");
    if options & OPTION_MMU != 0 {
        enable_mmu(ram, &mut vcpu);
    }
    if options & OPTION_DIRTY_LOG != 0 {
        machine.start_dirty_log();
    }
    let cpu = vcpu.cpu();
    cpu.pc = CODE;
    cpu.sys.vbar = VECTORS;
    cpu.sys.cpacr = 3 << 20; // FP and SIMD at both exception levels
    if options & OPTION_EL0 != 0 {
        let mut pstate = cpu.pstate;
        (pstate.el, pstate.sp_sel) = (0, false);
        cpu.set_pstate(pstate);
    }
    for (index, bytes) in registers.chunks_exact(8).enumerate() {
        let value = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let pointer = RAM + value % RAM_BYTES as u64;
        match index {
            31 => (0..2).for_each(|el| cpu.set_sp(el, pointer & !15)),
            _ => cpu.x[index] = if options & OPTION_POINTERS != 0 { pointer } else { value },
        }
    }

    let mut left = BUDGET;
    for _ in 0..EXITS {
        let before = vcpu.retired();
        let exit = vcpu.run_for(left);
        let used = vcpu.retired() - before;
        assert!(used <= left, "{used} instructions retired, {left} allowed");
        left -= used;
        match exit {
            Exit::MmioRead { gpa, len_bytes } | Exit::MmioWrite { gpa, len_bytes, .. } => {
                let wrapped = gpa.checked_add(u64::from(len_bytes));
                let inside = |gpa: Gpa| (RAM..RAM + RAM_BYTES as u64).contains(&gpa.raw());
                assert!(!inside(gpa) || wrapped.is_none_or(|end| !inside(end)), "RAM at {gpa} left the machine");
                vcpu.complete_mmio(gpa.raw());
            }
            Exit::Hvc { .. } => vcpu.complete_hvc([0; 4]),
            Exit::Idle => {
                if !machine.warp_to_next_deadline() {
                    break;
                }
            }
            Exit::Budget => {
                assert_eq!(left, 0, "stopped before the budget was used up");
                break;
            }
            Exit::Kicked => {}
            Exit::SystemOff | Exit::SystemReset | Exit::CpuOff | Exit::Error(_) => break,
        }
    }
    assert_eq!(vcpu.cpu().x[31], 0, "the zero register was written");
});
