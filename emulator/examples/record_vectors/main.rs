//! Records `tests/vectors/a64.bin` and `a32.bin`, and shows single blocks of them in full. `tests/oracle/README.md` says how to
//! use it.
//!
//! Words are drawn from every definition of the decoder that the emulator implements, reserved variants included; what is
//! CONSTRAINED UNPREDICTABLE is left out, and what it does is the oracle's word alone.

mod a32;
#[path = "../../tests/oracle/mod.rs"]
mod oracle;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use disarm64::{InsnOpcode, decoder};
use emulator::lower::blocks::{exclusive_pair, tamed};
use oracle::file::{MAGIC, VERSION, Vectors};
use oracle::replay::Replayer;
use oracle::state::{CODE, Digest, Outcome, Random, State, WINDOW, WINDOW_BYTES, code, inputs};

/// Words of each definition.
const WORDS_PER_DEFINITION: usize = 260;
/// Pairs of a load-exclusive and a store-exclusive.
const EXCLUSIVE_PAIRS: usize = 2_000;
/// Sequences of data processing, and their length.
const SEQUENCES: usize = 4_000;
const SEQUENCE_WORDS: usize = 8;
/// Words tried in search of definitions.
const DISCOVERY_WORDS: usize = 120_000_000;

const USAGE: &str = "usage: record_vectors record|record-a32 HARNESS FILE [SEED] | show|show-a32 HARNESS FILE BLOCK";
/// The seed of the files.
const SEED: u64 = 0x7469_6465;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["record", harness, file] => record(harness, file, SEED),
        ["record", harness, file, seed] => record(harness, file, seed.parse()?),
        ["show", harness, file, block] => show(harness, file, block.parse()?),
        ["record-a32", harness, file] => a32::record(harness, file, SEED),
        ["record-a32", harness, file, seed] => a32::record(harness, file, seed.parse()?),
        ["show-a32", harness, file, block] => a32::show(harness, file, block.parse()?),
        _ => Err(USAGE.into()),
    }
}

fn record(harness: &str, file: &str, seed: u64) -> Result<(), Box<dyn Error>> {
    let mut random = Random(seed);
    let definitions = implemented(discover(&mut random), &mut random);
    println!("{} definitions", definitions.len());
    let mut singles = Vec::new();
    for definition in &definitions {
        singles.extend((0..WORDS_PER_DEFINITION).filter_map(|_| definition.word(&mut random)).map(|word| vec![word]));
    }
    let pairs: Vec<_> = (0..EXCLUSIVE_PAIRS).map(|_| exclusive_pair(|| random.next() as u32).to_vec()).collect();
    let processing: Vec<u32> = singles.iter().map(|block| block[0]).filter(|&word| is_data_processing(word)).collect();
    let sequences: Vec<Vec<u32>> = (0..SEQUENCES)
        .map(|_| (0..SEQUENCE_WORDS).map(|_| processing[random.below(processing.len() as u64) as usize]).collect())
        .collect();
    let sections = [singles, pairs, sequences];
    let blocks: Vec<&[u32]> = sections.iter().flatten().map(Vec::as_slice).collect();
    let inputs: Vec<State> = blocks.iter().enumerate().map(|(index, words)| inputs(seed, index, words)).collect();
    let outputs = execute(harness, &code(blocks.iter().copied()), &inputs)?;

    let digests: Vec<_> = outputs.iter().map(State::digest).collect();
    write_file(file, seed, &sections, &digests)?;
    report(&blocks, &inputs, &outputs);
    Ok(())
}

/// Writes the file of `sections` of blocks, whose outputs have `digests`.
fn write_file(file: &str, seed: u64, sections: &[Vec<Vec<u32>>], digests: &[Digest]) -> Result<(), Box<dyn Error>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((sections.len() as u32).to_le_bytes());
    bytes.extend(seed.to_le_bytes());
    let mut left = digests.iter();
    for section in sections {
        bytes.extend((section[0].len() as u32).to_le_bytes());
        bytes.extend((section.len() as u32).to_le_bytes());
        for words in section {
            let digest = left.next().ok_or("the oracle stopped early")?;
            for &value in words.iter().chain([&digest.general, &digest.vectors, &digest.window]) {
                bytes.extend(value.to_le_bytes());
            }
        }
    }
    std::fs::write(file, &bytes)?;
    println!("{} blocks, {} bytes", digests.len(), bytes.len());
    Ok(())
}

/// Says which definitions the emulator disagrees about.
fn report(blocks: &[&[u32]], inputs: &[State], outputs: &[State]) {
    let mut replayer = Replayer::new(&code(blocks.iter().copied()));
    let mut disagreements: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for (index, words) in blocks.iter().enumerate() {
        let ours = replayer.run(&inputs[index]);
        if ours != outputs[index] {
            let name = words.iter().map(|&word| name_of(word)).collect::<Vec<_>>().join("; ");
            let differences = outputs[index].differences(&ours).join(", ");
            let example = format!("block {index} {words:08x?}: recorded -> emulated: {differences}");
            disagreements.entry(name).or_insert((0, example)).0 += 1;
        }
    }
    for (name, (count, example)) in disagreements {
        println!("{name}: {count}, such as {example}");
    }
}

fn show(harness: &str, file: &str, index: usize) -> Result<(), Box<dyn Error>> {
    let vectors = Vectors::parse(&std::fs::read(file)?);
    let blocks: Vec<&[u32]> = vectors.blocks.iter().map(|block| block.words.as_slice()).collect();
    let words = *blocks.get(index).ok_or("no such block")?;
    let before = inputs(vectors.seed, index, words);
    let code = code(blocks.iter().copied());
    let recorded = execute(harness, &code, std::slice::from_ref(&before))?;
    let recorded = recorded.first().ok_or("the oracle stopped early")?;
    let emulated = Replayer::new(&code).run(&before);
    for &word in words {
        println!("{word:08x} {}", name_of(word));
    }
    if recorded.digest() != vectors.blocks[index].digest {
        println!("this oracle does not do what the file records");
    }
    println!("inputs -> oracle:\n  {}", before.differences(recorded).join("\n  "));
    println!("oracle -> emulator:\n  {}", recorded.differences(&emulated).join("\n  "));
    Ok(())
}

fn name_of(word: u32) -> String {
    match decoder::decode(word) {
        Some(opcode) => {
            let definition = opcode.definition();
            format!("{} {:?} {:08x}", definition.mnemonic, definition.class, definition.opcode)
        }
        None => "reserved".into(),
    }
}

/// An instruction as the decoder defines it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Definition {
    opcode: u32,
    mask: u32,
}

impl Definition {
    /// A word of this definition that decodes to it and may be executed, if a few tries find one.
    fn word(self, random: &mut Random) -> Option<u32> {
        (0..64).find_map(|_| {
            let word = tamed(self.opcode | random.next() as u32 & !self.mask, self.mask, folded)?;
            Self::of(word).filter(|&definition| definition == self).map(|_| word)
        })
    }

    /// The definition that `word` decodes to, unless it is of a class that cannot be compared: system instructions and
    /// exceptions (user mode and the machine differ), and SVE and SME, which the emulator's machine does not have.
    fn of(word: u32) -> Option<Self> {
        let opcode = decoder::decode(word)?;
        let definition = opcode.definition();
        let class = format!("{:?}", definition.class);
        let comparable = !["IC_SYSTEM", "EXCEPTION", "SVE", "SME"].iter().any(|prefix| class.starts_with(prefix));
        comparable.then_some(Self { opcode: definition.opcode, mask: definition.mask })
    }
}

/// Definitions that random words decode to.
fn discover(random: &mut Random) -> Vec<Definition> {
    // BR, BLR and RET leave only their register free: chance may miss them.
    let rare = [0xd61f_0000, 0xd63f_0000, 0xd65f_0000];
    let mut found: BTreeSet<Definition> = rare.into_iter().filter_map(Definition::of).collect();
    for _ in 0..DISCOVERY_WORDS / 2 {
        let word = random.next();
        // Bit 28 or bit 27 is set in all groups that are compared.
        for word in [word as u32 | 1 << 27, (word >> 32) as u32 | 1 << 28] {
            found.extend(Definition::of(word));
        }
    }
    found.into_iter().collect()
}

/// The definitions of which the emulator executes at least one of several words.
fn implemented(definitions: Vec<Definition>, random: &mut Random) -> Vec<Definition> {
    let samples: Vec<(Definition, Vec<u32>)> = definitions
        .into_iter()
        .flat_map(|definition| (0..24).map(move |_| definition))
        .filter_map(|definition| Some((definition, vec![definition.word(random)?])))
        .collect();
    let mut replayer = Replayer::new(&code(samples.iter().map(|(_, words)| words.as_slice())));
    let mut dropped: Vec<String> = Vec::new();
    let mut executed: Vec<Definition> = samples
        .iter()
        .enumerate()
        .filter(|(index, (_, words))| replayer.run(&inputs(0, *index, words)).outcome != Outcome::Undefined)
        .map(|(_, (definition, _))| *definition)
        .collect();
    executed.dedup();
    for (definition, words) in &samples {
        if !executed.contains(definition) {
            dropped.push(name_of(words[0]));
        }
    }
    dropped.dedup();
    println!("not executed: {}", dropped.join(", "));
    executed
}

fn is_data_processing(word: u32) -> bool {
    let group = word >> 25 & 0xf;
    group & 0b1110 == 0b1000 || group & 0b0111 == 0b0101 || group & 0b0111 == 0b0111
}

/// A displacement in words, folded into the slot around the block's start; zero would be a loop.
fn folded(field: u32) -> i32 {
    match (field % 24) as i32 - 8 {
        0 => 5,
        offset => offset,
    }
}

/// Another implementation in user mode: QEMU for an architecture, as a model of CPU, running a harness.
struct Oracle<'a> {
    program: &'a str,
    cpu: &'a str,
    harness: &'a str,
}

impl Oracle<'_> {
    /// Sends `header`, `code` and the inputs; returns as many outputs, each of `state_bytes`.
    fn execute(
        &self,
        header: &[u8],
        code: &[u8],
        inputs: impl ExactSizeIterator<Item = Vec<u8>> + Send,
        state_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
        let mut child = Command::new(self.program)
            .args(["-cpu", self.cpu, self.harness])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(mut to), Some(mut from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        let expected = inputs.len();
        let outputs = thread::scope(|scope| {
            let feeder = scope.spawn(move || {
                to.write_all(header)?;
                to.write_all(code)?;
                inputs.into_iter().try_for_each(|state| to.write_all(&state))
            });
            let mut outputs = Vec::with_capacity(expected);
            let mut bytes = vec![0; state_bytes];
            while outputs.len() < expected && from.read_exact(&mut bytes).is_ok() {
                outputs.push(bytes.clone());
            }
            feeder.join().map(|fed| fed.map(|()| outputs))
        });
        let outputs = outputs.map_err(|_| "the feeding thread panicked")??;
        let status = child.wait()?;
        if outputs.len() != expected {
            return Err(format!("the oracle ended after {} blocks: {status}", outputs.len()).into());
        }
        Ok(outputs)
    }
}

/// Executes blocks under the oracle.
fn execute(harness: &str, code: &[u8], inputs: &[State]) -> Result<Vec<State>, Box<dyn Error>> {
    let header = [CODE, code.len() as u64, WINDOW, WINDOW_BYTES as u64, inputs.len() as u64];
    let oracle = Oracle { program: "qemu-aarch64", cpu: "cortex-a76", harness };
    let outputs = oracle.execute(
        &header.map(u64::to_le_bytes).concat(),
        code,
        inputs.iter().map(State::to_bytes),
        State::BYTES,
    )?;
    Ok(outputs.iter().map(|bytes| parse(bytes)).collect())
}

/// The inverse of `State::to_bytes`.
fn parse(bytes: &[u8]) -> State {
    let u64_at = |at: usize| bytes[at..at + 8].iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
    let u128_at = |at: usize| u128::from(u64_at(at + 8)) << 64 | u128::from(u64_at(at));
    let flags = u64_at(33 * 8);
    State {
        x: std::array::from_fn(|index| u64_at(8 * index)),
        sp: u64_at(31 * 8),
        pc: u64_at(32 * 8),
        nzcv: flags as u32,
        fpsr: (flags >> 32) as u32,
        outcome: match u64_at(34 * 8) {
            0 => Outcome::Break,
            1 => Outcome::Undefined,
            _ => Outcome::Fault,
        },
        v: std::array::from_fn(|index| u128_at(36 * 8 + 16 * index)),
        window: bytes[36 * 8 + 32 * 16..].to_vec(),
    }
}
