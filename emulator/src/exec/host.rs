//! Access to guest RAM by host address: [`Word`], the only place where the executor touches the host's memory.
//!
//! Every access is atomic, for other vCPUs and the host use the same bytes. Plain guest accesses are relaxed; acquire, release
//! and barriers are sequentially consistent, which is RCsc as LDAR and STLR ask. A host address comes from the TLB, which
//! took it from `Ram`: it lies in a slot that stays mapped, and it is aligned where the method asks for that.
#![expect(unsafe_code, reason = "guest RAM is raw host memory")]

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use portable_atomic::AtomicU128;

/// What an LSE atomic does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rmw {
    Add,
    Clear,
    Eor,
    Set,
    SignedMax,
    SignedMin,
    UnsignedMax,
    UnsignedMin,
    Swap,
}

/// An unsigned integer that guest memory holds. `host` is the host address of one, naturally aligned.
pub trait Word: Copy + PartialEq {
    /// log2 of its size in bytes.
    const SHIFT: u32;
    /// Zero-extends.
    fn wide(self) -> u64;
    /// Truncates.
    fn cut(value: u64) -> Self;
    /// A plain load.
    fn load(host: u64) -> Self;
    /// A plain store.
    fn store(host: u64, value: Self);
    /// A load-acquire.
    fn load_acquire(host: u64) -> Self;
    /// A store-release.
    fn store_release(host: u64, value: Self);
}

/// The read-modify-writes of a [`Word`].
pub(crate) trait AtomicWord: Word {
    /// Does `kind` with `operand`; returns what was there.
    fn rmw(host: u64, kind: Rmw, operand: Self) -> Self;
    /// Stores `new` where `old` is; returns what was there.
    fn compare_and_swap(host: u64, old: Self, new: Self) -> Self;
}

macro_rules! word {
    ($word:ty, $signed:ty, $atomic:ty, $shift:expr) => {
        impl Word for $word {
            const SHIFT: u32 = $shift;

            #[inline(always)]
            fn wide(self) -> u64 {
                u64::from(self)
            }

            #[inline(always)]
            fn cut(value: u64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn load(host: u64) -> Self {
                let pointer = std::ptr::with_exposed_provenance_mut(host as usize);
                // SAFETY: aligned, mapped, and accessed by atomics only (module documentation).
                unsafe { <$atomic>::from_ptr(pointer) }.load(Ordering::Relaxed)
            }

            #[inline(always)]
            fn store(host: u64, value: Self) {
                let pointer = std::ptr::with_exposed_provenance_mut(host as usize);
                // SAFETY: aligned, mapped, and accessed by atomics only (module documentation).
                unsafe { <$atomic>::from_ptr(pointer) }.store(value, Ordering::Relaxed);
            }

            #[inline(always)]
            fn load_acquire(host: u64) -> Self {
                let pointer = std::ptr::with_exposed_provenance_mut(host as usize);
                // SAFETY: aligned, mapped, and accessed by atomics only (module documentation).
                unsafe { <$atomic>::from_ptr(pointer) }.load(Ordering::SeqCst)
            }

            #[inline(always)]
            fn store_release(host: u64, value: Self) {
                let pointer = std::ptr::with_exposed_provenance_mut(host as usize);
                // SAFETY: aligned, mapped, and accessed by atomics only (module documentation).
                unsafe { <$atomic>::from_ptr(pointer) }.store(value, Ordering::SeqCst);
            }
        }

        impl AtomicWord for $word {
            #[inline(always)]
            fn rmw(host: u64, kind: Rmw, operand: Self) -> Self {
                let pointer = std::ptr::with_exposed_provenance_mut(host as usize);
                // SAFETY: aligned, mapped, and accessed by atomics only (module documentation).
                let cell = unsafe { <$atomic>::from_ptr(pointer) };
                let order = Ordering::SeqCst;
                let signed = |new: fn($signed, $signed) -> $signed| {
                    let update = |old: $word| Some(new(old as $signed, operand as $signed) as $word);
                    cell.fetch_update(order, order, update).unwrap_or_else(|old| old)
                };
                match kind {
                    Rmw::Add => cell.fetch_add(operand, order),
                    Rmw::Clear => cell.fetch_and(!operand, order),
                    Rmw::Eor => cell.fetch_xor(operand, order),
                    Rmw::Set => cell.fetch_or(operand, order),
                    Rmw::SignedMax => signed(<$signed>::max),
                    Rmw::SignedMin => signed(<$signed>::min),
                    Rmw::UnsignedMax => cell.fetch_max(operand, order),
                    Rmw::UnsignedMin => cell.fetch_min(operand, order),
                    Rmw::Swap => cell.swap(operand, order),
                }
            }

            #[inline(always)]
            fn compare_and_swap(host: u64, old: Self, new: Self) -> Self {
                let pointer = std::ptr::with_exposed_provenance_mut(host as usize);
                // SAFETY: aligned, mapped, and accessed by atomics only (module documentation).
                let cell = unsafe { <$atomic>::from_ptr(pointer) };
                cell.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|seen| seen)
            }
        }
    };
}

word!(u8, i8, AtomicU8, 0);
word!(u16, i16, AtomicU16, 1);
word!(u32, i32, AtomicU32, 2);
word!(u64, i64, AtomicU64, 3);

/// Loads 16 bytes at once from `host`, aligned to 16.
pub(crate) fn load_u128(host: u64) -> u128 {
    let pointer = std::ptr::with_exposed_provenance_mut(host as usize);
    // SAFETY: aligned, mapped, and accessed by atomics only (module documentation).
    unsafe { AtomicU128::from_ptr(pointer) }.load(Ordering::SeqCst)
}

/// Stores `new` in the 16 bytes at `host`, aligned to 16, where `old` is; returns what was there.
pub(crate) fn compare_and_swap_u128(host: u64, old: u128, new: u128) -> u128 {
    let pointer = std::ptr::with_exposed_provenance_mut(host as usize);
    // SAFETY: aligned, mapped, and accessed by atomics only (module documentation).
    let cell = unsafe { AtomicU128::from_ptr(pointer) };
    cell.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|seen| seen)
}
