//! Two machines without a CPU: memory, a dirty log, and a guest whose writes the test decides.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;

use abi::boot::BootInfo;
use abi::packet::GuestOutput;
use abi::{Gpa, GuestRange, Tables, VaBits, map};

use crate::backend::Accelerator;
use crate::dirty::PageBitmap;
use crate::memory::{GuestMemory, SlotId, host_page_bytes};
use crate::migrate::file::is_loaded;
use crate::migrate::transport::{Listener, Uri};
use crate::migrate::wire::{Description, Section, SectionKind};
use crate::migrate::{
    Boundary, ClockOffset, CounterPolicy, DestinationVm, HostTime, MigrateError, MigrationInfo, Moment, Monitor, Phase,
    PlantedFailure, SourceVm, VmError, receive, send,
};

/// Pages of each slot.
pub(super) const PAGES: u64 = 512;

/// Pages of the region that the guest writes before one harvest, and with what.
pub(super) type Burst = Vec<(u64, u8)>;

/// A machine: a source, a destination, or first the one and then the other.
pub(super) struct TestVm {
    memory: GuestMemory,
    state: Mutex<State>,
    seed: u64,
    ram_pages: u64,
    vcpus: u32,
    tables: Tables,
    accelerator: Accelerator,
    cpu: Vec<(u64, u128)>,
    throttle: AtomicU8,
    harvests: AtomicU64,
}

#[derive(Default)]
struct State {
    runs: bool,
    log: Option<[PageBitmap; 2]>,
    bursts: VecDeque<Burst>,
    given_back: Option<[PageBitmap; 2]>,
    harvested: Option<[PageBitmap; 2]>,
    /// What the registers and devices are.
    registers: Vec<u8>,
    ran: u64,
    moved: bool,
    saved: Option<File>,
    throttles: Vec<u8>,
    fails: Option<&'static str>,
    /// A page that the log forgets whenever it is written.
    forgets: Option<u64>,
    at_pause: Burst,
    /// A page of the region that the guest reads before anything else.
    touches: Option<u64>,
}

impl TestVm {
    fn new() -> Self {
        let page = host_page_bytes();
        let range = |base| GuestRange::new(base, PAGES * page).unwrap();
        Self {
            memory: GuestMemory::new(range(map::RAM_BASE), range(map::REGION_BASE), None).unwrap(),
            state: Mutex::default(),
            seed: 1,
            ram_pages: PAGES,
            vcpus: 1,
            tables: Tables::V8(VaBits::ALL[1]),
            accelerator: Accelerator::Emulator,
            cpu: Vec::new(),
            throttle: AtomicU8::new(0),
            harvests: AtomicU64::new(0),
        }
    }

    /// One with a guest that runs, some memory of every kind, and writes to come.
    pub(super) fn with_guest() -> Self {
        let vm = Self::new();
        let page = host_page_bytes() as usize;
        for at in (0..PAGES).filter(|at| at % 3 != 0) {
            vm.memory.fill(SlotId::Region, at, &vec![at as u8; page]);
            vm.memory.fill(SlotId::Ram, at / 2, &vec![!(at as u8); page]);
        }
        vm.memory.fill(SlotId::Ram, 7, &vec![0; page]);
        {
            let mut state = vm.state.lock().unwrap();
            state.runs = true;
            state.registers = (0..200_u8).collect();
        }
        vm
    }

    /// One that waits for a guest.
    pub(super) fn empty() -> Self {
        Self::new()
    }

    /// The guest writes `bursts`, one before each harvest.
    pub(super) fn writing(self, bursts: impl IntoIterator<Item = Burst>) -> Self {
        self.state.lock().unwrap().bursts.extend(bursts);
        self
    }

    /// What is asked of it as `what` fails.
    pub(super) fn failing(self, what: &'static str) -> Self {
        self.state.lock().unwrap().fails = Some(what);
        self
    }

    /// It was made with another option.
    pub(super) fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// It says that it has so much RAM.
    pub(super) fn with_ram_pages(self, ram_pages: u64) -> Self {
        Self { ram_pages, ..self }
    }

    /// It says that it has so many vCPUs.
    pub(super) fn with_vcpus(self, vcpus: u32) -> Self {
        Self { vcpus, ..self }
    }

    /// It says that its guest has these tables.
    pub(super) fn with_tables(self, tables: Tables) -> Self {
        Self { tables, ..self }
    }

    /// It says that this is what executes it.
    pub(super) fn on(self, accelerator: Accelerator) -> Self {
        Self { accelerator, ..self }
    }

    /// These constants are compared.
    pub(super) fn with_cpu(self, cpu: Vec<(u64, u128)>) -> Self {
        Self { cpu, ..self }
    }

    /// Its log has a fault.
    pub(super) fn forgetting(self, page: u64) -> Self {
        self.state.lock().unwrap().forgets = Some(page);
        self
    }

    /// The first thing that its guest does is to read `page` of the region.
    pub(super) fn touching(self, page: u64) -> Self {
        self.state.lock().unwrap().touches = Some(page);
        self
    }

    pub(super) fn runs(&self) -> bool {
        self.state.lock().unwrap().runs
    }

    pub(super) fn has_moved(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.moved || state.saved.is_some()
    }

    /// Whether somebody has loaded the guest that was saved to a file.
    pub(super) fn is_loaded_elsewhere(&self) -> bool {
        is_loaded(self.state.lock().unwrap().saved.as_ref().expect("it was saved")).unwrap()
    }

    pub(super) fn throttles(&self) -> Vec<u8> {
        self.state.lock().unwrap().throttles.clone()
    }

    pub(super) fn harvests(&self) -> u64 {
        self.harvests.load(Ordering::Relaxed)
    }

    pub(super) fn registers(&self) -> Vec<u8> {
        self.state.lock().unwrap().registers.clone()
    }

    /// That nothing of a migration is left: no log, no throttle, every dirty bit given back.
    pub(super) fn assert_healthy(&self) {
        let state = self.state.lock().unwrap();
        assert!(state.log.is_none(), "the log runs on");
        assert_eq!(self.throttle.load(Ordering::Relaxed), 0);
        assert!(!state.moved);
        // A cancel that comes before the log is begun gives nothing back, of nothing.
        let [given_back, harvested] =
            [&state.given_back, &state.harvested].map(|pages| pages.clone().unwrap_or_else(clean));
        assert_eq!(given_back, harvested, "dirty bits that were harvested and not given back");
    }

    /// All bytes of both slots.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for slot in self.memory.slots() {
            let mut bytes = vec![0; slot.range().len_bytes() as usize];
            self.memory.copy_from_slot(slot.id(), 0, &mut bytes).unwrap();
            all.extend(bytes);
        }
        all
    }

    /// A write of the guest, if it runs.
    pub(super) fn try_write(&self, page: u64, byte: u8) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.runs {
            self.write_within(&mut state, page, byte);
        }
        state.runs
    }

    /// The guest's last writes, as it is asked to stop.
    pub(super) fn write_at_pause(&self, burst: Burst) {
        self.state.lock().unwrap().at_pause = burst;
    }

    fn write_within(&self, state: &mut State, page: u64, byte: u8) {
        self.memory.fill(SlotId::Region, page, &vec![byte; host_page_bytes() as usize]);
        if let Some(log) = &mut state.log
            && state.forgets != Some(page)
        {
            log[SlotId::Region.index()].set(page);
        }
    }

    fn fail(&self, what: &'static str) -> Result<(), VmError> {
        let state = self.state.lock().unwrap();
        if state.fails == Some(what) { Err(VmError::new(what, "the test says so")) } else { Ok(()) }
    }

    fn describe(&self) -> Description {
        let page = host_page_bytes();
        let boot = BootInfo {
            tables: self.tables,
            vcpus: self.vcpus,
            flags: 0,
            region: GuestRange::new(map::REGION_BASE, PAGES * page).unwrap(),
            ram: GuestRange::new(map::RAM_BASE, self.ram_pages * page).unwrap(),
            seed: self.seed,
            pattern: 0,
            params: Default::default(),
            heartbeat_us: 0,
            output: GuestOutput::Off,
            points: 0,
        };
        Description {
            accelerator: self.accelerator,
            boot,
            page_bytes: page as u32,
            counter_hz: 62_500_000,
            track_dirty: false,
        }
    }
}

trait Fill {
    fn fill(&self, slot: SlotId, page: u64, bytes: &[u8]);
}

impl Fill for GuestMemory {
    fn fill(&self, slot: SlotId, page: u64, bytes: &[u8]) {
        let start = self.slot(slot).range().start();
        self.write(start.checked_add(page * bytes.len() as u64).unwrap(), bytes).unwrap();
    }
}

fn clean() -> [PageBitmap; 2] {
    SlotId::ALL.map(|_| PageBitmap::new(PAGES, host_page_bytes()))
}

impl SourceVm for TestVm {
    fn describe(&self) -> Description {
        self.describe()
    }

    fn cpu(&self) -> Vec<(u64, u128)> {
        self.cpu.clone()
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn log_page_bytes(&self) -> u64 {
        host_page_bytes()
    }

    fn log_name(&self) -> String {
        "of the test".to_owned()
    }

    fn start_log(&self) -> Result<(), VmError> {
        self.fail("start the log")?;
        let mut state = self.state.lock().unwrap();
        assert!(state.log.is_none(), "the log runs already");
        state.log = Some(clean());
        state.harvested = Some(clean());
        state.given_back = None;
        Ok(())
    }

    fn harvest(&self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), VmError> {
        self.fail("harvest")?;
        self.harvests.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap();
        if slot == SlotId::Ram && state.runs {
            for (page, byte) in state.bursts.pop_front().unwrap_or_default() {
                self.write_within(&mut state, page, byte);
            }
        }
        let log = state.log.as_mut().expect("the log runs");
        *dirty = std::mem::replace(&mut log[slot.index()], PageBitmap::new(PAGES, host_page_bytes()));
        state.harvested.as_mut().unwrap()[slot.index()].or(dirty);
        Ok(())
    }

    fn stop_log(&self) -> Result<(), VmError> {
        let mut state = self.state.lock().unwrap();
        assert!(state.log.take().is_some(), "the log does not run");
        Ok(())
    }

    fn redirty(&self, slot: SlotId, pages: &PageBitmap) {
        self.state.lock().unwrap().given_back.get_or_insert_with(clean)[slot.index()].or(pages);
    }

    fn pause(&self) -> Result<Moment, VmError> {
        self.fail("pause")?;
        let mut state = self.state.lock().unwrap();
        for (page, byte) in std::mem::take(&mut state.at_pause) {
            self.write_within(&mut state, page, byte);
        }
        assert!(std::mem::replace(&mut state.runs, false), "paused twice");
        Ok(Moment { at: HostTime::now(), counter: 1000 })
    }

    fn resume(&self) {
        let mut state = self.state.lock().unwrap();
        assert!(!state.moved, "a guest that has moved runs");
        assert!(!std::mem::replace(&mut state.runs, true), "resumed twice");
    }

    fn save(&self) -> Result<Vec<Section>, VmError> {
        self.fail("save")?;
        let state = self.state.lock().unwrap();
        assert!(!state.runs, "saved while it runs");
        Ok(vec![Section { kind: SectionKind::Vcpu, index: 0, bytes: state.registers.clone() }])
    }

    fn throttle(&self, percent: u8) {
        if self.throttle.swap(percent, Ordering::Relaxed) != percent {
            self.state.lock().unwrap().throttles.push(percent);
        }
    }

    fn moved(&self) {
        let mut state = self.state.lock().unwrap();
        assert!(!state.runs, "the guest runs on both sides");
        state.moved = true;
    }

    fn saved(&self, file: File) {
        let mut state = self.state.lock().unwrap();
        assert!(!state.runs, "it was saved while it ran");
        state.saved = Some(file);
    }
}

impl DestinationVm for TestVm {
    fn describe(&self) -> Description {
        self.describe()
    }

    fn check_cpu(&self, _: Accelerator, source: &[(u64, u128)]) -> Result<(), String> {
        let same = source == self.cpu;
        same.then_some(()).ok_or_else(|| format!("{} constants, not {}", self.cpu.len(), source.len()))
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn log_page_bytes(&self) -> u64 {
        host_page_bytes()
    }

    fn load(&self, sections: &[Section]) -> Result<(), VmError> {
        self.fail("load")?;
        let section = sections.first().ok_or_else(|| VmError::new("load", "there is no state"))?;
        self.state.lock().unwrap().registers = section.bytes.clone();
        Ok(())
    }

    fn run(&self, _: CounterPolicy, stopped: Moment, _: ClockOffset) -> Result<Moment, VmError> {
        self.fail("run")?;
        let touched = self.state.lock().unwrap().touches;
        if let Some(page) = touched {
            let mut byte = [0];
            self.memory.copy_from_slot(SlotId::Region, page * host_page_bytes(), &mut byte).unwrap();
        }
        let mut state = self.state.lock().unwrap();
        assert!(!std::mem::replace(&mut state.runs, true), "run twice");
        state.ran += 1;
        Ok(Moment { at: HostTime::now(), counter: stopped.counter + 1 })
    }

    fn lost(&self) {
        self.state.lock().unwrap().runs = false;
    }
}

/// What came of both sides.
pub(super) struct Outcome {
    pub(super) source: Result<MigrationInfo, MigrateError>,
    pub(super) destination: Result<MigrationInfo, MigrateError>,
}

/// Moves the guest of `from` to `to` over a unix socket, each side with its monitor.
pub(super) fn migrate(from: &TestVm, to: &TestVm, source: &Monitor, destination: &Monitor) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    migrate_by(&Uri::Unix(directory.path().join("socket")), from, to, source, destination)
}

/// As [`migrate`], at `uri`.
pub(super) fn migrate_by(uri: &Uri, from: &TestVm, to: &TestVm, source: &Monitor, destination: &Monitor) -> Outcome {
    let listener = Listener::bind(uri, None).unwrap();
    let uri = listener.uri().clone();
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(to, listener, destination));
        while !destination.phase().is_running() {
            thread::yield_now();
        }
        let sent = send(from, &uri, source);
        let has_not_come = match &sent {
            Err(MigrateError::Planted(PlantedFailure { boundary: Boundary::SourceSetup, .. })) => true,
            Err(MigrateError::Cancelled(_)) => destination.phase() == Phase::Setup,
            _ => false,
        };
        if has_not_come {
            // And nobody else will. One that has come is being told, and may have ended.
            let _ = destination.cancel();
        }
        Outcome { source: sent, destination: receiving.join().unwrap() }
    })
}

/// That the guest runs on exactly one side, with all its bytes and registers, and that its source is healthy if it is that.
pub(super) fn assert_exactly_one(from: &TestVm, to: &TestVm, expected: &[u8]) {
    assert_ne!(from.runs(), to.runs(), "source runs: {}, destination runs: {}", from.runs(), to.runs());
    let runner = if to.runs() { to } else { from };
    assert!(runner.bytes() == expected, "bytes were lost");
    assert_eq!(runner.registers(), (0..200_u8).collect::<Vec<_>>());
    if from.runs() {
        from.assert_healthy();
    } else {
        assert!(from.has_moved());
    }
}

/// The address of a page of the region.
pub(super) fn region_page(page: u64) -> Gpa {
    map::REGION_BASE.checked_add(page * host_page_bytes()).unwrap()
}
