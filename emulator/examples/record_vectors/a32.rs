//! Records `tests/vectors/a32.bin`, and shows single blocks of it.
//!
//! Words are drawn from every row of the emulator's table of encodings, filled at random; what the emulator takes as reserved or
//! UNPREDICTABLE is left out, and so is what a user process and a machine do differently.

use std::collections::BTreeMap;
use std::error::Error;

use emulator::a32::{self, Encoding, encodings};

use crate::oracle::a32::replay::Replayer;
use crate::oracle::a32::state::{CODE, State, WINDOW, code, inputs};
use crate::oracle::file::Vectors;
use crate::oracle::state::{Outcome, Random, WINDOW_BYTES};
use crate::{Oracle, write_file};

/// Words of each encoding.
const WORDS_PER_ENCODING: usize = 480;
/// Pairs of a load-exclusive and a store-exclusive.
const EXCLUSIVE_PAIRS: usize = 2_000;
/// Additions to the program counter.
const COMPUTED_BRANCHES: usize = 1_000;
/// Sequences of data processing, and their length.
const SEQUENCES: usize = 4_000;
const SEQUENCE_WORDS: usize = 8;

/// The condition that always holds.
const ALWAYS: u32 = 14 << 28;

/// What a process does otherwise than a machine: calls to the system, waiting, registers that the kernel hides.
const NOT_COMPARABLE: [&str; 10] = ["svc", "hvc", "bkpt", "hint", "mrc", "mcr", "mrrc", "mcrr", "vmrs", "vmsr"];

pub(crate) fn record(harness: &str, file: &str, seed: u64) -> Result<(), Box<dyn Error>> {
    let mut random = Random(seed);
    let mut singles: Vec<Vec<u32>> = Vec::new();
    let mut left_out = Vec::new();
    for encoding in encodings() {
        let words: Vec<u32> = (0..WORDS_PER_ENCODING).filter_map(|_| word_of(encoding, &mut random)).collect();
        if words.is_empty() {
            left_out.push(encoding.name);
        }
        singles.extend(words.into_iter().map(|word| vec![word]));
    }
    println!("left out: {}", left_out.join(", "));
    singles.extend((0..COMPUTED_BRANCHES).map(|_| vec![computed_branch(&mut random)]));
    let pairs = (0..EXCLUSIVE_PAIRS).map(|_| exclusive_pair(&mut random)).collect();
    let processing: Vec<u32> = singles.iter().map(|block| block[0]).filter(|&word| is_data_processing(word)).collect();
    let sequences = (0..SEQUENCES)
        .map(|_| (0..SEQUENCE_WORDS).map(|_| processing[random.below(processing.len() as u64) as usize]).collect())
        .collect();
    let sections: [Vec<Vec<u32>>; 3] = [singles, pairs, sequences];
    let blocks: Vec<&[u32]> = sections.iter().flatten().map(Vec::as_slice).collect();
    let inputs: Vec<State> = blocks.iter().enumerate().map(|(index, words)| inputs(seed, index, words)).collect();
    let outputs = execute(harness, &code(blocks.iter().copied()), &inputs)?;
    let digests: Vec<_> = outputs.iter().map(State::digest).collect();
    write_file(file, seed, &sections, &digests)?;
    report(&blocks, &inputs, &outputs);
    Ok(())
}

/// Says which encodings the emulator disagrees about.
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

pub(crate) fn show(harness: &str, file: &str, index: usize) -> Result<(), Box<dyn Error>> {
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

fn name_of(word: u32) -> &'static str {
    a32::decode(word).map_or("reserved", |encoding| encoding.name)
}

/// A word of `encoding` that may be compared, if a few tries find one.
fn word_of(encoding: &'static Encoding, random: &mut Random) -> Option<u32> {
    if NOT_COMPARABLE.contains(&encoding.name) {
        return None;
    }
    (0..64).find_map(|_| {
        let any = random.next();
        // One in four has a condition.
        let condition = if any >> 32 & 3 == 0 { ((any >> 34) % 14) << 28 } else { ALWAYS.into() };
        tamed(encoding.word(condition as u32 | any as u32 & 0x0fff_ffff)?)
    })
}

/// `word` with its free bits changed so that it stays in its slot, or `None` if it cannot be compared.
fn tamed(word: u32) -> Option<u32> {
    let field = |low: u32, len: u32| word >> low & ((1 << len) - 1);
    let (rt, rn, rm) = (field(12, 4), field(16, 4), field(0, 4));
    if word >> 28 == 15 {
        return Some(word);
    }
    let load = field(20, 1) == 1;
    let extra = field(25, 3) == 0 && field(4, 1) == 1 && field(7, 1) == 1 && field(5, 2) != 0;
    match field(25, 3) {
        0b101 => {
            // A displacement from the block's start, in words; zero would be a loop.
            let displacement = field(0, 24) as i32 % 24 - 8;
            let displacement = if displacement == 0 { 5 } else { displacement };
            Some(word & 0xff00_0000 | (displacement - 2) as u32 & 0x00ff_ffff)
        }
        // Access to exclusives and swaps need nothing; multiplies neither.
        0b000 if field(4, 4) == 0b1001 => Some(word),
        0b010 | 0b011 | 0b000 if field(25, 3) == 2 || field(25, 3) == 3 && field(4, 1) == 0 || extra => {
            let dual = extra && !load && field(6, 1) == 1;
            let loads = load || dual && field(5, 1) == 0;
            let by_register = if extra { field(22, 1) == 0 } else { field(25, 1) == 1 };
            let to_pc = loads && rt == 15;
            let literal = rn == 15 && (!loads || by_register || to_pc || dual && rm & 3 != 0);
            let offset_is_base = by_register && rm == rn;
            (!(literal || offset_is_base)).then_some(word)
        }
        // Data processing: a result of 15 is aimed by MOV only; an exception return is UNPREDICTABLE in User mode.
        0b000 | 0b001 if is_processing(word) && rt == 15 => {
            let moves = word & 0x0fff_fff0 == 0x01a0_f000 && rm != 15;
            let compares = field(23, 2) == 2;
            (moves || compares && load).then_some(word)
        }
        // STM of its base, written back, and not stored first.
        0b100 => {
            let list = field(0, 16);
            let unknown = !load && field(21, 1) == 1 && list >> rn & 1 == 1 && list & ((1 << rn) - 1) != 0;
            (!unknown).then_some(word)
        }
        // VSTR and VSTM over the code.
        0b110 => (load || rn != 15).then_some(word),
        _ => Some(word),
    }
}

/// Whether it is one of the sixteen operations: no comparison without flags, which is something else.
fn is_processing(word: u32) -> bool {
    word >> 23 & 3 != 2 || word >> 20 & 1 == 1
}

/// Whether `word` is neither an access to memory nor a branch.
fn is_data_processing(word: u32) -> bool {
    let name = name_of(word);
    let by_name = ["b", "bl", "bx", "bxj", "mrs", "msr", "cps", "srs", "rfe", "isb"];
    let prefixes = ["ld", "st", "vld", "vst", "pl", "blx", "memory"];
    let first = name.split(' ').next().unwrap_or(name);
    !by_name.contains(&first) && !prefixes.iter().any(|prefix| name.starts_with(prefix)) && word >> 12 & 15 != 15
}

/// An addition to the program counter that stays in the slot, or a subtraction.
fn computed_branch(random: &mut Random) -> u32 {
    let condition = (random.below(15) as u32) << 28;
    let (operation, words) =
        if random.below(2) == 0 { (0x028f_f000, random.below(20)) } else { (0x024f_f000, 3 + random.below(7)) };
    condition | operation | (words as u32) << 2
}

/// A load-exclusive and the store-exclusive to it.
fn exclusive_pair(random: &mut Random) -> Vec<u32> {
    loop {
        let any = random.next() as u32;
        let (size, acquire, release) = (any & 3, any >> 2 & 1, any >> 3 & 1);
        let (rn, rt, source, status) = (any >> 4 & 15, any >> 8 & 15, any >> 12 & 15, any >> 16 & 15);
        let load = ALWAYS | 0x0190_0c9f | (1 - acquire) << 8 | 1 << 9 | size << 21 | rn << 16 | rt << 12;
        let store = ALWAYS | 0x0180_0c90 | (1 - release) << 8 | 1 << 9 | size << 21 | rn << 16 | status << 12 | source;
        let kept = rt != rn && !(size == 1 && rt | 1 == rn);
        if kept && a32::is_modelled(load) && a32::is_modelled(store) {
            return vec![load, store];
        }
    }
}

/// Executes blocks under the oracle.
fn execute(harness: &str, code: &[u8], inputs: &[State]) -> Result<Vec<State>, Box<dyn Error>> {
    let header = [CODE, code.len() as u64, WINDOW, WINDOW_BYTES as u64, inputs.len() as u64];
    let oracle = Oracle { program: "qemu-arm", cpu: "max", harness };
    let outputs = oracle.execute(
        &header.map(|value| (value as u32).to_le_bytes()).concat(),
        code,
        inputs.iter().map(State::to_bytes),
        State::BYTES,
    )?;
    Ok(outputs.iter().map(|bytes| parse(bytes)).collect())
}

/// The inverse of `State::to_bytes`.
fn parse(bytes: &[u8]) -> State {
    let u32_at = |at: usize| bytes[at..at + 4].iter().rev().fold(0_u32, |value, &byte| value << 8 | u32::from(byte));
    let u64_at = |at: usize| u64::from(u32_at(at + 4)) << 32 | u64::from(u32_at(at));
    State {
        r: std::array::from_fn(|index| u32_at(4 * index)),
        pc: u32_at(15 * 4),
        cpsr: u32_at(16 * 4),
        outcome: match u32_at(17 * 4) {
            0 => Outcome::Break,
            1 => Outcome::Undefined,
            _ => Outcome::Fault,
        },
        d: std::array::from_fn(|index| u64_at(18 * 4 + 8 * index)),
        window: bytes[18 * 4 + 32 * 8..].to_vec(),
    }
}
