//! `hostvmm replicate`: sends or receives, and prints both checksums.

use std::path::PathBuf;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::args::ReplicateArgs;
use super::ending::{Ending, say, tell};
use crate::replicate::{
    Destination, EndpointError, ReceiveOptions, Receiver, ReplicateError, ReplicateOptions, replicate,
};
use crate::report::Verdict;

/// Largest region that a receiver takes: the largest machine that hostvmm makes.
const LIMIT_BYTES: u64 = 1 << 40;

/// Replicates until the guest's writers have stopped.
///
/// # Errors
/// An [`Ending`] by what went wrong; copies that differ are a [`Verdict::Fail`].
pub(super) fn run(args: &ReplicateArgs) -> Result<Verdict, Ending> {
    end_on_signals(args.listen.as_deref().and_then(|listen| listen.strip_prefix("unix:")).map(PathBuf::from))?;
    let equal = match (&args.listen, &args.share, &args.bitmap_file) {
        (Some(listen), ..) => {
            let Destination::File(dest) = args.dest.parse().map_err(address)? else {
                return Err(Ending::usage(format!("--dest {}: what is received goes to a file", args.dest)));
            };
            let options = ReceiveOptions {
                listen: listen.parse().map_err(address)?,
                dest: dest.clone(),
                limit_bytes: LIMIT_BYTES,
                timeout: args.timeout_ms,
            };
            let receiver = Receiver::bind(options).map_err(ending)?;
            tell(&format!("listening at {}", receiver.endpoint().map_err(ending)?));
            let received = receiver.receive().map_err(ending)?;
            say(&format!("received {} passes of a region of {} bytes", received.passes, received.region_bytes));
            say(&format!("{:05} {:5} source", received.sum_source, received.sum_r_dest.blocks()));
            say(&format!("{} {}", received.sum_r_dest, dest.display()));
            received.equal
        }
        (None, Some(share), Some(bitmap_file)) => {
            let replicated = replicate(&ReplicateOptions {
                share: share.clone(),
                bitmap_file: bitmap_file.clone(),
                dest: args.dest.parse().map_err(address)?,
                interval: args.interval_ms,
                timeout: args.timeout_ms,
            })
            .map_err(ending)?;
            say(&format!("{} bitmaps, {} pages copied after the full copy", replicated.passes, replicated.pages));
            say(&format!("{} {}", replicated.sum_r_source, share.display()));
            say(&format!("{} {}", replicated.sum_r_dest, args.dest));
            replicated.equal
        }
        _ => return Err(Ending::usage("name --share and --bitmap-file, or --listen".to_owned())),
    };
    say(if equal { "PASS: the copy is equal to the region" } else { "FAIL: the copy differs from the region" });
    Ok(if equal { Verdict::Pass } else { Verdict::Fail })
}

/// Ctrl-C and SIGTERM end a replication at once: what was copied is in the file, and the VMM serves the next replicator
/// as if this one had never been. A unix socket that was listened at is taken away.
fn end_on_signals(socket: Option<PathBuf>) -> Result<(), Ending> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Ending::failed)?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            if let Some(socket) = socket {
                // It may not have been made yet; and nobody is left to be told.
                let _ = std::fs::remove_file(socket);
            }
            tell("interrupted: the copy is not complete");
            std::process::exit(i32::from(Verdict::Fail.exit_code()));
        }
    });
    Ok(())
}

fn address(error: EndpointError) -> Ending {
    Ending::input(error)
}

/// Files that cannot be used are bad input; a VMM or peer that goes away is a failure.
fn ending(error: ReplicateError) -> Ending {
    match error {
        ReplicateError::Share { .. }
        | ReplicateError::Region { .. }
        | ReplicateError::File(_)
        | ReplicateError::Target(_) => Ending::input(error),
        error => Ending::failed(error),
    }
}
