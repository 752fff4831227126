//! The server's side: [`Server`] accepts clients and lets a [`Handler`] do what they ask; [`Events`] reach all of them.
//!
//! Each client has a thread that reads and executes and one that writes, with a bounded queue between them. A client that
//! does not read is dropped as its queue is full or a write has waited too long; one that vanishes takes nothing with it.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::Value;

use super::address::{Address, ControlListener, Stream};
use super::command::{Command, CommandError};
use super::framing::{Framer, MAX_REQUEST_BYTES};
use super::session::{Session, Step, event, greeting, reply};

/// Most clients at a time. One that has not negotiated yet makes room for the next.
pub const MAX_CLIENTS: usize = 16;
/// Messages that wait for a client to read them.
const QUEUE: usize = 1024;
/// How long a client may leave a message unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end waits for clients to take what they were sent.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Does what clients ask for.
pub trait Handler: Send + Sync {
    /// Does `command`; several clients may ask at once.
    ///
    /// # Errors
    /// [`CommandError`] as the client is to see it.
    fn execute(&self, command: Command) -> Result<Value, CommandError>;
}

/// The server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened at.
    #[error("--qmp {address}: {source}")]
    Listen {
        /// Which.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The host refused a thread or a pipe.
    #[error("cannot start the control socket {address}: {source}")]
    Start {
        /// Which.
        address: Address,
        /// Why.
        source: io::Error,
    },
}

struct Subscriber {
    id: u64,
    queue: SyncSender<Vec<u8>>,
    ready: Arc<AtomicBool>,
    stream: Stream,
}

#[derive(Default)]
struct Hub {
    subscribers: Mutex<Vec<Subscriber>>,
    left: Condvar,
}

/// Sends events to every client that has negotiated. Cheap to clone; without a server events go nowhere.
#[derive(Clone, Default)]
pub struct Events(Arc<Hub>);

impl Events {
    /// Sends the event `name`. A client that has left too much unread is dropped instead.
    pub fn emit(&self, name: &str, data: Option<Value>) {
        let message = encode(&event(name, data, SystemTime::now()));
        for subscriber in self.lock().iter().filter(|subscriber| subscriber.ready.load(Ordering::SeqCst)) {
            if subscriber.queue.try_send(message.clone()).is_err() {
                subscriber.stream.shutdown();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for one more; returns whether there is any.
    fn make_room(&self) -> bool {
        let subscribers = self.lock();
        if subscribers.len() < MAX_CLIENTS {
            return true;
        }
        // Its own thread removes it. There may be one too many until then.
        match subscribers.iter().find(|subscriber| !subscriber.ready.load(Ordering::SeqCst)) {
            Some(idle) => {
                idle.stream.shutdown();
                subscribers.len() < 2 * MAX_CLIENTS
            }
            None => false,
        }
    }

    fn remove(&self, id: u64) {
        self.lock().retain(|subscriber| subscriber.id != id);
    }

    /// Waits until every client has left.
    fn wait_empty(&self, timeout: Duration) {
        let subscribers = self.lock();
        // Whoever has not taken its last words by now is left behind.
        drop(self.0.left.wait_timeout_while(subscribers, timeout, |subscribers| !subscribers.is_empty()));
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("clients", &self.lock().len()).finish()
    }
}

/// A control socket with its clients. Dropping it sends what is queued and ends the connections.
#[derive(Debug)]
pub struct Server {
    address: Address,
    events: Events,
    closing: Arc<AtomicBool>,
    wake: UnixStream,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address` and lets `handler` do what clients ask; they see what `events` emits.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start(address: &Address, handler: Arc<dyn Handler>, events: Events) -> Result<Self, ServerError> {
        let listener = ControlListener::bind(address)
            .map_err(|source| ServerError::Listen { address: address.clone(), source })?;
        Self::serve(listener, handler, events)
    }

    /// [`Self::start`] with a socket that listens already.
    ///
    /// # Errors
    /// [`ServerError::Start`].
    pub fn serve(listener: ControlListener, handler: Arc<dyn Handler>, events: Events) -> Result<Self, ServerError> {
        let address = listener.address().clone();
        let failed = |source| ServerError::Start { address: address.clone(), source };
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let closing = Arc::new(AtomicBool::new(false));
        let accept = Accept { listener, woken, closing: Arc::clone(&closing), handler, events: events.clone() };
        let thread = std::thread::Builder::new().name("qmp".to_owned()).spawn(move || accept.run()).map_err(failed)?;
        Ok(Self { address, events, closing, wake, accepting: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        // A pipe that is full wakes as well.
        let _ = self.wake.write(&[0]);
        if let Some(thread) = self.accepting.take() {
            // It ends by itself, and a panic of it has been told.
            let _ = thread.join();
        }
        for subscriber in self.events.lock().iter() {
            subscriber.stream.shutdown_read();
        }
        self.events.wait_empty(CLOSE_TIMEOUT);
    }
}

struct Accept {
    listener: ControlListener,
    woken: UnixStream,
    closing: Arc<AtomicBool>,
    handler: Arc<dyn Handler>,
    events: Events,
}

impl Accept {
    fn run(self) {
        let ids = AtomicU64::new(0);
        while !self.closing.load(Ordering::SeqCst) {
            let mut waiting = [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.woken, PollFlags::IN)];
            if poll(&mut waiting, None).is_err() || !waiting[0].revents().contains(PollFlags::IN) {
                continue;
            }
            match self.listener.accept() {
                // Dropping the stream is the refusal: a client sees the end instead of a greeting.
                Ok(stream) if self.events.make_room() => self.welcome(stream, ids.fetch_add(1, Ordering::Relaxed)),
                Ok(_) => {}
                // A connection that was given up again, or no descriptor left: the others go on.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn welcome(&self, stream: Stream, id: u64) {
        // What the system refuses here is this one connection.
        let Ok(client) = Client::new(stream, id, self.events.clone()) else { return };
        let handler = Arc::clone(&self.handler);
        let spawned =
            std::thread::Builder::new().name("qmp-client".to_owned()).spawn(move || client.run(handler.as_ref()));
        if spawned.is_err() {
            self.events.remove(id);
        }
    }
}

/// A client as the server sees it.
struct Client {
    id: u64,
    stream: Stream,
    writer: Stream,
    ready: Arc<AtomicBool>,
    queue: SyncSender<Vec<u8>>,
    queued: Receiver<Vec<u8>>,
    events: Events,
}

impl Client {
    fn new(stream: Stream, id: u64, events: Events) -> io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let (queue, queued) = sync_channel(QUEUE);
        let ready = Arc::new(AtomicBool::new(false));
        let subscriber =
            Subscriber { id, queue: queue.clone(), ready: Arc::clone(&ready), stream: stream.try_clone()? };
        let client = Self { id, writer: stream.try_clone()?, stream, ready, queue, queued, events };
        client.events.lock().push(subscriber);
        Ok(client)
    }

    fn run(self, handler: &dyn Handler) {
        let Self { id, mut stream, writer, ready, queue, queued, events } = self;
        std::thread::scope(|scope| {
            scope.spawn(|| write(writer, queued));
            converse(&mut stream, handler, &ready, &queue);
            drop(queue);
            // Its queue ends here, and the writer with it, once everything is sent; but it counts until then.
            if let Some(subscriber) = events.lock().iter_mut().find(|subscriber| subscriber.id == id) {
                subscriber.queue = sync_channel(0).0;
            }
        });
        stream.shutdown();
        events.remove(id);
        events.0.left.notify_all();
    }
}

/// Reads and executes until the client leaves, or says what cannot be read.
fn converse(stream: &mut Stream, handler: &dyn Handler, ready: &AtomicBool, queue: &SyncSender<Vec<u8>>) {
    let (mut session, mut framer) = (Session::default(), Framer::new(MAX_REQUEST_BYTES));
    let send = |message: Value| queue.send(encode(&message)).is_ok();
    if !send(greeting()) {
        return;
    }
    let mut bytes = [0; 4096];
    loop {
        let mut input = match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(len) => &bytes[..len],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        loop {
            let answer = match framer.next(&mut input) {
                Ok(None) => break,
                Ok(Some(frame)) => match session.receive(&frame) {
                    Step::Reply(answer) => answer,
                    Step::Execute(command, id) => reply(id, handler.execute(command)),
                },
                Err(error) => {
                    send(reply(None, Err(CommandError::generic(error.to_string()))));
                    return;
                }
            };
            if !send(answer) {
                return;
            }
            ready.store(session.is_ready(), Ordering::SeqCst);
        }
    }
}

fn write(mut stream: Stream, queued: Receiver<Vec<u8>>) {
    for message in queued {
        if stream.write_all(&message).is_err() {
            // The reader must not go on for somebody who hears nothing.
            stream.shutdown();
            return;
        }
    }
}

/// A message as QEMU sends it.
fn encode(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.extend_from_slice(b"\r\n");
    bytes
}
