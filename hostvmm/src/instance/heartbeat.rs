//! What the guest's heartbeats tell of its move: [`GapWatch`] notes and marks them at the source, reads them at the
//! destination, and has both sides' measurements reconciled.
//!
//! ```text
//!  source       begin: gaps so far ── stopped: gaps so far, the next one marked ─┐ section `heartbeat`
//!  destination                                    arrived: both hosts' moments ◀─┘ ── outcome: the marked gap, gaps since
//! ```
//!
//! The section, little-endian, version first: version u16 (2), reserved u16, vCPUs u32, mark u64, stopped u64 (ns), u64
//! (counter) and u64 (by how many ns that may be wrong); for each vCPU the most that the counter can have shown as it left the
//! guest u64, and the gaps by length as the migration began and as the guest stopped, 64 u64 each.

use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::heartbeat::BUCKETS;

use crate::backend::Vm;
use crate::heartbeat::{Gap, GuestHeartbeat, Histogram};
use crate::machine::state::CounterSet;
use crate::migrate::downtime::{Crossing, Downtime, Latest, VcpuGaps, reconcile};
use crate::migrate::wire::{Section, SectionKind};
use crate::migrate::{ClockOffset, CounterReading, HostTime, Moment};
use crate::report::ledger::{CounterEntry, GapBucket, GapsEntry, GuestClockEntry, MigrationEntry};
use crate::vcpus::Vcpus;

const VERSION: u16 = 2;
const HEADER_BYTES: usize = 40;
const VCPU_BYTES: usize = (1 + 2 * BUCKETS) * size_of::<u64>();

/// A guest's heartbeats, as it left its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Departure {
    /// What the gap of the move is marked with.
    mark: u64,
    /// When the guest stopped, by the source's clock.
    stopped: Moment,
    /// By how much the counter may have shown something else then, in ns.
    doubt_ns: u64,
    vcpus: Vec<Noted>,
}

/// One vCPU at its source: its gaps at two moments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Noted {
    /// The most that the counter can have shown as it left the guest, in ticks.
    left: u64,
    begun: Histogram,
    stopped: Histogram,
}

/// How the guest arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// When it ran on, by the source's clock.
    pub(super) resumed: Moment,
    /// What its counter was set to, by our clock.
    pub(super) set: CounterSet,
    /// The counter as it was read before the guest ran on, by our clock.
    pub(super) reading: CounterReading,
    /// The source's clock.
    pub(super) source: ClockOffset,
    /// Ticks of the guest's counter in a second.
    pub(super) counter_hz: u64,
}

/// The heartbeats of a guest that moves.
#[derive(Debug, Default)]
pub(super) struct GapWatch {
    begun: Mutex<Vec<Histogram>>,
    departure: Mutex<Option<Departure>>,
    arrival: Mutex<Option<(Departure, Arrival)>>,
    /// Of each vCPU the beat here that was furthest ahead as it was looked at.
    latest: Mutex<Vec<Option<Latest>>>,
}

impl GapWatch {
    /// A migration begins at this source: notes the gaps so far.
    pub(super) fn begin(&self, vcpus: &Vcpus, count: usize, vm: &dyn Vm) {
        let number = HostTime::now().ns().max(1);
        let heartbeats = heartbeats(vcpus, count);
        for heartbeat in heartbeats.iter().flatten() {
            // What a guest's claim turned out to be was checked as it was found.
            let _ = heartbeat.reset(vm, number);
        }
        *lock(&self.begun) = heartbeats.iter().map(gaps).collect();
        *lock(&self.departure) = None;
    }

    /// The guest has stopped at this source, where its counter was read as `reading`: marks the gap that begins.
    pub(super) fn stopped(&self, vcpus: &Vcpus, count: usize, vm: &dyn Vm, stopped: Moment, reading: CounterReading) {
        self.look(vcpus);
        let heartbeats = heartbeats(vcpus, count);
        let begun = std::mem::take(&mut *lock(&self.begun));
        if heartbeats.iter().all(Option::is_none) {
            *lock(&self.departure) = None;
            return;
        }
        let mark = stopped.at.ns().max(1);
        for heartbeat in heartbeats.iter().flatten() {
            let _ = heartbeat.mark(vm, mark);
        }
        let stays = vcpus.stays();
        let noted = heartbeats.iter().enumerate().map(|(vcpu, heartbeat)| {
            let gaps = gaps(heartbeat);
            let left = stays.get(vcpu).and_then(|stay| stay.left).unwrap_or(stopped.at);
            // Where no memory is copied the guest stops as the migration begins.
            Noted { left: reading.most_at(left), begun: begun.get(vcpu).unwrap_or(&gaps).clone(), stopped: gaps }
        });
        let doubt_ns = reading.doubt_ns(stopped.at);
        *lock(&self.departure) = Some(Departure { mark, stopped, doubt_ns, vcpus: noted.collect() });
    }

    /// What goes along with the guest; `None` where it has no heartbeat.
    pub(super) fn departure(&self) -> Option<Departure> {
        lock(&self.departure).clone()
    }

    /// The guest runs at this destination.
    pub(super) fn arrived(&self, departure: Departure, arrival: Arrival) {
        *lock(&self.arrival) = Some((departure, arrival));
    }

    /// Looks at the latest beats of a guest that came here and is still here.
    fn look(&self, vcpus: &Vcpus) {
        let Some((departure, arrival)) = lock(&self.arrival).clone() else { return };
        // A counter of instructions tells nothing of a host's time.
        if arrival.reading.hz == 0 {
            return;
        }
        let beats: Vec<Option<u64>> = heartbeats(vcpus, departure.vcpus.len())
            .iter()
            .map(|heartbeat| heartbeat.as_ref()?.read().ok().map(|reading| reading.last))
            .collect();
        // After the beats were read: whoever has left the guest by now has beaten before that.
        let stays = vcpus.stays();
        let now = HostTime::now();
        let mut latest = lock(&self.latest);
        latest.resize(beats.len(), None);
        for ((kept, beat), stay) in latest.iter_mut().zip(beats).zip(stays) {
            let limit = arrival.reading.most_at(stay.left.unwrap_or(now));
            let ahead = |latest: Latest| i128::from(latest.beat) - i128::from(latest.limit);
            let found = beat.map(|beat| Latest { beat, limit });
            *kept = found.filter(|found| kept.is_none_or(|kept| ahead(*found) > ahead(kept))).or(*kept);
        }
    }

    /// Both measurements of the downtime by which the guest came here, and the gaps between its heartbeats. `None` where it
    /// did not come, or has no heartbeat. `is_here` unless it has moved on.
    pub(super) fn outcome(&self, vcpus: &Vcpus, is_here: bool) -> Option<Outcome> {
        if is_here {
            self.look(vcpus);
        }
        let (departure, arrival) = lock(&self.arrival).clone()?;
        let ours = |at| arrival.source.reversed().to_ours(at);
        let crossing = Crossing {
            stopped: departure.stopped,
            stopped_doubt_ns: departure.doubt_ns,
            resumed: arrival.resumed,
            set_at: ours(arrival.set.at),
            set_took_ns: arrival.set.took_ns,
            reading: CounterReading { at: ours(arrival.reading.at), ..arrival.reading },
            clocks_doubt_ns: arrival.source.uncertainty_ns,
            counter_hz: arrival.counter_hz,
            policy: arrival.set.policy,
        };
        let (stays, latest) = (vcpus.stays(), lock(&self.latest).clone());
        let heartbeats = heartbeats(vcpus, departure.vcpus.len());
        let gaps: Vec<VcpuGaps> = departure
            .vcpus
            .iter()
            .zip(heartbeats)
            .enumerate()
            .map(|(vcpu, (noted, heartbeat))| {
                let reading = heartbeat.and_then(|heartbeat| heartbeat.read().ok());
                let marked: Option<Gap> = reading.as_ref().and_then(|reading| reading.marked_as(departure.mark));
                let since = reading.map(|reading| reading.histogram.since(&noted.stopped)).unwrap_or_default();
                VcpuGaps {
                    vcpu,
                    before: noted.begun.clone(),
                    during: noted.stopped.since(&noted.begun),
                    after: marked.map_or_else(|| since.clone(), |gap| since.without(gap.ns(arrival.counter_hz))),
                    crossing: marked,
                    left: noted.left,
                    entered: stays
                        .get(vcpu)
                        .and_then(|stay| stay.entered)
                        .map(|entered| arrival.reading.least_at(entered)),
                    latest: latest.get(vcpu).copied().flatten(),
                }
            })
            .collect();
        Some(Outcome { downtime: reconcile(&crossing, &gaps), departure, arrival, gaps })
    }
}

/// Where every vCPU leaves its heartbeat.
fn heartbeats(vcpus: &Vcpus, count: usize) -> Vec<Option<GuestHeartbeat>> {
    // One that names a place where none can be has none.
    (0..count).map(|vcpu| vcpus.heartbeat(vcpu).ok().flatten()).collect()
}

fn gaps(heartbeat: &Option<GuestHeartbeat>) -> Histogram {
    heartbeat.as_ref().and_then(|heartbeat| heartbeat.read().ok()).map(|reading| reading.histogram).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a move came to by the guest's own measure.
pub(super) struct Outcome {
    /// The measurements, reconciled.
    pub(super) downtime: Downtime,
    departure: Departure,
    arrival: Arrival,
    gaps: Vec<VcpuGaps>,
}

impl Outcome {
    /// Puts it into the ledger's entry.
    pub(super) fn enter(&self, entry: &mut MigrationEntry) {
        let Self { downtime, departure: Departure { stopped, doubt_ns, .. }, arrival, gaps } = self;
        let policy = arrival.set.policy;
        let error_ns = downtime.guest_error_ns(policy).unwrap_or_default();
        entry.downtime_guest_ns = downtime.guest_ns.unwrap_or_default();
        entry.counter_error_ppm = downtime.counter_error_ppm;
        let clock = entry.clock.get_or_insert_default();
        *clock = GuestClockEntry {
            policy: policy.to_string(),
            counter_hz: arrival.counter_hz,
            resolution_ns: downtime.resolution_ns,
            error_ns,
            counter_error_ns: downtime.counter_error_ns,
            counter_doubt_ns: downtime.counter_doubt_ns,
            reconciled: downtime.disagreements.is_empty(),
            disagreements: downtime.disagreements.iter().map(ToString::to_string).collect(),
            gap_cycles: downtime.gap_cycles,
            vcpu: downtime.vcpu.map(|vcpu| vcpu as u32),
            host_offset_ns: Some(arrival.source.reversed().offset_ns),
            stopped: Some(CounterEntry { ticks: stopped.counter, at_ns: stopped.at.ns(), uncertainty_ns: *doubt_ns }),
            arrived: Some(CounterEntry {
                ticks: arrival.reading.ticks,
                at_ns: arrival.reading.at.ns(),
                uncertainty_ns: arrival.reading.uncertainty_ns,
            }),
            ..std::mem::take(clock)
        };
        let all =
            |of: fn(&VcpuGaps) -> &Histogram| gaps.iter().fold(Histogram::default(), |all, gaps| all.and(of(gaps)));
        let crossings = gaps.iter().filter_map(|gaps| gaps.crossing).map(|gap| gap.ns(arrival.counter_hz));
        entry.gaps = Some(GapsEntry {
            before: buckets(&all(|gaps| &gaps.before)),
            during: buckets(&all(|gaps| &gaps.during).and(&Histogram::of(crossings))),
            after: buckets(&all(|gaps| &gaps.after)),
        });
    }
}

/// The buckets that are not empty, as the ledger has them.
fn buckets(histogram: &Histogram) -> Vec<GapBucket> {
    let bucket = |(bucket, count): (usize, &u64)| GapBucket { from_ns: 1 << bucket, count: *count };
    histogram.counts().iter().enumerate().filter(|(_, count)| **count != 0).map(bucket).collect()
}

impl Departure {
    /// The section that takes it along.
    pub(super) fn encode(&self) -> Section {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.vcpus.len() * VCPU_BYTES);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(0_u16.to_le_bytes());
        bytes.extend((self.vcpus.len() as u32).to_le_bytes());
        for word in [self.mark, self.stopped.at.ns(), self.stopped.counter, self.doubt_ns] {
            bytes.extend(word.to_le_bytes());
        }
        for noted in &self.vcpus {
            bytes.extend(noted.left.to_le_bytes());
            for histogram in [&noted.begun, &noted.stopped] {
                let counts = histogram.counts();
                (0..BUCKETS).for_each(|bucket| bytes.extend(counts.get(bucket).copied().unwrap_or(0).to_le_bytes()));
            }
        }
        Section { kind: SectionKind::Heartbeat, index: 0, bytes }
    }

    /// Reads it from a section's bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or("shorter than its header")?;
        let words: Vec<u64> = header[8..].as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let [mark, at, counter, doubt_ns] = words[..] else { return Err("shorter than its header") };
        let count = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if header[..4] != [2, 0, 0, 0] {
            return Err("another version");
        }
        if mark == 0 || count > abi::map::MAX_VCPUS || rest.len() != count * VCPU_BYTES {
            return Err("another number of vCPUs");
        }
        let histogram = |bytes: &[u8]| {
            let words = bytes.as_chunks().0;
            Histogram::new(std::array::from_fn(|bucket| words.get(bucket).map_or(0, |word| u64::from_le_bytes(*word))))
        };
        let vcpus = rest.chunks_exact(VCPU_BYTES).map(|bytes| {
            let (left, gaps) = bytes.split_at(size_of::<u64>());
            let (begun, stopped) = gaps.split_at(gaps.len() / 2);
            let left = left.as_array().map_or(0, |left| u64::from_le_bytes(*left));
            Noted { left, begun: histogram(begun), stopped: histogram(stopped) }
        });
        let stopped = Moment { at: HostTime::from_ns(at), counter };
        Ok(Self { mark, stopped, doubt_ns, vcpus: vcpus.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Departure {
        let noted = Noted { left: 87, begun: Histogram::of([1, 5000]), stopped: Histogram::of([1, 5000, 900]) };
        let stopped = Moment { at: HostTime::from_ns(77), counter: 88 };
        Departure { mark: 3, stopped, doubt_ns: 9, vcpus: vec![noted, Noted::default()] }
    }

    #[test]
    fn a_departure_is_read_back() {
        let section = sample().encode();
        assert_eq!(&section.bytes[..16], [2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Departure::decode(&section.bytes), Ok(sample()));
    }

    #[test]
    fn bytes_that_are_no_departure_are_refused() {
        let bytes = sample().encode().bytes;
        for len in [0, 39, 40, bytes.len() - 1] {
            assert!(Departure::decode(&bytes[..len]).is_err(), "{len}");
        }
        for (at, value) in [(0, 1), (2, 1), (4, 3), (4, 9), (8, 0)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert!(Departure::decode(&wrong).is_err(), "{at}");
        }
    }
}
