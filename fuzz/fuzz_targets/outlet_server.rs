//! A hostile side of a pair at an outlet: whatever it asks for, the frame is refused or the outlet stays one owner's.
//!
//! Input: frames as they come on the socket, one after the other; what is not of the header's form ends the connection. So that
//! frames get past the header, one may be left out: a first byte below 128 is a record's own header, of which the frame's is made:
//!
//! ```text
//! kind u8 │ body bytes u16 │ body          or: 0x80, and the rest as it is
//! ```
#![no_main]

use hostvmm::colo::outlet::wire::{Answer, Request};
use hostvmm::colo::outlet::{Arbiter, Judgement};
use libfuzzer_sys::fuzz_target;

/// The frames of an input.
fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some((&kind, rest)) = bytes.split_first() {
        if kind & 0x80 != 0 {
            all.extend(rest);
            break;
        }
        let Some((&[low, high], rest)) = rest.split_first_chunk() else { break };
        let (body, rest) = rest.split_at(usize::from(u16::from_le_bytes([low, high])).min(rest.len()));
        all.extend(b"TDOL\x01\x00");
        all.extend([kind, 0]);
        all.extend((body.len() as u32).to_le_bytes());
        all.extend([0; 4]);
        all.extend(body);
        bytes = rest;
    }
    all
}

fuzz_target!(|data: &[u8]| {
    let all = frames(data);
    let mut rest = &all[..];
    let mut arbiter = Arbiter::default();
    loop {
        let before = rest;
        let Ok(Some(request)) = Request::read(&mut rest) else { return };
        let used = before.len() - rest.len();
        assert_eq!(request.encode(), before[..used], "a request is not what was sent");
        let (epoch, accepted) = (arbiter.epoch(), arbiter.accepted());
        let result = match &request {
            Request::Claim(claimant, claim) => {
                let result = arbiter.claim(*claimant, *claim);
                assert_eq!(
                    arbiter.epoch(),
                    if arbiter.epoch() == epoch { epoch } else { epoch + 1 },
                    "an epoch was skipped"
                );
                if result.is_ok() {
                    assert_eq!((arbiter.owner(), arbiter.epoch()), (Some(claim.side), claim.epoch));
                }
                result
            }
            Request::Deliver { claimant, epoch, records } => arbiter.admit(*claimant, *epoch).and_then(|()| {
                for record in records {
                    if arbiter.judge(record)? == Judgement::New {
                        arbiter.accept(record);
                    }
                }
                Ok(arbiter.accepted())
            }),
        };
        assert!(arbiter.accepted().total() >= accepted.total(), "output was taken back");
        // What the outlet answers is understood.
        let answer = Answer::of(result);
        assert_eq!(Answer::read(&mut &answer.encode()[..]).expect("our own answer"), answer);
    }
});
