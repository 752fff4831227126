//! The heap: all RAM behind image and translation tables.
#![expect(unsafe_code, reason = "the allocator is given raw memory")]

use abi::GuestRange;
use linked_list_allocator::LockedHeap;

/// More than any allocation is aligned to.
const HEAP_ALIGN: u64 = 0x1000;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives `memory` to the allocator, once.
pub(crate) fn init(memory: GuestRange) {
    // The allocator computes the end, which must be an address: on ARMv7 RAM may reach to where there is none.
    let len_bytes = memory.len_bytes().min((usize::MAX as u64 - memory.start().raw()) & !(HEAP_ALIGN - 1));
    let mut heap = HEAP.lock();
    // SAFETY: the range is RAM that is mapped writable, and nothing else uses it: image and tables lie below.
    unsafe { heap.init(memory.start().raw() as *mut u8, len_bytes as usize) };
}

/// Bytes that are free, in however many pieces.
pub(crate) fn free_bytes() -> usize {
    HEAP.lock().free()
}
