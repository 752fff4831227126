//! Any message, for tests: what the codec can say, no more.

use abi::boot::BootInfo;
use abi::packet::GuestOutput;
use abi::{Granule, GuestRange, Tables, VaBits, map};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::backend::Accelerator;
use crate::colo::output::{Positions, Record, StreamId};
use crate::memory::SlotId;
use crate::migrate::{ClockOffset, CounterPolicy, DigestMode, HostTime, Moment};

/// A machine of 64 MiB RAM and 8 MiB region, in pages of 4 KiB.
pub(super) fn description() -> Description {
    Description {
        accelerator: Accelerator::Emulator,
        boot: BootInfo {
            tables: Tables::V8(VaBits::new(Granule::K4, 48).expect("a pair")),
            vcpus: 2,
            flags: 1,
            region: GuestRange::new(map::REGION_BASE, 8 << 20).expect("no wrap"),
            ram: GuestRange::new(map::RAM_BASE, 64 << 20).expect("no wrap"),
            seed: 0x5eed,
            pattern: 0,
            params: [0; 8],
            heartbeat_us: 0,
            output: GuestOutput::Off,
            points: 0,
        },
        page_bytes: 4096,
        counter_hz: 62_500_000,
        track_dirty: true,
    }
}

/// What a source offers that wants everything.
pub(super) fn offer(features: Features) -> Offer {
    Offer {
        description: description(),
        features,
        page_channels: 2,
        digest: DigestMode::Full,
        counter: CounterPolicy::RunsOn,
        salt: 0x5a17,
        clock: ClockOffset::SAME,
        cpu: Vec::new(),
    }
}

fn texts() -> impl Strategy<Value = Text> {
    "[a-zA-Z0-9 äß→:;,.]{0,60}".prop_map(Text::new)
}

fn slots() -> impl Strategy<Value = SlotId> {
    prop_oneof![Just(SlotId::Ram), Just(SlotId::Region)]
}

fn features() -> impl Strategy<Value = Features> {
    let all = [Features::DELTA, Features::ZSTD, Features::POSTCOPY, Features::SHARED_MEMORY];
    prop::sample::subsequence(all.to_vec(), 0..=4).prop_map(|some| some.into_iter().fold(Features::NONE, Features::or))
}

fn offers() -> impl Strategy<Value = Message> {
    let clock =
        (any::<i64>(), any::<u64>()).prop_map(|(offset_ns, uncertainty_ns)| ClockOffset { offset_ns, uncertainty_ns });
    let digest = prop_oneof![Just(DigestMode::Full), Just(DigestMode::Deferred)];
    let counter = prop_oneof![Just(CounterPolicy::RunsOn), Just(CounterPolicy::Stops)];
    let page_bytes = prop_oneof![Just(4096_u32), Just(16384), Just(65536)];
    let cpu = vec(any::<(u64, u128)>(), 0..40);
    let machine = any::<(u64, bool, bool)>();
    (features(), 0..=MAX_PAGE_CHANNELS, digest, counter, any::<u64>(), clock, page_bytes, machine, cpu).prop_map(
        |(features, page_channels, digest, counter, salt, clock, page_bytes, (seed, kvm, track_dirty), cpu)| {
            let mut description = Description { page_bytes, track_dirty, ..description() };
            description.boot.seed = seed;
            description.accelerator = if kvm { Accelerator::Kvm } else { Accelerator::Emulator };
            Message::Offer(Box::new(Offer { description, features, page_channels, digest, counter, salt, clock, cpu }))
        },
    )
}

fn batches() -> impl Strategy<Value = Message> {
    let encoding = prop_oneof![
        Just(Encoding::Zero),
        Just(Encoding::Whole),
        any::<u16>().prop_map(|len_bytes| Encoding::Delta { len_bytes }),
    ];
    let run =
        (any::<u64>(), any::<u32>(), encoding).prop_map(|(first, count, encoding)| Run { first, count, encoding });
    let body = prop_oneof![Just(Body::Plain), Just(Body::Zstd)];
    (slots(), any::<u32>(), body, any::<u64>(), vec(run, 1..20))
        .prop_map(|(slot, pass, body, digest, runs)| Message::Pages(PageBatch { slot, pass, body, digest, runs }))
}

fn sections() -> impl Strategy<Value = Message> {
    let kind = (1_u16..=8).prop_map(|raw| SectionKind::from_raw(raw).expect("there are eight"));
    (kind, any::<u16>(), any::<u32>(), any::<u32>(), vec(any::<u8>(), 0..100)).prop_map(
        |(kind, index, total_bytes, offset, bytes)| {
            Message::Section(SectionPart { kind, index, total_bytes, offset, bytes })
        },
    )
}

/// Any message from the source.
pub(super) fn from_source() -> impl Strategy<Value = Message> {
    let digests = || option::of(any::<[u64; 2]>());
    let pending = (slots(), 0_u64..1 << 50, vec(any::<u64>(), 1..40))
        .prop_map(|(slot, word, words)| Message::Pending(Pending { slot, first: word * 64, words }));
    prop_oneof![
        offers(),
        batches(),
        any::<(u32, u64, u64, u64, u64)>().prop_map(|(pass, a, b, c, d)| Message::PassEnd(PassEnd {
            pass,
            slots: [SlotPass { pages: a, digest: b }, SlotPass { pages: c, digest: d }],
        })),
        any::<u32>().prop_map(|pass| Message::Sync { pass }),
        any::<(u64, u64)>().prop_map(|(at, counter)| Message::Stopped { at: HostTime::from_ns(at), counter }),
        sections(),
        digests().prop_map(Message::Digest),
        Just(Message::Commit),
        pending,
        Just(Message::PostcopyRun),
        texts().prop_map(|text| Message::Abort { text }),
        option::of(texts()).prop_map(|fault| Message::Farewell { fault }),
        Just(Message::Query),
    ]
}

/// Any message from the destination.
pub(super) fn from_destination() -> impl Strategy<Value = Message> {
    let field = (1_u16..=16).prop_map(|raw| Field::from_raw(raw).expect("there are sixteen"));
    let state = prop_oneof![
        Just(GuestState::Running),
        Just(GuestState::Discarded),
        Just(GuestState::Waiting),
        any::<[u64; 2]>().prop_map(|digests| GuestState::Whole { digests }),
        Just(GuestState::Lost),
    ];
    prop_oneof![
        features().prop_map(|features| Message::Accept { features }),
        (field, texts(), texts()).prop_map(|(field, source_has, destination_has)| Message::Refuse(Mismatch {
            field,
            source_has,
            destination_has
        })),
        any::<(u32, [u64; 2])>().prop_map(|(pass, digests)| Message::PassAck { pass, digests }),
        (option::of(any::<[u64; 2]>()), any::<(u64, u64)>())
            .prop_map(|(digests, (load_ns, digest_ns))| { Message::Loaded(Loaded { digests, load_ns, digest_ns }) }),
        any::<(u64, u64, u64)>().prop_map(|(at, counter, resume_ns)| Message::Resumed(Resumed {
            at: HostTime::from_ns(at),
            counter,
            resume_ns
        })),
        (slots(), any::<u64>()).prop_map(|(slot, page)| Message::PageRequest { slot, page }),
        texts().prop_map(|text| Message::Failure { text }),
        state.prop_map(Message::Answer),
    ]
}

fn positions() -> impl Strategy<Value = Positions> {
    vec(any::<u64>(), StreamId::COUNT).prop_map(|next| {
        let mut positions = Positions::default();
        StreamId::all().zip(next).for_each(|(stream, next)| positions.set(stream, next));
        positions
    })
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let stream = (0..StreamId::COUNT as u16).prop_map(|raw| StreamId::from_raw(raw).expect("a stream"));
    let record = (stream, any::<u64>(), vec(any::<u8>(), 0..50));
    vec(record.prop_map(|(stream, sequence, bytes)| Record { stream, sequence, bytes }), 0..9)
}

/// Any message of a COLO pair, from either side.
pub(super) fn from_a_pair() -> impl Strategy<Value = Message> {
    let digest = prop_oneof![Just(DigestMode::Full), Just(DigestMode::Deferred)];
    let offer = (any::<(u128, u64, bool, u64)>(), digest, any::<(i64, u64)>()).prop_map(
        |((pair, epoch, compare, salt), digest, (offset_ns, uncertainty_ns))| {
            let clock = ClockOffset { offset_ns, uncertainty_ns };
            let description = description();
            ColoMessage::Offer(Box::new(ColoOffer { pair, epoch, compare, digest, salt, clock, description }))
        },
    );
    let numbered = (any::<u64>(), texts()).prop_flat_map(|(n, text)| {
        prop_oneof![
            Just(ColoMessage::CheckpointRequest { n }),
            Just(ColoMessage::CheckpointCommit { n }),
            Just(ColoMessage::CheckpointAbort { n, text: text.clone() }),
            Just(ColoMessage::CheckpointFailed { n, text: text.clone() }),
            Just(ColoMessage::Inexact { n, text }),
        ]
    });
    let dirty = (slots(), 0_u64..1 << 50, vec(any::<u64>(), 1..40))
        .prop_map(|(slot, word, words)| ColoMessage::Dirty { slot, first: word * 64, words });
    let size = (any::<[u64; 5]>(), positions()).prop_map(|([n, bytes, ram, region, dirty], positions)| {
        ColoMessage::VmstateSize(VmstateSize { n, bytes, digests: [ram, region], dirty, positions })
    });
    let loaded = (any::<[u64; 8]>(), option::of(any::<[u64; 2]>())).prop_map(|(words, ram)| {
        let [n, primary_dirty, secondary_dirty, both_dirty, flushed, flush_ns, load_ns, check_ns] = words;
        let loaded =
            VmstateLoaded { n, primary_dirty, secondary_dirty, both_dirty, flushed, ram, flush_ns, load_ns, check_ns };
        ColoMessage::VmstateLoaded(loaded)
    });
    let message = prop_oneof![
        offer,
        numbered,
        dirty,
        size,
        loaded,
        any::<[u64; 3]>().prop_map(|[n, at, counter]| ColoMessage::VmstateSend {
            n,
            stopped: Moment { at: HostTime::from_ns(at), counter }
        }),
        records().prop_map(ColoMessage::Held),
        records().prop_map(ColoMessage::Output),
        positions().prop_map(|accepted| ColoMessage::PrimaryAlive { accepted }),
        Just(ColoMessage::CheckpointReady),
        Just(ColoMessage::SecondaryAlive),
        (any::<(u64, u64)>(), positions()).prop_map(|((n, dirty), positions)| ColoMessage::CheckpointReply {
            n,
            positions,
            dirty
        }),
        any::<(u64, [u64; 2], u64)>().prop_map(|(n, cache, digest_ns)| ColoMessage::VmstateReceived {
            n,
            cache,
            digest_ns
        }),
    ];
    message.prop_map(Message::Colo)
}

/// Any message.
pub(super) fn messages() -> impl Strategy<Value = Message> {
    prop_oneof![from_source(), from_destination(), from_a_pair()]
}
