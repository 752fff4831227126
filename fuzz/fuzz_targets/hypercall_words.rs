//! Commands and outcomes: words that decode must encode to the same words.
#![no_main]

use abi::hypercall::{Command, Outcome, WORDS};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(data.chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(padded);
    }
    if let Ok(command) = Command::decode(words) {
        assert_eq!(command.encode(), words);
    }
    if let Ok(outcome) = Outcome::decode(words) {
        assert_eq!(outcome.encode(), words);
    }
});
