//! A workload as text (`dirtyram:pages=2048,step=16`) and as the boot block's words.

use core::fmt;

use abi::boot::WORKLOAD_PARAMS;

use crate::pattern::{Key, Pattern, Role};

/// A pattern with its parameters. Parameters not given have defaults that scale with the region (see [`crate::Plan`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    pattern: Pattern,
    values: [Option<u64>; WORKLOAD_PARAMS],
}

/// Why a text is no workload. Borrows the offending word from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadError<'a> {
    /// No pattern has this name.
    UnknownPattern(&'a str),
    /// The pattern has no such key.
    UnknownKey {
        /// The pattern.
        pattern: Pattern,
        /// The word.
        key: &'a str,
    },
    /// A key is given twice.
    DuplicateKey(&'a str),
    /// A word after the colon that is not `key=value`.
    NotAPair(&'a str),
    /// A value that is no decimal number, optionally with K or M after it.
    NotANumber {
        /// The key.
        key: &'a str,
        /// The word.
        value: &'a str,
    },
    /// A value outside the key's bounds.
    OutOfRange {
        /// The key.
        key: &'a str,
        /// The word.
        value: &'a str,
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
}

/// Why the boot block's words are no workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// No pattern has this number.
    Pattern(u32),
    /// A parameter is out of the key's bounds, or the pattern has none at this index.
    Parameter {
        /// Index into the words.
        index: usize,
        /// The word.
        word: u64,
    },
}

impl Workload {
    /// The workload of `pattern` with all defaults.
    pub const fn new(pattern: Pattern) -> Self {
        Self { pattern, values: [None; WORKLOAD_PARAMS] }
    }

    /// The workload that `text` names: a pattern, then optionally a colon and pairs `key=value` set apart by commas.
    ///
    /// Values are decimal; a suffix K or M means times 1024 or 1048576.
    ///
    /// # Errors
    /// The first word that is wrong, by [`WorkloadError`] variant.
    pub fn parse(text: &str) -> Result<Self, WorkloadError<'_>> {
        let (name, pairs) = match text.split_once(':') {
            Some((name, pairs)) => (name, Some(pairs)),
            None => (text, None),
        };
        let pattern = Pattern::from_name(name).ok_or(WorkloadError::UnknownPattern(name))?;
        let mut workload = Self::new(pattern);
        for pair in pairs.into_iter().flat_map(|pairs| pairs.split(',')) {
            let (key, value) = pair.split_once('=').ok_or(WorkloadError::NotAPair(pair))?;
            let index = pattern.keys().iter().position(|known| known.name == key);
            let index = index.ok_or(WorkloadError::UnknownKey { pattern, key })?;
            let (min, max) = pattern.keys()[index].bounds();
            let number = match parse_number(value) {
                Ok(number) if (min..=max).contains(&number) => number,
                Ok(_) | Err(NumberError::Overflow) => {
                    return Err(WorkloadError::OutOfRange { key, value, min, max });
                }
                Err(NumberError::Syntax) => return Err(WorkloadError::NotANumber { key, value }),
            };
            if workload.values[index].replace(number).is_some() {
                return Err(WorkloadError::DuplicateKey(key));
            }
        }
        Ok(workload)
    }

    /// The pattern.
    pub const fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// The value given for the key called `name`, if any.
    pub fn value(&self, name: &str) -> Option<u64> {
        let index = self.pattern.keys().iter().position(|key| key.name == name)?;
        self.values[index]
    }

    /// The value given for the key that plays `role`, if any, with the key.
    pub(crate) fn value_of(&self, role: Role) -> Option<(&'static Key, u64)> {
        let index = self.pattern.keys().iter().position(|key| key.role == role)?;
        self.values[index].map(|value| (&self.pattern.keys()[index], value))
    }

    /// The workload as the boot block carries it: the pattern's number, and for each key 0 where it has its default, else
    /// the value plus one (so that `sleep_ms=0` differs from a `sleep_ms` not given).
    pub fn encode(&self) -> (u32, [u64; WORKLOAD_PARAMS]) {
        (self.pattern.number(), self.values.map(|value| value.map_or(0, |value| value + 1)))
    }

    /// The workload in the boot block's words.
    ///
    /// # Errors
    /// [`DecodeError`] for an unknown pattern, a parameter out of bounds, or one that the pattern does not have.
    pub fn decode(pattern: u32, params: [u64; WORKLOAD_PARAMS]) -> Result<Self, DecodeError> {
        let mut workload = Self::new(Pattern::from_number(pattern).ok_or(DecodeError::Pattern(pattern))?);
        for (index, word) in params.into_iter().enumerate() {
            let Some(value) = word.checked_sub(1) else { continue };
            let key = workload.pattern.keys().get(index).ok_or(DecodeError::Parameter { index, word })?;
            let (min, max) = key.bounds();
            if !(min..=max).contains(&value) {
                return Err(DecodeError::Parameter { index, word });
            }
            workload.values[index] = Some(value);
        }
        Ok(workload)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pattern.name())?;
        let mut separator = ':';
        for (key, value) in self.pattern.keys().iter().zip(self.values) {
            if let Some(value) = value {
                write!(f, "{separator}{}={value}", key.name)?;
                separator = ',';
            }
        }
        Ok(())
    }
}

impl fmt::Display for WorkloadError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownPattern(name) => {
                write!(f, "unknown workload \"{name}\"; use one of")?;
                list(f, Pattern::ALL.iter().map(|pattern| pattern.name()))
            }
            Self::UnknownKey { pattern, key } => {
                write!(f, "workload {pattern} has no key \"{key}\"; it takes")?;
                list(f, pattern.keys().iter().map(|key| key.name))
            }
            Self::DuplicateKey(key) => write!(f, "workload key \"{key}\" is given twice"),
            Self::NotAPair(word) => write!(f, "\"{word}\" in the workload is no key=value"),
            Self::NotANumber { key, value } => {
                write!(f, "workload key {key}: \"{value}\" is no number (decimal, optionally with K or M after it)")
            }
            Self::OutOfRange { key, value, min, max } => {
                write!(f, "workload key {key}: {value} is not in {min} to {max}")
            }
        }
    }
}

impl core::error::Error for WorkloadError<'_> {}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Pattern(number) => write!(f, "no workload pattern has the number {number}"),
            Self::Parameter { index, word } => write!(f, "workload parameter {index} cannot be {word:#x}"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Writes words after a space, with commas between them.
pub(crate) fn list(f: &mut fmt::Formatter<'_>, words: impl Iterator<Item = &'static str>) -> fmt::Result {
    for (i, word) in words.enumerate() {
        write!(f, "{}{word}", if i == 0 { " " } else { ", " })?;
    }
    Ok(())
}

enum NumberError {
    Syntax,
    Overflow,
}

fn parse_number(text: &str) -> Result<u64, NumberError> {
    let (digits, shift) = match text.as_bytes() {
        [.., b'K' | b'k'] => (&text[..text.len() - 1], 10),
        [.., b'M' | b'm'] => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    // Not `str::parse` alone: it takes a leading plus sign.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NumberError::Syntax);
    }
    let number: u64 = digits.parse().map_err(|_| NumberError::Overflow)?;
    number.checked_mul(1 << shift).ok_or(NumberError::Overflow)
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn canonical_text_survives() {
        for text in ["dirtyram", "dirtyram:pages=409600,step=2048,sleep_ms=50", "hotcold:hot=0", "mixed:runs=14"] {
            assert_eq!(Workload::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Workload::parse("stream:step=2K,pages=1M").unwrap().to_string(), "stream:pages=1048576,step=2048");
    }

    #[test]
    fn words_survive_and_zero_differs_from_absent() {
        for pattern in Pattern::ALL {
            let mut workload = Workload::new(pattern);
            for (value, key) in workload.values.iter_mut().zip(pattern.keys()) {
                *value = Some(key.bounds().1);
            }
            let (number, words) = workload.encode();
            assert_eq!(Workload::decode(number, words), Ok(workload));
            assert_eq!(Workload::parse(&workload.to_string()), Ok(workload));
        }
        let awake = Workload::parse("dirtyram:sleep_ms=0").unwrap();
        assert_eq!(awake.encode(), (1, [0, 0, 1, 0, 0, 0, 0, 0]));
        assert_ne!(awake, Workload::new(Pattern::Dirtyram));
    }

    #[test]
    fn every_wrong_word_is_named() {
        let error = |text: &'static str| Workload::parse(text).unwrap_err();
        assert_eq!(error("dirty"), WorkloadError::UnknownPattern("dirty"));
        assert_eq!(error(""), WorkloadError::UnknownPattern(""));
        assert_eq!(error("full:"), WorkloadError::NotAPair(""));
        assert_eq!(error("full:pages"), WorkloadError::NotAPair("pages"));
        assert_eq!(error("full:step=1"), WorkloadError::UnknownKey { pattern: Pattern::Full, key: "step" });
        assert_eq!(error("full:pages=1,pages=1"), WorkloadError::DuplicateKey("pages"));
        assert_eq!(error("full:pages=+1"), WorkloadError::NotANumber { key: "pages", value: "+1" });
        assert_eq!(error("full:pages=K"), WorkloadError::NotANumber { key: "pages", value: "K" });
        for value in ["full:pages=0", "full:pages=99999999999999999999", "full:pages=18446744073709551615M"] {
            assert!(matches!(error(value), WorkloadError::OutOfRange { key: "pages", min: 1, .. }), "{value}");
        }
        assert!(error("dirty").to_string().ends_with("shared, readonly, mixed"));
        assert!(error("full:step=1").to_string().ends_with("it takes pages, writes, sleep_ms"));
    }

    #[test]
    fn hostile_words_are_refused() {
        assert_eq!(Workload::decode(0, [0; 8]), Err(DecodeError::Pattern(0)));
        assert_eq!(Workload::decode(16, [0; 8]), Err(DecodeError::Pattern(16)));
        let with = |index: usize, word| {
            let mut words = [0; 8];
            words[index] = word;
            Workload::decode(1, words)
        };
        assert_eq!(with(3, 1), Err(DecodeError::Parameter { index: 3, word: 1 }));
        assert_eq!(with(0, 1), Err(DecodeError::Parameter { index: 0, word: 1 }));
        assert_eq!(with(0, u64::MAX), Err(DecodeError::Parameter { index: 0, word: u64::MAX }));
    }
}
