//! A hostile client of the control socket: bytes are cut into messages, judged in a conversation, and the arguments of what passes are
//! read as an instance reads them. Nothing panics, a message is the same however its bytes arrive, and each gets one reply of
//! bounded size that repeats its id.
//!
//! Input: one byte (1: capabilities have been negotiated; the rest is how many bytes come at a time), then the stream.
#![no_main]

use hostvmm::control::framing::{Framer, MAX_REQUEST_BYTES};
use hostvmm::control::session::{Session, Step, reply};
use hostvmm::control::types::TimeUnit;
use hostvmm::control::{Command, CommandError};
use hostvmm::migrate::transport::Uri;
use hostvmm::migrate::{Capabilities, Monitor};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// Most messages of an input.
const MOST: usize = 64;

/// The messages in `stream`, taken `chunk` bytes at a time, and whether the stream was refused.
fn frames(stream: &[u8], chunk: usize) -> (Vec<Vec<u8>>, bool) {
    let mut framer = Framer::new(MAX_REQUEST_BYTES);
    let mut frames = Vec::new();
    for mut piece in stream.chunks(chunk) {
        loop {
            match framer.next(&mut piece) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
            if frames.len() == MOST {
                return (frames, false);
            }
        }
    }
    (frames, false)
}

/// What an instance makes of the arguments.
fn execute(command: Command, monitor: &Monitor) -> Result<Value, CommandError> {
    let refused = |error: String| CommandError::generic(error);
    match command {
        Command::Migrate { uri } | Command::MigrateIncoming { uri, .. } => {
            let uri: Uri = uri.parse().map_err(|error| refused(format!("{error}")))?;
            assert_eq!(uri.to_string().parse::<Uri>().as_ref(), Ok(&uri), "an address reads back as the same");
        }
        Command::MigrateSetParameters(values) => {
            let before = monitor.parameters();
            let set = monitor.set_parameters(values.iter().map(|(name, value)| (name.as_str(), value)));
            if let Err(error) = set {
                assert_eq!(monitor.parameters(), before, "all are set, or none");
                return Err(refused(error.to_string()));
            }
            let parameters = monitor.parameters();
            assert!((1..=16).contains(&parameters.multifd_channels));
            assert!(parameters.xbzrle_cache_size.is_power_of_two() && parameters.downtime_limit <= 2_000_000);
        }
        Command::MigrateSetCapabilities(states) => {
            let before = monitor.capabilities();
            let named = states.iter().map(|status| (status.capability.as_str(), status.state));
            if let Err(error) = monitor.set_capabilities(named) {
                assert_eq!(monitor.capabilities(), before, "all are set, or none");
                return Err(refused(error.to_string()));
            }
            assert_eq!(monitor.capabilities().list().len(), Capabilities::default().list().len());
        }
        Command::CalcDirtyRate { time, unit } => {
            let most = if unit == TimeUnit::Second { 60 } else { 60_000 };
            assert!((1..=most).contains(&time));
        }
        _ => {}
    }
    Ok(json!({}))
}

fuzz_target!(|data: &[u8]| {
    let [how, stream @ ..] = data else { return };
    let (found, refused) = frames(stream, usize::from(how >> 1) + 1);
    let at_once = frames(stream, stream.len().max(1));
    assert_eq!((&found, refused), (&at_once.0, at_once.1), "messages depend on how they arrive");
    let mut session = Session::default();
    if how & 1 != 0 {
        assert!(matches!(session.receive(br#"{"execute":"qmp_capabilities"}"#), Step::Reply(_)));
        assert!(session.is_ready());
    }
    let monitor = Monitor::new();
    for frame in found {
        let was_ready = session.is_ready();
        let answer = match session.receive(&frame) {
            Step::Reply(answer) => answer,
            Step::Execute(command, id) => {
                assert!(was_ready, "{command:?} before the negotiation");
                reply(id, execute(command, &monitor))
            }
        };
        assert!(answer.get("return").is_some() != answer.get("error").is_some(), "one of both: {answer}");
        let asked = serde_json::from_slice::<Value>(&frame).ok();
        let id = asked.as_ref().and_then(|asked| asked.as_object()).and_then(|asked| asked.get("id"));
        assert_eq!(answer.get("id"), id, "the reply repeats the id");
        let text = answer.to_string();
        assert!(
            !text.contains('\n') && text.len() <= 8 * frame.len() + 4096,
            "a line of bounded length: {}",
            text.len()
        );
    }
});
