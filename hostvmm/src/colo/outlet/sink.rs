//! Where accepted records go: a [`Sink`]. [`JsonLines`] writes them, [`Kept`] keeps them for who looks at them in this process.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;

use crate::colo::Side;
use crate::colo::output::Record;

/// A record that the outside world has seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// The epoch in which it came.
    pub epoch: u64,
    /// The side that owned the outlet.
    pub side: Side,
    /// The record.
    pub record: Record,
}

impl Accepted {
    /// One JSON object without a line's end; the bytes in hexadecimal.
    pub fn to_json(&self) -> String {
        let Self { epoch, side, record } = self;
        let bytes: String = record.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let stream = record.stream.raw();
        json!({ "stream": stream, "sequence": record.sequence, "epoch": epoch, "side": side.to_string(), "bytes": bytes })
            .to_string()
    }
}

/// Takes what an outlet accepts.
pub trait Sink: Send {
    /// Takes all of `accepted`, in order.
    ///
    /// # Errors
    /// Where it cannot: then it has taken none, as far as it can tell, and they come again.
    fn take(&mut self, accepted: Vec<Accepted>) -> io::Result<()>;
}

/// Writes a line of JSON a record.
#[derive(Debug)]
pub struct JsonLines<W>(W);

impl<W: Write> JsonLines<W> {
    /// To `to`, by one write for all records of a delivery.
    pub const fn new(to: W) -> Self {
        Self(to)
    }
}

impl<W: Write + Send> Sink for JsonLines<W> {
    fn take(&mut self, accepted: Vec<Accepted>) -> io::Result<()> {
        let lines: String = accepted.iter().flat_map(|accepted| [accepted.to_json(), "\n".to_owned()]).collect();
        self.0.write_all(lines.as_bytes())?;
        self.0.flush()
    }
}

/// Keeps records in memory, up to a bound. A clone is the same.
#[derive(Clone, Debug)]
pub struct Kept {
    records: Arc<Mutex<(Vec<Accepted>, usize)>>,
    max_bytes: usize,
}

impl Kept {
    /// Nothing yet; at most `max_bytes` of records, each counted with what it costs besides.
    pub fn new(max_bytes: usize) -> Self {
        Self { records: Arc::default(), max_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<Accepted>, usize)> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything accepted so far, in order.
    pub fn records(&self) -> Vec<Accepted> {
        self.lock().0.clone()
    }

    /// Gives `visit` everything accepted so far, without a copy.
    pub fn with<T>(&self, visit: impl FnOnce(&[Accepted]) -> T) -> T {
        visit(&self.lock().0)
    }
}

impl Sink for Kept {
    fn take(&mut self, accepted: Vec<Accepted>) -> io::Result<()> {
        let bytes: usize = accepted.iter().map(|accepted| size_of::<Accepted>() + accepted.record.bytes.len()).sum();
        let mut kept = self.lock();
        if kept.1 + bytes > self.max_bytes {
            return Err(io::Error::other("more output than is to be kept"));
        }
        kept.1 += bytes;
        kept.0.extend(accepted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::colo::output::StreamId;

    fn accepted(sequence: u64) -> Accepted {
        let record = Record { stream: StreamId::packets(2).unwrap(), sequence, bytes: vec![0, 0xff] };
        Accepted { epoch: 2, side: Side::Secondary, record }
    }

    #[test]
    fn a_record_is_a_line_of_json() {
        let mut lines = JsonLines::new(Vec::new());
        lines.take(vec![accepted(5), accepted(6)]).unwrap();
        let text = String::from_utf8(lines.0).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first, json!({ "stream": 3, "sequence": 5, "epoch": 2, "side": "secondary", "bytes": "00ff" }));
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn what_is_kept_is_bounded_and_refused_whole() {
        let mut kept = Kept::new(3 * (size_of::<Accepted>() + 2));
        kept.take(vec![accepted(0), accepted(1)]).unwrap();
        assert!(kept.take(vec![accepted(2), accepted(3)]).is_err());
        kept.take(vec![accepted(2)]).unwrap();
        assert_eq!(kept.with(<[_]>::len), 3);
        assert_eq!(kept.records()[2], accepted(2));
    }
}
