//! How a primary finds its secondary: the outlet is claimed if nobody has yet, the machines are compared.

use std::sync::{Arc, Mutex, PoisonError};

use crate::colo::error::ColoError;
use crate::colo::link::{Line, Peer, connect};
use crate::colo::output::Positions;
use crate::colo::{ColoMonitor, ColoVm, Side, Voice};
use crate::migrate::MigrateError;
use crate::migrate::frames::{FrameReader, FrameWriter};
use crate::migrate::transport::CancelToken;
use crate::migrate::wire::{ColoMessage, ColoOffer, Features, Message, Session};

/// A secondary that has agreed.
pub(super) struct Met {
    pub(super) reader: FrameReader,
    pub(super) line: Line,
    pub(super) offer: ColoOffer,
    /// What the outlet has accepted, for the heartbeat to tell.
    pub(super) accepted: Arc<Mutex<Positions>>,
}

/// An error, and the epoch that the VM owns all the same.
pub(super) type Unmet = (u64, ColoError);

/// Claims the outlet if nobody has yet, and greets the secondary; `cancel` ends that, and later the channel.
pub(super) fn meet(
    vm: &dyn ColoVm,
    peer: &Peer,
    voice: &mut Voice,
    monitor: &ColoMonitor,
    cancel: &CancelToken,
) -> Result<Met, Unmet> {
    if voice.epoch() == 0 {
        voice.claim(1, Side::Primary).map_err(|error| (0, error.into()))?;
        monitor.show(|info| info.epoch = 1);
    }
    agree(vm, peer, voice, monitor, cancel).map_err(|error| (voice.epoch(), error))
}

fn agree(
    vm: &dyn ColoVm,
    peer: &Peer,
    voice: &Voice,
    monitor: &ColoMonitor,
    cancel: &CancelToken,
) -> Result<Met, ColoError> {
    let (channel, clock) = connect(peer, cancel)?;
    let handle = channel.handle();
    monitor.set_cut({
        let handle = handle.clone();
        move || handle.shutdown()
    });
    let parameters = monitor.parameters();
    let salt =
        Session::random().map_err(|source| MigrateError::Host { what: "get random bytes", source })?.raw() as u64;
    let offer = ColoOffer {
        pair: voice.pair(),
        epoch: voice.epoch(),
        compare: parameters.x_colo_compare,
        digest: parameters.x_colo_digest,
        salt,
        clock,
        description: vm.describe(),
    };
    let (reader, writer) = channel.split();
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    writer.send(&Message::Colo(ColoMessage::Offer(Box::new(offer.clone()))))?;
    match reader.next()?.0 {
        Message::Accept { features } if features == Features::NONE => {}
        Message::Refuse(mismatch) => return Err(ColoError::Refused(mismatch)),
        Message::Failure { text } => return Err(ColoError::Peer { text }),
        _ => return Err(ColoError::Unexpected { tag: "in place of an answer to the offer" }),
    }
    let accepted = Arc::new(Mutex::new(voice.accepted()));
    let told = Arc::clone(&accepted);
    let beat = move || ColoMessage::PrimaryAlive { accepted: *told.lock().unwrap_or_else(PoisonError::into_inner) };
    let line = Line::new(writer, handle, &parameters, beat)?;
    Ok(Met { reader, line, offer, accepted })
}
