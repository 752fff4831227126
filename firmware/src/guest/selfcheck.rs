//! The guest's own check that the region holds what the plan says.
//!
//! The plan is replayed into a scratch buffer, as large as the heap allows, and compared with the region piece by
//! piece. It shares nothing with the code that executed the plan but the plan itself.
#![expect(unsafe_code, reason = "the region is read by address")]

use abi::Gpa;
use abi::hypercall::Outcome;
use alloc::vec::Vec;
use workload::{PAGE_BYTES, Write};

use crate::guest::{Machine, heap};

/// Compares the whole region with the plan after the steps `[0, steps)` of every vCPU.
///
/// # Panics
/// If there is no heap for a buffer of one page.
pub(crate) fn run(machine: &Machine, steps: u64) -> Outcome {
    let region = machine.boot.region;
    let view = machine.space.layout().region_first();
    let mut expected = scratch(region.len_bytes());
    let window_bytes = expected.len() as u64;
    for window in (0..region.len_bytes()).step_by(expected.len()) {
        let len = window_bytes.min(region.len_bytes() - window) as usize;
        let expected = &mut expected[..len];
        if window > 0 {
            expected.fill(0);
        }
        replay(machine, steps, window, expected);
        if let Some((at, found)) = first_difference(view + window, expected) {
            let at_gpa = region.start().checked_add(window + at as u64).unwrap_or(Gpa::new(0));
            return Outcome::SelfCheckFailed { at: at_gpa, expected: expected[at], found };
        }
    }
    Outcome::SelfCheckPassed
}

/// A buffer for the whole region, or for as many of its pages as half of the free heap can hold.
fn scratch(region_len: u64) -> Vec<u8> {
    const PAGE: usize = PAGE_BYTES as usize;
    let mut len = (region_len as usize).min(heap::free_bytes() / 2).next_multiple_of(PAGE).max(PAGE);
    loop {
        let mut buffer = Vec::new();
        if buffer.try_reserve_exact(len).is_ok() {
            buffer.resize(len, 0);
            return buffer;
        }
        // The free bytes may lie in several pieces; another vCPU may check at the same time.
        assert!(len > PAGE, "the heap has no room for a self-check");
        len = (len / 2).next_multiple_of(PAGE);
    }
}

/// Writes what the plan leaves in the window that starts at `window` in the region over the zeroes in `bytes`.
fn replay(machine: &Machine, steps: u64, window: u64, bytes: &mut [u8]) {
    for step in 0..steps {
        for vcpu in 0..machine.boot.vcpus {
            machine.plan.for_each_write(vcpu, step, |write| apply(&write, window, bytes));
        }
    }
}

/// Applies the part of `write` that lies in the window.
fn apply(write: &Write, window: u64, bytes: &mut [u8]) {
    let start = write.offset.max(window);
    let end = write.end().min(window + bytes.len() as u64);
    if start >= end {
        return;
    }
    let target = &mut bytes[(start - window) as usize..(end - window) as usize];
    if target.len() as u64 == u64::from(write.len) {
        write.apply_to(target);
    } else {
        // Only a store can be cut by a window: a word that is added to is aligned, as windows are.
        write.fill((start - write.offset) as u32, target);
    }
}

/// Index of the first byte at `va` that differs from `expected`, and what is there.
fn first_difference(va: u64, expected: &[u8]) -> Option<(usize, u8)> {
    let (words, _none) = expected.as_chunks::<8>();
    let wrong = words.iter().enumerate().find_map(|(i, word)| {
        let found = read_word(va + 8 * i as u64);
        (found != *word).then_some((i, found))
    });
    let (i, found) = wrong?;
    let byte = found.iter().zip(&words[i]).position(|(found, expected)| found != expected)?;
    Some((8 * i + byte, found[byte]))
}

/// The bytes of the aligned word at `va` in the region.
fn read_word(va: u64) -> [u8; 8] {
    let word = va as *const u64;
    // SAFETY: the word lies in the region's mapping; volatile, since other vCPUs' stores are not the compiler's
    // business.
    unsafe { word.read_volatile() }.to_le_bytes()
}
