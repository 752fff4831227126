//! Two sides at one outlet, over its socket.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;
use crate::colo::output::StreamId;

/// Only reached by a test that has already failed.
const PATIENCE: Duration = Duration::from_secs(20);
const PAIR: u128 = 0x7ea;

struct Fixture {
    server: Option<OutletServer>,
    kept: Kept,
    address: OutletAddress,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address: OutletAddress = format!("unix:{}", directory.path().join("outlet").display()).parse().unwrap();
        let kept = Kept::new(64 << 20);
        let server = OutletServer::start(&address, Box::new(kept.clone())).unwrap();
        Self { server: Some(server), kept, address, _directory: directory }
    }

    fn client(&self) -> OutletClient {
        OutletClient::new(self.address.clone(), PATIENCE).unwrap()
    }

    fn seen(&self) -> Vec<(u64, u64, Side)> {
        self.kept.records().iter().map(|it| (it.record.sequence, it.epoch, it.side)).collect()
    }
}

const fn claim(epoch: u64, side: Side) -> Claim {
    Claim { pair: PAIR, epoch, side }
}

fn link() -> StreamId {
    StreamId::packets(0).unwrap()
}

fn records(sequences: std::ops::Range<u64>) -> Vec<Record> {
    sequences.map(|sequence| Record { stream: link(), sequence, bytes: sequence.to_le_bytes().to_vec() }).collect()
}

#[test]
fn a_takeover_fences_the_old_owner_and_every_record_is_seen_once() {
    let outlet = Fixture::new();
    let (mut primary, mut secondary) = (outlet.client(), outlet.client());
    primary.claim(claim(1, Side::Primary)).unwrap();
    assert_eq!(primary.deliver(1, &records(0..3)).unwrap().get(link()), 3);
    // The secondary goes on alone, and does not know how much was seen.
    let accepted = secondary.claim(claim(2, Side::Secondary)).unwrap();
    assert_eq!(accepted.get(link()), 3);
    assert_eq!(secondary.deliver(2, &records(1..5)).unwrap().get(link()), 5);
    // The primary was only stopped, and wakes up.
    assert!(matches!(primary.deliver(1, &records(3..4)), Err(OutletError::Fenced { current: 2 })));
    assert!(matches!(primary.claim(claim(2, Side::Primary)), Err(OutletError::Fenced { current: 2 })));
    assert!(matches!(primary.deliver(2, &records(5..6)), Err(OutletError::Fenced { current: 2 })));
    use Side::{Primary, Secondary};
    assert_eq!(
        outlet.seen(),
        [(0, 1, Primary), (1, 1, Primary), (2, 1, Primary), (3, 2, Secondary), (4, 2, Secondary)]
    );
}

#[test]
fn of_many_that_claim_one_epoch_at_once_one_gets_it() {
    let outlet = Fixture::new();
    let granted: usize = std::thread::scope(|scope| {
        let claimers: Vec<_> = (0..8)
            .map(|index| {
                let mut client = outlet.client();
                let side = if index % 2 == 0 { Side::Primary } else { Side::Secondary };
                scope.spawn(move || client.claim(claim(1, side)).is_ok())
            })
            .collect();
        claimers.into_iter().map(|claimer| usize::from(claimer.join().unwrap())).sum()
    });
    assert_eq!(granted, 1);
}

#[test]
fn gaps_are_refused_and_what_came_before_them_is_taken() {
    let outlet = Fixture::new();
    let mut primary = outlet.client();
    assert!(matches!(primary.deliver(1, &records(0..1)), Err(OutletError::NotClaimed)));
    primary.claim(claim(1, Side::Primary)).unwrap();
    let with_hole: Vec<_> = records(0..2).into_iter().chain(records(3..4)).collect();
    let refused = primary.deliver(1, &with_hole).unwrap_err();
    assert!(matches!(refused, OutletError::Gap { expected: 2, found: 3, .. }), "{refused}");
    assert_eq!(primary.deliver(1, &records(0..4)).unwrap().get(link()), 4);
    assert_eq!(outlet.seen().len(), 4);
}

#[test]
fn a_side_that_comes_back_on_another_connection_is_the_same_side() {
    let mut outlet = Fixture::new();
    let mut primary = outlet.client();
    primary.claim(claim(1, Side::Primary)).unwrap();
    // More connections than there may be: the oldest, the primary's, makes room.
    let others: Vec<_> = (0..16).map(|_| UnixStream::connect(outlet.address.path()).unwrap()).collect();
    // Whoever is answered was accepted after all those before it.
    outlet.client().claim(claim(5, Side::Secondary)).unwrap_err();
    assert_eq!(primary.deliver(1, &records(0..2)).unwrap().get(link()), 2);
    assert_eq!(primary.claim(claim(1, Side::Primary)).unwrap().get(link()), 2);
    drop(others);
    outlet.server = None;
    assert!(matches!(primary.deliver(1, &records(2..3)), Err(OutletError::Unreachable(_))));
    assert!(!outlet.address.path().exists());
}

#[test]
fn more_than_a_frame_holds_is_delivered_in_several() {
    let outlet = Fixture::new();
    let mut primary = outlet.client();
    primary.claim(claim(1, Side::Primary)).unwrap();
    let large: Vec<_> =
        (0..1500).map(|sequence| Record { stream: StreamId::CONSOLE, sequence, bytes: vec![b'x'; 2000] }).collect();
    assert_eq!(primary.deliver(1, &large).unwrap().get(StreamId::CONSOLE), 1500);
    assert_eq!(primary.deliver(1, &[]).unwrap().get(StreamId::CONSOLE), 1500);
    assert!(outlet.kept.records().iter().map(|it| &it.record).eq(&large));
}

#[test]
fn whoever_sends_garbage_is_dropped_and_the_outlet_is_as_before() {
    let outlet = Fixture::new();
    let mut primary = outlet.client();
    primary.claim(claim(1, Side::Primary)).unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"TDOL\x01\x00\x63\x00\x00\x00\x00\x00\x00\x00\x00\x00"] {
        let mut stream = UnixStream::connect(outlet.address.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        // The end of the stream, or a reset where bytes were left unread.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }
    let server = outlet.server.as_ref().unwrap();
    assert_eq!((server.epoch(), server.owner()), (1, Some(Side::Primary)));
    assert!(primary.deliver(1, &records(0..1)).is_ok());
    assert_eq!(server.accepted().get(link()), 1);
}

#[test]
fn the_socket_is_its_owners_alone() {
    let outlet = Fixture::new();
    let mode = std::fs::metadata(outlet.address.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(OutletServer::start(&outlet.address, Box::new(Kept::new(0))).is_err());
}

#[test]
fn an_outlet_that_cannot_keep_a_record_has_not_accepted_it() {
    let directory = tempfile::tempdir().unwrap();
    let address: OutletAddress = format!("unix:{}", directory.path().join("o").display()).parse().unwrap();
    let _server = OutletServer::start(&address, Box::new(Kept::new(10))).unwrap();
    let mut primary = OutletClient::new(address, PATIENCE).unwrap();
    primary.claim(claim(1, Side::Primary)).unwrap();
    assert!(matches!(primary.deliver(1, &records(0..1)), Err(OutletError::Unreachable(_))));
    assert_eq!(primary.deliver(1, &[]).unwrap().get(link()), 0);
}

#[test]
fn an_outlet_of_ones_own_drops_duplicates_and_knows_nothing_of_gaps() {
    let kept = Kept::new(1 << 20);
    let mut own = OwnOutlet::new(Box::new(kept.clone()));
    assert!(matches!(own.deliver(1, &records(0..1)), Err(OutletError::NotClaimed)));
    own.claim(claim(3, Side::Secondary)).unwrap();
    assert_eq!(own.deliver(3, &records(5..7)).unwrap().get(link()), 7);
    assert_eq!(own.deliver(3, &records(6..8)).unwrap().get(link()), 8);
    assert!(matches!(own.deliver(2, &records(8..9)), Err(OutletError::Fenced { current: 3 })));
    assert_eq!(kept.records().len(), 3);
}
