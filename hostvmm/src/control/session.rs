//! One client's conversation with a server, without I/O: [`Session`] turns each JSON text into a [`Step`].

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::command::{self, Command, CommandError, Decoded, ErrorClass};

/// Least version of QEMU whose commands and reply fields are spoken here. Clients ask for features by it.
const QEMU_VERSION: (u32, u32, u32) = (9, 1, 0);

/// What `query-version` and the greeting say.
pub fn version() -> Value {
    let (major, minor, micro) = QEMU_VERSION;
    json!({
        "qemu": { "major": major, "minor": minor, "micro": micro },
        "package": format!("tidemark {}", env!("CARGO_PKG_VERSION")),
    })
}

/// What a server says first.
pub fn greeting() -> Value {
    json!({ "QMP": { "version": version(), "capabilities": [] } })
}

/// An event as it goes to every client.
pub fn event(name: &str, data: Option<Value>, at: SystemTime) -> Value {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut event = json!({
        "timestamp": { "seconds": since.as_secs(), "microseconds": since.subsec_micros() },
        "event": name,
    });
    if let Some(data) = data {
        event["data"] = data;
    }
    event
}

/// The reply to the command with this `id`.
pub fn reply(id: Option<Value>, result: Result<Value, CommandError>) -> Value {
    let mut reply = match result {
        Ok(value) => json!({ "return": value }),
        Err(error) => json!({ "error": { "class": error.class.name(), "desc": error.desc } }),
    };
    if let Some(id) = id {
        reply["id"] = id;
    }
    reply
}

/// What is to be done about a message.
#[derive(Debug)]
pub enum Step {
    /// Send this.
    Reply(Value),
    /// Do this, then send [`reply`] with this id.
    Execute(Command, Option<Value>),
}

/// One client.
#[derive(Debug, Default)]
pub struct Session {
    ready: bool,
}

impl Session {
    /// Whether capabilities have been negotiated: only then events are sent.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// What to do about the JSON text `frame`.
    pub fn receive(&mut self, frame: &[u8]) -> Step {
        let mut id = None;
        match self.request(frame, &mut id) {
            Ok(Decoded::Command(command)) => Step::Execute(command, id),
            Ok(Decoded::Answer(value)) => Step::Reply(reply(id, Ok(value))),
            Err(error) => Step::Reply(reply(id, Err(error))),
        }
    }

    fn request(&mut self, frame: &[u8], id: &mut Option<Value>) -> Result<Decoded, CommandError> {
        let value: Value = serde_json::from_slice(frame)
            .map_err(|error| CommandError::generic(format!("JSON parse error, {error}")))?;
        let Value::Object(mut request) = value else {
            return Err(CommandError::generic("QMP input must be a JSON object"));
        };
        *id = request.remove("id");
        let (name, arguments) = Self::parts(request)?;
        match (name.as_str(), self.ready) {
            ("qmp_capabilities", false) => {
                command::negotiate(arguments)?;
                self.ready = true;
                Ok(Decoded::Answer(json!({})))
            }
            ("qmp_capabilities", true) => Err(CommandError {
                class: ErrorClass::CommandNotFound,
                desc: "Capabilities negotiation is already complete, command ignored".to_owned(),
            }),
            (_, false) => Err(CommandError {
                class: ErrorClass::CommandNotFound,
                desc: "Expecting capabilities negotiation with 'qmp_capabilities'".to_owned(),
            }),
            (name, true) => command::decode(name, arguments),
        }
    }

    /// The command's name and arguments.
    fn parts(mut request: Map<String, Value>) -> Result<(String, Map<String, Value>), CommandError> {
        let execute = request.remove("execute");
        let arguments = request.remove("arguments");
        if request.contains_key("exec-oob") {
            return Err(CommandError::generic("QMP input member 'exec-oob' is unexpected: out-of-band is not offered"));
        }
        if let Some(member) = request.keys().next() {
            return Err(CommandError::generic(format!("QMP input member '{}' is unexpected", printable(member))));
        }
        let arguments = match arguments {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(CommandError::generic("QMP input member 'arguments' must be an object")),
        };
        match execute {
            Some(Value::String(name)) => Ok((name, arguments)),
            Some(_) => Err(CommandError::generic("QMP input member 'execute' must be a string")),
            None => Err(CommandError::generic("QMP input lacks member 'execute'")),
        }
    }
}

/// What a client wrote, short enough to be repeated to it.
pub(super) fn printable(text: &str) -> String {
    const MOST: usize = 64;
    let mut short: String = text.chars().take(MOST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
