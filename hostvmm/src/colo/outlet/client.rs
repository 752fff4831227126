//! A side's way to an outlet elsewhere: [`OutletClient`]; and an outlet that is this process itself: [`OwnOutlet`].

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::address::OutletAddress;
use super::arbiter::Claimant;
use super::sink::{Accepted, Sink};
use super::wire::{Answer, MAX_DELIVERY_BYTES, Request, write};
use super::{Claim, Outlet, OutletError};
use crate::colo::Side;
use crate::colo::output::{Positions, Record};
use crate::migrate::transport::CancelToken;
use crate::migrate::transport::unix::connect;

/// An outlet reached by its socket, connected as needed. This is one claimant, on whatever connection.
#[derive(Debug)]
pub struct OutletClient {
    address: OutletAddress,
    claimant: Claimant,
    patience: Duration,
    /// Never cancelled: the deadline ends a call.
    cancel: CancelToken,
    stream: Option<UnixStream>,
}

impl OutletClient {
    /// Of the outlet at `address`, of which each answer is waited for no longer than `patience`. Connects to nothing yet.
    ///
    /// # Errors
    /// Where the host gives no random bytes, or no descriptor.
    pub fn new(address: OutletAddress, patience: Duration) -> io::Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let (claimant, cancel) = (Claimant(u128::from_le_bytes(bytes)), CancelToken::new()?);
        Ok(Self { address, claimant, patience, cancel, stream: None })
    }

    /// Asks, and once more on a new connection if the one from before is gone: every request may be repeated.
    fn ask(&mut self, request: &Request) -> Result<Positions, OutletError> {
        let frame = request.encode();
        let deadline = Instant::now() + self.patience;
        let was_connected = self.stream.is_some();
        let answer = match self.exchange(&frame, deadline) {
            Err(error) if was_connected && error.kind() != io::ErrorKind::WouldBlock => self.exchange(&frame, deadline),
            answer => answer,
        };
        answer.map_err(OutletError::Unreachable)?.into_result()
    }

    fn connect(&self, deadline: Instant) -> io::Result<UnixStream> {
        let stream = UnixStream::from(connect(self.address.path(), deadline, &self.cancel)?);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    fn exchange(&mut self, frame: &[u8], deadline: Instant) -> io::Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect(deadline)?,
        };
        // A timeout of zero would be none.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_write_timeout(Some(left))?;
        stream.set_read_timeout(Some(left))?;
        write(&mut stream, frame)?;
        let answer = Answer::read(&mut stream)?;
        // Only now: a late answer to this request must not be taken for that of the next one.
        self.stream = Some(stream);
        Ok(answer)
    }
}

impl Outlet for OutletClient {
    fn claim(&mut self, claim: Claim) -> Result<Positions, OutletError> {
        self.ask(&Request::Claim(self.claimant, claim))
    }

    fn deliver(&mut self, epoch: u64, records: &[Record]) -> Result<Positions, OutletError> {
        let mut rest = records;
        loop {
            let mut bytes = 0;
            let fits = |record: &&Record| {
                bytes += record.encoded_bytes();
                bytes <= MAX_DELIVERY_BYTES
            };
            // A record fits a delivery by itself, so there is no end to this only where there are none.
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count());
            let accepted = self.ask(&Request::Deliver { claimant: self.claimant, epoch, records: now.to_vec() })?;
            if later.is_empty() {
                return Ok(accepted);
            }
            rest = later;
        }
    }
}

/// The outlet of a VM that has no other: its records go to a sink here, and nobody decides between two sides. Whoever uses it must not
/// go on alone unless an operator says so.
pub struct OwnOutlet {
    sink: Box<dyn Sink>,
    owner: Option<(u64, Side)>,
    accepted: Positions,
}

impl OwnOutlet {
    /// Lets records go to `sink`.
    pub fn new(sink: Box<dyn Sink>) -> Self {
        Self { sink, owner: None, accepted: Positions::default() }
    }
}

impl Outlet for OwnOutlet {
    /// Always granted: there is nobody else to ask.
    fn claim(&mut self, claim: Claim) -> Result<Positions, OutletError> {
        self.owner = Some((claim.epoch, claim.side));
        Ok(self.accepted)
    }

    /// What came before the first record that it is given it knows nothing of, so no gap is one to it.
    fn deliver(&mut self, epoch: u64, records: &[Record]) -> Result<Positions, OutletError> {
        let (current, side) = self.owner.ok_or(OutletError::NotClaimed)?;
        if current != epoch {
            return Err(OutletError::Fenced { current });
        }
        let mut next = self.accepted;
        let mut accepted = Vec::new();
        for record in records {
            if !next.has(record) {
                next.set(record.stream, record.sequence.saturating_add(1));
                accepted.push(Accepted { epoch, side, record: record.clone() });
            }
        }
        if !accepted.is_empty() {
            self.sink.take(accepted).map_err(OutletError::Unreachable)?;
        }
        self.accepted = next;
        Ok(self.accepted)
    }
}
