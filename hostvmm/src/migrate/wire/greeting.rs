//! What opens a channel: [`Hello`], and the acceptor's [`Reply`], a [`Welcome`] or a [`Refusal`].
//!
//! Both have one layout for all time, whatever the versions say, for they are where the version is agreed on: the acceptor
//! takes the newest that both know ([`VersionRange::newest_common`]). They carry the clocks as well, from which the
//! connecting side learns how the two hosts' clocks differ. Lengths are fixed, so that a peer that sends garbage costs no
//! more than so many bytes.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};

use twox_hash::XxHash3_64;

use super::error::WireError;
use super::fields::{Reader, Text, Writer};
use crate::migrate::{ClockOffset, HostTime};

/// Encoded size of a [`Hello`].
pub const HELLO_BYTES: usize = 64;
/// Encoded size of a [`Reply`].
pub const REPLY_BYTES: usize = 256;
/// Most bytes of a refusal's text.
pub const MAX_REFUSAL_BYTES: usize = REPLY_BYTES - 64;
/// Most page channels beside the main one.
pub const MAX_PAGE_CHANNELS: u16 = 16;

const HELLO_MAGIC: [u8; 8] = *b"TDMKMIGR";
const WELCOME_MAGIC: [u8; 8] = *b"TDMKWELC";
const REFUSAL_MAGIC: [u8; 8] = *b"TDMKDENY";
const CHECKSUM_BYTES: usize = 8;

/// The versions of the protocol that a side knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionRange {
    oldest: u16,
    newest: u16,
}

impl VersionRange {
    /// What this program knows.
    pub const OURS: Self = Self { oldest: 2, newest: 2 };

    /// From `oldest` to `newest`, both included; `None` where that is none, or includes version 0, which there is not.
    pub const fn new(oldest: u16, newest: u16) -> Option<Self> {
        if oldest == 0 || oldest > newest { None } else { Some(Self { oldest, newest }) }
    }

    /// Whether it includes `version`.
    pub const fn contains(self, version: u16) -> bool {
        self.oldest <= version && version <= self.newest
    }

    /// The newest version that is in both.
    ///
    /// # Errors
    /// [`WireError::Version`] where there is none; `self` is this side's.
    pub fn newest_common(self, theirs: Self) -> Result<u16, WireError> {
        let newest = self.newest.min(theirs.newest);
        if self.contains(newest) && theirs.contains(newest) {
            Ok(newest)
        } else {
            Err(WireError::Version { ours: self, theirs })
        }
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "version {}", self.oldest)
        } else {
            write!(f, "versions {} to {}", self.oldest, self.newest)
        }
    }
}

/// One migration, by a number that nobody else can guess: who knows it is a part of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Session(u128);

impl Session {
    /// A new one.
    ///
    /// # Errors
    /// Where the host gives no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(u128::from_le_bytes(bytes)))
    }

    /// The session numbered `raw`.
    pub const fn from_raw(raw: u128) -> Self {
        Self(raw)
    }

    /// Its number.
    pub const fn raw(self) -> u128 {
        self.0
    }
}

/// No number: a log must not tell it.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(…)")
    }
}

/// What a channel is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Role {
    /// Everything but what has a channel of its own.
    Main,
    /// Pages only. Numbered from 1, at most [`MAX_PAGE_CHANNELS`].
    Pages(u16),
    /// Asks what has become of the guest, after a main channel was lost.
    Query,
    /// A primary to its secondary, and back.
    Colo,
}

impl Role {
    const fn raw(self) -> (u16, u16) {
        match self {
            Self::Main => (1, 0),
            Self::Pages(index) => (2, index),
            Self::Query => (3, 0),
            Self::Colo => (4, 0),
        }
    }

    fn from_raw(role: u16, index: u16) -> Option<Self> {
        match (role, index) {
            (1, 0) => Some(Self::Main),
            (2, 1..=MAX_PAGE_CHANNELS) => Some(Self::Pages(index)),
            (3, 0) => Some(Self::Query),
            (4, 0) => Some(Self::Colo),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => f.write_str("main channel"),
            Self::Pages(index) => write!(f, "page channel {index}"),
            Self::Query => f.write_str("query channel"),
            Self::Colo => f.write_str("channel of a pair"),
        }
    }
}

/// First bytes of whoever connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The versions it knows.
    pub versions: VersionRange,
    /// What the channel is for.
    pub role: Role,
    /// The migration it belongs to.
    pub session: Session,
    /// Its clock as it sent this.
    pub sent_at: HostTime,
}

impl Hello {
    /// The bytes.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let (role, index) = self.role.raw();
        let mut bytes = Vec::with_capacity(HELLO_BYTES);
        let mut fields = Writer(&mut bytes);
        fields.bytes(&HELLO_MAGIC);
        fields.u16(self.versions.oldest);
        fields.u16(self.versions.newest);
        fields.u16(role);
        fields.u16(index);
        fields.bytes(&self.session.0.to_le_bytes());
        fields.u64(self.sent_at.ns());
        fields.zeroes(16);
        sealed(&bytes)
    }

    /// What the bytes say.
    ///
    /// A version that is not ours is no error here: the versions are there to be judged by [`VersionRange::newest_common`].
    ///
    /// # Errors
    /// [`WireError::Magic`], [`WireError::Checksum`], [`WireError::Reserved`] and [`WireError::Value`].
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, WireError> {
        if !bytes.starts_with(&HELLO_MAGIC) {
            return Err(WireError::Magic { what: "hello" });
        }
        let mut fields = Reader::new(unsealed(bytes, "hello")?, "hello");
        fields.bytes(HELLO_MAGIC.len())?;
        let (oldest, newest) = (fields.u16()?, fields.u16()?);
        let versions =
            VersionRange::new(oldest, newest).ok_or_else(|| fields.refused("newest version", newest.into()))?;
        let (role, index) = (fields.u16()?, fields.u16()?);
        let role = Role::from_raw(role, index)
            .ok_or_else(|| fields.refused("role and index", u64::from(role) << 16 | u64::from(index)))?;
        let session = Session(fields.array().map(u128::from_le_bytes)?);
        let sent_at = HostTime::from_ns(fields.u64()?);
        fields.zeroes(16)?;
        fields.end()?;
        Ok(Self { versions, role, session, sent_at })
    }
}

/// The channel is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The version that is spoken from here on.
    pub version: u16,
    /// The hello's session.
    pub session: Session,
    /// The acceptor's clock as the hello arrived.
    pub received_at: HostTime,
    /// The acceptor's clock as it sent this.
    pub sent_at: HostTime,
}

impl Welcome {
    /// Checks that this, which `arrived` by this side's clock, answers `hello`, and tells how the acceptor's clock differs.
    ///
    /// # Errors
    /// [`WireError::Value`] where version or session are not from the hello.
    pub fn answers(&self, hello: &Hello, arrived: HostTime) -> Result<ClockOffset, WireError> {
        if !hello.versions.contains(self.version) {
            return Err(WireError::Value { what: "welcome", field: "version", value: self.version.into() });
        }
        if self.session != hello.session {
            // The value stays unsaid: it may be somebody's session.
            return Err(WireError::Value { what: "welcome", field: "session other than", value: 0 });
        }
        // Whatever the acceptor did in between lies in the middle of the round trip.
        let busy_ns = self.sent_at.ns().saturating_sub(self.received_at.ns());
        let middle = HostTime::from_ns(self.received_at.ns().saturating_add(busy_ns / 2));
        Ok(ClockOffset::measured(hello.sent_at, middle, arrived))
    }
}

/// Why a channel is not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalCode {
    /// No common version.
    Version,
    /// The session is not one that the acceptor knows, or not one that may have this channel now.
    Session,
    /// The acceptor is at another migration.
    Busy,
    /// The hello is none.
    Garbage,
}

impl RefusalCode {
    const ALL: [Self; 4] = [Self::Version, Self::Session, Self::Busy, Self::Garbage];

    const fn raw(self) -> u16 {
        match self {
            Self::Version => 1,
            Self::Session => 2,
            Self::Busy => 3,
            Self::Garbage => 4,
        }
    }
}

/// The channel is not opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the destination refused the connection: {text}")]
pub struct Refusal {
    /// Why.
    pub code: RefusalCode,
    /// Why, for people.
    pub text: Text,
}

impl Refusal {
    /// A refusal whose text fits.
    pub fn new(code: RefusalCode, text: impl fmt::Display) -> Self {
        Self { code, text: Text::bounded(text, MAX_REFUSAL_BYTES) }
    }
}

/// What the acceptor answers to a [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The channel is open.
    Welcome(Welcome),
    /// It is not.
    Refusal(Refusal),
}

impl Reply {
    /// The bytes.
    pub fn encode(&self) -> [u8; REPLY_BYTES] {
        let mut bytes = Vec::with_capacity(REPLY_BYTES);
        let mut fields = Writer(&mut bytes);
        match self {
            Self::Welcome(welcome) => {
                fields.bytes(&WELCOME_MAGIC);
                fields.u16(welcome.version);
                fields.zeroes(6);
                fields.bytes(&welcome.session.0.to_le_bytes());
                fields.u64(welcome.received_at.ns());
                fields.u64(welcome.sent_at.ns());
            }
            Self::Refusal(refusal) => {
                // A refusal that was put together by hand may have a longer text.
                let text = Text::bounded(&refusal.text, MAX_REFUSAL_BYTES);
                fields.bytes(&REFUSAL_MAGIC);
                fields.u16(0);
                fields.u16(refusal.code.raw());
                fields.text(&text);
            }
        }
        bytes.resize(REPLY_BYTES - CHECKSUM_BYTES, 0);
        sealed(&bytes)
    }

    /// What the bytes say.
    ///
    /// # Errors
    /// [`WireError::Magic`], [`WireError::Checksum`], [`WireError::Reserved`], [`WireError::Value`] and [`WireError::Text`].
    pub fn decode(bytes: &[u8; REPLY_BYTES]) -> Result<Self, WireError> {
        if !bytes.starts_with(&WELCOME_MAGIC) && !bytes.starts_with(&REFUSAL_MAGIC) {
            return Err(WireError::Magic { what: "reply" });
        }
        let mut fields = Reader::new(unsealed(bytes, "reply")?, "reply");
        let magic: [u8; 8] = fields.array()?;
        let version = fields.u16()?;
        let reply = if magic == WELCOME_MAGIC {
            fields.zeroes(6)?;
            Self::Welcome(Welcome {
                version,
                session: Session(fields.array().map(u128::from_le_bytes)?),
                received_at: HostTime::from_ns(fields.u64()?),
                sent_at: HostTime::from_ns(fields.u64()?),
            })
        } else {
            let code = fields.u16()?;
            let known = RefusalCode::ALL.into_iter().find(|known| known.raw() == code);
            let code = known.ok_or_else(|| fields.refused("code", code.into()))?;
            if version != 0 {
                return Err(WireError::Reserved { what: "reply" });
            }
            let len_bytes = fields.u16()?;
            let text = Text::from_bytes(fields.bytes(len_bytes.into())?, MAX_REFUSAL_BYTES);
            Self::Refusal(Refusal { code, text: text.ok_or(WireError::Text { what: "reply" })? })
        };
        if fields.rest().iter().any(|byte| *byte != 0) {
            return Err(WireError::Reserved { what: "reply" });
        }
        Ok(reply)
    }
}

/// `bytes` and their checksum.
fn sealed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let checksum = XxHash3_64::oneshot(bytes).to_le_bytes();
    let mut whole = bytes.iter().chain(&checksum);
    std::array::from_fn(|_| whole.next().copied().unwrap_or_default())
}

/// The bytes before the checksum, which must be theirs.
fn unsealed<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a [u8], WireError> {
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(WireError::Short { what })?;
    if XxHash3_64::oneshot(body).to_le_bytes() == *checksum { Ok(body) } else { Err(WireError::Checksum { what }) }
}
