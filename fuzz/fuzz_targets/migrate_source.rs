//! A hostile destination: whatever it answers, the source refuses it or goes on as the protocol says.
//!
//! Input: one byte chooses where the conversation stands, the rest is what the destination sends, raw or as the records of
//! [`migrate_frames`]. A record of one of the source's own messages is what the source sends in between, if it may.
#![no_main]

mod migrate_frames;

use hostvmm::migrate::HostTime;
use hostvmm::migrate::wire::{
    FrameDecoder, HEADER_BYTES, Hello, MAX_REFUSAL_BYTES, Message, REPLY_BYTES, Reply, Return, Role, Session,
    VersionRange,
};
use libfuzzer_sys::fuzz_target;
use migrate_frames::{Records, offer};

/// What the source has sent, and what the destination may therefore answer.
#[derive(Default)]
struct Said {
    committed: bool,
    postcopy: bool,
    digest: bool,
    query: bool,
    passes: u32,
}

impl Said {
    fn note(&mut self, message: &Message) {
        match message {
            Message::Commit => self.committed = true,
            Message::PostcopyRun => (self.committed, self.postcopy) = (true, true),
            Message::Digest(_) => self.digest = true,
            Message::Query => self.query = true,
            Message::PassEnd(_) => self.passes += 1,
            _ => {}
        }
    }

    fn allows(&self, message: &Message) -> bool {
        match message {
            Message::Resumed(_) => self.committed,
            Message::PageRequest { .. } => self.postcopy,
            Message::Loaded(_) => self.digest,
            Message::Answer(_) => self.query,
            Message::PassAck { pass, .. } => *pass < self.passes,
            Message::Accept { .. } | Message::Refuse(_) | Message::Failure { .. } => true,
            _ => false,
        }
    }
}

fn raw(bytes: &[u8]) {
    let hello = Hello {
        versions: VersionRange::OURS,
        role: Role::Main,
        session: Session::from_raw(7),
        sent_at: HostTime::from_ns(1 << 40),
    };
    if let Some(reply) = bytes.first_chunk::<REPLY_BYTES>()
        && let Ok(decoded) = Reply::decode(reply)
    {
        assert_eq!(decoded.encode(), *reply);
        match decoded {
            Reply::Welcome(welcome) => {
                if let Ok(offset) = welcome.answers(&hello, HostTime::from_ns((1 << 40) + 5)) {
                    offset.to_ours(HostTime::from_ns(u64::MAX));
                    assert_eq!(welcome.session, hello.session);
                }
            }
            Reply::Refusal(refusal) => {
                assert!(refusal.text.as_str().len() <= MAX_REFUSAL_BYTES);
                assert!(!refusal.to_string().chars().any(char::is_control), "unprintable text");
            }
        }
    }
    let decoder = FrameDecoder::new();
    if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        let _ = decoder.header(header);
    }
}

fuzz_target!(|data: &[u8]| {
    let [choice, bytes @ ..] = data else { return };
    let mut order = match choice % 4 {
        0 => return raw(bytes),
        1 => Return::new(Role::Query),
        2 => Return::new(Role::Pages(1)),
        _ => Return::new(Role::Main),
    };
    let mut said = Said::default();
    if choice % 4 == 3 {
        order.sent(&Message::Offer(Box::new(offer()))).expect("an offer comes first");
    }
    let mut decoder = FrameDecoder::new();
    for record in Records::new(bytes) {
        let Some(message) = record.message(&mut decoder) else { return };
        if record.is_destinations {
            assert!(record.payload.is_empty(), "{} has no payload", message.tag());
            let over = order.is_over();
            match order.accept(&message) {
                Ok(()) => assert!(!over && said.allows(&message), "{} was not asked for", message.tag()),
                Err(_) => return,
            }
            if let Message::Failure { text } | Message::Abort { text } = &message {
                assert!(!text.as_str().chars().any(char::is_control), "unprintable text");
            }
        } else if order.sent(&message).is_ok() {
            said.note(&message);
        }
        assert!(order.unacknowledged() <= said.passes);
        assert!(!order.is_committed() || said.committed, "committed without a word");
    }
});
