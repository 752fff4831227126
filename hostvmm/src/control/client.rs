//! The client's side: [`Client`] executes commands, one at a time, and keeps the events that arrive in between.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::address::{Address, Stream};
use super::framing::{FrameError, Framer, MAX_REPLY_BYTES};
use super::types::{EventMessage, StatusInfo, TidemarkStatus};

/// How long a reply is waited for, unless [`Client::set_timeout`] says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Between two attempts to reach a server that is being started.
const RETRY: Duration = Duration::from_millis(5);
/// Events kept for [`Client::wait_event`]; the oldest are forgotten first.
const MAX_EVENTS: usize = 4096;

/// Why a command was not done, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot reach a VM at {address}: {source}; start one with `hostvmm run --qmp {address}`")]
    Connect {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to {address} broke: {source}")]
    Io {
        /// To where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The server has ended.
    #[error("the VM at {address} closed the connection")]
    Closed {
        /// Where.
        address: Address,
    },
    /// No word within the time allowed.
    #[error("the VM at {address} has not answered for {} ms", waited.as_millis())]
    TimedOut {
        /// Where.
        address: Address,
        /// For how long.
        waited: Duration,
    },
    /// What it says is no QMP.
    #[error("{address} does not speak QMP: {what}")]
    Protocol {
        /// Where.
        address: Address,
        /// What it said.
        what: String,
    },
    /// The command was refused.
    #[error("{desc}")]
    Refused {
        /// GenericError or CommandNotFound.
        class: String,
        /// Why.
        desc: String,
    },
}

/// A connection to a VM.
#[derive(Debug)]
pub struct Client {
    address: Address,
    stream: Stream,
    framer: Framer,
    /// Bytes that have arrived and were not looked at.
    unread: Vec<u8>,
    events: VecDeque<EventMessage>,
    next_id: u64,
    timeout: Duration,
}

impl Client {
    /// Connects to the VM at `address` and negotiates.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(address: &Address) -> Result<Self, ClientError> {
        let stream =
            Stream::connect(address).map_err(|source| ClientError::Connect { address: address.clone(), source })?;
        Self::over(stream, address)
    }

    /// Negotiates over a connection to a VM that calls itself `address`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn over(stream: Stream, address: &Address) -> Result<Self, ClientError> {
        let mut client = Self {
            address: address.clone(),
            stream,
            framer: Framer::new(MAX_REPLY_BYTES),
            unread: Vec::new(),
            events: VecDeque::new(),
            next_id: 0,
            timeout: TIMEOUT,
        };
        let greeting = client.message(Instant::now() + TIMEOUT)?.ok_or_else(|| client.timed_out(TIMEOUT))?;
        if greeting.pointer("/QMP/version/qemu").is_none() {
            return Err(client.protocol(&greeting.to_string()));
        }
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// [`Self::connect`] to a VM that may still be starting: tries again for up to `patience`, as long as `is_alive`.
    ///
    /// # Errors
    /// [`ClientError`] of the last attempt.
    pub fn connect_to_starting(
        address: &Address,
        patience: Duration,
        mut is_alive: impl FnMut() -> bool,
    ) -> Result<Self, ClientError> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::connect(address) {
                Err(ClientError::Connect { .. }) if Instant::now() < deadline && is_alive() => {
                    std::thread::sleep(RETRY);
                }
                result => return result,
            }
        }
    }

    /// Waits so long for each reply.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Executes `command` and returns what it returned.
    ///
    /// # Errors
    /// [`ClientError::Refused`] in the server's words, else what is wrong with the connection.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, ClientError> {
        let id = json!(self.next_id);
        self.next_id += 1;
        let mut request = json!({ "execute": command, "id": id });
        if arguments.as_object().is_some_and(|arguments| !arguments.is_empty()) {
            request["arguments"] = arguments;
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(b'\n');
        self.stream.write_all(&bytes).map_err(|source| self.broken(source))?;
        let timeout = self.timeout;
        let deadline = Instant::now() + timeout;
        loop {
            let Some(mut message) = self.message(deadline)? else { return Err(self.timed_out(timeout)) };
            if message.get("event").is_some() {
                self.keep(message)?;
                continue;
            }
            if message.get("id").is_some_and(|of| *of != id) {
                // The answer to a command whose caller did not wait for it.
                continue;
            }
            if let Some(error) = message.get("error") {
                let text = |key| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                return Err(ClientError::Refused { class: text("class"), desc: text("desc") });
            }
            return match message.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(self.protocol(&message.to_string())),
            };
        }
    }

    /// Executes `command` without arguments and reads its reply as `T`.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn query<T: DeserializeOwned>(&mut self, command: &str) -> Result<T, ClientError> {
        let value = self.execute(command, json!({}))?;
        serde_json::from_value(value).map_err(|error| self.protocol(&format!("{command}: {error}")))
    }

    /// `query-status`.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn status(&mut self) -> Result<StatusInfo, ClientError> {
        self.query("query-status")
    }

    /// `query-migrate`.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn migration(&mut self) -> Result<Value, ClientError> {
        self.execute("query-migrate", json!({}))
    }

    /// `x-tidemark-status`.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn tidemark(&mut self) -> Result<TidemarkStatus, ClientError> {
        self.query("x-tidemark-status")
    }

    /// `migrate`: returns as the migration begins.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn migrate(&mut self, uri: &str) -> Result<(), ClientError> {
        self.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Turns `capabilities` on or off.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn set_capabilities(&mut self, capabilities: &[(&str, bool)]) -> Result<(), ClientError> {
        let list: Vec<Value> = capabilities
            .iter()
            .map(|(capability, state)| json!({ "capability": capability, "state": state }))
            .collect();
        self.execute("migrate-set-capabilities", json!({ "capabilities": list })).map(drop)
    }

    /// The next event that was or will be received, or `None` after `timeout`.
    ///
    /// # Errors
    /// What is wrong with the connection; [`ClientError::Closed`] once all events have been fetched.
    pub fn wait_event(&mut self, timeout: Duration) -> Result<Option<EventMessage>, ClientError> {
        let deadline = Instant::now() + timeout;
        while self.events.is_empty() {
            let Some(message) = self.message(deadline)? else { return Ok(None) };
            if message.get("event").is_some() {
                self.keep(message)?;
            }
        }
        Ok(self.events.pop_front())
    }

    fn keep(&mut self, message: Value) -> Result<(), ClientError> {
        let event = serde_json::from_value(message).map_err(|error| self.protocol(&error.to_string()))?;
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
        Ok(())
    }

    /// The next message, or `None` where there is none by `deadline`.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>, ClientError> {
        loop {
            let mut input = &self.unread[..];
            let frame = self.framer.next(&mut input);
            let taken = self.unread.len() - input.len();
            self.unread.drain(..taken);
            match frame {
                Ok(Some(frame)) => {
                    let text = |_| self.protocol(&String::from_utf8_lossy(&frame));
                    return serde_json::from_slice(&frame).map(Some).map_err(text);
                }
                Ok(None) => {}
                Err(error @ (FrameError::TooLong | FrameError::TooDeep)) => {
                    return Err(self.protocol(&error.to_string()));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left)).map_err(|source| self.broken(source))?;
            let mut bytes = [0; 16 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ClientError::Closed { address: self.address.clone() }),
                Ok(len) => self.unread.extend_from_slice(&bytes[..len]),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                    _ => return Err(self.broken(error)),
                },
            }
        }
    }

    fn broken(&self, source: io::Error) -> ClientError {
        let address = self.address.clone();
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed { address },
            _ => ClientError::Io { address, source },
        }
    }

    fn timed_out(&self, waited: Duration) -> ClientError {
        ClientError::TimedOut { address: self.address.clone(), waited }
    }

    fn protocol(&self, what: &str) -> ClientError {
        let what = what.trim().chars().take(200).collect();
        ClientError::Protocol { address: self.address.clone(), what }
    }
}
