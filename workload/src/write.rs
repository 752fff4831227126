//! One write of the plan: place, bytes and instruction.

/// The bytes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// The first `len` of these bytes; `len` is at most 16.
    Bytes([u8; 16]),
    /// `len` pseudo-random bytes: 64-bit little-endian words of SplitMix64 seeded with this number, the last one cut.
    Random(u64),
    /// `len` zero bytes.
    Zero,
    /// Adds to the little-endian 64-bit word there, wrapping; `len` is 8 and the offset a multiple of 8. Adds commute,
    /// so several vCPUs may add to one word in one step and the sum is still known at the barrier.
    Add(u64),
}

/// The instruction or mechanism by which the guest performs a write. The bytes are the same whichever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Plain aligned stores.
    Store,
    /// One store instruction of `len` (2, 4 or 8) bytes at an address that is no multiple of `len`.
    Unaligned,
    /// STP of two X registers (`len` 16).
    Pair,
    /// STR of a Q register (`len` 16).
    Vector,
    /// STP of two Q registers (`len` 32, [`Data::Random`]).
    VectorPair,
    /// A load, add and store; [`Data::Add`].
    Increment,
    /// LDXR/STXR loop; [`Data::Add`].
    Exclusive,
    /// LDADD; [`Data::Add`].
    AtomicAdd,
    /// SWP; [`Data::Bytes`], `len` 8.
    AtomicSwap,
    /// CAS that succeeds (expects what is there); [`Data::Bytes`], `len` 8.
    AtomicCas,
    /// DC ZVA over the whole range; [`Data::Zero`], offset and `len` multiples of 2048, the architecture's largest block.
    ZeroBlock,
    /// A function's instructions, written through the data mapping, cleaned and invalidated to the point of
    /// unification, then called through the executable mapping; must return this.
    Code {
        /// Return value.
        returns: u64,
    },
    /// A translation table descriptor written by a plain store, before the table is used in this step. `len` 8.
    Descriptor,
    /// A descriptor as the hardware's walker leaves it after the guest's *read* through `slot` of the live table
    /// (sets AF). `len` 8. The guest must not store it.
    WalkedByRead {
        /// Index into the live table.
        slot: u32,
    },
    /// A descriptor as the walker leaves it after the guest's *write* through `slot` (sets AF and, by DBM, clears
    /// AP\[2\]). `len` 8. The guest must not store it; the [`How::ThroughTable`] write that follows causes it.
    WalkedByWrite {
        /// Index into the live table.
        slot: u32,
    },
    /// A plain store of `len` 8 bytes through `slot` of the live table, at `offset` modulo the granule in that page.
    ThroughTable {
        /// Index into the live table.
        slot: u32,
    },
}

/// One write of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// First byte, counted from the region's start.
    pub offset: u64,
    /// Length in bytes; the write stays inside the region, but may cross pages.
    pub len: u32,
    /// The bytes.
    pub data: Data,
    /// The instruction.
    pub how: How,
}
