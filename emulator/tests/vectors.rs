//! Replays what another implementation of AArch64 and of A32 did with random instructions, and compares every register, flag and byte.
//!
//! `tests/oracle/README.md` says how the vectors were recorded and how to look into a mismatch.

mod oracle;

use oracle::a32;
use oracle::file::Vectors;
use oracle::replay::Replayer;
use oracle::state::{code, inputs};

#[test]
fn every_recorded_a64_block_has_the_same_effect() {
    let vectors = Vectors::parse(include_bytes!("vectors/a64.bin"));
    let mut replayer = Replayer::new(&code(vectors.blocks.iter().map(|block| block.words.as_slice())));
    let mut mismatches = 0;
    for (index, block) in vectors.blocks.iter().enumerate() {
        let before = inputs(vectors.seed, index, &block.words);
        let after = replayer.run(&before);
        if after.digest() != block.digest {
            mismatches += 1;
            if mismatches <= 10 {
                println!(
                    "block {index}, words {:08x?}: {:x?}, recorded {:x?}",
                    block.words,
                    after.digest(),
                    block.digest
                );
                println!("  the emulator did: {}", before.differences(&after).join(", "));
            }
        }
    }
    let instructions: usize = vectors.blocks.iter().map(|block| block.words.len()).sum();
    println!("{instructions} instructions in {} blocks", vectors.blocks.len());
    assert_eq!(mismatches, 0, "blocks whose effect differs from the recorded one");
    assert!(instructions >= 100_000, "the vectors were cut to {instructions} instructions");
}

#[test]
fn every_recorded_a32_block_has_the_same_effect() {
    let vectors = Vectors::parse(include_bytes!("vectors/a32.bin"));
    let mut replayer =
        a32::replay::Replayer::new(&a32::state::code(vectors.blocks.iter().map(|block| &block.words[..])));
    let mut mismatches = 0;
    for (index, block) in vectors.blocks.iter().enumerate() {
        let before = a32::state::inputs(vectors.seed, index, &block.words);
        let after = replayer.run(&before);
        if after.digest() != block.digest {
            mismatches += 1;
            if mismatches <= 10 {
                println!("block {index}, words {:08x?}:", block.words);
                println!("  {:x?}, recorded {:x?}", after.digest(), block.digest);
                println!("  the emulator did: {}", before.differences(&after).join(", "));
            }
        }
    }
    println!("{} blocks", vectors.blocks.len());
    assert_eq!(mismatches, 0, "blocks whose effect differs from the recorded one");
    assert!(vectors.blocks.len() >= 100_000, "the vectors were cut to {} blocks", vectors.blocks.len());
}
