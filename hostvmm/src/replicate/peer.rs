//! Both ends of a replication stream: [`Sender`] writes frames, [`receive`] makes a file of them.

use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use abi::Gpa;
use workload::PAGE_BYTES;

use super::client::ReplicateError;
use super::endpoint::{Endpoint, Listener, Stream};
use super::wire::{
    FrameHeader, HEADER_BYTES, HELLO_BYTES, Hello, MAX_PAYLOAD_BYTES, Tag, VERDICT_BYTES, Verdict, WireError,
};
use crate::pass::{CopyTarget, Threads, region_digest, sum_r};
use crate::replicate::SumR;

/// The sending end.
pub(super) struct Sender {
    stream: BufWriter<Stream>,
    passes: u64,
}

impl Sender {
    pub(super) fn connect(
        endpoint: &Endpoint,
        region_bytes: u64,
        page_bytes: u32,
        timeout: Duration,
    ) -> Result<Self, ReplicateError> {
        let stream =
            Stream::connect(endpoint, timeout).map_err(|source| ReplicateError::Peer { what: "connect to", source })?;
        let mut sender = Self { stream: BufWriter::with_capacity(128 << 10, stream), passes: 0 };
        sender.write(&Hello { page_bytes, region_bytes }.encode())?;
        Ok(sender)
    }

    pub(super) fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ReplicateError> {
        for (piece, at) in bytes.chunks(MAX_PAYLOAD_BYTES as usize).zip((offset..).step_by(MAX_PAYLOAD_BYTES as usize))
        {
            self.frame(Tag::Data, at, piece.len() as u32, piece)?;
        }
        Ok(())
    }

    pub(super) fn zero(&mut self, offset: u64, len_bytes: u64) -> Result<(), ReplicateError> {
        const MOST: u64 = 1 << 30;
        for at in (offset..offset + len_bytes).step_by(MOST as usize) {
            let len = MOST.min(offset + len_bytes - at);
            self.frame(Tag::Zero, at, len as u32, &[])?;
        }
        Ok(())
    }

    pub(super) fn pass_end(&mut self) -> Result<(), ReplicateError> {
        self.frame(Tag::PassEnd, self.passes, 0, &[])?;
        self.passes += 1;
        self.flush()
    }

    /// Sends our verdict and waits for the peer's.
    pub(super) fn finish(mut self, verdict: Verdict) -> Result<Verdict, ReplicateError> {
        self.frame(Tag::End, 0, VERDICT_BYTES as u32, &verdict.encode())?;
        self.flush()?;
        let mut header = [0; HEADER_BYTES];
        read(self.stream.get_mut(), &mut header)?;
        let header = FrameHeader::decode(&header, 0)?;
        if header.tag != Tag::Result {
            return Err(WireError::Order { tag: header.tag }.into());
        }
        let mut payload = [0; VERDICT_BYTES];
        read(self.stream.get_mut(), &mut payload)?;
        header.verify(&payload)?;
        Ok(Verdict::decode(&payload)?)
    }

    fn frame(&mut self, tag: Tag, offset: u64, len_bytes: u32, payload: &[u8]) -> Result<(), ReplicateError> {
        self.write(&FrameHeader::new(tag, offset, len_bytes, payload).encode())?;
        self.write(payload)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ReplicateError> {
        self.stream.write_all(bytes).map_err(|source| ReplicateError::Peer { what: "send to", source })
    }

    fn flush(&mut self) -> Result<(), ReplicateError> {
        self.stream.flush().map_err(|source| ReplicateError::Peer { what: "send to", source })
    }
}

/// What a receiver is told.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// Where to wait for the sender.
    pub listen: Endpoint,
    /// The file to make.
    pub dest: std::path::PathBuf,
    /// Largest region taken; a peer that announces more is refused before anything is allocated.
    pub limit_bytes: u64,
    /// A peer that is silent for so long is gone.
    pub timeout: Duration,
}

/// What a receiver got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Size of the region.
    pub region_bytes: u64,
    /// Passes received, the full copy included.
    pub passes: u64,
    /// `sum -r` of the copy.
    pub sum_r_dest: SumR,
    /// Checksum of `sum -r` at the sender.
    pub sum_source: u16,
    /// Whether digest and checksum of both sides are the same.
    pub equal: bool,
}

/// A receiver that is bound and waits for its one sender.
#[derive(Debug)]
pub struct Receiver {
    listener: Listener,
    options: ReceiveOptions,
}

impl Receiver {
    /// Binds the address.
    ///
    /// # Errors
    /// [`ReplicateError::Peer`] where the address cannot be bound.
    pub fn bind(options: ReceiveOptions) -> Result<Self, ReplicateError> {
        let listener =
            Listener::bind(&options.listen).map_err(|source| ReplicateError::Peer { what: "listen for", source })?;
        Ok(Self { listener, options })
    }

    /// The address bound: of `tcp:0`, the port that the host chose.
    ///
    /// # Errors
    /// [`ReplicateError::Peer`].
    pub fn endpoint(&self) -> Result<Endpoint, ReplicateError> {
        self.listener.endpoint().map_err(|source| ReplicateError::Peer { what: "listen for", source })
    }

    /// Waits for the sender and receives until its end frame.
    ///
    /// # Errors
    /// [`ReplicateError`]; a copy cut off in the middle is an error too, and the file then holds what had come.
    pub fn receive(self) -> Result<Received, ReplicateError> {
        let mut stream = self
            .listener
            .accept(self.options.timeout)
            .map_err(|source| ReplicateError::Peer { what: "accept", source })?;
        receive(&mut stream, &self.options.dest, self.options.limit_bytes)
    }
}

fn receive(stream: &mut (impl Read + Write), dest: &Path, limit_bytes: u64) -> Result<Received, ReplicateError> {
    let mut reader = BufReader::with_capacity(128 << 10, stream);
    let mut hello = [0; HELLO_BYTES];
    read(&mut reader, &mut hello)?;
    let hello = Hello::decode(&hello, limit_bytes)?;
    let target = CopyTarget::file(dest, hello.region_bytes)?;
    let mut passes = 0;
    let mut payload = Vec::new();
    let theirs = loop {
        let mut header = [0; HEADER_BYTES];
        read(&mut reader, &mut header)?;
        let header = FrameHeader::decode(&header, hello.region_bytes)?;
        payload.resize(header.payload_bytes(), 0);
        read(&mut reader, &mut payload)?;
        header.verify(&payload)?;
        match header.tag {
            Tag::Data => target.write(header.offset, &payload),
            Tag::Zero => target.zero(header.offset..header.offset + u64::from(header.len_bytes)),
            Tag::PassEnd if header.offset == passes => passes += 1,
            // Before a whole pass has come there is nothing to prove.
            Tag::End if passes > 0 => {
                let bytes = payload.first_chunk().ok_or(WireError::Order { tag: Tag::End })?;
                break Verdict::decode(bytes)?;
            }
            tag => return Err(WireError::Order { tag }.into()),
        }
    };
    target.sync()?;
    let (ours, sum_r_dest) = verdict(&target)?;
    let answer = ours.encode();
    let header = FrameHeader::new(Tag::Result, 0, VERDICT_BYTES as u32, &answer).encode();
    let stream = reader.into_inner();
    stream
        .write_all(&[&header[..], &answer].concat())
        .and_then(|()| stream.flush())
        .map_err(|source| ReplicateError::Peer { what: "answer", source })?;
    Ok(Received { region_bytes: hello.region_bytes, passes, sum_r_dest, sum_source: theirs.sum, equal: ours == theirs })
}

/// Digest and checksum of a copy.
pub(super) fn verdict(target: &CopyTarget) -> Result<(Verdict, SumR), ReplicateError> {
    let digest = region_digest(target, Gpa::new(0), 0, Threads::of_host())?;
    let sum = sum_r(target)?;
    Ok((Verdict { digest, sum: sum.checksum() }, sum))
}

fn read(reader: &mut impl Read, bytes: &mut [u8]) -> Result<(), ReplicateError> {
    reader.read_exact(bytes).map_err(|source| ReplicateError::Peer { what: "receive from", source })
}

const _: () = assert!((MAX_PAYLOAD_BYTES as u64).is_multiple_of(PAGE_BYTES));

#[cfg(test)]
mod tests {
    use std::io;

    use proptest::prelude::*;

    use super::*;

    /// A stream that is read from bytes and swallows what is written.
    struct Canned(io::Cursor<Vec<u8>>);

    impl Read for Canned {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.0.read(bytes)
        }
    }

    impl Write for Canned {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn receive_bytes(bytes: Vec<u8>) -> Result<Received, ReplicateError> {
        let dir = tempfile::tempdir().unwrap();
        receive(&mut Canned(io::Cursor::new(bytes)), &dir.path().join("d"), 1 << 20)
    }

    fn hello() -> Vec<u8> {
        Hello { page_bytes: 4096, region_bytes: 8192 }.encode().to_vec()
    }

    fn frame(tag: Tag, offset: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = FrameHeader::new(tag, offset, payload.len() as u32, payload).encode().to_vec();
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn an_end_before_a_pass_and_passes_out_of_order_are_refused() {
        let end = frame(Tag::End, 0, &Verdict { digest: 0, sum: 0 }.encode());
        let order = |bytes| matches!(receive_bytes(bytes), Err(ReplicateError::Wire(WireError::Order { .. })));
        assert!(order([hello(), end.clone()].concat()));
        assert!(order([hello(), frame(Tag::PassEnd, 1, &[])].concat()));
        assert!(order([hello(), frame(Tag::Result, 0, &[0; VERDICT_BYTES])].concat()));
        let wrong = receive_bytes([hello(), frame(Tag::PassEnd, 0, &[]), end].concat()).unwrap();
        assert!(!wrong.equal, "a digest that is not the copy's is found");
    }

    #[test]
    fn a_stream_cut_off_is_an_error() {
        let bytes = [hello(), frame(Tag::Data, 4096, &[1; 4096])].concat();
        for len in [0, 5, 32, 40, 100, bytes.len()] {
            assert!(matches!(receive_bytes(bytes[..len].to_vec()), Err(ReplicateError::Peer { .. })), "{len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn hostile_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(receive_bytes([hello(), bytes].concat()).is_err());
        }
    }
}
