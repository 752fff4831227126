//! The source of a migration: [`send`] is the list of its phases.
//!
//! - `connect`: channels, and what both sides agree on;
//! - `precopy`: memory moves while the guest runs; `transfer`: one pass over all channels, `pieces`: what each of them takes at a time;
//! - `stop`: the guest stands still, and everything else moves;
//! - `commit`: the guest is given away, and what has become of it if nobody says so;
//! - `postcopy`: it is given away before all of its memory, where that is wanted;
//! - `save`: the same to a file.
//!
//! Until the commit a failure costs nothing but time: what was begun is ended, whatever happens (`hold`).

mod commit;
mod connect;
mod hold;
pub(crate) mod pieces;
mod postcopy;
mod precopy;
mod save;
mod stop;
mod transfer;

use std::sync::Arc;
use std::time::Duration;

use self::connect::{Address, Peer};
use self::hold::Hold;
use super::converge::AutoConverge;
use super::digest::Leaves;
use super::error::MigrateError;
use super::estimate::Observed;
use super::faults::Boundary;
use super::info::{MigrationInfo, RamInfo};
use super::monitor::Monitor;
use super::pages::{DeltaCache, Packer};
use super::parameters::{Compression, Parameters};
use super::phase::{Setup, Stage};
use super::postcopy::PageQueue;
use super::transport::{CancelToken, FdAddress, Pacer, Uri};
use super::vm::SourceVm;
use super::wire::{Features, Offer, Session};
use crate::memory::SlotId;

/// Moves the guest of `vm` to the destination at `uri`, with the monitor's parameters and capabilities. Returns what the
/// monitor shows in the end.
///
/// # Errors
/// [`MigrateError`]. The guest runs on here as it did before, but for [`MigrateError::InDoubt`], after which it is paused, and
/// where the monitor says [`Phase::Completed`](super::Phase::Completed): then it runs at the destination, and something was found wrong afterwards.
pub fn send(vm: &dyn SourceVm, uri: &Uri, monitor: &Monitor) -> Result<MigrationInfo, MigrateError> {
    let (stage, cancel) = monitor.begin()?;
    let _watched = monitor.watch_thread();
    let result = match uri {
        Uri::File { path, offset } => save::run(vm, path, *offset, stage, &cancel),
        _ => migrate(vm, uri, stage, &cancel),
    };
    result.map(|()| monitor.info()).map_err(|error| monitor.fail(error))
}

fn migrate(vm: &dyn SourceVm, uri: &Uri, stage: Stage<'_, Setup>, cancel: &CancelToken) -> Result<(), MigrateError> {
    let monitor = stage.monitor();
    monitor.at(Boundary::SourceSetup)?;
    let address = Address::new(uri, monitor)?;
    let mut out = Outgoing::setup(vm, uri, &address, monitor, cancel)?;
    match out.hand_over(stage) {
        Ok(HandedOver::Whole(ready)) => commit::conclude(out, ready, &address),
        Ok(HandedOver::Lacking(ready, queue)) => postcopy::conclude(out, ready, &queue, &address),
        Err(error) => Err(out.give_up(error)),
    }
}

/// A destination that waits for the guest.
enum HandedOver<'m> {
    /// It has everything.
    Whole(commit::Ready<'m>),
    /// It is to fetch these pages while the guest runs.
    Lacking(commit::Ready<'m>, PageQueue),
}

/// A migration on its way out.
struct Outgoing<'a> {
    hold: Hold<'a>,
    monitor: &'a Monitor,
    cancel: &'a CancelToken,
    /// The parameters as they were at the start.
    parameters: Parameters,
    peer: Peer,
    features: Features,
    salt: u64,
    leaves: Leaves,
    /// One for each channel that carries pages.
    packers: Vec<Packer>,
    cache: Option<Arc<DeltaCache>>,
    page_bytes: u64,
    /// The pass that comes next.
    pass: u32,
    /// Digests of the passes that the destination has not acknowledged.
    unacknowledged: std::collections::VecDeque<[u64; SlotId::COUNT]>,
    acknowledged: u64,
    pacer: Arc<Pacer>,
    observed: Observed,
    converge: AutoConverge,
    /// Bytes of memory that the last pass moved.
    last_pass_bytes: u64,
}

impl<'a> Outgoing<'a> {
    fn setup(
        vm: &'a dyn SourceVm,
        uri: &Uri,
        address: &Address,
        monitor: &'a Monitor,
        cancel: &'a CancelToken,
    ) -> Result<Self, MigrateError> {
        let (parameters, capabilities) = (monitor.parameters(), monitor.capabilities());
        let is_shared = matches!(uri, Uri::Fd(FdAddress::Passing(_)));
        let host = |what| move |source| MigrateError::Host { what, source };
        // Before anybody is bothered.
        let files = is_shared.then(|| vm.memory().files()).transpose()?;
        let mut features = Features::NONE;
        if is_shared {
            features = Features::SHARED_MEMORY;
        } else {
            let wanted = [
                (capabilities.postcopy_ram, Features::POSTCOPY),
                (capabilities.xbzrle, Features::DELTA),
                (parameters.multifd_compression == Compression::Zstd, Features::ZSTD),
            ];
            for (_, feature) in wanted.into_iter().filter(|(is_wanted, _)| *is_wanted) {
                features = features.or(feature);
            }
        }
        let mut peer = Peer::connect(address, monitor, cancel)?;
        monitor.at(Boundary::SourceConnected)?;
        let salt = Session::random().map_err(host("get random bytes"))?.raw() as u64;
        let offer = Offer {
            description: vm.describe(),
            features,
            page_channels: if capabilities.multifd && !is_shared { parameters.multifd_channels.into() } else { 0 },
            digest: parameters.x_digest,
            counter: parameters.x_counter,
            salt,
            clock: peer.clock,
            cpu: vm.cpu(),
        };
        let agreement = peer.agree(offer, address, monitor, cancel)?;
        if let Some(files) = files {
            if !agreement.features.has(Features::SHARED_MEMORY) {
                return Err(MigrateError::Unsupported {
                    what: "the destination cannot take over memory files (use --backing memfd there, or a URI that copies)",
                });
            }
            peer.send_files(&files)?;
        }
        if capabilities.postcopy_ram && !is_shared && !agreement.features.has(Features::POSTCOPY) {
            return Err(MigrateError::Unsupported {
                what: "the destination cannot do post-copy (docs/postcopy.md says what it needs); migrate without the capability postcopy-ram",
            });
        }
        let page_bytes = vm.log_page_bytes();
        let cache = agreement
            .features
            .has(Features::DELTA)
            .then(|| Arc::new(DeltaCache::new(parameters.xbzrle_cache_size, agreement.geometry.page_bytes())));
        let level = agreement.features.has(Features::ZSTD).then_some(parameters.multifd_zstd_level.into());
        let packers = (0..peer.page_writers.len().max(1))
            .map(|_| Packer::new(agreement.geometry, cache.clone(), level))
            .collect::<Result<_, _>>()?;
        let total = vm.memory().slots().iter().map(|slot| slot.range().len_bytes()).sum();
        monitor.show(|info| {
            info.clock = Some(peer.clock);
            info.ram = Some(RamInfo { total, remaining: total, page_size: page_bytes, ..RamInfo::default() });
        });
        Ok(Self {
            hold: Hold::new(vm, monitor),
            monitor,
            cancel,
            salt,
            leaves: Leaves::new(vm.memory(), salt),
            packers,
            cache,
            pacer: monitor.pacer().map_err(host("pace the migration"))?,
            observed: Observed { overhead: overhead(peer.round_trip), ..Observed::default() },
            parameters,
            peer,
            features: agreement.features,
            page_bytes,
            pass: 0,
            unacknowledged: std::collections::VecDeque::new(),
            acknowledged: 0,
            converge: AutoConverge::default(),
            last_pass_bytes: 0,
        })
    }

    /// Ends a migration before its commit: the guest has everything back and the migration has ended before the destination
    /// is told, which may listen or not.
    fn give_up(self, error: MigrateError) -> MigrateError {
        let Self { hold, mut peer, monitor, .. } = self;
        drop(hold);
        let error = monitor.fail(peer.explained(error));
        peer.abort(&error);
        error
    }

    /// From the agreement to a destination that is ready and waits for the commit.
    fn hand_over<'m>(&mut self, stage: Stage<'m, Setup>) -> Result<HandedOver<'m>, MigrateError> {
        let stage = stage.activate()?;
        let stopped = if self.features.has(Features::SHARED_MEMORY) {
            self.monitor.at(Boundary::SourceAccepted)?;
            stop::without_pages(self, stage)?
        } else {
            self.hold.start_log()?;
            self.monitor.at(Boundary::SourceAccepted)?;
            precopy::run(self, stage)?
        };
        if stopped.wants_postcopy {
            let (ready, queue) = postcopy::move_the_state(self, stopped)?;
            return Ok(HandedOver::Lacking(ready, queue));
        }
        stop::move_the_rest(self, stopped).map(HandedOver::Whole)
    }
}

/// What a stop costs beside its pages: three times to the destination and back, and the two machines' own time.
fn overhead(round_trip: Duration) -> Duration {
    const MACHINES: Duration = Duration::from_millis(1);
    MACHINES + 3 * round_trip
}
