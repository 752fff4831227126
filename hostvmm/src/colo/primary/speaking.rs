//! The primary's output: taken from the guest, compared, released; and the claim to be the only one that speaks.

use std::sync::PoisonError;
use std::time::Instant;

use super::{CLAIM_AGAIN, Primary};
use crate::colo::error::ColoError;
use crate::colo::info::Held;
use crate::colo::outlet::OutletError;
use crate::colo::output::Record;
use crate::colo::protocol::{PrimaryEvent, PrimaryState};
use crate::colo::{Ending, Side};

impl Primary<'_> {
    /// Takes what the guest emitted, unless the outlet keeps it waiting; and releases what may be seen.
    pub(super) fn speak(&mut self) {
        if self.ending.is_some() || self.machine.state() == PrimaryState::Claiming {
            return;
        }
        let has_room = !self.voice.is_full() && !self.compare.is_full();
        if has_room && let Err(error) = self.take_output() {
            self.lose(error);
            return;
        }
        let mut released = Vec::new();
        if self.offer.compare && self.machine.may_compare() {
            released = self.compare.take_released();
            let count = released.len() as u64;
            if count > 0 {
                self.monitor.show(|info| info.compared += count);
            }
        }
        if let Some(event) = self.release(released) {
            self.feed(event);
        }
    }

    pub(super) fn take_output(&mut self) -> Result<(), ColoError> {
        for record in self.vm.output().take() {
            self.compare.push_own(record)?;
        }
        let held = Held { records: self.compare.held().records as u64, bytes: self.compare.held().bytes as u64 };
        if held.records > 0 {
            self.monitor.show(|info| {
                info.held = held;
                info.held_most.records = info.held_most.records.max(held.records);
                info.held_most.bytes = info.held_most.bytes.max(held.bytes);
            });
        }
        Ok(())
    }

    /// `records` may be seen. An outlet that refuses them belongs to the other side.
    pub(super) fn release(&mut self, records: Vec<Record>) -> Option<PrimaryEvent> {
        if records.is_empty() && self.voice.is_silent() {
            return None;
        }
        if let Err(error) = self.voice.say(records) {
            self.error.get_or_insert(error.into());
            return Some(PrimaryEvent::Fenced);
        }
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = self.voice.accepted();
        let accepted = self.voice.accepted().total();
        self.monitor.show(|info| info.accepted = accepted);
        None
    }

    /// Claims the outlet, if it is time to.
    pub(super) fn claim(&mut self) {
        if self.claim_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        match self.voice.claim(self.machine.epoch(), Side::Primary) {
            Ok(()) => self.feed(PrimaryEvent::Granted),
            Err(OutletError::Unreachable(_) | OutletError::Ahead { .. }) => {
                let pause = self.monitor.parameters().heartbeat().max(CLAIM_AGAIN);
                self.claim_at = Some(Instant::now() + pause);
            }
            Err(error) => {
                self.error = Some(error.into());
                self.feed(PrimaryEvent::Fenced);
            }
        }
    }

    /// The only one: everything may be seen.
    pub(super) fn survive(&mut self, epoch: u64) -> Option<PrimaryEvent> {
        if let Err(error) = self.take_output() {
            self.error.get_or_insert(error);
        }
        self.compare.release_all();
        let released = self.compare.take_released();
        if let Err(error) = self.voice.say(released) {
            self.error.get_or_insert(error.into());
            return Some(PrimaryEvent::Fenced);
        }
        let accepted = self.voice.accepted().total();
        self.monitor.show(|info| (info.epoch, info.accepted) = (epoch, accepted));
        self.vm.survive(Side::Primary);
        self.ending = Some(Ending::Alone { epoch });
        None
    }
}
