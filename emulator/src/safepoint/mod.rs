//! Safepoints: how a thread makes running vCPUs forget something, and knows when they have.
//!
//! A harvest must drop the write tags of every software TLB before the harvested pages are copied; a TLBI or IC with
//! broadcast must empty the other vCPUs' TLBs or decoded code before it completes. [`Safepoints`] carries both:
//! [`Safepoints::request`] from outside, [`Safepoints::request_from`] from a running vCPU, [`Safepoints::poll`] where
//! the run loop finds its attention word raised, [`Safepoints::enter`] and [`Safepoints::leave`] around the run loop.
//!
//! # States of a vCPU
//! ```text
//!            enter (does all pending work)
//!  outside ---------------------------------> running --+  poll: takes work, does it, acknowledges the ticket
//!     ^                                          |  ^---+
//!     +------------------- leave ----------------+
//! ```
//!
//! # Guarantee
//! When a request returns, for every other vCPU: (1) whatever it did to guest memory before its acknowledgement (or its leaving) happens
//! before the return; (2) the work was done after the request began, or will be before its next guest instruction;
//! (3) whatever the requester did before the request happens before what the vCPU does after that work.
//!
//! # Why
//! *Ticket.* A request first adds its work to the slot, then takes a ticket (release). A vCPU reads the ticket count (acquire), then takes the
//! work, does it, and publishes the count it read (release). So a published count at or above a ticket means that
//! ticket's work was in the slot when the vCPU looked, or had been taken by that vCPU before: done either way. This release chain
//! gives (1) and, backwards from the ticket, (3).
//!
//! *Outside.* A requester takes the ticket, then reads `running`; a vCPU sets `running`, then reads the tickets. Each has a sequentially
//! consistent fence between, so they cannot both miss the other (the store-buffering shape): either the requester sees it
//! running and waits, or the vCPU sees the work as it enters. If the requester reads `false`, it reads what `leave` released, which gives (1);
//! if the vCPU comes back while it waits, `enter` does the work and publishes the ticket.
//!
//! *No deadlock.* Waiting, a requester that is a vCPU goes on polling its own slot; so of any set of vCPUs that wait for each other each
//! serves the others. A requester that is no vCPU is waited for by nobody.
//!
//! The argument is checked by a `loom` model of [`protocol`]'s own source, over the interleavings of two threads (bounded preemptions), and by a
//! stress test with the dirty log on real threads: `cargo test -p emulator safepoint`.

#[cfg(test)]
#[expect(clippy::duplicate_mod, reason = "the model compiles the protocol's own source over loom's atomics")]
#[expect(unreachable_pub, reason = "the protocol's public items are private in its second compilation")]
mod model;
mod protocol;
#[cfg(test)]
mod tests;

pub use protocol::{Safepoints, Work};

/// The atomics that [`protocol`] is built on.
mod sync {
    pub(super) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

    /// Rounds of spinning before a waiting thread gives its core to the one it waits for.
    const SPINS: u32 = 100;

    pub(super) fn relax(rounds: u32) {
        if rounds < SPINS {
            core::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}
