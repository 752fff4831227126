//! Single-instruction atomics of the Large System Extensions: LDADD, SWP, CAS.
#![expect(unsafe_code, reason = "atomic accesses to the region by given instructions")]

use core::arch::asm;

use crate::guest::pattern::Place;

/// LDADD.
pub(super) fn add(place: Place, addend: u64) {
    let va = place.va();
    // SAFETY: `Place` says that the word lies in the region, which is mapped writable; the plan aligns it; FEAT_LSE was
    // checked.
    unsafe {
        asm!(".arch_extension lse", "ldadd {}, {}, [{}]", in(reg) addend, out(reg) _, in(reg) va,
            options(nostack, preserves_flags));
    }
}

/// SWP.
pub(super) fn swap(place: Place, value: u64) {
    let va = place.va();
    // SAFETY: as in `add`.
    unsafe {
        asm!(".arch_extension lse", "swp {}, {}, [{}]", in(reg) value, out(reg) _, in(reg) va,
            options(nostack, preserves_flags));
    }
}

/// CAS that expects what is there. Only this vCPU writes the word, so it succeeds the first time; the loop is for the
/// reader that trusts nothing.
pub(super) fn compare_and_swap(place: Place, value: u64) {
    let va = place.va();
    let word = va as *const u64;
    loop {
        // SAFETY: as in `add`.
        let expected = unsafe { word.read_volatile() };
        let mut found = expected;
        // SAFETY: as in `add`.
        unsafe {
            asm!(".arch_extension lse", "cas {}, {}, [{}]", inout(reg) found, in(reg) value, in(reg) va,
                options(nostack, preserves_flags));
        }
        if found == expected {
            return;
        }
    }
}
