//! Replication of a region to a file or a peer, as the original tests did it.
//!
//! ```text
//!    VMM                        replicator                      receiver
//! FileServer ◄─ BitmapFile ─► replicate() ─► CopyTarget
//!     │                            └───────── wire ──────────► Receiver ─► CopyTarget
//!  DirtyLog      shared file ──────┘
//! ```
//!
//! - [`BitmapFile`]: the file protocol's bytes; [`FileServer`]: the VMM's side of it, for any replicator;
//! - [`replicate`]: our own replicator, to a file or a peer;
//! - [`Receiver`]: the peer; `wire` has the format between them;
//! - [`SumR`]: the checksum that must be equal at the end.

mod client;
mod endpoint;
mod file;
mod peer;
mod server;
mod sum_r;
#[cfg(test)]
mod tests;
mod wire;

pub use client::{ReplicateError, ReplicateOptions, Replicated, replicate};
pub use endpoint::{Destination, Endpoint, EndpointError};
pub use file::{BitmapFile, BitmapFileError, Header};
pub use peer::{ReceiveOptions, Received, Receiver};
pub use server::{Answered, FileServer, POLL, ServeError};
pub use sum_r::SumR;
pub use wire::{Tag, WireError};
