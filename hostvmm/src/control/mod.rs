//! Remote control of a running VM by QMP, QEMU's monitor protocol: [`Server`] and [`Client`].
//!
//! - [`framing`]: from bytes to JSON texts, bounded; [`session`]: one client's conversation, without I/O;
//! - [`command`]: the commands, their arguments checked in QEMU's words; [`types`]: what replies and events carry;
//! - [`server`]: sockets, several clients at once; [`client`]: the other end; [`address`]: where both meet.
//!
//! ```text
//!             connect             qmp_capabilities
//!   (nobody) ─────────▶ Greeted ────────────────────▶ Ready ──▶ commands, events
//!                          └── any other command: refused ──┘
//! ```
//!
//! Names, reply fields, error classes and most error texts are QEMU's, so that its clients work unmodified; docs/qmp.md
//! lists every command and each difference. Neighbours: `instance` implements [`Handler`]; `cli` and `verify` are clients.

pub mod address;
pub mod client;
pub mod command;
pub mod framing;
pub mod server;
pub mod session;
#[cfg(test)]
mod tests;
pub mod types;

pub use address::{Address, AddressError};
pub use client::{Client, ClientError};
pub use command::{Command, CommandError, ErrorClass};
pub use server::{Events, Handler, Server, ServerError};
