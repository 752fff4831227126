//! Replays what another implementation of AArch64 did with random instructions, and compares every register, flag and byte.
//!
//! `tests/oracle/README.md` says how the vectors were recorded and how to look into a mismatch.

mod oracle;

use oracle::file::Vectors;
use oracle::replay::Replayer;
use oracle::state::{code, inputs};

#[test]
fn every_recorded_block_has_the_same_effect() {
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
