//! The VMM's side of the file protocol: [`FileServer`] answers each request with the pages written since the last one.
//!
//! # What the file can promise
//! The file says neither who asks nor whether an answer was read. So:
//!
//! - An answer holds every page written since the answer before it, and the pages stay in memory: a replicator that
//!   dies loses nothing, for one that starts first copies the whole region.
//! - A request is taken when r2r = 1 and p2r = 0 have been seen twice running: a replicator writes the two words one after
//!   the other, and an answer between them would be wiped out.
//! - A request that leaves p2r = 1 standing, and an answer wiped out without a new request (r2r = p2r = 0), mean that
//!   the last answer may not have been read. The answer that follows, after the latter once and without being asked, holds
//!   the pages of the last one too; and what was given without being asked is given again with the next.
//! - Two replicators that ask at the same moment get the same answer. Two that ask in turn cannot be told apart
//!   from one; [`FileServer::shared_by`] makes each answer hold the pages of the answers before it, so that neither loses any as
//!   long as they ask at about the same rate. (`hostvmm replicate` takes a lock on the file and refuses to be the second.)
//! - Any other value in the header is no request and is left alone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::file::{BitmapFile, BitmapFileError, Header};
use crate::dirty::{DirtyLog, DirtyLogError, PageBitmap};
use crate::memory::SlotId;

/// Time between two looks at the header.
pub const POLL: Duration = Duration::from_millis(1);

/// Looks for which an unusual header must stand before it is acted upon: a replicator may be between its two writes.
const PATIENCE: u32 = 250;

/// Why a request could not be answered.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The bitmap file.
    #[error(transparent)]
    File(#[from] BitmapFileError),
    /// The dirty log.
    #[error(transparent)]
    Log(#[from] DirtyLogError),
}

/// An answer that was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answered {
    /// Pages written since the last answer.
    pub fresh: u64,
    /// Pages in the answer: more, if the last one may not have been read or the file is shared.
    pub pages: u64,
}

/// What to do about a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Wait,
    Answer,
    /// Answer although nothing asks.
    AnswerAgain,
}

/// Decides from the headers seen, one after the other, when to answer. No input or output.
#[derive(Debug, Default)]
struct Watch {
    last: Option<Header>,
    /// How often `last` has been seen running.
    looks: u32,
    /// Whether an answer has been given that the replicator has not asked beyond.
    given: bool,
    again: bool,
    /// Whether the last answer may not have been read.
    unconfirmed: bool,
}

impl Watch {
    fn look(&mut self, header: Header) -> Action {
        self.looks = if self.last == Some(header) { self.looks.saturating_add(1) } else { 1 };
        self.last = Some(header);
        match (header.r2r, header.p2r) {
            (1, 0) if self.looks >= 2 => Action::Answer,
            (1, 1) if self.looks >= PATIENCE => {
                self.unconfirmed = true;
                Action::Answer
            }
            (0, 0) if self.given && !self.again && self.looks >= PATIENCE => {
                self.unconfirmed = true;
                Action::AnswerAgain
            }
            _ => Action::Wait,
        }
    }

    fn answered(&mut self, again: bool) {
        *self = Self { given: true, again, unconfirmed: again, ..Self::default() };
    }
}

/// Answers the requests in a bitmap file.
#[derive(Debug)]
pub struct FileServer {
    file: BitmapFile,
    slot: SlotId,
    watch: Watch,
    last_answer: PageBitmap,
    /// The fresh pages of the answers before, newest first: as many as there are other replicators.
    before: VecDeque<PageBitmap>,
    others: usize,
}

impl FileServer {
    /// Answers with the pages of `slot`. What is in the header from before is cleared, but for a request.
    ///
    /// # Errors
    /// [`BitmapFileError::Io`].
    pub fn new(file: BitmapFile, slot: SlotId) -> Result<Self, BitmapFileError> {
        if file.header()?.r2r != 1 {
            file.set_r2r(0)?;
        }
        file.set_p2r(0)?;
        let last_answer = file.empty_set();
        Ok(Self { file, slot, watch: Watch::default(), last_answer, before: VecDeque::new(), others: 0 })
    }

    /// Makes each answer hold the pages of the `replicators - 1` answers before it.
    #[must_use]
    pub fn shared_by(mut self, replicators: usize) -> Self {
        self.others = replicators.saturating_sub(1);
        self
    }

    /// Looks at the header once, and answers if it asks.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn poll(&mut self, log: &mut dyn DirtyLog) -> Result<Option<Answered>, ServeError> {
        match self.watch.look(self.file.header()?) {
            Action::Wait => Ok(None),
            Action::Answer => self.answer(log, false).map(Some),
            Action::AnswerAgain => self.answer(log, true).map(Some),
        }
    }

    /// Polls until `stop`, and hands each answer to `answered`.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn serve(
        &mut self,
        log: &mut dyn DirtyLog,
        stop: &AtomicBool,
        mut answered: impl FnMut(Answered),
    ) -> Result<(), ServeError> {
        while !stop.load(Ordering::Acquire) {
            match self.poll(log)? {
                Some(answer) => answered(answer),
                None => thread::sleep(POLL),
            }
        }
        Ok(())
    }

    fn answer(&mut self, log: &mut dyn DirtyLog, again: bool) -> Result<Answered, ServeError> {
        let mut fresh = self.file.empty_set();
        log.harvest(self.slot, &mut fresh)?;
        let mut answer = fresh.clone();
        self.before.iter().for_each(|set| answer.or(set));
        if self.watch.unconfirmed {
            answer.or(&self.last_answer);
        }
        let answered = Answered { fresh: fresh.count(), pages: answer.count() };
        self.file.write_set(&answer)?;
        // r2r before p2r: a replicator that sees p2r may ask again at once, and this must not wipe that out.
        // Where nothing asked it is 0 already, and a request may be coming.
        if !again {
            self.file.set_r2r(0)?;
        }
        self.file.set_p2r(1)?;
        self.watch.answered(again);
        self.last_answer = answer;
        self.before.push_front(fresh);
        self.before.truncate(self.others);
        Ok(answered)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::dirty::{DirtyLogKind, FirstHarvest};

    const PAGES: u64 = 40;

    #[derive(Default)]
    struct Log(BTreeSet<u64>);

    impl DirtyLog for Log {
        fn kind(&self) -> DirtyLogKind {
            DirtyLogKind::Emulator
        }
        fn page_bytes(&self) -> u64 {
            4096
        }
        fn first_harvest(&self) -> FirstHarvest {
            FirstHarvest::Exact
        }
        fn start(&mut self) -> Result<(), DirtyLogError> {
            Ok(())
        }
        fn harvest(&mut self, _: SlotId, dirty: &mut PageBitmap) -> Result<(), DirtyLogError> {
            std::mem::take(&mut self.0).into_iter().for_each(|page| dirty.set(page));
            Ok(())
        }
        fn stop(&mut self) -> Result<(), DirtyLogError> {
            Ok(())
        }
    }

    struct Rig {
        _dir: tempfile::TempDir,
        path: PathBuf,
        server: FileServer,
        log: Log,
    }

    impl Rig {
        fn new(content: &[u8]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("b");
            std::fs::write(&path, content).unwrap();
            let file = BitmapFile::open(&path, PAGES * 4096, 4096).unwrap();
            let server = FileServer::new(file, SlotId::Region).unwrap();
            Self { _dir: dir, path, server, log: Log::default() }
        }

        fn peer(&self) -> BitmapFile {
            BitmapFile::open(&self.path, PAGES * 4096, 4096).unwrap()
        }

        fn polls(&mut self, count: u32) {
            for _ in 0..count {
                self.server.poll(&mut self.log).unwrap();
            }
        }

        /// The server looks until an answer is there.
        fn answer(&mut self, peer: &BitmapFile) -> Vec<u64> {
            self.polls(PATIENCE + 1);
            assert_eq!(peer.header().unwrap(), Header { r2r: 0, p2r: 1 });
            peer.read_set().unwrap().iter().collect()
        }
    }

    fn ask(peer: &BitmapFile) {
        peer.set_r2r(1).unwrap();
        peer.set_p2r(0).unwrap();
    }

    #[test]
    fn each_answer_is_what_was_written_since_the_last() {
        let mut rig = Rig::new(&[]);
        let peer = rig.peer();
        rig.log.0.extend([1, 39]);
        ask(&peer);
        assert_eq!(rig.answer(&peer), [1, 39]);
        rig.log.0.extend([2]);
        ask(&peer);
        assert_eq!(rig.answer(&peer), [2]);
        ask(&peer);
        assert_eq!(rig.answer(&peer), [0; 0]);
    }

    #[test]
    fn a_request_that_leaves_the_old_answer_standing_gets_its_pages_again() {
        let mut rig = Rig::new(&[]);
        let peer = rig.peer();
        rig.log.0.extend([1]);
        ask(&peer);
        assert_eq!(rig.answer(&peer), [1]);
        rig.log.0.extend([2]);
        peer.set_r2r(1).unwrap();
        assert_eq!(rig.answer(&peer), [1, 2]);
        ask(&peer);
        assert_eq!(rig.answer(&peer), [0; 0]);
    }

    #[test]
    fn an_answer_that_was_wiped_out_is_given_again_with_what_came_since() {
        let mut rig = Rig::new(&[]);
        let peer = rig.peer();
        rig.log.0.extend([5]);
        peer.set_r2r(1).unwrap();
        rig.polls(2);
        peer.set_p2r(0).unwrap();
        rig.log.0.extend([6]);
        assert_eq!(rig.answer(&peer), [5, 6]);
        ask(&peer);
        assert_eq!(rig.answer(&peer), [5, 6], "the answer that nothing asked for may have been missed");
        ask(&peer);
        assert_eq!(rig.answer(&peer), [0; 0]);
    }

    #[test]
    fn garbage_in_the_header_is_no_request() {
        let mut rig = Rig::new(&[0xa5; 16 + 5]);
        let peer = rig.peer();
        assert_eq!(peer.header().unwrap(), Header::default());
        peer.set_r2r(0xdead_beef).unwrap();
        rig.log.0.extend([7]);
        rig.polls(2 * PATIENCE);
        assert_eq!(rig.log.0.len(), 1, "nothing was harvested");
        ask(&peer);
        assert_eq!(rig.answer(&peer), [7]);
    }

    #[test]
    fn a_request_from_before_the_start_is_answered() {
        let mut content = [1_usize.to_ne_bytes(), 1_usize.to_ne_bytes()].concat();
        content.extend([0; 5]);
        let mut rig = Rig::new(&content);
        rig.log.0.extend([3]);
        let peer = rig.peer();
        assert_eq!(rig.answer(&peer), [3]);
    }

    #[test]
    fn replicators_that_ask_in_turn_lose_nothing_when_the_file_is_shared() {
        let mut rig = Rig::new(&[]);
        rig.server = FileServer::new(rig.peer(), SlotId::Region).unwrap().shared_by(2);
        let peer = rig.peer();
        for page in 0..10 {
            rig.log.0.extend([page]);
            ask(&peer);
            let expected: Vec<u64> = (u64::saturating_sub(page, 1)..=page).collect();
            assert_eq!(rig.answer(&peer), expected);
        }
    }

    proptest! {
        /// However the looks of the server fall between the steps of a replicator, that dies and starts again at any of them,
        /// the copy is equal once the writers have stopped and a bitmap asked for after that is clean.
        #[test]
        fn no_page_is_lost_whatever_the_interleaving(
            steps in prop::collection::vec((0..PAGES, 0_u32..4, 0_u32..25, any::<bool>()), 1..60),
        ) {
            let mut rig = Rig::new(&[]);
            let peer = rig.peer();
            let mut memory = vec![0_u64; PAGES as usize];
            let mut copy = memory.clone();
            // What the replicator does next: ask in two writes, then wait, then copy.
            let mut state = 0;
            let mut quiet = steps.iter().map(|_| false).collect::<Vec<_>>();
            quiet.extend(std::iter::repeat_n(true, 4000));
            let mut steps = steps.into_iter();
            let (mut finished, mut asked_in_quiet) = (false, false);
            for (time, quiet) in quiet.into_iter().enumerate() {
                let (page, polls, death, writes) = steps.next().unwrap_or((0, 3, 1, false));
                if !quiet && writes {
                    memory[page as usize] = time as u64 + 1;
                    rig.log.0.insert(page);
                }
                if !quiet && death == 0 {
                    copy.clone_from(&memory);
                    state = 0;
                    continue;
                }
                match state {
                    0 => {
                        asked_in_quiet = quiet;
                        peer.set_r2r(1).unwrap();
                    }
                    1 => peer.set_p2r(0).unwrap(),
                    _ if peer.header().unwrap().p2r == 0 => {
                        rig.polls(polls);
                        continue;
                    }
                    _ => {
                        let set = peer.read_set().unwrap();
                        set.iter().for_each(|page| copy[page as usize] = memory[page as usize]);
                        state = 0;
                        if asked_in_quiet && set.is_clean() {
                            finished = true;
                            break;
                        }
                        rig.polls(polls);
                        continue;
                    }
                }
                state += 1;
                rig.polls(polls);
            }
            prop_assert!(finished, "the replicator never saw a clean bitmap");
            prop_assert_eq!(copy, memory);
        }
    }
}
