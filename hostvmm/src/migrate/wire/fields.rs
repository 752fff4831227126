//! Fields of a message, one after another: written by [`Writer`], read by [`Reader`], which takes nothing on trust.

use std::fmt;

use super::MAX_TEXT_BYTES;
use super::error::WireError;

/// Text for people, safe to print: UTF-8 of bounded length without control characters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Text(String);

impl Text {
    /// `text`, with control characters replaced by spaces, cut after at most [`MAX_TEXT_BYTES`].
    pub fn new(text: impl fmt::Display) -> Self {
        Self::bounded(text, MAX_TEXT_BYTES)
    }

    /// `text`, cut after at most `limit_bytes`, at the end of a character.
    pub(super) fn bounded(text: impl fmt::Display, limit_bytes: usize) -> Self {
        let mut kept = String::new();
        for c in text.to_string().chars() {
            if kept.len() + c.len_utf8() > limit_bytes {
                break;
            }
            kept.push(if c.is_control() { ' ' } else { c });
        }
        Self(kept)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Text from outside; `None` unless it is what [`Self::bounded`] makes.
    pub(super) fn from_bytes(bytes: &[u8], limit_bytes: usize) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let harmless = text.len() <= limit_bytes && !text.chars().any(char::is_control);
        harmless.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Appends fields to a buffer.
pub(super) struct Writer<'a>(pub(super) &'a mut Vec<u8>);

impl Writer<'_> {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn zeroes(&mut self, count: usize) {
        self.0.resize(self.0.len() + count, 0);
    }

    /// A length in two bytes, then the text.
    pub(super) fn text(&mut self, text: &Text) {
        self.u16(u16::try_from(text.as_str().len()).expect("a text is bounded"));
        self.bytes(text.as_str().as_bytes());
    }

    /// A flag byte, then the two words, zero where there are none.
    pub(super) fn words(&mut self, words: Option<[u64; 2]>) {
        self.u64(u64::from(words.is_some()));
        words.unwrap_or_default().into_iter().for_each(|word| self.u64(word));
    }
}

/// Takes fields from the start of a part, which is called `what` in errors.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(WireError::Short { what: self.what })?;
        self.rest = rest;
        Ok(*array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(WireError::Short { what: self.what })?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Bytes that are reserved.
    pub(super) fn zeroes(&mut self, count: usize) -> Result<(), WireError> {
        if self.bytes(count)?.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            Err(WireError::Reserved { what: self.what })
        }
    }

    pub(super) fn text(&mut self) -> Result<Text, WireError> {
        let len_bytes = self.u16()?;
        Text::from_bytes(self.bytes(len_bytes.into())?, MAX_TEXT_BYTES).ok_or(WireError::Text { what: self.what })
    }

    pub(super) fn words(&mut self) -> Result<Option<[u64; 2]>, WireError> {
        let flag = self.u64()?;
        let words = [self.u64()?, self.u64()?];
        match (flag, words) {
            (1, words) => Ok(Some(words)),
            (0, [0, 0]) => Ok(None),
            (0, _) => Err(WireError::Reserved { what: self.what }),
            (flag, _) => Err(self.refused("flag", flag)),
        }
    }

    /// The error for `field`, whose `value` cannot be.
    pub(super) fn refused(&self, field: &'static str, value: u64) -> WireError {
        WireError::Value { what: self.what, field, value }
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            excess_bytes => Err(WireError::Trailing { what: self.what, excess_bytes }),
        }
    }
}
