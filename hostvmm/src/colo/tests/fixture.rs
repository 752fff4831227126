//! Guests without a CPU: memory, a dirty log, and a thread that writes and speaks as a plan says; and an outlet that remembers.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use abi::boot::BootInfo;
use abi::packet::GuestOutput;
use abi::{GuestRange, Tables, VaBits, map};

use crate::backend::Accelerator;
use crate::colo::outlet::{Claim, Outlet, OutletError};
use crate::colo::output::{Positions, Record, StreamId, Tap};
use crate::colo::{ColoMonitor, ColoParameters, ColoVm, Outcome, Peer, Side, Voice, protect, shadow};
use crate::dirty::PageBitmap;
use crate::memory::{GuestMemory, SlotId, host_page_bytes};
use crate::migrate::transport::{Listener, Uri};
use crate::migrate::wire::{Description, Section, SectionKind};
use crate::migrate::{ClockOffset, HostTime, Moment, VmError};

/// Pages of each slot.
pub(super) const PAGES: u64 = 96;
/// Steps between two things that the guest says.
const SPEAKS: u64 = 64;
/// Steps before the guest lets others run.
const BURST: u64 = 16;

/// A machine whose guest is a thread.
pub(super) struct TestVm {
    memory: GuestMemory,
    state: Mutex<State>,
    changed: Condvar,
    tap: Tap,
    /// What a guest says that looks at something that is not the same on both sides.
    nonce: Option<u8>,
}

#[derive(Default)]
struct State {
    /// The guest's only register.
    step: u64,
    runs: bool,
    is_over: bool,
    log: Option<[PageBitmap; 2]>,
    survived: Option<Side>,
    fenced: bool,
    loads: u64,
}

impl TestVm {
    /// One that does not run.
    pub(super) fn new(nonce: Option<u8>) -> Self {
        let page = host_page_bytes();
        let range = |base| GuestRange::new(base, PAGES * page).unwrap();
        Self {
            memory: GuestMemory::new(range(map::RAM_BASE), range(map::REGION_BASE), None).unwrap(),
            state: Mutex::default(),
            changed: Condvar::new(),
            tap: Tap::default(),
            nonce,
        }
    }

    /// Lets a guest run that has come so far.
    pub(super) fn start(&self) {
        (0..3 * PAGES).for_each(|_| self.take_step(&mut self.lock()));
        self.lock().runs = true;
    }

    /// The guest's thread.
    pub(super) fn execute(&self) {
        loop {
            let waits = |state: &mut State| !state.runs && !state.is_over;
            let mut state = self.changed.wait_while(self.lock(), waits).unwrap();
            if state.is_over {
                return;
            }
            (0..BURST).for_each(|_| self.take_step(&mut state));
            drop(state);
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// Ends the guest's thread.
    pub(super) fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
        self.changed.notify_all();
    }

    pub(super) fn runs(&self) -> bool {
        self.lock().runs
    }

    pub(super) fn survived(&self) -> Option<Side> {
        self.lock().survived
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.lock().fenced
    }

    /// The guest's check of itself: every page holds what the last step that wrote it has left there.
    pub(super) fn check(&self) {
        let state = self.lock();
        let mut last = [[None; PAGES as usize]; 2];
        for step in 0..state.step {
            let (slot, page) = place(step);
            last[slot.index()][page as usize] = Some(step);
        }
        for slot in SlotId::ALL {
            for page in 0..PAGES {
                let mut found = [0; 8];
                self.memory.copy_from_slot(slot, page * host_page_bytes(), &mut found).unwrap();
                let expected = last[slot.index()][page as usize].map_or(0, |step| step + 1);
                assert_eq!(u64::from_le_bytes(found), expected, "{slot}, page {page}, at step {}", state.step);
            }
        }
    }

    fn take_step(&self, state: &mut State) {
        let (slot, page) = place(state.step);
        let mut bytes = [0; 9];
        bytes[..8].copy_from_slice(&(state.step + 1).to_le_bytes());
        bytes[8] = self.nonce.unwrap_or(0);
        self.memory.copy_to_slot(slot, page * host_page_bytes(), &bytes).unwrap();
        if let Some(log) = &mut state.log {
            log[slot.index()].set(page);
        }
        state.step += 1;
        if state.step.is_multiple_of(SPEAKS) {
            let mut said = format!("step {}", state.step).into_bytes();
            said.extend(self.nonce);
            let _ = self.tap.capture(StreamId::CONSOLE, said);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// What a step writes: some pages again and again, others seldom.
fn place(step: u64) -> (SlotId, u64) {
    let mixed = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    let page = if step.is_multiple_of(3) { mixed % 5 } else { mixed % PAGES };
    (SlotId::ALL[(mixed >> 20) as usize & 1], page)
}

fn clean() -> [PageBitmap; 2] {
    SlotId::ALL.map(|_| PageBitmap::new(PAGES, host_page_bytes()))
}

impl ColoVm for TestVm {
    fn describe(&self) -> Description {
        let page = host_page_bytes();
        let boot = BootInfo {
            tables: Tables::V8(VaBits::ALL[1]),
            vcpus: 1,
            flags: 0,
            region: GuestRange::new(map::REGION_BASE, PAGES * page).unwrap(),
            ram: GuestRange::new(map::RAM_BASE, PAGES * page).unwrap(),
            seed: 1,
            pattern: 0,
            params: Default::default(),
            heartbeat_us: 0,
            output: GuestOutput::Off,
            points: 0,
        };
        Description {
            accelerator: Accelerator::Emulator,
            boot,
            page_bytes: page as u32,
            counter_hz: 62_500_000,
            track_dirty: false,
        }
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn log_page_bytes(&self) -> u64 {
        host_page_bytes()
    }

    fn start_log(&self) -> Result<(), VmError> {
        assert!(self.lock().log.replace(clean()).is_none(), "the log runs already");
        Ok(())
    }

    fn harvest(&self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), VmError> {
        let mut state = self.lock();
        let log = state.log.as_mut().expect("the log runs");
        *dirty = std::mem::replace(&mut log[slot.index()], PageBitmap::new(PAGES, host_page_bytes()));
        Ok(())
    }

    fn stop_log(&self) -> Result<(), VmError> {
        assert!(self.lock().log.take().is_some(), "the log does not run");
        Ok(())
    }

    fn pause(&self) -> Result<Moment, VmError> {
        let mut state = self.lock();
        state.runs = false;
        Ok(Moment { at: HostTime::now(), counter: state.step })
    }

    fn resume(&self) {
        let mut state = self.lock();
        assert!(!state.fenced, "a fenced guest runs");
        assert!(!std::mem::replace(&mut state.runs, true), "resumed twice");
        self.changed.notify_all();
    }

    fn save(&self) -> Result<Vec<Section>, VmError> {
        let state = self.lock();
        assert!(!state.runs, "saved while it runs");
        Ok(vec![Section { kind: SectionKind::Vcpu, index: 0, bytes: state.step.to_le_bytes().to_vec() }])
    }

    fn load(&self, sections: &[Section], _: Moment, _: ClockOffset) -> Result<(), VmError> {
        let mut state = self.lock();
        assert!(!state.runs, "loaded while it runs");
        let bytes = sections.first().and_then(|section| section.bytes.first_chunk());
        state.step = u64::from_le_bytes(*bytes.ok_or_else(|| VmError::new("load", "no register"))?);
        state.loads += 1;
        Ok(())
    }

    fn output(&self) -> &Tap {
        &self.tap
    }

    fn survive(&self, side: Side) {
        assert_eq!(self.lock().survived.replace(side), None);
    }

    fn fenced(&self) {
        let mut state = self.lock();
        (state.runs, state.fenced) = (false, true);
    }
}

/// The outside world.
#[derive(Clone, Default)]
pub(super) struct World(Arc<Mutex<Seen>>);

#[derive(Default)]
pub(super) struct Seen {
    epoch: u64,
    owner: Option<Side>,
    accepted: Positions,
    pub(super) records: Vec<Record>,
    is_away: bool,
}

impl World {
    pub(super) fn voice(&self) -> Voice {
        Voice::new(Box::new(self.clone()), true, 77)
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    /// Nobody reaches it, or everybody again.
    pub(super) fn set_away(&self, is_away: bool) {
        self.seen().is_away = is_away;
    }

    /// It is the secondary's from now on, as if that had claimed it.
    pub(super) fn hand_to_secondary(&self) {
        let mut seen = self.seen();
        seen.epoch += 1;
        seen.owner = Some(Side::Secondary);
    }

    /// Every record was seen once, and is what the guest says at that place.
    pub(super) fn check(&self, at_least: usize) {
        let seen = self.seen();
        assert!(seen.records.len() >= at_least, "{} records", seen.records.len());
        let first = seen.records.first().map_or(0, |record| record.sequence);
        let text = |record: &Record| String::from_utf8_lossy(&record.bytes).into_owned();
        let step = |record: &Record| {
            text(record)["step ".len()..].trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
        };
        let base: u64 = seen.records.first().map_or(0, step);
        for (record, sequence) in seen.records.iter().zip(first..) {
            assert_eq!(record.sequence, sequence);
            assert_eq!(step(record), base + (sequence - first) * SPEAKS, "{}", text(record));
        }
    }
}

impl Outlet for World {
    fn claim(&mut self, claim: Claim) -> Result<Positions, OutletError> {
        let mut seen = self.seen();
        if seen.is_away {
            return Err(OutletError::Unreachable(std::io::ErrorKind::HostUnreachable.into()));
        }
        if claim.epoch == seen.epoch + 1 {
            (seen.epoch, seen.owner) = (claim.epoch, Some(claim.side));
        } else if claim.epoch != seen.epoch || seen.owner != Some(claim.side) {
            return Err(OutletError::Fenced { current: seen.epoch });
        }
        Ok(seen.accepted)
    }

    fn deliver(&mut self, epoch: u64, records: &[Record]) -> Result<Positions, OutletError> {
        let mut seen = self.seen();
        if seen.is_away {
            return Err(OutletError::Unreachable(std::io::ErrorKind::HostUnreachable.into()));
        }
        if epoch != seen.epoch {
            return Err(OutletError::Fenced { current: seen.epoch });
        }
        for record in records {
            let expected = seen.accepted.get(record.stream);
            if record.sequence > expected {
                return Err(OutletError::Gap { stream: record.stream, expected, found: record.sequence });
            }
            if record.sequence == expected {
                seen.accepted.set(record.stream, expected + 1);
                seen.records.push(record.clone());
            }
        }
        Ok(seen.accepted)
    }
}

/// Short times, for tests.
pub(super) fn quick() -> ColoParameters {
    ColoParameters {
        x_checkpoint_delay: 5,
        x_colo_heartbeat: 20,
        // Longer than a loaded host keeps a thread waiting.
        x_colo_heartbeat_limit: 20_000,
        x_colo_background: 2,
        ..ColoParameters::default()
    }
}

/// What became of both sides.
pub(super) struct Both {
    pub(super) primary: Outcome,
    pub(super) secondary: Outcome,
}

/// Two machines, their monitors and the world.
pub(super) struct Pair {
    pub(super) primary: TestVm,
    pub(super) secondary: TestVm,
    pub(super) primary_monitor: ColoMonitor,
    pub(super) secondary_monitor: ColoMonitor,
    pub(super) world: World,
}

impl Pair {
    /// Two guests that say the same, or not if they have a nonce.
    pub(super) fn new(nonces: Option<[u8; 2]>, parameters: &ColoParameters) -> Self {
        let [one, other] = nonces.map_or([None; 2], |nonces| nonces.map(Some));
        Self {
            primary: TestVm::new(one),
            secondary: TestVm::new(other),
            primary_monitor: monitor(parameters),
            secondary_monitor: monitor(parameters),
            world: World::default(),
        }
    }

    /// Runs the pair until it ends on both sides; `while_it_runs` is to end it.
    pub(super) fn run(&self, while_it_runs: impl FnOnce(&Self)) -> Both {
        self.run_with([self.world.voice(), self.world.voice()], while_it_runs)
    }

    /// As [`Self::run`], with other ways to the world.
    pub(super) fn run_with(&self, [mut ours, mut theirs]: [Voice; 2], while_it_runs: impl FnOnce(&Self)) -> Both {
        let directory = tempfile::tempdir().unwrap();
        let uri = Uri::Unix(directory.path().join("socket"));
        let listener = Listener::bind(&uri, None).unwrap();
        let peer = Peer { uri, tls: None };
        self.primary.start();
        thread::scope(|scope| {
            let _end = End(self);
            scope.spawn(|| self.primary.execute());
            scope.spawn(|| self.secondary.execute());
            let secondary = scope.spawn(|| shadow(&self.secondary, listener, &mut theirs, &self.secondary_monitor));
            let primary = scope.spawn(|| protect(&self.primary, &peer, &mut ours, &self.primary_monitor));
            while_it_runs(self);
            Both { primary: primary.join().unwrap(), secondary: secondary.join().unwrap() }
        })
    }
}

/// Ends what still runs of a pair, so that a test that fails does not hang.
struct End<'a>(&'a Pair);

impl Drop for End<'_> {
    fn drop(&mut self) {
        // A pair that is over cannot be stopped.
        let _ = self.0.primary_monitor.stop();
        let _ = self.0.secondary_monitor.stop();
        self.0.primary.end();
        self.0.secondary.end();
    }
}

pub(super) fn monitor(parameters: &ColoParameters) -> ColoMonitor {
    let monitor = ColoMonitor::new();
    monitor.use_parameters(parameters.clone());
    monitor
}
