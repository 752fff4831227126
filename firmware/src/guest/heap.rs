//! The heap: all RAM behind image and translation tables.
#![expect(unsafe_code, reason = "the allocator is given raw memory")]

use abi::GuestRange;
use linked_list_allocator::LockedHeap;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives `memory` to the allocator, once.
pub(crate) fn init(memory: GuestRange) {
    let mut heap = HEAP.lock();
    // SAFETY: the range is RAM that is mapped writable, and nothing else uses it: image and tables lie below.
    unsafe { heap.init(memory.start().raw() as *mut u8, memory.len_bytes() as usize) };
}

/// Bytes that are free, in however many pieces.
pub(crate) fn free_bytes() -> usize {
    HEAP.lock().free()
}
