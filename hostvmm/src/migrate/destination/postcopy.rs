//! The guest runs here while pages of it are still at the source ([`crate::migrate::postcopy`]).
//!
//! ```text
//! loaded ─ run ─► one thread runs the guest and tells the source, ─► all pages here, digests equal ─► farewell, or none
//!                 another places the pages that come                ├─ connection lost, all pages here ─► the source asks
//!                                                                   └─ connection lost, or a page that is not what was
//!                                                                      sent ─► the guest is lost, and stopped
//! ```
//!
//! A guest that has all its pages is never stopped: each was proven as it came. Whether the guest is whole or lost is said to a
//! source that asks once it is certain, and not before.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::door::{Door, Fate};
use super::memory::Everything;
use super::{Farewell, Incoming, Order, Terms};
use crate::dirty::PageBitmap;
use crate::memory::SlotId;
use crate::migrate::digest::SlotDigests;
use crate::migrate::error::MigrateError;
use crate::migrate::faults::Boundary;
use crate::migrate::frames::{FrameReader, FrameWriter};
use crate::migrate::info::DigestReport;
use crate::migrate::monitor::Monitor;
use crate::migrate::pages::Unpacker;
use crate::migrate::phase::{Device, Phase, PostcopyActive, Stage};
use crate::migrate::postcopy::MissingPages;
use crate::migrate::transport::Handle;
use crate::migrate::vm::{DestinationVm, Moment};
use crate::migrate::wire::{Loaded, Message, PageBatch, PassEnd, Resumed, SlotPass};

/// Loads the state, takes the guest, and sees that all of its memory comes.
pub(super) fn take_over(
    incoming: &mut Incoming<'_>,
    terms: &Terms,
    all: Everything,
    pending: &[PageBitmap; SlotId::COUNT],
    stage: Stage<'_, Device>,
    door: &Door,
) -> Result<Farewell, MigrateError> {
    let Everything { stopped, sections, at, .. } = all;
    incoming.vm.load(&sections)?;
    incoming.monitor.at(Boundary::DestinationLoaded)?;
    let requests = Arc::new(Requests { writer: Arc::clone(&incoming.writer), early: Mutex::new(Some(Vec::new())) });
    let asking = Arc::clone(&requests);
    let request = Box::new(move |slot, page| {
        // A source that cannot be asked may have sent all the same: who reads finds out what is missing.
        let _ = asking.ask(slot, page);
        Ok(())
    });
    let accelerator = incoming.vm.describe().accelerator;
    let missing = MissingPages::begin(incoming.vm.memory(), pending, accelerator, request)?;
    incoming.monitor.at(Boundary::DestinationVerified)?;
    incoming.send(&Message::Loaded(Loaded { digests: None, load_ns: ns(at), digest_ns: 0 }))?;
    let message = incoming.next()?.0;
    let Message::PostcopyRun = message else { return Err(incoming.unexpected(&message)) };
    let committed = Instant::now();
    if !door.commit() {
        return Err(MigrateError::TooLate);
    }
    let stage = stage.post_copy()?;
    incoming.monitor.at(Boundary::DestinationCommitted)?;
    requests.open()?;
    let (vm, monitor, writer) = (incoming.vm, incoming.monitor, Arc::clone(&incoming.writer));
    let handle = incoming.handle.clone();
    let mut receiving = Receiving {
        reader: &mut incoming.reader,
        order: &mut incoming.order,
        writer: &writer,
        monitor,
        terms,
        missing: &missing,
        unpacker: Unpacker::new(terms.agreement.geometry),
        payload: Vec::new(),
        arrived: [SlotPass::default(); SlotId::COUNT],
    };
    let (ran, received) = std::thread::scope(|scope| {
        let pages = scope.spawn(|| {
            let lost = Lost { missing: &missing, vm };
            let received = receiving.run();
            drop(lost);
            received
        });
        let mut hang_up = HangUp(Some(&handle));
        let ran = run(vm, monitor, terms, stopped, committed, &writer);
        if ran.is_ok() {
            hang_up.0 = None;
        }
        drop(hang_up);
        let received = pages.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (ran, received)
    });
    // A guest that does not run is discarded, whatever has come of its memory.
    ran?;
    match received {
        Ok(digests) => {
            door.decide(Fate::Whole(digests[1]));
            finish(incoming, terms, missing, digests, stage)
        }
        Err(error) if missing.left() == 0 => {
            door.decide(Fate::Whole(terms.leaves.digest()));
            Ok(unconfirmed(monitor, missing, &error))
        }
        Err(error) => {
            // Once more: it may have begun to run after the pages had failed.
            vm.lost();
            door.decide(Fate::Lost);
            let error = MigrateError::PostcopyLost { why: error.to_string() };
            monitor.end(Phase::Failed, Some(error.to_string()));
            Err(error)
        }
    }
}

/// Stops a guest that lacks pages when it is dropped: nobody will place them, whether the thread that did has failed or
/// panicked.
struct Lost<'a> {
    missing: &'a MissingPages,
    vm: &'a dyn DestinationVm,
}

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        if self.missing.left() > 0 {
            self.missing.abandon(|| self.vm.lost());
        }
    }
}

/// Ends the channel, and with it the thread that reads it, when it is dropped with one.
struct HangUp<'a>(Option<&'a Handle>);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        self.0.into_iter().for_each(Handle::shutdown);
    }
}

/// Runs the guest, and tells the source.
fn run(
    vm: &dyn DestinationVm,
    monitor: &Monitor,
    terms: &Terms,
    stopped: Moment,
    committed: Instant,
    writer: &Mutex<FrameWriter>,
) -> Result<(), MigrateError> {
    let resumed = vm.run(terms.counter, stopped, terms.clock)?;
    let downtime = resumed.at.since(terms.clock.to_ours(stopped.at));
    monitor.show(|info| info.downtime = Some(u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX)));
    // Whether it is told or not, it runs: what fails from here on fails where the pages come from.
    let told = Message::Resumed(Resumed { at: resumed.at, counter: resumed.counter, resume_ns: ns(committed) });
    if monitor.at(Boundary::DestinationResumed).is_ok() {
        let _ = lock(writer).send(&told);
    }
    Ok(())
}

fn finish(
    incoming: &mut Incoming<'_>,
    terms: &Terms,
    missing: MissingPages,
    [source, ours]: [SlotDigests; 2],
    stage: Stage<'_, PostcopyActive>,
) -> Result<Farewell, MigrateError> {
    let report = missing.finish().unwrap_or_default();
    let sum = |digests: SlotDigests| digests.into_iter().fold(0, u64::wrapping_add);
    incoming.monitor.show(|info| {
        info.ram.get_or_insert_default().postcopy_requests = report.faults;
        info.digest = Some(DigestReport {
            mode: terms.digest,
            passes: info.ram.as_ref().map_or(0, |ram| ram.dirty_sync_count),
            source: sum(source),
            destination: sum(ours),
            equal: source == ours,
            took: std::time::Duration::ZERO,
        });
    });
    stage.complete();
    if incoming.monitor.at(Boundary::DestinationTold).is_err() {
        return Ok(Farewell::Missing);
    }
    match incoming.farewell() {
        Some(Message::Farewell { fault: None }) => Ok(Farewell::Said),
        // Such as memory that is not what the source had: both sides have compared.
        Some(Message::Farewell { fault: Some(text) }) => {
            incoming.monitor.show(|info| info.error_desc = Some(text.to_string()));
            Err(MigrateError::Source { text })
        }
        _ => Ok(Farewell::Missing),
    }
}

/// It has all its pages, and the source could not be told: it asks, and compares memory with what it is answered.
fn unconfirmed(monitor: &Monitor, missing: MissingPages, error: &MigrateError) -> Farewell {
    let report = missing.finish().unwrap_or_default();
    monitor.show(|info| info.ram.get_or_insert_default().postcopy_requests = report.faults);
    let text = format!("all pages have come, but the source was lost before both sides had compared memory: {error}");
    monitor.end(Phase::Completed, Some(text));
    Farewell::Missing
}

/// Asks the source for pages, once it may be asked.
struct Requests {
    writer: Arc<Mutex<FrameWriter>>,
    /// What was touched before; `None` since the source has let the guest go.
    early: Mutex<Option<Vec<(SlotId, u64)>>>,
}

impl Requests {
    fn ask(&self, slot: SlotId, page: u64) -> Result<(), MigrateError> {
        match self.early.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(early) => {
                early.push((slot, page));
                Ok(())
            }
            None => lock(&self.writer).send(&Message::PageRequest { slot, page }),
        }
    }

    fn open(&self) -> Result<(), MigrateError> {
        let early = self.early.lock().unwrap_or_else(PoisonError::into_inner).take();
        early.into_iter().flatten().try_for_each(|(slot, page)| self.ask(slot, page))
    }
}

/// Places pages as they come. It never touches guest memory itself, which might be what it waits for.
struct Receiving<'a> {
    reader: &'a mut FrameReader,
    order: &'a mut Order,
    writer: &'a Mutex<FrameWriter>,
    monitor: &'a Monitor,
    terms: &'a Terms,
    missing: &'a MissingPages,
    unpacker: Unpacker,
    payload: Vec<u8>,
    arrived: [SlotPass; SlotId::COUNT],
}

impl Receiving<'_> {
    /// Until the source has sent all and said what its memory is. Returns its digests and ours.
    fn run(&mut self) -> Result<[SlotDigests; 2], MigrateError> {
        loop {
            let (message, payload_bytes) = self.reader.next()?;
            self.order.accept(&message, payload_bytes)?;
            match message {
                Message::Pages(batch) => self.place(&batch, payload_bytes)?,
                Message::PassEnd(end) => self.end_pass(&end)?,
                Message::Digest(Some(source)) => {
                    let left = self.missing.left();
                    if left > 0 {
                        return Err(crate::migrate::postcopy::PostcopyError::Incomplete { left }.into());
                    }
                    // Of each page as it came; the guest has written some of them since.
                    let ours = self.terms.leaves.digest();
                    self.say(&Message::Loaded(Loaded { digests: Some(ours), load_ns: 0, digest_ns: 0 }))?;
                    return Ok([source, ours]);
                }
                // The order lets nothing else pass but a farewell, which comes too early.
                _ => return Err(MigrateError::lost(std::io::ErrorKind::UnexpectedEof.into())),
            }
            if let Some(error) = self.missing.failure() {
                return Err(error.into());
            }
        }
    }

    fn place(&mut self, batch: &PageBatch, payload_bytes: u32) -> Result<(), MigrateError> {
        self.payload.resize(payload_bytes as usize, 0);
        self.reader.payload(&mut self.payload)?;
        let unpacked = self.unpacker.unpack(batch, &self.payload, None, &self.terms.leaves)?;
        for (pages, content) in unpacked.runs() {
            self.missing.place(batch.slot, pages, content)?;
        }
        let slot = &mut self.arrived[batch.slot.index()];
        slot.pages = slot.pages.saturating_add(batch.pages());
        slot.digest = slot.digest.wrapping_add(batch.digest);
        self.monitor.show(|info| {
            let ram = info.ram.get_or_insert_default();
            ram.transferred += u64::from(payload_bytes);
            ram.postcopy_bytes += u64::from(payload_bytes);
        });
        Ok(())
    }

    fn end_pass(&mut self, end: &PassEnd) -> Result<(), MigrateError> {
        let received = std::mem::take(&mut self.arrived);
        for slot in SlotId::ALL {
            super::memory::compare(end.pass, slot, end.slots[slot.index()], received[slot.index()])?;
        }
        self.say(&Message::PassAck { pass: end.pass, digests: received.map(|slot| slot.digest) })
    }

    fn say(&mut self, message: &Message) -> Result<(), MigrateError> {
        self.order.sent(message)?;
        lock(self.writer).send(message)
    }
}

fn lock(writer: &Mutex<FrameWriter>) -> std::sync::MutexGuard<'_, FrameWriter> {
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ns(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
