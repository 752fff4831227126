//! The model: the region as the plan says it must be, kept by replaying the plan's writes.
//!
//! [`Model`] holds the bytes after every vCPU has completed a certain number of steps, the [`Model::frontier`]. Because
//! writes of different vCPUs commute, that number per vCPU is all that the bytes depend on. The model is plain memory
//! of this process, never shared with a guest; what no step has written takes no memory, so a model of a huge region costs
//! what its workload costs.
//!
//! Neighbours: `workload` yields the writes; [`super::oracle`] compares logs and copies with the model.

use std::ops::Range;
use std::sync::LazyLock;
use std::thread;

use abi::Gpa;
use workload::digest::{RegionDigest, leaf};
use workload::{PAGE_BYTES, Plan, Write};

use crate::dirty::PageBitmap;
use crate::memory::MemoryError;
use crate::pass::{PageSource, Threads};

const PAGE: usize = PAGE_BYTES as usize;

/// Pages whose nodes one thread adds up faster than another could be started.
const WORTH_A_THREAD_PAGES: usize = 4096;

/// Unit in which the model takes memory; a multiple of the page.
const CHUNK_BYTES: u64 = 256 << 10;

static ZERO_PAGE: [u8; PAGE] = [0; PAGE];
static ZERO_LEAF: LazyLock<u64> = LazyLock::new(|| leaf(&ZERO_PAGE));

/// The region's bytes as the plan says, after some number of steps of each vCPU.
#[derive(Clone, Debug)]
pub struct Model {
    plan: Plan,
    bytes: SparseBytes,
    /// Steps replayed, per vCPU.
    frontier: Vec<u64>,
    /// Leaf of every page as of the last digest.
    leaves: Vec<u64>,
    /// Workload pages written since the last digest.
    stale: PageBitmap,
    /// Workload pages ever written.
    touched: PageBitmap,
}

impl Model {
    /// The model of `plan` before step 0: all zeroes.
    ///
    /// # Panics
    /// If the region does not fit the address space.
    pub fn new(plan: Plan) -> Self {
        let len_bytes = plan.geometry().region.len_bytes();
        let pages = PageBitmap::covering(len_bytes, PAGE_BYTES);
        Self {
            bytes: SparseBytes::new(len_bytes),
            frontier: vec![0; plan.geometry().vcpus as usize],
            leaves: vec![*ZERO_LEAF; pages.pages() as usize],
            stale: pages.clone(),
            touched: pages,
            plan,
        }
    }

    /// The plan that is replayed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Address of the region's first byte.
    pub fn base(&self) -> Gpa {
        self.plan.geometry().region.start()
    }

    /// The bytes of the workload page with index `page`.
    ///
    /// # Panics
    /// If the region has no such page.
    pub fn page(&self, page: u64) -> &[u8] {
        self.bytes.page(page)
    }

    /// Steps replayed, per vCPU.
    pub fn frontier(&self) -> &[u64] {
        &self.frontier
    }

    /// Replays each vCPU's steps up to, not including, its entry in `to`; `each` sees every write with its vCPU and
    /// step. A vCPU that is already there is left alone.
    ///
    /// # Panics
    /// If `to` has another number of vCPUs than the plan.
    pub fn advance(&mut self, to: &[u64], mut each: impl FnMut(u32, u64, &Write)) {
        assert_eq!(to.len(), self.frontier.len(), "a frontier has an entry for each vCPU");
        let Self { plan, bytes, frontier, stale, touched, .. } = self;
        for ((vcpu, done), &to) in (0..).zip(frontier).zip(to) {
            for step in *done..to {
                plan.for_each_write(vcpu, step, |write| {
                    bytes.apply(&write);
                    stale.set_bytes(write.offset, u64::from(write.len));
                    touched.set_bytes(write.offset, u64::from(write.len));
                    each(vcpu, step, &write);
                });
            }
            *done = to.max(*done);
        }
    }

    /// Replays all vCPUs up to step `to` and yields W, the pages of `page_bytes` that these steps write: what a dirty
    /// log must report in lockstep.
    pub fn advance_all(&mut self, to: u64, page_bytes: u64) -> PageBitmap {
        let mut written = PageBitmap::covering(self.len_bytes(), page_bytes);
        let to = vec![to; self.frontier.len()];
        self.advance(&to, |_, _, write| written.set_bytes(write.offset, u64::from(write.len)));
        written
    }

    /// The model's digest in `pass`. Only pages written since the last digest are hashed anew.
    pub fn digest(&mut self, pass: u64, threads: Threads) -> u64 {
        let base = self.base();
        let Self { bytes, leaves, stale, .. } = self;
        let chunk_pages = leaves.len().div_ceil(threads.count()).max(WORTH_A_THREAD_PAGES);
        let digest_chunk = |first: usize, leaves: &mut [u64]| {
            let mut digest = RegionDigest::new(pass);
            for (page, cached) in (first..).zip(leaves) {
                if stale.test(page as u64) {
                    *cached = leaf(bytes.page(page as u64));
                }
                let gpa = base.checked_add(page as u64 * PAGE_BYTES).expect("a region does not wrap");
                digest.add_leaf(gpa, *cached);
            }
            digest
        };
        let mut digest = RegionDigest::new(pass);
        thread::scope(|scope| {
            let chunks = leaves.chunks_mut(chunk_pages).enumerate();
            let digest_chunk = &digest_chunk;
            let workers: Vec<_> =
                chunks.map(|(chunk, leaves)| scope.spawn(move || digest_chunk(chunk * chunk_pages, leaves))).collect();
            for worker in workers {
                digest.merge(worker.join().expect("hashing does not panic"));
            }
        });
        stale.clear_all();
        digest.value()
    }
}

impl PageSource for Model {
    fn len_bytes(&self) -> u64 {
        self.bytes.len_bytes
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let page = &self.page(at / PAGE_BYTES)[(at % PAGE_BYTES) as usize..];
            let len = page.len().min(bytes.len() - done);
            bytes[done..done + len].copy_from_slice(&page[..len]);
            done += len;
        }
    }

    fn data_extents(&self) -> Result<Vec<Range<u64>>, MemoryError> {
        Ok(self.touched.runs().map(|run| run.start * PAGE_BYTES..run.end * PAGE_BYTES).collect())
    }
}

/// Zeroes of a given length, of which only the chunks that were written take memory.
#[derive(Clone, Debug)]
struct SparseBytes {
    len_bytes: u64,
    chunks: Vec<Option<Box<[u8]>>>,
}

impl SparseBytes {
    fn new(len_bytes: u64) -> Self {
        let chunks = usize::try_from(len_bytes.div_ceil(CHUNK_BYTES)).expect("a region fits the address space");
        Self { len_bytes, chunks: vec![None; chunks] }
    }

    fn page(&self, page: u64) -> &[u8] {
        let offset = page * PAGE_BYTES;
        assert!(offset < self.len_bytes, "page {page} lies outside the region");
        match &self.chunks[(offset / CHUNK_BYTES) as usize] {
            Some(chunk) => &chunk[(offset % CHUNK_BYTES) as usize..][..PAGE],
            None => &ZERO_PAGE,
        }
    }

    fn apply(&mut self, write: &Write) {
        let mut skip = 0;
        while skip < write.len {
            let offset = write.offset + u64::from(skip);
            let at = (offset % CHUNK_BYTES) as usize;
            let chunk = &mut self.chunks[(offset / CHUNK_BYTES) as usize];
            let chunk = chunk.get_or_insert_with(|| vec![0; CHUNK_BYTES as usize].into_boxed_slice());
            let len = (write.len - skip).min((CHUNK_BYTES as usize - at) as u32);
            let bytes = &mut chunk[at..at + len as usize];
            if len == write.len {
                write.apply_to(bytes);
            } else {
                // Only a store can cross a chunk's end: words that are added to are aligned.
                write.fill(skip, bytes);
            }
            skip += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use abi::{GuestRange, Tables, VaBits, map};
    use workload::{Geometry, Pattern, Workload};

    use super::*;

    fn plan(text: &str, vcpus: u32, len_bytes: u64) -> Plan {
        let region = GuestRange::new(map::REGION_BASE, len_bytes).unwrap();
        Plan::new(&Workload::parse(text).unwrap(), 7, Geometry { region, tables: Tables::V8(VaBits::ALL[1]), vcpus })
            .unwrap()
    }

    #[test]
    fn predicted_pages_are_those_that_the_steps_write() {
        let mut model = Model::new(plan("dirtyram:pages=64,step=8", 2, 1 << 20));
        assert_eq!(model.advance_all(1, 4096).iter().collect::<Vec<_>>(), (0..64).collect::<Vec<_>>());
        assert_eq!(model.advance_all(3, 4096).iter().collect::<Vec<_>>(), [0, 8, 16, 24, 32, 40, 48, 56]);
        assert_eq!(model.advance_all(4, 16384).iter().collect::<Vec<_>>(), [0, 2, 4, 6, 8, 10, 12, 14]);
        assert!(model.advance_all(4, 4096).is_clean());
        assert_eq!(model.page(8)[0], 3);
    }

    #[test]
    fn the_order_of_the_vcpus_does_not_matter() {
        for pattern in Pattern::ALL {
            let plan = plan(pattern.name(), 3, 4 << 20);
            let (mut one, mut other) = (Model::new(plan.clone()), Model::new(plan));
            one.advance(&[5, 5, 5], |_, _, _| {});
            for frontier in [[0, 0, 2], [0, 4, 2], [1, 4, 5], [5, 5, 5]] {
                other.advance(&frontier, |_, _, _| {});
            }
            assert_eq!(one.frontier(), other.frontier());
            assert!((0..1024).all(|page| one.page(page) == other.page(page)), "{pattern}");
        }
    }

    #[test]
    fn a_digest_from_cached_leaves_is_the_digest_of_the_bytes() {
        let mut model = Model::new(plan("tstaeshm", 2, 40 << 20));
        for (pass, threads) in [(0, 1), (1, 3), (2, 2)] {
            model.advance_all(pass + 1, 4096);
            let mut expected = RegionDigest::new(pass);
            for page in 0..(40 << 20) / PAGE_BYTES {
                expected.add_page(model.base().checked_add(page * PAGE_BYTES).unwrap(), model.page(page));
            }
            assert_eq!(model.digest(pass, Threads::new(threads)), expected.value());
        }
    }

    #[test]
    fn bytes_are_those_of_a_flat_replay() {
        for pattern in [Pattern::Unaligned, Pattern::Mixed, Pattern::Stream] {
            let plan = plan(pattern.name(), 2, 4 << 20);
            let mut flat = vec![0; 4 << 20];
            for (step, vcpu) in (0..6).flat_map(|step| [(step, 0), (step, 1)]) {
                plan.for_each_write(vcpu, step, |write| write.apply(&mut flat));
            }
            let mut model = Model::new(plan);
            model.advance_all(6, 4096);
            let mut found = vec![0; flat.len() - 5];
            model.read(5, &mut found);
            assert!(found == flat[5..], "{pattern}");
        }
    }

    #[test]
    fn only_written_pages_are_data() {
        let mut model = Model::new(plan("dirtyram:pages=8", 1, 64 << 30));
        model.advance_all(2, 4096);
        assert_eq!(model.data_extents().unwrap(), [Range { start: 0, end: 8 * 4096 }]);
    }
}
