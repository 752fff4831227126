//! [`Compare`] by example, and against a model that keeps everything.

use proptest::prelude::*;

use super::*;

fn link(vcpu: usize) -> StreamId {
    StreamId::packets(vcpu).unwrap()
}

fn record(stream: StreamId, sequence: u64, bytes: &[u8]) -> Record {
    Record { stream, sequence, bytes: bytes.to_vec() }
}

fn at(stream: StreamId, next: u64) -> Positions {
    let mut positions = Positions::default();
    positions.set(stream, next);
    positions
}

#[test]
fn what_both_have_emitted_is_released_whoever_came_first() {
    let mut compare = Compare::default();
    compare.push_own(record(link(0), 0, b"a")).unwrap();
    assert!(compare.take_released().is_empty());
    assert_eq!(compare.held(), Waiting { records: 1, bytes: 1 });
    compare.push_theirs(record(link(0), 0, b"a")).unwrap();
    compare.push_theirs(record(link(0), 1, b"bb")).unwrap();
    assert_eq!(compare.early(), Waiting { records: 1, bytes: 2 });
    compare.push_own(record(link(0), 1, b"bb")).unwrap();
    assert_eq!(compare.take_released(), [record(link(0), 0, b"a"), record(link(0), 1, b"bb")]);
    assert_eq!((compare.held(), compare.early(), compare.difference()), Default::default());
}

#[test]
fn a_difference_stops_its_stream_alone_and_a_commit_releases_it() {
    let mut compare = Compare::default();
    for (own, theirs) in [(&b"same"[..], &b"same"[..]), (b"this", b"that"), (b"more", b"more")] {
        let sequence = compare.own_positions().get(link(1));
        compare.push_own(record(link(1), sequence, own)).unwrap();
        compare.push_theirs(record(link(1), sequence, theirs)).unwrap();
    }
    compare.push_own(record(StreamId::CONSOLE, 0, b"line\n")).unwrap();
    compare.push_theirs(record(StreamId::CONSOLE, 0, b"line\n")).unwrap();
    assert_eq!(compare.difference(), Some(Difference { stream: link(1), sequence: 1, byte: 2 }));
    assert_eq!(compare.take_released(), [record(link(1), 0, b"same"), record(StreamId::CONSOLE, 0, b"line\n")]);
    assert_eq!(compare.held_records(), [record(link(1), 1, b"this"), record(link(1), 2, b"more")]);
    let mut positions = at(link(1), 3);
    positions.set(StreamId::CONSOLE, 1);
    compare.commit(&positions).unwrap();
    assert_eq!(compare.take_released(), [record(link(1), 1, b"this"), record(link(1), 2, b"more")]);
    assert_eq!((compare.difference(), compare.early()), Default::default());
    compare.push_theirs(record(link(1), 3, b"x")).unwrap();
    compare.push_own(record(link(1), 3, b"x")).unwrap();
    assert_eq!(compare.take_released().len(), 1);
}

#[test]
fn one_record_that_begins_with_the_other_differs_where_it_ends() {
    let mut compare = Compare::new(&at(link(0), 7));
    compare.push_own(record(link(0), 7, b"abc")).unwrap();
    compare.push_theirs(record(link(0), 7, b"abcd")).unwrap();
    assert_eq!(compare.difference(), Some(Difference { stream: link(0), sequence: 7, byte: 3 }));
}

#[test]
fn records_out_of_sequence_are_refused() {
    let mut compare = Compare::new(&at(link(0), 5));
    let refused = |found| OutOfSequence { stream: link(0), expected: 5, found };
    assert_eq!(compare.push_own(record(link(0), 6, b"")), Err(refused(6)));
    assert_eq!(compare.push_theirs(record(link(0), 4, b"")), Err(refused(4)));
    assert_eq!(compare.commit(&at(link(0), 6)), Err(refused(6)));
    assert_eq!(compare.commit(&at(link(0), 4)), Err(refused(4)));
    assert_eq!((compare.own_positions(), compare.held()), (at(link(0), 5), Waiting::default()));
}

#[test]
fn a_secondary_that_runs_far_ahead_costs_bounded_memory_and_a_checkpoint() {
    let mut compare = Compare::default();
    let flood = MAX_RECORDS as u64 + 10;
    for sequence in 0..flood {
        compare.push_theirs(record(link(0), sequence, b"x")).unwrap();
    }
    assert!(compare.is_full());
    assert_eq!(compare.early().records, MAX_RECORDS);
    for sequence in 0..flood {
        compare.push_own(record(link(0), sequence, b"x")).unwrap();
    }
    assert_eq!(compare.take_released().len(), MAX_RECORDS);
    assert!(compare.is_full(), "what was not kept cannot be compared");
    compare.commit(&at(link(0), flood)).unwrap();
    assert_eq!((compare.take_released().len(), compare.is_full()), (10, false));
}

#[test]
fn without_a_secondary_everything_is_released() {
    let mut compare = Compare::default();
    compare.push_own(record(link(0), 0, b"a")).unwrap();
    compare.push_own(record(link(2), 0, b"b")).unwrap();
    compare.release_all();
    assert_eq!(compare.take_released().len(), 2);
    assert_eq!(compare.released_positions(), compare.own_positions());
}

#[derive(Clone, Debug)]
enum Act {
    Own(usize, u8),
    Theirs(usize, u8),
    Commit,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let byte = prop_oneof![9 => Just(0_u8), 1 => 0..3_u8];
    let act = prop_oneof![
        8 => (0..3_usize, byte.clone()).prop_map(|(stream, byte)| Act::Own(stream, byte)),
        8 => (0..3_usize, byte).prop_map(|(stream, byte)| Act::Theirs(stream, byte)),
        1 => Just(Act::Commit),
    ];
    prop::collection::vec(act, 0..200)
}

proptest! {
    /// The model keeps all that either side has emitted since the last commit, and compares from the start every time.
    #[test]
    fn it_does_what_a_comparison_from_the_start_does(acts in acts()) {
        let mut compare = Compare::default();
        let mut base = [0_u64; 3];
        let mut own: [Vec<u8>; 3] = Default::default();
        let mut theirs: [Vec<u8>; 3] = Default::default();
        let mut seen: [Vec<u8>; 3] = Default::default();
        let mut all: [Vec<u8>; 3] = Default::default();
        for act in acts {
            match act {
                Act::Own(stream, byte) => {
                    let sequence = base[stream] + own[stream].len() as u64;
                    let id = StreamId::from_raw(stream as u16).unwrap();
                    compare.push_own(record(id, sequence, &[byte])).unwrap();
                    own[stream].push(byte);
                    all[stream].push(byte);
                }
                Act::Theirs(stream, byte) => {
                    let sequence = base[stream] + theirs[stream].len() as u64;
                    let id = StreamId::from_raw(stream as u16).unwrap();
                    compare.push_theirs(record(id, sequence, &[byte])).unwrap();
                    theirs[stream].push(byte);
                }
                Act::Commit => {
                    compare.commit(&compare.own_positions()).unwrap();
                    for stream in 0..3 {
                        base[stream] += own[stream].len() as u64;
                        own[stream].clear();
                        theirs[stream].clear();
                    }
                }
            }
            for released in compare.take_released() {
                let stream = released.stream.index();
                prop_assert_eq!(released.sequence, seen[stream].len() as u64);
                seen[stream].extend(released.bytes);
            }
            let mut held = 0;
            let mut differs = false;
            for stream in 0..3 {
                let equal = own[stream].iter().zip(&theirs[stream]).take_while(|(own, theirs)| own == theirs).count();
                let expected = &all[stream][..base[stream] as usize + equal];
                prop_assert_eq!(&seen[stream][..], expected);
                held += own[stream].len() - equal;
                differs |= equal < own[stream].len().min(theirs[stream].len());
            }
            prop_assert_eq!(compare.held(), Waiting { records: held, bytes: held });
            prop_assert_eq!(compare.difference().is_some(), differs);
            if let Some(Difference { stream, sequence, byte }) = compare.difference() {
                let (stream, at) = (stream.index(), (sequence - base[stream.index()]) as usize);
                prop_assert_ne!(own[stream][at], theirs[stream][at]);
                prop_assert_eq!(byte, 0);
            }
        }
    }
}
