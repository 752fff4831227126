//! Pages into memory: [`Pages`], one for each channel, and [`Arrived`], what all of them have received of a pass.

use std::sync::{Mutex, PoisonError};

use crate::memory::{GuestMemory, SlotId};
use crate::migrate::digest::Leaves;
use crate::migrate::error::MigrateError;
use crate::migrate::frames::FrameReader;
use crate::migrate::monitor::Monitor;
use crate::migrate::pages::Unpacker;
use crate::migrate::wire::{Encoding, Geometry, PageBatch, SlotPass};

/// What was received of the current pass, on all channels.
#[derive(Debug, Default)]
pub(super) struct Arrived(Mutex<[SlotPass; SlotId::COUNT]>);

impl Arrived {
    fn add(&self, batch: &PageBatch) {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut slots[batch.slot.index()];
        slot.pages = slot.pages.saturating_add(batch.pages());
        slot.digest = slot.digest.wrapping_add(batch.digest);
    }

    /// What it was, by slot; the next pass begins.
    pub(super) fn take(&self) -> [SlotPass; SlotId::COUNT] {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Puts the batches of one channel into memory.
pub(super) struct Pages<'a> {
    memory: &'a GuestMemory,
    leaves: &'a Leaves,
    arrived: &'a Arrived,
    monitor: &'a Monitor,
    page_bytes: u64,
    unpacker: Unpacker,
    payload: Vec<u8>,
}

impl<'a> Pages<'a> {
    /// Into `memory`.
    pub(super) fn new(
        memory: &'a GuestMemory,
        leaves: &'a Leaves,
        arrived: &'a Arrived,
        monitor: &'a Monitor,
        geometry: Geometry,
    ) -> Self {
        let page_bytes = geometry.page_bytes().into();
        Self { memory, leaves, arrived, monitor, page_bytes, unpacker: Unpacker::new(geometry), payload: Vec::new() }
    }

    /// The batch whose payload of `payload_bytes` comes next.
    pub(super) fn receive(
        &mut self,
        batch: &PageBatch,
        payload_bytes: u32,
        reader: &mut FrameReader,
    ) -> Result<(), MigrateError> {
        self.payload.resize(payload_bytes as usize, 0);
        reader.payload(&mut self.payload)?;
        self.unpacker.unpack(batch, &self.payload, Some(self.memory), self.leaves)?.write(self.memory)?;
        self.arrived.add(batch);
        let zero: u64 =
            batch.runs.iter().filter(|run| run.encoding == Encoding::Zero).map(|run| u64::from(run.count)).sum();
        let normal = batch.pages() - zero;
        self.monitor.show(|info| {
            let ram = info.ram.get_or_insert_default();
            ram.normal += normal;
            ram.normal_bytes += normal * self.page_bytes;
            ram.duplicate += zero;
            ram.transferred += u64::from(payload_bytes);
        });
        Ok(())
    }
}
