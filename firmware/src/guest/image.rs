//! Where the linker script put the parts of the image. Neighbours: the scripts in linker/ define the symbols,
//! [`crate::guest::mmu`] maps each part with its permissions.
#![expect(unsafe_code, reason = "linker symbols are extern statics")]

use abi::map::MAX_VCPUS;
use abi::{Gpa, GuestRange};

/// Bytes of one stack and of the guard below it: a page of the largest granule. `__stack_size` in the linker script.
pub(crate) const STACK_BYTES: u64 = 0x1_0000;
/// Bytes from one vCPU's stacks to the next one's: guard, stack, guard, exception stack.
const STACKS_STRIDE: u64 = 4 * STACK_BYTES;

unsafe extern "C" {
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __data_end: u8;
    static __stacks_start: u8;
    static __stacks_end: u8;
    static __image_end: u8;
}

macro_rules! symbol {
    ($name:ident) => {
        Gpa::new(&raw const $name as u64)
    };
}

fn between(start: Gpa, end: Gpa) -> GuestRange {
    end.checked_offset_from(start)
        .and_then(|len_bytes| GuestRange::new(start, len_bytes))
        .expect("the linker script puts every end behind its start")
}

/// First byte of the image.
pub(crate) fn start() -> Gpa {
    symbol!(__image_start)
}

/// First byte past the image, stacks included; free memory from there on.
pub(crate) fn end() -> Gpa {
    symbol!(__image_end)
}

/// Code.
pub(crate) fn text() -> GuestRange {
    between(symbol!(__text_start), symbol!(__text_end))
}

/// Constants.
pub(crate) fn rodata() -> GuestRange {
    between(symbol!(__rodata_start), symbol!(__rodata_end))
}

/// Variables.
pub(crate) fn data() -> GuestRange {
    between(symbol!(__data_start), symbol!(__data_end))
}

/// Stacks and guards of all vCPUs.
pub(crate) fn stacks() -> GuestRange {
    between(symbol!(__stacks_start), symbol!(__stacks_end))
}

/// The stack of `vcpu`, below which lies a guard.
pub(crate) fn stack(vcpu: usize) -> GuestRange {
    nth_stack(vcpu, 1)
}

/// The stack of `vcpu` that exceptions are taken on, below which lies a guard.
pub(crate) fn exception_stack(vcpu: usize) -> GuestRange {
    nth_stack(vcpu, 3)
}

/// The guards below the two stacks of `vcpu`.
pub(crate) fn guards(vcpu: usize) -> [GuestRange; 2] {
    [nth_stack(vcpu, 0), nth_stack(vcpu, 2)]
}

fn nth_stack(vcpu: usize, position: u64) -> GuestRange {
    assert!(vcpu < MAX_VCPUS, "there are stacks for MAX_VCPUS vCPUs");
    let offset = vcpu as u64 * STACKS_STRIDE + position * STACK_BYTES;
    stacks()
        .start()
        .checked_add(offset)
        .and_then(|start| GuestRange::new(start, STACK_BYTES))
        .expect("stacks lie in the image")
}
