//! The figures of the emulator's speed, for A64 and for A32: ALU instructions a second on straight code, a load and store mix, the time of
//! "8 bytes in a fresh page" (the first store to a page since the last harvest), and of a full page written.
//!
//! The guest runs in a flat map of 4 KiB pages, three levels deep (in A32 two), with the dirty log on. What is measured is the time of the
//! vCPU's thread on the CPU, harvests excluded.
#![expect(unsafe_code, reason = "lends the machine host memory")]

use std::alloc::{Layout, alloc_zeroed};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use abi::Gpa;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use emulator::config::ExecutionState;
use emulator::{ClockMode, Config, Exit, Machine, RamSlot, Vcpu};
use rustix::time::{ClockId, clock_gettime};

const BASE: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 64 << 20;
/// Tables: one of level 1, one of level 2, one of level 3 for each 2 MiB.
const TABLES: u64 = BASE + 0x10_0000;
/// The region that is written: 8 MiB, the default of the machine.
const REGION: u64 = BASE + (16 << 20);
const REGION_PAGES: u64 = 2048;
const PAGE: u64 = 4096;

/// add, eor, add #, lsl #, sub, and #, orr, add w, subs #
const ALU: [u32; 9] = [
    0x8b01_0000,
    0xca00_0042,
    0x9100_1c63,
    0xd37d_f064,
    0xcb02_0085,
    0x9240_1ca6,
    0xaa06_00e7,
    0x0b07_0108,
    0xf100_0529,
];
/// Times that `ALU` is repeated before the loop's branch.
const ALU_REPEATS: usize = 6;
/// ldr, add #, str post-indexed, ldr w, eor, ldrb, str w, add, cmp, b.lo to the start, mov, b to the start
const MIX: [u32; 12] = [
    0xf940_0001,
    0x9100_0421,
    0xf800_8401,
    0xb940_0402,
    0xca02_0063,
    0x3940_0404,
    0xb900_0803,
    0x8b04_00a5,
    0xeb06_001f,
    0x54ff_fee3,
    0xaa07_03e0,
    0x17ff_fff5,
];
/// str x1, [x0]; add x0, x0, #4096; subs x3, x3, #1; b.ne to the start
const FRESH: [u32; 4] = [0xf900_0001, 0x9140_0400, 0xf100_0463, 0x54ff_ffa1];
/// stp x1, x2, [x0]; stp x1, x2, [x0, #16]; stp x1, x2, [x0, #32]; stp x1, x2, [x0, #48]; add x0, x0, #64; cmp x0, x3; b.ne
/// to the start: 64 bytes a turn, as the memset of any C library.
const FULL: [u32; 7] = [0xa900_0801, 0xa901_0801, 0xa902_0801, 0xa903_0801, 0x9101_0000, 0xeb03_001f, 0x54ff_ff41];
/// stp x1, x2, [x0], #16; cmp x0, x3; b.ne to the start: 16 bytes a turn.
const FULL_ROLLED: [u32; 3] = [0xa881_0801, 0xeb03_001f, 0x54ff_ffc1];

/// add, eor, add #, mov lsl #, sub, and #, orr, add, subs #
const A32_ALU: [u32; 9] = [
    0xe080_0001,
    0xe022_2000,
    0xe283_3007,
    0xe1a0_4183,
    0xe044_5002,
    0xe205_60ff,
    0xe187_7006,
    0xe088_8007,
    0xe259_9001,
];
/// ldr, add #, str post-indexed, ldr, eor, ldrb, str, add, cmp, blo to the start, mov, b to the start
const A32_MIX: [u32; 12] = [
    0xe590_1000,
    0xe281_1001,
    0xe480_1008,
    0xe590_2004,
    0xe023_3002,
    0xe5d0_4001,
    0xe580_3008,
    0xe085_5004,
    0xe150_0006,
    0x3aff_fff5,
    0xe1a0_0007,
    0xeaff_fff3,
];
/// strd r4, r5, [r0]; add r0, r0, #4096; subs r3, r3, #1; bne to the start
const A32_FRESH: [u32; 4] = [0xe1c0_40f0, 0xe280_0a01, 0xe253_3001, 0x1aff_fffb];
/// stmia r0!, {r1, r2, r4-r9}, twice; cmp r0, r3; bne to the start: 64 bytes a turn.
const A32_FULL: [u32; 4] = [0xe8a0_03f6, 0xe8a0_03f6, 0xe150_0003, 0x1aff_fffb];
/// vst1.8 {d0-d3}, [r0]!, twice; cmp r0, r3; bne to the start.
const A32_FULL_NEON: [u32; 4] = [0xf400_020d, 0xf400_020d, 0xe150_0003, 0x1aff_fffb];

/// Time that this thread has spent on a CPU: the load of the rest of the host must not count.
fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

struct Guest {
    machine: Arc<Machine>,
    vcpu: Vcpu,
    host: NonNull<u8>,
    bitmap: Vec<u64>,
}

impl Guest {
    fn new(code: &[u32]) -> Self {
        let mut guest = Self::reset(ExecutionState::Aarch64, code);
        guest.map();
        let cpu = guest.vcpu.cpu();
        cpu.sys.mair = 0xff;
        cpu.sys.tcr = 25 | 1 << 23 | 4 << 32;
        cpu.sys.ttbr = [TABLES; 2];
        cpu.sys.sctlr |= 1;
        cpu.translation_changed();
        guest
    }

    fn a32(code: &[u32]) -> Self {
        let mut guest = Self::reset(ExecutionState::Aarch32, code);
        guest.map_short();
        let cpu = guest.vcpu.cpu();
        cpu.sys.ttbr[0] = TABLES;
        cpu.sys.dacr = 1;
        cpu.sys.cpacr = 0xf << 20;
        cpu.sys.fpexc = 1 << 30;
        cpu.sys.sctlr |= 1;
        cpu.translation_changed();
        guest
    }

    fn reset(execution_state: ExecutionState, code: &[u32]) -> Self {
        let layout = Layout::from_size_align(RAM_BYTES as usize, PAGE as usize).expect("a layout");
        // SAFETY: the size is not zero. Never freed: the benchmark is a process of its own.
        let host = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory");
        let config =
            Config { clock: ClockMode::Icount { ns_per_instruction: 1 }, execution_state, ..Config::default() };
        let slot = RamSlot { gpa: Gpa::new(BASE), len_bytes: RAM_BYTES, host };
        // SAFETY: the memory is never freed, and touched by volatile accesses only.
        let machine = unsafe { Machine::new(config, &[slot]) }.expect("a good machine");
        let vcpu = machine.take_vcpu(0).expect("vCPU 0");
        let words = machine.dirty().words(0).expect("slot 0");
        let mut guest = Self { machine, vcpu, host, bitmap: vec![0; words] };
        for (index, &word) in code.iter().enumerate() {
            guest.poke(BASE + 4 * index as u64, &word.to_le_bytes());
        }
        // The host's first touch is not the guest's first write.
        for page in 0..REGION_PAGES {
            guest.poke(REGION + page * PAGE, &[1]);
        }
        guest.vcpu.cpu().pc = BASE;
        guest.machine.start_dirty_log();
        guest
    }

    fn poke(&mut self, gpa: u64, bytes: &[u8]) {
        for (index, &byte) in bytes.iter().enumerate() {
            // SAFETY: the benchmark pokes only into RAM.
            let at = unsafe { self.host.add((gpa - BASE) as usize + index) };
            // SAFETY: mapped, and no reference to it exists.
            unsafe { at.write_volatile(byte) };
        }
    }

    /// 39-bit addresses, 4 KiB pages: VA = PA for all RAM.
    fn map(&mut self) {
        let (level2, level3) = (TABLES + PAGE, TABLES + 2 * PAGE);
        self.poke(TABLES + 8 * (BASE >> 30), &(level2 | 3).to_le_bytes());
        for block in 0..RAM_BYTES >> 21 {
            self.poke(level2 + 8 * block, &((level3 + block * PAGE) | 3).to_le_bytes());
        }
        for page in 0..RAM_BYTES / PAGE {
            let descriptor = (BASE + page * PAGE) | 1 << 10 | 3 << 8 | 3;
            self.poke(level3 + 8 * page, &descriptor.to_le_bytes());
        }
    }

    /// Short descriptors, small pages: VA = PA for all RAM.
    fn map_short(&mut self) {
        const SECOND_LEVELS: u64 = TABLES + 0x4000;
        for section in 0..RAM_BYTES >> 20 {
            let second_level = SECOND_LEVELS + 0x400 * section;
            let entry = TABLES + 4 * ((BASE >> 20) + section);
            self.poke(entry, &(second_level as u32 | 1).to_le_bytes());
        }
        for page in 0..RAM_BYTES / PAGE {
            // Small page, Normal memory, full access.
            let descriptor = (BASE + page * PAGE) as u32 | 1 << 6 | 3 << 4 | 3 << 2 | 2;
            self.poke(SECOND_LEVELS + 4 * page, &descriptor.to_le_bytes());
        }
    }

    fn run(&mut self, instructions: u64) -> Duration {
        let start = thread_time();
        let exit = self.vcpu.run_for(instructions);
        let elapsed = thread_time() - start;
        assert!(matches!(exit, Exit::Budget), "{exit:?}");
        elapsed
    }

    fn harvest(&mut self) {
        self.machine.harvest(0, &mut self.bitmap).expect("slot 0");
    }

    /// Runs `pages` pages of `instructions_per_page`, harvesting whenever the region is used up.
    fn dirty(&mut self, pages: u64, instructions_per_page: u64) -> Duration {
        let mut time = Duration::ZERO;
        let mut left = pages;
        while left > 0 {
            let now = left.min(REGION_PAGES);
            self.harvest();
            let cpu = self.vcpu.cpu();
            cpu.pc = BASE;
            (cpu.x[0], cpu.x[3]) = (REGION, if cpu.is_aarch32() { u32::MAX.into() } else { u64::MAX });
            time += self.run(now * instructions_per_page);
            left -= now;
        }
        time
    }
}

fn speed(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("speed");
    group.throughput(Throughput::Elements(1));
    group.bench_function("alu_instruction", |bencher| {
        let mut code = ALU.repeat(ALU_REPEATS);
        // b.ne to the start
        let back = (-(code.len() as i32)) as u32 & 0x7ffff;
        code.push(0x5400_0001 | back << 5);
        let mut guest = Guest::new(&code);
        guest.vcpu.cpu().x[9] = u64::MAX;
        bencher.iter_custom(|iterations| guest.run(iterations));
    });
    group.bench_function("load_store_mix_instruction", |bencher| {
        let mut guest = Guest::new(&MIX);
        let cpu = guest.vcpu.cpu();
        (cpu.x[0], cpu.x[7], cpu.x[6]) = (REGION, REGION, REGION + 4 * PAGE);
        bencher.iter_custom(|iterations| guest.run(iterations));
    });
    group.bench_function("8_bytes_in_a_fresh_page", |bencher| {
        let mut guest = Guest::new(&FRESH);
        bencher.iter_custom(|pages| guest.dirty(pages, FRESH.len() as u64));
    });
    group.bench_function("full_4k_page", |bencher| {
        let mut guest = Guest::new(&FULL);
        bencher.iter_custom(|pages| guest.dirty(pages, FULL.len() as u64 * PAGE / 64));
    });
    group.bench_function("full_4k_page_16_bytes_a_turn", |bencher| {
        let mut guest = Guest::new(&FULL_ROLLED);
        bencher.iter_custom(|pages| guest.dirty(pages, FULL_ROLLED.len() as u64 * PAGE / 16));
    });
    group.finish();
}

fn a32_speed(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a32_speed");
    group.throughput(Throughput::Elements(1));
    group.bench_function("alu_instruction", |bencher| {
        let mut code = A32_ALU.repeat(ALU_REPEATS);
        // bne to the start
        let back = (-(code.len() as i32) - 2) as u32 & 0xff_ffff;
        code.push(0x1a00_0000 | back);
        let mut guest = Guest::a32(&code);
        guest.vcpu.cpu().x[9] = u32::MAX.into();
        bencher.iter_custom(|iterations| guest.run(iterations));
    });
    group.bench_function("load_store_mix_instruction", |bencher| {
        let mut guest = Guest::a32(&A32_MIX);
        let cpu = guest.vcpu.cpu();
        (cpu.x[0], cpu.x[7], cpu.x[6]) = (REGION, REGION, REGION + 4 * PAGE);
        bencher.iter_custom(|iterations| guest.run(iterations));
    });
    group.bench_function("8_bytes_in_a_fresh_page", |bencher| {
        let mut guest = Guest::a32(&A32_FRESH);
        bencher.iter_custom(|pages| guest.dirty(pages, A32_FRESH.len() as u64));
    });
    for (name, code) in [("full_4k_page", A32_FULL), ("full_4k_page_by_vst1", A32_FULL_NEON)] {
        group.bench_function(name, |bencher| {
            let mut guest = Guest::a32(&code);
            bencher.iter_custom(|pages| guest.dirty(pages, code.len() as u64 * PAGE / 64));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = speed, a32_speed
}
criterion_main!(benches);
