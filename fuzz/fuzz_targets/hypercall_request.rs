//! A hostile guest: any request block, at any address, in any phase. The host answers inside guest memory or not at all.
//!
//! Input: one byte chooses the phase, two how the address is claimed, the rest is the guest's memory from
//! [`BLOCK`] on.
#![no_main]

use std::sync::LazyLock;

use abi::hypercall::{Command, PACKET_MAX, Status, WORDS};
use abi::{Gpa, GuestRange, map};
use hostvmm::device::doorbell;
use hostvmm::device::hypercall::{Call, Phase, answer, decode};
use hostvmm::device::pl011::{Pl011, console_text};
use hostvmm::memory::GuestMemory;
use libfuzzer_sys::fuzz_target;

const RAM_BYTES: u64 = 1 << 20;
/// Where the guest's bytes go; the rest of memory is zero.
const BLOCK: Gpa = Gpa::new(map::RAM_BASE.raw() + 0x1000);
const BLOCK_BYTES: usize = 0x1000;

static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    let region = GuestRange::new(map::REGION_BASE, 0x1_0000).expect("the region does not wrap");
    GuestMemory::new(ram(), region, None).expect("the host has memory")
});

fn ram() -> GuestRange {
    GuestRange::new(map::RAM_BASE, RAM_BYTES).expect("RAM does not wrap")
}

fn phase(choice: u8) -> Phase {
    let range = GuestRange::new(map::REGION_BASE, 0x1_0000).expect("the region does not wrap");
    match choice % 8 {
        0 => Phase::Fresh,
        1 => Phase::Waiting,
        2 => Phase::Dead,
        3 => Phase::Executing(Command::RunSteps { first: 5, count: 3 }),
        4 => Phase::Executing(Command::RunSteps { first: 0, count: u64::MAX }),
        5 => Phase::Executing(Command::Digest { range, pass: 9 }),
        6 => Phase::Executing(Command::SelfCheck { steps: 4 }),
        _ => Phase::Executing(Command::Stop),
    }
}

fn claim(high: u8, low: u8, contents: &[u8]) -> Gpa {
    match high % 4 {
        0 | 1 => BLOCK,
        // Around the ends of RAM, in steps of a quarter of the alignment.
        2 => Gpa::new(map::RAM_BASE.raw() + RAM_BYTES * u64::from(high >> 7) + u64::from(low) * 16 - 2048),
        _ => {
            let mut raw = [0; 8];
            let given = contents.len().min(8);
            raw[..given].copy_from_slice(&contents[..given]);
            Gpa::new(u64::from_le_bytes(raw))
        }
    }
}

/// Whether a terminal only shows the character.
fn is_harmless(c: char) -> bool {
    matches!(c, '\t' | '\n') || !c.is_control()
}

fuzz_target!(|data: &[u8]| {
    let [choice, high, low, contents @ ..] = data else { return };
    let memory = &*MEMORY;
    let mut block = [0; BLOCK_BYTES];
    let given = contents.len().min(BLOCK_BYTES);
    block[..given].copy_from_slice(&contents[..given]);
    memory.write(BLOCK, &block).expect("the block lies in RAM");

    let claim = claim(*high, *low, contents);
    let status = match decode(memory, phase(*choice), claim) {
        Ok(Call::Next { request, .. }) => {
            assert_eq!(request, claim);
            Some(Status::Ok)
        }
        Ok(Call::Panic(text)) => {
            assert!(text.chars().all(is_harmless), "unprintable text reached the terminal");
            None
        }
        Ok(Call::Packet { request, bytes }) => {
            assert_eq!(request, claim);
            assert!((1..=PACKET_MAX as usize).contains(&bytes.len()), "a packet out of bounds");
            Some(Status::Ok)
        }
        Ok(Call::Exception(_)) => None,
        Err(refusal) => refusal.answerable.then_some(refusal.status),
    };
    if let Some(status) = status {
        let written = answer(memory, claim, status, [u64::MAX; WORDS]).expect("an answerable block lies in memory");
        let written = written.expect("an answerable block does not wrap");
        assert!(ram().contains_range(written), "the answer left RAM: {written}");
        memory.write(written.start(), &vec![0; written.len_bytes() as usize]).expect("it was just written");
    }

    // The same bytes as accesses of the devices.
    let mut uart = Pl011::default();
    for access in contents.chunks_exact(4) {
        let offset = u64::from(u16::from_le_bytes([access[0], access[1]]));
        let value = u64::from(access[2]) << (access[3] % 57);
        doorbell::read(offset, access[3], doorbell::asked(offset, access[3], value));
        doorbell::rung(offset, access[3], value);
        uart.read(offset);
        if let Some(line) = uart.write(if access[3] > 127 { 0 } else { offset }, value) {
            assert!(console_text(&line).chars().all(is_harmless), "unprintable console line");
        }
    }
});
