//! What the tests of both of ARMv7's formats ask mappers for.

use pagetable::{Attributes, Execute, MemoryType, Sizes, Write};
use proptest::prelude::*;

/// A mapping asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub va: u64,
    pub gpa: u64,
    pub len_bytes: u64,
    pub attributes: Attributes,
    pub sizes: Sizes,
}

impl Request {
    pub(crate) fn touches(&self, from: u64, to: u64) -> bool {
        self.va < to && from < self.va + self.len_bytes
    }
}

/// Those that ARMv7's tables can say.
pub(crate) fn attributes() -> impl Strategy<Value = Attributes> {
    (
        prop_oneof![Just(MemoryType::Normal), Just(MemoryType::Device)],
        prop_oneof![Just(Write::No), Just(Write::Yes)],
        prop_oneof![Just(Execute::No), Just(Execute::El1)],
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(memory, write, execute, global, accessed)| Attributes {
            memory,
            write,
            execute,
            global,
            accessed,
        })
}
