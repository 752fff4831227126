//! From a stream of bytes to the JSON texts in it: [`Framer`].
//!
//! As in QEMU, messages need no separator: an object ends where its last brace closes, and may span lines. What is no
//! object ends with its line, as does a string that is never closed, so that garbage is answered and then forgotten.

/// Most bytes of one message to a server.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Most bytes of one message to a client; replies grow with the number of vCPUs and of gaps that a heartbeat keeps.
pub const MAX_REPLY_BYTES: usize = 4 << 20;
/// Most objects and arrays around a value.
pub const MAX_DEPTH: usize = 64;

/// A message that cannot be read; what follows it cannot be trusted to begin where it seems to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than the limit.
    #[error("JSON message size limit exceeded")]
    TooLong,
    /// More nested than [`MAX_DEPTH`].
    #[error("JSON nesting depth limit exceeded")]
    TooDeep,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Between,
    /// In an object or array, outside strings.
    Value,
    String,
    Escape,
    /// In something that is neither: up to the line's end.
    Line,
}

/// Cuts a stream into messages. Holds at most the limit's bytes.
#[derive(Debug)]
pub struct Framer {
    buffer: Vec<u8>,
    state: State,
    depth: usize,
    limit: usize,
}

impl Framer {
    /// A framer of messages up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), state: State::Between, depth: 0, limit }
    }

    /// Takes bytes from the front of `input` up to the end of the next message, and returns that.
    ///
    /// `Ok(None)` means that all of `input` was taken and the message is not complete.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is of no use any more.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Vec<u8>>, FrameError> {
        while let [byte, rest @ ..] = *input {
            *input = rest;
            let complete = self.take(*byte)?;
            if complete {
                self.state = State::Between;
                self.depth = 0;
                return Ok(Some(std::mem::take(&mut self.buffer)));
            }
        }
        Ok(None)
    }

    /// Takes a byte; returns whether it ends a message.
    fn take(&mut self, byte: u8) -> Result<bool, FrameError> {
        if self.state == State::Between {
            if byte.is_ascii_whitespace() {
                return Ok(false);
            }
            self.state = if matches!(byte, b'{' | b'[') { State::Value } else { State::Line };
        }
        if self.buffer.len() == self.limit {
            return Err(FrameError::TooLong);
        }
        self.buffer.push(byte);
        match (self.state, byte) {
            (State::Value, b'"') => self.state = State::String,
            (State::Value, b'{' | b'[') => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(FrameError::TooDeep);
                }
            }
            (State::Value, b'}' | b']') => {
                self.depth -= 1;
                return Ok(self.depth == 0);
            }
            (State::String, b'"') | (State::Escape, _) => {
                self.state = if self.state == State::String { State::Value } else { State::String };
            }
            (State::String, b'\\') => self.state = State::Escape,
            (State::String | State::Line, b'\n') => return Ok(true),
            _ => {}
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(mut input: &[u8], chunk: usize) -> Vec<String> {
        let mut framer = Framer::new(256);
        let mut found = Vec::new();
        while !input.is_empty() {
            let (mut part, rest) = input.split_at(chunk.min(input.len()));
            input = rest;
            while let Some(frame) = framer.next(&mut part).unwrap() {
                found.push(String::from_utf8(frame).unwrap());
            }
        }
        found
    }

    #[test]
    fn messages_are_found_however_the_bytes_arrive() {
        let input = b" {\"a\": \"}\\\"{\"}{}\r\n[1,\n[2]] junk junk\n{\"open\n{}";
        let expected = ["{\"a\": \"}\\\"{\"}", "{}", "[1,\n[2]]", "junk junk\n", "{\"open\n", "{}"];
        for chunk in 1..input.len() {
            assert_eq!(frames(input, chunk), expected, "{chunk}");
        }
    }

    #[test]
    fn length_and_nesting_are_bounded() {
        let mut framer = Framer::new(16);
        assert_eq!(framer.next(&mut &b"{\"a\": \"0123456789\"}"[..]), Err(FrameError::TooLong));
        let deep = [b'['; MAX_DEPTH + 1];
        assert_eq!(Framer::new(1024).next(&mut &deep[1..]), Ok(None));
        assert_eq!(Framer::new(1024).next(&mut &deep[..]), Err(FrameError::TooDeep));
    }

    proptest! {
        #[test]
        fn what_serde_writes_is_one_message(keys in prop::collection::vec(".*", 0..8)) {
            let value: serde_json::Value = keys.iter().map(|key| (key.clone(), serde_json::json!([key]))).collect();
            let text = serde_json::to_vec(&value).unwrap();
            let twice = [text.clone(), text.clone()].concat();
            let (mut framer, mut input) = (Framer::new(1 << 20), &twice[..]);
            for _ in 0..2 {
                prop_assert_eq!(framer.next(&mut input).unwrap(), Some(text.clone()));
            }
            prop_assert!(input.is_empty());
        }
    }
}
