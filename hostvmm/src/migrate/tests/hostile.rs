//! Peers that break the protocol, at either side: one clear error, and the guest stays where it was.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use abi::{Tables, VaBits};
use serde_json::json;

use super::fixture::{PAGES, TestVm, migrate};
use crate::backend::Accelerator;
use crate::memory::SlotId;
use crate::migrate::transport::{Listener, Uri};
use crate::migrate::wire::{
    Features, FrameDecoder, FrameEncoder, HEADER_BYTES, HELLO_BYTES, Hello, Message, Offer, PassEnd, REPLY_BYTES,
    Reply, Role, Session, SlotPass, VersionRange, Welcome,
};
use crate::migrate::{
    ClockOffset, CounterPolicy, DigestMode, HostTime, MigrateError, Monitor, Phase, SourceVm as _, receive, send,
};

/// Reads a message, and drops its payload.
pub(super) fn read(stream: &mut UnixStream, decoder: &mut FrameDecoder) -> Option<Message> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let header = decoder.header(&header).unwrap();
    let mut meta = vec![0; header.meta_bytes()];
    stream.read_exact(&mut meta).ok()?;
    let mut payload = vec![0; header.payload_bytes() as usize];
    stream.read_exact(&mut payload).ok()?;
    Some(decoder.message(&header, &meta).unwrap())
}

/// Greets a source as a destination of this version does.
pub(super) fn welcome(stream: &mut UnixStream) {
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello).unwrap();
    let hello = Hello::decode(&hello).unwrap();
    let at = HostTime::now();
    let welcome = Welcome { version: 2, session: hello.session, received_at: at, sent_at: at };
    stream.write_all(&Reply::Welcome(welcome).encode()).unwrap();
}

/// Runs a source against a destination that answers each of its messages by `script`; `None` hangs up.
fn against_destination(
    patience_ms: u64,
    script: impl Fn(&Message) -> Option<Vec<Message>> + Send + Sync,
) -> (MigrateError, TestVm, Monitor) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let (vm, monitor) = (TestVm::with_guest(), Monitor::new());
    monitor.set_parameters([("x-switchover-timeout", &json!(patience_ms))]).unwrap();
    let error = thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            welcome(&mut stream);
            let (mut decoder, mut encoder) = (FrameDecoder::new(), FrameEncoder::new());
            while let Some(message) = read(&mut stream, &mut decoder) {
                let Some(answers) = script(&message) else { break };
                for answer in answers {
                    // A source that has given up does not listen.
                    let _ = stream.write_all(&encoder.frame(&answer));
                }
            }
            drop(listener);
        });
        let error = send(&vm, &Uri::Unix(path), &monitor).unwrap_err();
        serving.join().unwrap();
        error
    });
    (error, vm, monitor)
}

/// As a destination should answer, but for its digests.
pub(super) fn honest(message: &Message) -> Vec<Message> {
    match message {
        Message::Offer(offer) => vec![Message::Accept { features: offer.features }],
        Message::PassEnd(end) => {
            vec![Message::PassAck { pass: end.pass, digests: end.slots.map(|slot| slot.digest) }]
        }
        _ => Vec::new(),
    }
}

/// What a destination says in post-copy once it has the state.
pub(super) fn loaded_without_digests() -> Message {
    Message::Loaded(crate::migrate::wire::Loaded { digests: None, load_ns: 0, digest_ns: 0 })
}

fn loaded(digests: [u64; SlotId::COUNT]) -> Message {
    Message::Loaded(crate::migrate::wire::Loaded { digests: Some(digests), load_ns: 0, digest_ns: 0 })
}

fn assert_stays(vm: &TestVm) {
    assert!(vm.runs());
    vm.assert_healthy();
}

#[test]
fn a_destination_that_acknowledges_other_pages_is_found_out() {
    let (error, vm, _) = against_destination(1000, |message| match message {
        Message::PassEnd(end) => Some(vec![Message::PassAck { pass: end.pass, digests: [1, 2] }]),
        other => Some(honest(other)),
    });
    assert!(matches!(error, MigrateError::PassDigest { pass: 0, received: 1, .. }), "{error}");
    assert_stays(&vm);
}

#[test]
fn a_destination_with_other_memory_is_not_given_the_guest() {
    let (error, vm, _) = against_destination(1000, |message| match message {
        Message::Digest(Some(digests)) => Some(vec![loaded([digests[0], !digests[1]])]),
        Message::Commit => panic!("the guest was given away"),
        other => Some(honest(other)),
    });
    assert!(matches!(error, MigrateError::MemoryDigest { slot: SlotId::Region, lost: None, .. }), "{error}");
    assert_stays(&vm);
}

#[test]
fn answers_that_nobody_asked_for_end_the_migration() {
    let stray = [
        Message::PassAck { pass: 7, digests: [0; 2] },
        Message::PageRequest { slot: SlotId::Ram, page: 0 },
        Message::Resumed(crate::migrate::wire::Resumed { at: HostTime::now(), counter: 0, resume_ns: 0 }),
        Message::Accept { features: Features::NONE },
    ];
    for stray in stray {
        let (error, vm, _) = against_destination(1000, |message| {
            let mut answers = honest(message);
            if let Message::Offer(_) = message {
                answers.push(stray.clone());
            }
            Some(answers)
        });
        assert!(matches!(error, MigrateError::Wire(_)), "{stray:?}: {error}");
        assert_stays(&vm);
    }
}

#[test]
fn more_than_was_offered_is_not_accepted() {
    let (error, vm, _) = against_destination(1000, |message| match message {
        Message::Offer(_) => Some(vec![Message::Accept { features: Features::ALL }]),
        other => Some(honest(other)),
    });
    assert!(matches!(error, MigrateError::Wire(_)), "{error}");
    assert_stays(&vm);
}

#[test]
fn a_destination_that_is_silent_while_the_guest_stands_still_is_given_up() {
    let (error, vm, monitor) = against_destination(30, |message| Some(honest(message)));
    assert!(matches!(error, MigrateError::Silent { .. }), "{error}");
    assert_stays(&vm);
    assert_eq!(monitor.phase(), Phase::Failed);
}

#[test]
fn a_guest_that_nobody_can_say_anything_about_stays_paused() {
    // The destination takes the commit and says nothing. Nobody answers queries: the connection is taken and left.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let (vm, monitor) = (TestVm::with_guest(), Monitor::new());
    monitor.set_parameters([("x-switchover-timeout", &json!(30))]).unwrap();
    let error = thread::scope(|scope| {
        let (ends, ended) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let mut streams = Vec::new();
            listener.set_nonblocking(true).unwrap();
            while let Err(std::sync::mpsc::TryRecvError::Empty) = ended.try_recv() {
                let Ok((mut stream, _)) = listener.accept() else {
                    thread::yield_now();
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                let mut hello = [0; HELLO_BYTES];
                stream.read_exact(&mut hello).unwrap();
                let hello = Hello::decode(&hello).unwrap();
                if hello.role == Role::Query {
                    drop(stream);
                    continue;
                }
                let at = HostTime::now();
                let welcome = Welcome { version: 2, session: hello.session, received_at: at, sent_at: at };
                stream.write_all(&Reply::Welcome(welcome).encode()).unwrap();
                let (mut decoder, mut encoder) = (FrameDecoder::new(), FrameEncoder::new());
                while let Some(message) = read(&mut stream, &mut decoder) {
                    let answers = match &message {
                        Message::Digest(Some(digests)) => vec![loaded(*digests)],
                        Message::Commit => break,
                        other => honest(other),
                    };
                    answers.iter().for_each(|answer| stream.write_all(&encoder.frame(answer)).unwrap());
                }
                streams.push(stream);
            }
        });
        let error = send(&vm, &Uri::Unix(path), &monitor).unwrap_err();
        drop(ends);
        error
    });
    assert!(matches!(error, MigrateError::InDoubt { .. }), "{error}");
    assert!(error.to_string().contains("cont"), "it says what to do: {error}");
    assert!(!vm.runs() && !vm.has_moved(), "the operator decides");
    assert_eq!(monitor.phase(), Phase::Failed);
}

/// Moves the guest of `vm` to a destination that accepts it and then does as `then` says with the connection.
fn to_a_silent_destination(
    vm: &TestVm,
    monitor: &Monitor,
    then: impl FnOnce(UnixStream, FrameDecoder) + Send,
) -> MigrateError {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            welcome(&mut stream);
            let mut decoder = FrameDecoder::new();
            let offer = read(&mut stream, &mut decoder).unwrap();
            honest(&offer).iter().for_each(|answer| stream.write_all(&FrameEncoder::new().frame(answer)).unwrap());
            then(stream, decoder);
        });
        send(vm, &Uri::Unix(path.clone()), monitor).unwrap_err()
    })
}

/// Waits until the other side has hung up, and reads nothing meanwhile.
fn take_nothing(stream: UnixStream, _: FrameDecoder) {
    let mut polled = [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::RDHUP)];
    rustix::event::poll(&mut polled, None).unwrap();
}

#[test]
fn a_destination_that_takes_nothing_is_given_up_while_the_guest_runs_on() {
    // It could not be stopped, and is not.
    let (vm, monitor) = (TestVm::with_guest().failing("pause"), Monitor::new());
    monitor.set_parameters([("x-silence-timeout", &json!(30))]).unwrap();
    let error = to_a_silent_destination(&vm, &monitor, take_nothing);
    assert!(error.to_string().contains("took nothing"), "{error}");
    assert_eq!(monitor.phase(), Phase::Failed);
    assert_stays(&vm);
}

#[test]
fn a_destination_that_acknowledges_nothing_gets_no_guest_to_stand_still_for() {
    let (vm, monitor) = (TestVm::with_guest().failing("pause"), Monitor::new());
    monitor.set_parameters([("x-silence-timeout", &json!(30))]).unwrap();
    let error = to_a_silent_destination(
        &vm,
        &monitor,
        |mut stream, mut decoder| {
            while read(&mut stream, &mut decoder).is_some() {}
        },
    );
    assert!(matches!(error, MigrateError::Silent { what: "acknowledged a pass", .. }), "{error}");
    assert_stays(&vm);
}

#[test]
fn a_migration_to_a_destination_that_takes_nothing_shows_it_and_is_cancelled_at_once() {
    let (vm, monitor) = (TestVm::with_guest(), Monitor::new());
    let error = to_a_silent_destination(&vm, &monitor, |stream, decoder| {
        while monitor.info().silent.is_none_or(|ms| ms < 3) {
            thread::yield_now();
        }
        monitor.cancel().unwrap();
        take_nothing(stream, decoder);
    });
    assert!(matches!(error, MigrateError::Cancelled(_)), "{error}");
    assert_eq!(monitor.phase(), Phase::Cancelled);
    assert_stays(&vm);
}

#[test]
fn a_destination_whose_source_says_nothing_more_shows_it_and_can_be_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::bind(&Uri::Unix(path.clone()), None).unwrap();
    let (vm, monitor) = (TestVm::empty(), Monitor::new());
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&vm, listener, &monitor).unwrap_err());
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(&hello()).unwrap();
        stream.write_all(&FrameEncoder::new().frame(&offer(&vm))).unwrap();
        while monitor.phase() != Phase::Active || monitor.info().silent.is_none_or(|ms| ms < 3) {
            thread::yield_now();
        }
        monitor.cancel().unwrap();
        assert!(matches!(receiving.join().unwrap(), MigrateError::Cancelled(_)));
    });
    assert_eq!((monitor.phase(), vm.runs()), (Phase::Cancelled, false));
}

/// Runs a destination against a source that sends `frames` after the greeting.
fn against_source(hello: &[u8], messages: impl FnOnce(&TestVm) -> Vec<(Message, Vec<u8>)>) -> (MigrateError, TestVm) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::bind(&Uri::Unix(path.clone()), None).unwrap();
    let (vm, monitor) = (TestVm::empty(), Monitor::new());
    let error = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&vm, listener, &monitor).unwrap_err());
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(hello).unwrap();
        let mut encoder = FrameEncoder::new();
        for (message, payload) in messages(&vm) {
            let mut frame = Vec::new();
            encoder.encode(&message, payload.len() as u32, &mut frame);
            frame.extend(payload);
            // A destination that has given up does not listen.
            let _ = stream.write_all(&frame);
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        assert!(answers.len() >= REPLY_BYTES);
        receiving.join().unwrap()
    });
    assert!(!vm.runs());
    (error, vm)
}

fn hello() -> [u8; HELLO_BYTES] {
    let session = Session::random().unwrap();
    Hello { versions: VersionRange::OURS, role: Role::Main, session, sent_at: HostTime::now() }.encode()
}

fn offer(vm: &TestVm) -> Message {
    Message::Offer(Box::new(Offer {
        description: vm.describe(),
        features: Features::NONE,
        page_channels: 0,
        digest: DigestMode::Full,
        counter: CounterPolicy::RunsOn,
        salt: 1,
        clock: ClockOffset::SAME,
        cpu: Vec::new(),
    }))
}

#[test]
fn a_source_that_sends_out_of_order_or_not_what_it_says_is_refused() {
    let pass = |pages| Message::PassEnd(PassEnd { pass: 0, slots: [SlotPass { pages, digest: 0 }; SlotId::COUNT] });
    let stopped = Message::Stopped { at: HostTime::now(), counter: 0 };
    let scripts: [&[Message]; 5] = [
        &[Message::Commit],
        &[pass(3)],
        &[Message::Digest(Some([0; 2]))],
        &[stopped.clone(), Message::Digest(None)],
        &[pass(0), stopped, Message::Digest(Some([1, 2]))],
    ];
    for script in scripts {
        let (error, _) = against_source(&hello(), |vm| {
            let messages = std::iter::once(offer(vm)).chain(script.iter().cloned());
            messages.map(|message| (message, Vec::new())).collect()
        });
        assert!(!error.is_lost(), "{script:?}: {error}");
    }
}

#[test]
fn a_source_that_leaves_in_the_middle_leaves_no_guest() {
    let (error, _) = against_source(&hello(), |vm| vec![(offer(vm), Vec::new())]);
    assert!(error.is_lost(), "{error}");
}

#[test]
fn garbage_before_the_source_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let uri = Uri::Unix(directory.path().join("socket"));
    let listener = Listener::bind(&uri, None).unwrap();
    let Uri::Unix(path) = &uri else { panic!() };
    let mut garbage = UnixStream::connect(path).unwrap();
    garbage.write_all(&[0x55; 200]).unwrap();
    let mut old = UnixStream::connect(path).unwrap();
    let session = Session::random().unwrap();
    let versions = VersionRange::new(7, 9).unwrap();
    let hello = Hello { versions, role: Role::Main, session, sent_at: HostTime::now() };
    old.write_all(&hello.encode()).unwrap();
    let mut stray = UnixStream::connect(path).unwrap();
    let hello = Hello { versions: VersionRange::OURS, role: Role::Query, session, sent_at: HostTime::now() };
    stray.write_all(&hello.encode()).unwrap();
    let (from, to) = (TestVm::with_guest(), TestVm::empty());
    let (source, destination) = (Monitor::new(), Monitor::new());
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&to, listener, &destination));
        let mut reply = [0; REPLY_BYTES];
        old.read_exact(&mut reply).unwrap();
        assert!(
            matches!(Reply::decode(&reply).unwrap(), Reply::Refusal(refusal) if refusal.to_string().contains("version"))
        );
        stray.read_exact(&mut reply).unwrap();
        assert!(matches!(Reply::decode(&reply).unwrap(), Reply::Refusal(_)));
        send(&from, &uri, &source).unwrap();
        receiving.join().unwrap().unwrap();
    });
    assert!(to.runs() && to.bytes() == from.bytes());
}

#[test]
fn another_machine_is_refused_on_both_sides_in_the_same_words() {
    for (to, word) in [
        (TestVm::empty().with_seed(2), "seed"),
        (TestVm::empty().with_ram_pages(PAGES / 2), "RAM"),
        (TestVm::empty().with_vcpus(2), "vCPUs"),
        (TestVm::empty().with_tables(Tables::Lpae), "architecture"),
        (TestVm::empty().with_tables(Tables::V8(VaBits::ALL[0])), "VA bits"),
        (TestVm::empty().on(Accelerator::Kvm).with_cpu(vec![(7, 1)]), "CPU: 1 constants, not 0"),
    ] {
        let from = TestVm::with_guest();
        let outcome = migrate(&from, &to, &Monitor::new(), &Monitor::new());
        let (sent, received) = (outcome.source.unwrap_err(), outcome.destination.unwrap_err());
        assert_eq!(sent.to_string(), received.to_string());
        assert!(sent.to_string().contains(word), "{word}: {sent}");
        assert!(!sent.to_string().contains('\n'), "{sent}");
        assert!(from.runs() && !to.runs());
        from.assert_healthy();
    }
}
