//! The destination's side of post-copy: [`MissingPages`].

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::userfault::{Placed, Userfault};
use super::{PostcopyError, PostcopyUnavailable};
use crate::backend::Accelerator;
use crate::dirty::PageBitmap;
use crate::memory::{GuestMemory, SlotId};
use crate::migrate::pages::Content;

/// What asks the source for a wire page. It must not touch guest memory, nor wait for one who does.
pub type Request = dyn FnMut(SlotId, u64) -> io::Result<()> + Send;

/// How post-copy went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PostcopyReport {
    /// Pages that came after the guest ran here.
    pub pages: u64,
    /// Faults of vCPUs, and of the host for them, on pages that had not come.
    pub faults: u64,
    /// Faults on pages that were zero on both sides.
    pub zero_faults: u64,
    /// The longest time from a request to its page, in nanoseconds.
    pub longest_wait_ns: u64,
}

/// Pages that are not here yet, while the guest runs.
///
/// ```text
/// begin(): missing ── touched ─► requested ─┐
///             └──────────── place() ────────┴─► here ── all ─► finish()
///                                    the source is lost ─────► abandon()
/// ```
#[derive(Debug)]
pub struct MissingPages {
    shared: Arc<Shared>,
    stop: OwnedFd,
    handler: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    memory: GuestMemory,
    userfault: Userfault,
    page_bytes: u64,
    /// By slot, a bit a wire page that has not come.
    pending: [Box<[AtomicU64]>; SlotId::COUNT],
    left: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Requests under way, and since when; no more than threads that can wait.
    requested: Vec<(SlotId, u64, Instant)>,
    report: PostcopyReport,
    /// Why nobody handles faults any more.
    failure: Option<PostcopyError>,
}

impl MissingPages {
    /// Whether this host can do it: to be asked before post-copy is agreed on.
    ///
    /// # Errors
    /// [`PostcopyUnavailable`].
    pub fn check(memory: &GuestMemory, accelerator: Accelerator) -> Result<(), PostcopyUnavailable> {
        let backing = memory.backing();
        let userfault = Userfault::open(backing, accelerator)?;
        // Nothing is missing for longer than this takes: the descriptor is closed at once.
        SlotId::ALL.into_iter().try_for_each(|slot| {
            userfault.register(memory, slot).map_err(|source| PostcopyUnavailable::Missing { backing, source })
        })
    }

    /// Makes the wire pages `pending`, of which older contents may be here, missing. From then on a touch of one of them
    /// waits, is told to `request`, and goes on once the page was [placed](Self::place). No vCPU runs yet.
    ///
    /// # Errors
    /// [`PostcopyError`]; then memory is of no use any more.
    ///
    /// # Panics
    /// If `pending` are not the memory's pages.
    pub fn begin(
        memory: &GuestMemory,
        pending: &[PageBitmap; SlotId::COUNT],
        accelerator: Accelerator,
        request: Box<Request>,
    ) -> Result<Self, PostcopyError> {
        let userfault = Userfault::open(memory.backing(), accelerator)?;
        let page_bytes = pending[0].page_bytes();
        for slot in SlotId::ALL {
            let bitmap = &pending[slot.index()];
            let pages = memory.slot(slot).range().len_bytes().div_ceil(page_bytes);
            assert!(bitmap.pages() == pages && bitmap.page_bytes() == page_bytes, "a bitmap is of its slot's pages");
            for run in bitmap.runs() {
                memory.punch(slot, run.start * page_bytes..run.end * page_bytes)?;
            }
            userfault.register(memory, slot).map_err(|source| PostcopyError::Userfault {
                what: "watch for missing pages",
                slot,
                offset: 0,
                source,
            })?;
        }
        let words = |slot: SlotId| pending[slot.index()].words().iter().map(|word| AtomicU64::new(*word)).collect();
        let shared = Arc::new(Shared {
            memory: memory.clone(),
            userfault,
            page_bytes,
            pending: SlotId::ALL.map(words),
            left: AtomicU64::new(pending.iter().map(PageBitmap::count).sum()),
            state: Mutex::default(),
        });
        let host = |what| move |source| PostcopyError::Host { what, source };
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| host("make an event")(error.into()))?;
        let stopped = stop.try_clone().map_err(host("copy an event"))?;
        let handled = Arc::clone(&shared);
        let handler = std::thread::Builder::new()
            .name("missing pages".into())
            .spawn(move || handled.handle_faults(&stopped, request))
            .map_err(host("start a thread"))?;
        Ok(Self { shared, stop, handler: Some(handler) })
    }

    /// The wire pages `pages` of `slot` hold `content`, whose digest was proven: they are here from now on, and who waits for
    /// them goes on.
    ///
    /// # Errors
    /// [`PostcopyError::NoPage`], [`PostcopyError::Twice`] (nothing was overwritten), [`PostcopyError::Userfault`].
    pub fn place(&self, slot: SlotId, pages: Range<u64>, content: Content<'_>) -> Result<(), PostcopyError> {
        let shared = &self.shared;
        for page in pages.clone() {
            if !shared.is_pending(slot, page)? {
                return Err(PostcopyError::Twice { slot, page });
            }
        }
        let offset = pages.start * shared.page_bytes;
        let len_bytes = (pages.end - pages.start) * shared.page_bytes;
        let placed = match content {
            Content::Zero => shared.userfault.zero(&shared.memory, slot, offset, len_bytes),
            Content::Bytes(bytes) => shared.userfault.copy(&shared.memory, slot, offset, bytes),
        };
        let placed = placed.map_err(|source| PostcopyError::Userfault { what: "place pages", slot, offset, source })?;
        if placed == Placed::Before {
            return Err(PostcopyError::Twice { slot, page: pages.start });
        }
        shared.arrived(slot, pages);
        Ok(())
    }

    /// Pages that have not come.
    pub fn left(&self) -> u64 {
        self.shared.left.load(Ordering::Acquire)
    }

    /// Why faults are handled no more, if so: a vCPU may wait for ever.
    pub fn failure(&self) -> Option<PostcopyError> {
        self.shared.lock().failure.take()
    }

    /// All pages are here: memory is ordinary memory again.
    ///
    /// # Errors
    /// [`PostcopyError::Incomplete`]; then it goes on as before.
    pub fn finish(mut self) -> Result<PostcopyReport, (Self, PostcopyError)> {
        let left = self.left();
        if left > 0 {
            return Err((self, PostcopyError::Incomplete { left }));
        }
        self.end();
        let report = self.shared.lock().report;
        Ok(report)
    }

    /// The rest will never come: the guest is lost, and `pause` stops its vCPUs. One that waits for a page cannot be stopped,
    /// so the missing pages become zeroes as `pause` is called; what such a vCPU still does with them changes nothing any more.
    pub fn abandon(&self, pause: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let pausing = scope.spawn(pause);
            for slot in SlotId::ALL {
                // A range that was registered can be unregistered; a kernel that refuses leaves the vCPU waiting.
                let _ = self.shared.userfault.unregister(&self.shared.memory, slot);
            }
            let _ = pausing.join();
        });
    }

    fn end(&mut self) {
        // The counter cannot overflow: this is its only addition.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(handler) = self.handler.take() {
            // It has no way to panic but a broken invariant, and the report is all that would be lost.
            let _ = handler.join();
        }
    }
}

impl Drop for MissingPages {
    fn drop(&mut self) {
        self.end();
        // The descriptor closes with the last reference, which is this one: whoever still waits goes on with zeroes.
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bit(&self, slot: SlotId, page: u64) -> Result<(&AtomicU64, u64), PostcopyError> {
        let pages = self.memory.slot(slot).range().len_bytes().div_ceil(self.page_bytes);
        let word = usize::try_from(page / 64).ok().and_then(|word| self.pending[slot.index()].get(word));
        match word {
            Some(word) if page < pages => Ok((word, 1 << (page % 64))),
            _ => Err(PostcopyError::NoPage { slot, page, pages }),
        }
    }

    fn is_pending(&self, slot: SlotId, page: u64) -> Result<bool, PostcopyError> {
        self.bit(slot, page).map(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// `pages` have been placed, in this order: a fault that is looked at meanwhile asks for a page that is on its way out
    /// of the source's queue, or finds it in place.
    fn arrived(&self, slot: SlotId, pages: Range<u64>) {
        let mut state = self.lock();
        for page in pages.clone() {
            if let Ok((word, bit)) = self.bit(slot, page) {
                word.fetch_and(!bit, Ordering::AcqRel);
            }
        }
        let here = |(of, page, _): &(SlotId, u64, Instant)| *of == slot && pages.contains(page);
        let longest = state.requested.iter().filter(|request| here(request)).map(|(.., since)| since.elapsed()).max();
        state.requested.retain(|request| !here(request));
        let count = pages.end - pages.start;
        state.report.pages += count;
        let longest_ns = longest.map_or(0, |longest| u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX));
        state.report.longest_wait_ns = state.report.longest_wait_ns.max(longest_ns);
        drop(state);
        self.left.fetch_sub(count, Ordering::AcqRel);
    }

    /// Until `stop` is written to.
    fn handle_faults(&self, stop: &OwnedFd, mut request: Box<Request>) {
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(self.userfault.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    self.lock().failure = Some(PostcopyError::Host { what: "wait for faults", source: error.into() });
                    return;
                }
            }
            if !ready[1].revents().is_empty() {
                return;
            }
            if let Err(error) = self.handle_some(&mut *request) {
                // Whoever drives the migration ends it.
                self.lock().failure = Some(error);
                return;
            }
        }
    }

    fn handle_some(&self, request: &mut Request) -> Result<(), PostcopyError> {
        let faults = self.userfault.faults().map_err(|source| PostcopyError::Host { what: "read faults", source })?;
        for address in faults.into_iter().flatten() {
            let Some((slot, offset)) = self.place_of(address) else { continue };
            let page = offset / self.page_bytes;
            if self.is_pending(slot, page)? {
                if self.note_request(slot, page) {
                    request(slot, page).map_err(|source| PostcopyError::Userfault {
                        what: "ask for a page",
                        slot,
                        offset,
                        source,
                    })?;
                }
                continue;
            }
            // Zero on both sides, or placed since it was told: then this finds it there, and wakes.
            let host_page_bytes = self.memory.host_page_bytes();
            let start = offset / host_page_bytes * host_page_bytes;
            self.userfault
                .zero(&self.memory, slot, start, host_page_bytes)
                .map_err(|source| PostcopyError::Userfault { what: "place a page of zeroes", slot, offset, source })?;
            self.lock().report.zero_faults += 1;
        }
        Ok(())
    }

    /// Whether `page` is to be asked for: it is not here, and was not asked for.
    fn note_request(&self, slot: SlotId, page: u64) -> bool {
        let mut state = self.lock();
        state.report.faults += 1;
        let known = state.requested.iter().any(|(of, asked, _)| (*of, *asked) == (slot, page));
        if !known {
            state.requested.push((slot, page, Instant::now()));
        }
        !known
    }

    fn place_of(&self, address: u64) -> Option<(SlotId, u64)> {
        self.memory.slots().iter().find_map(|slot| {
            let offset = address.checked_sub(slot.host_base().addr().get() as u64)?;
            (offset < slot.range().len_bytes()).then(|| (slot.id(), offset))
        })
    }
}
