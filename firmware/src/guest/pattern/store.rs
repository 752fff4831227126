//! Plain aligned stores: the widest that the alignment allows.
#![expect(unsafe_code, reason = "stores to the region")]

use workload::{Data, SplitMix64};

use super::Place;
use crate::guest::arch::pattern::words;

/// Stores `len` bytes of `data`.
///
/// # Panics
/// If `data` is an addend: [`super::increment`] does those.
pub(super) fn store(place: Place, len: u32, data: Data) {
    let len = len as usize;
    match data {
        Data::Bytes(bytes) => {
            let mut rest = u128::from_le_bytes(bytes);
            stream(place, len, || {
                let word = rest as u64;
                rest >>= 64;
                word
            });
        }
        Data::Random(seed) => {
            let mut random = SplitMix64::new(seed);
            stream(place, len, || random.next_u64());
        }
        Data::Zero => stream(place, len, || 0),
        Data::Add(addend) => panic!("a plain store does not add {addend}"),
    }
}

/// Stores `len` bytes of the words that `next` gives, the last one cut.
#[inline(always)]
fn stream(place: Place, len: usize, mut next: impl FnMut() -> u64) {
    let va = place.va();
    let whole = len & !7;
    if va.is_multiple_of(8) {
        words::store(place, whole, &mut next);
    } else {
        for at in (va..va + whole).step_by(8) {
            store_bytes(at, &next().to_le_bytes());
        }
    }
    let tail = len - whole;
    if tail != 0 {
        store_bytes(va + whole, &next().to_le_bytes()[..tail]);
    }
}

/// Stores bytes at an address of any alignment by the widest aligned stores.
fn store_bytes(va: usize, bytes: &[u8]) {
    let (mut at, mut rest) = (va, bytes);
    while !rest.is_empty() {
        let taken = match rest.len() {
            4.. if at.is_multiple_of(4) => 4,
            2.. if at.is_multiple_of(2) => 2,
            _ => 1,
        };
        let (now, later) = rest.split_at(taken);
        match *now {
            [a, b, c, d] => {
                let target = at as *mut u32;
                // SAFETY: as in `stream`; aligned by the choice of `taken`, as are the next two.
                unsafe { target.write_volatile(u32::from_le_bytes([a, b, c, d])) };
            }
            [a, b] => {
                let target = at as *mut u16;
                // SAFETY: as above.
                unsafe { target.write_volatile(u16::from_le_bytes([a, b])) };
            }
            _ => {
                let target = at as *mut u8;
                // SAFETY: as above.
                unsafe { target.write_volatile(now[0]) };
            }
        }
        at += taken;
        rest = later;
    }
}
