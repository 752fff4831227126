//! The two judges against a naive model, which looks through all that was said so far.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::arbitrary::offer;
use super::super::{Loaded, PassEnd, Pending, Resumed, Run, Section, SectionKind, SlotPass, Text};
use super::*;
use crate::migrate::HostTime;

const FEATURES: Features = Features::DELTA.or(Features::POSTCOPY);

fn batch(pass: u32) -> PageBatch {
    let runs = vec![Run { first: 0, count: 1, encoding: Encoding::Zero }];
    PageBatch { slot: SlotId::Ram, pass, body: Body::Plain, digest: 0, runs }
}

/// A message `tag` that is right in everything but, maybe, its place.
fn message(tag: Tag, history: &[Tag]) -> Message {
    let count = |wanted| history.iter().filter(|tag| **tag == wanted).count() as u32;
    let text = || Text::new("why");
    match tag {
        Tag::Offer => Message::Offer(Box::new(offer(FEATURES))),
        Tag::Pages => Message::Pages(batch(count(Tag::PassEnd))),
        Tag::PassEnd => Message::PassEnd(PassEnd { pass: count(Tag::PassEnd), slots: [SlotPass::default(); 2] }),
        Tag::Sync => Message::Sync { pass: count(Tag::Sync) },
        Tag::Stopped => Message::Stopped { at: HostTime::from_ns(1), counter: 2 },
        Tag::Section => {
            let section = Section { kind: SectionKind::Gic, index: 0, bytes: vec![1] };
            Message::Section(section.parts().next().expect("one part"))
        }
        Tag::Digest => Message::Digest(Some([1, 2])),
        Tag::Commit => Message::Commit,
        Tag::Pending => Message::Pending(Pending { slot: SlotId::Region, first: 64, words: vec![1] }),
        Tag::PostcopyRun => Message::PostcopyRun,
        Tag::Abort => Message::Abort { text: text() },
        Tag::Farewell => Message::Farewell { fault: None },
        Tag::Query => Message::Query,
        Tag::Accept => Message::Accept { features: FEATURES },
        Tag::Refuse => {
            let mut other = offer(FEATURES).description;
            other.page_bytes = 65536;
            Message::Refuse(other.mismatch(&offer(FEATURES).description).expect("they differ"))
        }
        Tag::PassAck => Message::PassAck { pass: count(Tag::PassAck), digests: [0; 2] },
        Tag::Loaded => Message::Loaded(Loaded { digests: None, load_ns: 1, digest_ns: 2 }),
        Tag::Resumed => Message::Resumed(Resumed { at: HostTime::from_ns(1), counter: 2, resume_ns: 3 }),
        Tag::PageRequest => Message::PageRequest { slot: SlotId::Region, page: 3 },
        Tag::Failure => Message::Failure { text: text() },
        Tag::Answer => Message::Answer(super::super::GuestState::Waiting),
        // Those of a COLO pair have an order of their own, and none of them may come here.
        _ => Message::Colo(super::super::ColoMessage::CheckpointReady),
    }
}

fn is_destinations(tag: Tag) -> bool {
    tag.raw() & 0x8000 != 0
}

/// Whether `tag` may come after `history` on the main channel, as either side sees it.
fn may_come(tag: Tag, history: &[Tag], at_source: bool) -> bool {
    let count = |wanted| history.iter().filter(|tag| **tag == wanted).count();
    let has = |wanted| count(wanted) > 0;
    if [Tag::Refuse, Tag::Abort, Tag::Farewell, Tag::Failure].into_iter().any(has) {
        return false;
    }
    let handed_over = has(Tag::Commit) || has(Tag::PostcopyRun);
    match tag {
        Tag::Offer => history.is_empty(),
        Tag::Accept | Tag::Refuse => has(Tag::Offer) && !has(Tag::Accept),
        Tag::Pages | Tag::PassEnd => has(Tag::Accept) && (!has(Tag::Digest) || has(Tag::PostcopyRun)),
        Tag::Stopped => has(Tag::Accept) && !has(Tag::Stopped),
        Tag::Section | Tag::Pending => has(Tag::Stopped) && !has(Tag::Digest),
        Tag::Digest => (has(Tag::Stopped) && !has(Tag::Digest)) || has(Tag::PostcopyRun),
        Tag::Commit | Tag::PostcopyRun => has(Tag::Loaded) && !handed_over,
        Tag::Farewell => handed_over,
        Tag::Abort => has(Tag::Offer) && !handed_over,
        Tag::PassAck if at_source => count(Tag::PassAck) < count(Tag::PassEnd) && !has(Tag::Commit),
        Tag::PassAck => has(Tag::Accept) && !has(Tag::Commit),
        Tag::Loaded if at_source => count(Tag::Loaded) < count(Tag::Digest) && !has(Tag::Commit),
        Tag::Loaded => has(Tag::Digest) && (!has(Tag::Loaded) || has(Tag::PostcopyRun)),
        Tag::Resumed if at_source => handed_over && !has(Tag::Resumed),
        Tag::Resumed => handed_over,
        Tag::PageRequest => has(Tag::PostcopyRun),
        Tag::Failure => has(Tag::Offer),
        _ => false,
    }
}

/// Tags in about the order of a migration, so that random ones get far.
fn histories() -> impl Strategy<Value = Vec<Tag>> {
    let rare = [Tag::Refuse, Tag::Abort, Tag::Farewell, Tag::Failure];
    let common: Vec<_> = Tag::ALL.iter().map(|row| row.0).filter(|tag| !rare.contains(tag)).collect();
    let tag = prop_oneof![60 => prop::sample::select(common), 1 => prop::sample::select(rare.to_vec())];
    vec(tag, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_destination_takes_what_the_model_takes(tags in histories()) {
        let mut incoming = Incoming::new(Role::Main);
        let mut history = Vec::new();
        for tag in tags {
            let message = message(tag, &history);
            let found = if is_destinations(tag) { incoming.sent(&message) } else { incoming.accept(&message, 0) };
            prop_assert_eq!(found.is_ok(), may_come(tag, &history, false), "{} after {:?}: {:?}", tag, history, found);
            if found.is_ok() {
                history.push(tag);
            }
            let handed_over = history.iter().any(|tag| matches!(tag, Tag::Commit | Tag::PostcopyRun));
            prop_assert!(!incoming.is_committed() || handed_over);
        }
    }

    #[test]
    fn the_source_takes_what_the_model_takes(tags in histories()) {
        let mut back = Return::new(Role::Main);
        let mut history = Vec::new();
        for tag in tags {
            let message = message(tag, &history);
            let found = if is_destinations(tag) { back.accept(&message) } else { back.sent(&message) };
            prop_assert_eq!(found.is_ok(), may_come(tag, &history, true), "{} after {:?}: {:?}", tag, history, found);
            if found.is_ok() {
                history.push(tag);
            }
        }
    }
}

fn agreed(features: Features) -> Incoming {
    let mut incoming = Incoming::new(Role::Main);
    incoming.accept(&Message::Offer(Box::new(offer(features))), 0).unwrap();
    assert_eq!(incoming.agreement(), None);
    incoming.sent(&Message::Accept { features }).unwrap();
    incoming
}

#[test]
fn pages_must_be_of_the_current_pass() {
    let mut incoming = agreed(FEATURES);
    let pages = |pass| Message::Pages(batch(pass));
    assert_eq!(incoming.accept(&pages(1), 0), Err(WireError::Pass { tag: Tag::Pages, expected: 0, found: 1 }));
    incoming.accept(&pages(0), 0).unwrap();
    incoming.accept(&message(Tag::PassEnd, &[]), 0).unwrap();
    assert_eq!(incoming.pass(), 1);
    assert_eq!(incoming.accept(&pages(0), 0), Err(WireError::Pass { tag: Tag::Pages, expected: 1, found: 0 }));
}

#[test]
fn a_page_channel_takes_pages_and_syncs_alone() {
    let agreement = agreed(FEATURES).agreement().unwrap();
    let mut channel = Incoming::page_channel(1, agreement);
    for message in [Message::Pages(batch(0)), Message::Sync { pass: 0 }, Message::Pages(batch(1))] {
        channel.accept(&message, 0).unwrap();
    }
    for tag in Tag::ALL.iter().map(|row| row.0).filter(|tag| !matches!(tag, Tag::Pages | Tag::Sync)) {
        assert!(channel.clone().accept(&message(tag, &[]), 0).is_err(), "{tag}");
    }
}

#[test]
fn a_query_is_answered_once() {
    let mut asked = Incoming::new(Role::Query);
    assert!(asked.accept(&message(Tag::Offer, &[]), 0).is_err());
    asked.accept(&Message::Query, 0).unwrap();
    asked.sent(&message(Tag::Answer, &[])).unwrap();
    assert!(asked.is_over());
    let mut asking = Return::new(Role::Query);
    assert!(asking.accept(&message(Tag::Answer, &[])).is_err());
    asking.sent(&Message::Query).unwrap();
    asking.accept(&message(Tag::Answer, &[])).unwrap();
    assert!(asking.is_over());
}

#[test]
fn what_was_not_agreed_on_is_refused() {
    let refused = |features, message: &Message, payload_bytes| {
        let error = agreed(features).accept(message, payload_bytes).unwrap_err();
        assert!(matches!(error, WireError::Feature { .. }), "{error}");
    };
    let delta = Run { first: 0, count: 1, encoding: Encoding::Delta { len_bytes: 3 } };
    refused(Features::NONE, &Message::Pages(PageBatch { runs: vec![delta], ..batch(0) }), 3);
    let whole = Run { first: 0, count: 1, encoding: Encoding::Whole };
    refused(FEATURES, &Message::Pages(PageBatch { body: Body::Zstd, runs: vec![whole], ..batch(0) }), 3);
    refused(Features::SHARED_MEMORY, &Message::Pages(batch(0)), 0);

    let mut incoming = agreed(Features::NONE);
    incoming.accept(&message(Tag::Stopped, &[]), 0).unwrap();
    assert!(incoming.accept(&message(Tag::Pending, &[]), 0).is_err());
    assert!(incoming.accept(&Message::Digest(None), 0).is_err(), "only post-copy can do without a digest");
    incoming.accept(&message(Tag::Digest, &[]), 0).unwrap();
    incoming.sent(&message(Tag::Loaded, &[])).unwrap();
    assert!(incoming.accept(&Message::PostcopyRun, 0).is_err());

    let mut back = Return::new(Role::Main);
    back.sent(&Message::Offer(Box::new(offer(Features::NONE)))).unwrap();
    assert!(back.accept(&Message::Accept { features: Features::ZSTD }).is_err());
}

#[test]
fn pending_pages_and_requests_lie_inside_their_slot() {
    let mut incoming = agreed(FEATURES);
    incoming.accept(&message(Tag::Stopped, &[]), 0).unwrap();
    let pages = incoming.agreement().unwrap().geometry.pages(SlotId::Region);
    let mut pending = |first, words: &[u64]| {
        incoming.accept(&Message::Pending(Pending { slot: SlotId::Region, first, words: words.to_vec() }), 0)
    };
    assert_eq!(pending(0, &vec![u64::MAX; (pages / 64) as usize]), Ok(()));
    assert!(pending(pages, &[1]).is_err());
    assert!(pending(pages - 64, &[1, 0]).is_err());
    assert!(pending(u64::MAX - 63, &[1, 1]).is_err());

    let mut back = Return::new(Role::Main);
    back.sent(&Message::Offer(Box::new(offer(FEATURES)))).unwrap();
    back.accept(&Message::Accept { features: FEATURES }).unwrap();
    for tag in [Tag::Stopped, Tag::Digest] {
        back.sent(&message(tag, &[])).unwrap();
    }
    back.accept(&message(Tag::Loaded, &[])).unwrap();
    back.sent(&Message::PostcopyRun).unwrap();
    let request = |page| Message::PageRequest { slot: SlotId::Region, page };
    assert_eq!(back.accept(&request(pages - 1)), Ok(()));
    assert!(matches!(back.accept(&request(pages)), Err(WireError::Pages { .. })));
}
