//! A whole conversation over sockets, with clients that misbehave; replies were compared with those of QEMU 7.2.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::session::{Session, Step};
use super::types::{RunState, TimeUnit};
use super::*;

struct Echo(Events);

impl Handler for Echo {
    fn execute(&self, command: Command) -> Result<Value, CommandError> {
        match command {
            Command::Stop => {
                self.0.emit("STOP", None);
                Ok(json!({}))
            }
            Command::QueryStatus => Ok(json!({ "running": false, "status": "paused" })),
            Command::QueryMigrate => Ok(json!({})),
            _ => Err(CommandError::generic("not here")),
        }
    }
}

fn server() -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let events = Events::default();
    let address = Address::Unix(directory.path().join("qmp"));
    let server = Server::start(&address, Arc::new(Echo(events.clone())), events).unwrap();
    (directory, server)
}

fn answer(session: &mut Session, text: &str) -> Value {
    match session.receive(text.as_bytes()) {
        Step::Reply(value) => value,
        Step::Execute(command, _) => panic!("{command:?}"),
    }
}

fn command(text: &str) -> Result<Command, String> {
    let mut session = Session::default();
    answer(&mut session, r#"{"execute":"qmp_capabilities"}"#);
    match session.receive(text.as_bytes()) {
        Step::Execute(command, _) => Ok(command),
        Step::Reply(value) => Err(value["error"]["desc"].as_str().unwrap_or("no error").to_owned()),
    }
}

#[test]
fn nothing_is_done_before_negotiation() {
    let mut session = Session::default();
    let refused = answer(&mut session, r#"{"execute":"quit","id":{"a":[1]}}"#);
    assert_eq!(
        refused,
        json!({ "id": { "a": [1] }, "error": { "class": "CommandNotFound",
            "desc": "Expecting capabilities negotiation with 'qmp_capabilities'" } })
    );
    let oob = answer(&mut session, r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#);
    assert_eq!(oob["error"]["desc"], "Capability oob is not available");
    assert!(!session.is_ready());
    assert_eq!(answer(&mut session, r#"{"execute":"qmp_capabilities","id":1}"#), json!({ "return": {}, "id": 1 }));
    let again = answer(&mut session, r#"{"execute":"qmp_capabilities"}"#);
    assert_eq!(again["error"]["desc"], "Capabilities negotiation is already complete, command ignored");
}

#[test]
fn errors_are_in_qemus_words() {
    for (request, desc) in [
        (r#"{"execute":"nonsense"}"#, "The command nonsense has not been found"),
        (r#"{"execute":"query-status","arguments":{"foo":1}}"#, "Parameter 'foo' is unexpected"),
        (r#"{"execute":"query-status","arguments":[]}"#, "QMP input member 'arguments' must be an object"),
        (r#"{"execute":"query-status","extra":1}"#, "QMP input member 'extra' is unexpected"),
        (r#"{"arguments":{}}"#, "QMP input lacks member 'execute'"),
        (r#"{"execute":5}"#, "QMP input member 'execute' must be a string"),
        ("[1]", "QMP input must be a JSON object"),
        (r#"{"execute":"migrate"}"#, "Parameter 'uri' is missing"),
        (r#"{"execute":"migrate","arguments":{"uri":5}}"#, "Invalid parameter type for 'uri', expected: string"),
        (r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":100}}"#, "calc-time is out of range[1, 60]."),
        (
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"events"}]}}"#,
            "Parameter 'state' is missing",
        ),
    ] {
        assert_eq!(command(request).unwrap_err(), desc, "{request}");
    }
    assert!(command("nonsense\n").unwrap_err().starts_with("JSON parse error, "));
    assert!(command(r#"{"execute":"migrate","arguments":{"channels":[]}}"#).unwrap_err().contains("'channels'"));
}

#[test]
fn arguments_become_commands() {
    let uri = "tcp:127.0.0.1:4321".to_owned();
    for text in [
        r#"{"execute":"migrate","arguments":{"uri":"tcp:127.0.0.1:4321"}}"#,
        r#"{"execute":"migrate","arguments":{"uri":"tcp:127.0.0.1:4321","detach":true,"resume":false}}"#,
    ] {
        assert_eq!(command(text), Ok(Command::Migrate { uri: uri.clone() }));
    }
    assert_eq!(
        command(r#"{"execute":"migrate-incoming","arguments":{"uri":"tcp:127.0.0.1:4321"}}"#),
        Ok(Command::MigrateIncoming { uri, exit_on_error: true })
    );
    assert_eq!(
        command(r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":200,"calc-time-unit":"millisecond"}}"#),
        Ok(Command::CalcDirtyRate { time: 200, unit: TimeUnit::Millisecond })
    );
}

#[test]
fn every_command_listed_is_known() {
    for name in command::COMMANDS {
        let text = json!({ "execute": name }).to_string();
        let known = command(&text).err().is_none_or(|desc| !desc.contains("has not been found"));
        assert!(known, "{name}");
    }
}

#[test]
fn several_clients_see_an_event_and_each_its_own_replies() {
    let (_directory, server) = server();
    let mut one = Client::connect(server.address()).unwrap();
    let mut two = Client::connect(server.address()).unwrap();
    assert_eq!(one.status().unwrap().status, RunState::Paused);
    two.execute("stop", json!({})).unwrap();
    for client in [&mut one, &mut two] {
        let event = client.wait_event(Duration::from_secs(10)).unwrap().unwrap();
        assert_eq!(event.event, "STOP");
        assert!(event.timestamp.seconds > 1_700_000_000);
    }
    let refused = one.execute("cont", json!({})).unwrap_err();
    assert!(matches!(refused, ClientError::Refused { ref class, .. } if class == "GenericError"), "{refused}");
    assert!(one.wait_event(Duration::from_millis(1)).unwrap().is_none());
    drop(server);
    assert!(matches!(one.status(), Err(ClientError::Closed { .. })));
}

#[test]
fn hostile_clients_harm_nobody() {
    let (directory, server) = server();
    let mut good = Client::connect(server.address()).unwrap();
    let connect = || UnixStream::connect(directory.path().join("qmp")).unwrap();
    // More silent ones than there is room for.
    let silent: Vec<UnixStream> = (0..server::MAX_CLIENTS + 8).map(|_| connect()).collect();
    let mut endless = connect();
    // The server hangs up in the middle of it.
    let _ = endless.write_all(&[b'{'; 1 << 20]);
    let mut vanishing = connect();
    let _ = vanishing.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-st");
    drop(vanishing);
    let mut garbage = connect();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n\xff\xfe\n").unwrap();
    garbage.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    garbage.read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("JSON parse error").count(), 2, "{said}");
    assert_eq!(good.status().unwrap().status, RunState::Paused);
    assert!(Client::connect(server.address()).is_ok());
    drop(silent);
}

#[test]
fn a_reply_too_long_to_be_one_is_refused() {
    let mut framer = framing::Framer::new(framing::MAX_REPLY_BYTES);
    let endless = [b'['; framing::MAX_DEPTH];
    assert_eq!(framer.next(&mut &endless[..]), Ok(None));
    let filler = vec![b' '; framing::MAX_REPLY_BYTES];
    assert_eq!(framer.next(&mut &filler[..]), Err(framing::FrameError::TooLong));
}

proptest! {
    #[test]
    fn any_bytes_are_answered_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let (mut session, mut framer) = (Session::default(), framing::Framer::new(256));
        answer(&mut session, r#"{"execute":"qmp_capabilities"}"#);
        let mut input = &bytes[..];
        while let Ok(Some(frame)) = framer.next(&mut input) {
            session.receive(&frame);
        }
    }

    #[test]
    fn any_arguments_are_judged_without_a_panic(
        name in prop::sample::select(&command::COMMANDS[..]),
        keys in prop::collection::vec("uri|channels|calc-time|capabilities|downtime-limit|x-digest|[a-z]{0,3}", 0..4),
        value in prop_oneof![Just(json!(null)), any::<i64>().prop_map(|n| json!(n)), ".*".prop_map(|s| json!(s)),
            Just(json!([{ "capability": "multifd", "state": true }])), any::<f64>().prop_map(|n| json!(n))],
    ) {
        let arguments: serde_json::Map<_, _> = keys.into_iter().map(|key| (key, value.clone())).collect();
        let request = json!({ "execute": name, "arguments": arguments });
        let _ = command(&request.to_string());
    }
}
