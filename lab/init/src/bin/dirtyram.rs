//! The only program of a Linux guest that is to be migrated: as PID 1 it dirties memory by a plan, without end, and compares what it
//! finds with the plan, so that the guest itself notices a write that was lost on its way.
//!
//! Each thread has `pages` pages of its own. Its write number n goes to page n mod `pages` and fills it with words that follow
//! from n, so the number of writes alone says what every byte of it must be; nothing is remembered that could be lost as well. In a
//! step, a thread writes `step` pages, each after it was compared with the write before, and then sleeps for `sleep_ms`. Once a
//! second it compares all of them. Parameters stand behind `--` on the kernel's command line, as `pages=8192 step=64`.
//!
//! It prints two lines a second, for docs/linux-guest.md:
//!
//! ```text
//! clock 3 s, counter 3000104000 (line 3)
//! dirtyram: 1200 steps, 76800 pages written, 2 times all compared, 0 wrong
//! ```

use std::env;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::system::{RebootCommand, reboot};

/// Words of a page.
const WORDS: usize = 512;
/// Wrong words that are told.
const TOLD: u64 = 8;
/// Between two lines, and between two comparisons of everything.
const SECOND: Duration = Duration::from_secs(1);

type Page = [u64; WORDS];

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parameters {
    /// Pages of 4 KiB that each thread writes.
    pages: u64,
    /// Pages that a thread writes in a step.
    step: u64,
    /// Milliseconds that it sleeps after a step.
    sleep_ms: u64,
    /// Threads; 0 is one a CPU.
    threads: u64,
    /// The machine is turned off after so many seconds; 0 is never.
    seconds: u64,
}

impl Parameters {
    /// Those in `words`; what none of ours is named in the error.
    fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parameters = Self { pages: 4096, step: 64, sleep_ms: 5, threads: 0, seconds: 0 };
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is no NAME=NUMBER"))?;
            let value: u64 = value.parse().map_err(|_| format!("{word:?} has no number"))?;
            match name {
                "pages" if value > 0 => parameters.pages = value,
                "step" if value > 0 => parameters.step = value,
                "sleep_ms" => parameters.sleep_ms = value,
                "threads" => parameters.threads = value,
                "seconds" => parameters.seconds = value,
                _ => return Err(format!("{word:?}: there are pages, step, sleep_ms, threads, seconds")),
            }
        }
        Ok(parameters)
    }
}

/// What all threads have done.
#[derive(Debug, Default)]
struct Counts {
    steps: AtomicU64,
    written: AtomicU64,
    compared: AtomicU64,
    wrong: AtomicU64,
    /// Lines are whole.
    console: Mutex<()>,
}

impl Counts {
    fn say(&self, line: &str) {
        let _whole = self.console.lock();
        // Without a console there is nobody to tell.
        let _ = writeln!(io::stdout(), "{line}");
    }
}

/// What a thread writes, and how often it has.
struct Writer {
    thread: u64,
    memory: Vec<Page>,
    /// Writes made.
    writes: u64,
}

impl Writer {
    /// `pages` pages of zeroes that are not there yet.
    fn new(thread: u64, pages: u64) -> Self {
        let pages = usize::try_from(pages).expect("a number of pages that fits memory");
        Self { thread, memory: vec![[0; WORDS]; pages], writes: 0 }
    }

    /// The next write, after what is in its page was compared.
    fn write(&mut self, wrong: &mut impl FnMut(String)) {
        let page = (self.writes % self.memory.len() as u64) as usize;
        self.compare(page, wrong);
        let first = first_word(self.thread, self.writes);
        for (word, at) in self.memory[page].iter_mut().zip(0..) {
            *word = word_of(first, at);
        }
        self.writes += 1;
    }

    /// Whether every byte of `page` is what its last write made it.
    fn compare(&self, page: usize, wrong: &mut impl FnMut(String)) {
        let pages = self.memory.len() as u64;
        let number = page as u64;
        // The last write that went to this page.
        let last = (self.writes + pages - 1 - number) / pages;
        let first = last.checked_sub(1).map(|round| first_word(self.thread, round * pages + number));
        for (&found, at) in self.memory[page].iter().zip(0..) {
            let expected = first.map_or(0, |first| word_of(first, at));
            if found != expected {
                wrong(format!(
                    "thread {}, page {page}, word {at}: {found:#018x} instead of {expected:#018x} after {} writes",
                    self.thread, self.writes
                ));
                return;
            }
        }
    }

    fn compare_all(&self, wrong: &mut impl FnMut(String)) {
        (0..self.memory.len()).for_each(|page| self.compare(page, wrong));
    }
}

/// SplitMix64's finaliser (Steele, Lea and Flood, 2014): no two writes of any thread begin alike.
fn first_word(thread: u64, write: u64) -> u64 {
    let mut z = (write | thread << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn word_of(first: u64, at: u64) -> u64 {
    first.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn run(counts: &Counts, parameters: Parameters, thread: u64) {
    let mut writer = Writer::new(thread, parameters.pages);
    let mut wrong = |what: String| {
        if counts.wrong.fetch_add(1, Ordering::Relaxed) < TOLD {
            counts.say(&format!("dirtyram: WRONG {what}"));
        }
    };
    let mut compared = Instant::now();
    loop {
        for _ in 0..parameters.step {
            writer.write(&mut wrong);
        }
        counts.written.fetch_add(parameters.step, Ordering::Relaxed);
        counts.steps.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(parameters.sleep_ms));
        if compared.elapsed() >= SECOND {
            compared = Instant::now();
            writer.compare_all(&mut wrong);
            counts.compared.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn main() {
    let counts = Arc::new(Counts::default());
    let end = match Parameters::parse(env::args().skip(1)) {
        Ok(parameters) => watch(&counts, parameters),
        Err(error) => error,
    };
    counts.say(&format!("dirtyram: {end}"));
    let error = reboot(RebootCommand::PowerOff);
    panic!("power-off refused: {error:?}");
}

/// Starts the threads and tells of them every second, up to the end that the parameters ask for.
fn watch(counts: &Arc<Counts>, parameters: Parameters) -> String {
    let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let threads = if parameters.threads == 0 { cpus } else { parameters.threads };
    counts.say(&format!("dirtyram: {threads} threads on {cpus} CPUs, {parameters:?}"));
    let started = Instant::now();
    for thread in 0..threads {
        let counts = Arc::clone(counts);
        if let Err(error) = thread::Builder::new().spawn(move || run(&counts, parameters, thread)) {
            return format!("cannot start a thread: {error}");
        }
    }
    let mut line = 0_u64;
    loop {
        let elapsed = started.elapsed();
        counts.say(&format!("clock {} s, counter {} (line {line})", elapsed.as_secs(), elapsed.as_nanos()));
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (steps, written) = (of(&counts.steps), of(&counts.written));
        let (compared, wrong) = (of(&counts.compared), of(&counts.wrong));
        counts.say(&format!(
            "dirtyram: {steps} steps, {written} pages written, {compared} times all compared, {wrong} wrong"
        ));
        if parameters.seconds > 0 && elapsed.as_secs() >= parameters.seconds {
            return "the time is over".to_owned();
        }
        // Seconds in which the guest stood still are left out.
        let next = Duration::from_secs(elapsed.as_secs() + 1);
        thread::sleep(next.saturating_sub(started.elapsed()));
        line += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong_in(check: impl FnOnce(&mut dyn FnMut(String))) -> Vec<String> {
        let mut found = Vec::new();
        check(&mut |what| found.push(what));
        found
    }

    #[test]
    fn what_is_written_is_found_as_it_was_written_in_every_round() {
        let mut writer = Writer::new(1, 5);
        for _ in 0..23 {
            assert!(wrong_in(|mut wrong| writer.write(&mut wrong)).is_empty());
            assert!(wrong_in(|mut wrong| writer.compare_all(&mut wrong)).is_empty());
        }
    }

    #[test]
    fn a_stale_a_foreign_and_a_torn_page_are_found() {
        let mut writer = Writer::new(0, 4);
        let mut stale = None;
        for write in 0..10 {
            if write == 6 {
                stale = Some(writer.memory[2]);
            }
            writer.write(&mut |what| panic!("{what}"));
        }
        let whole = writer.memory.clone();
        let mut found = |page: usize, content: Page| {
            writer.memory.clone_from(&whole);
            writer.memory[page] = content;
            wrong_in(|mut wrong| writer.compare_all(&mut wrong))
        };
        let torn: Page = std::array::from_fn(|at| if at < 100 { whole[3][at] } else { 0 });
        for (page, content) in [(2, stale.unwrap()), (1, whole[0]), (3, torn)] {
            let found = found(page, content);
            assert!(found.len() == 1 && found[0].contains(&format!("page {page},")), "{found:?}");
        }
    }

    #[test]
    fn parameters_are_read_by_name_and_others_refused() {
        let parse = |text: &str| Parameters::parse(text.split_whitespace().map(str::to_owned));
        let parameters = parse("pages=10 step=2 sleep_ms=0 threads=3 seconds=4").unwrap();
        assert_eq!(parameters, Parameters { pages: 10, step: 2, sleep_ms: 0, threads: 3, seconds: 4 });
        for bad in ["pages=0", "pages", "step=x", "speed=3", "pages=-1"] {
            assert!(parse(bad).unwrap_err().contains(bad.split('=').next().unwrap()), "{bad}");
        }
    }
}
