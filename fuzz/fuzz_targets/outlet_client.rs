//! A hostile outlet: whatever it answers, the side that asked refuses the frame or has one of the answers there are.
//!
//! Input: a byte that says how the rest is taken: 0 as it is, else as the body of an answer of that kind.
#![no_main]

use hostvmm::colo::outlet::wire::Answer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, body)) = data.split_first() else { return };
    let mut frame = Vec::new();
    if kind == 0 {
        frame.extend(body);
    } else {
        frame.extend(b"TDOL\x01\x00");
        frame.extend([kind, 0x80]);
        frame.extend((body.len() as u32).to_le_bytes());
        frame.extend([0; 4]);
        frame.extend(body);
    }
    let mut rest = &frame[..];
    if let Ok(answer) = Answer::read(&mut rest) {
        assert_eq!(answer.encode(), frame[..frame.len() - rest.len()], "an answer is not what was sent");
        let text =
            answer.into_result().map(|accepted| accepted.total().to_string()).unwrap_or_else(|error| error.to_string());
        assert!(!text.chars().any(char::is_control), "unprintable text");
    }
});
