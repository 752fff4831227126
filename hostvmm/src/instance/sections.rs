//! What moves with a guest beside its memory, as [`Section`]s: the machine's state, the dirty history, whether it ran.
//!
//! The machine's are `machine::state`'s. Of ours, little-endian, version first:
//!
//! ```text
//! progress       version u16, flags u16: bit 0, the guest was running
//! dirty-history  version u16, reserved u16, page u32, pages u64, then one bit a page; one section a slot
//! heartbeat      as `heartbeat` has it; none without
//! ```

use crate::dirty::PageBitmap;
use crate::machine::state::{BadSection, MachineState};
use crate::memory::SlotId;
use crate::migrate::wire::{Section, SectionKind};

use super::heartbeat::Departure;
use super::log::Pages;

const VERSION: u16 = 1;
const FLAG_RUNNING: u16 = 1;
/// Bytes of a history before its bits.
const HISTORY_HEADER: usize = 16;

/// Everything that a guest brings along.
#[derive(Debug)]
pub(super) struct Luggage {
    /// The machine.
    pub(super) state: MachineState,
    /// Whether the guest was running.
    pub(super) running: bool,
    /// Every page ever dirtied, where that is kept.
    pub(super) history: Option<Pages>,
    /// Its heartbeats, where it has any.
    pub(super) heartbeat: Option<Departure>,
}

/// Sections that are none of ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadSections {
    /// The machine's.
    #[error(transparent)]
    Machine(#[from] BadSection),
    /// Another one.
    #[error("the section {kind} {index}: {reason}")]
    Section {
        /// Which kind.
        kind: SectionKind,
        /// Which of it.
        index: u16,
        /// What is wrong.
        reason: &'static str,
    },
    /// One is missing.
    #[error("the section {0} is missing")]
    Missing(SectionKind),
}

impl Luggage {
    /// The sections.
    pub(super) fn encode(&self) -> Vec<Section> {
        let mut sections = self.state.encode();
        let flags = if self.running { FLAG_RUNNING } else { 0 };
        let progress = [VERSION.to_le_bytes(), flags.to_le_bytes()].concat();
        sections.push(Section { kind: SectionKind::Progress, index: 0, bytes: progress });
        sections.extend(self.heartbeat.as_ref().map(Departure::encode));
        for slot in SlotId::ALL {
            if let Some(history) = &self.history {
                let bytes = encode_history(&history[slot.index()]);
                sections.push(Section { kind: SectionKind::DirtyHistory, index: slot.index() as u16, bytes });
            }
        }
        sections
    }

    /// What `sections` hold, for a machine whose slots have the pages of `clean`; a history where `track_dirty` says so.
    pub(super) fn decode(sections: &[Section], clean: &Pages, track_dirty: bool) -> Result<Self, BadSections> {
        let (mut running, mut history, mut heartbeat) = (None, clean.clone(), None);
        let mut slots = [false; SlotId::COUNT];
        for Section { kind, index, bytes } in sections {
            let bad = |reason| BadSections::Section { kind: *kind, index: *index, reason };
            match kind {
                SectionKind::Counter | SectionKind::Uart | SectionKind::Vcpu | SectionKind::Gic => {}
                SectionKind::Progress if running.is_none() => running = Some(decode_progress(bytes).map_err(bad)?),
                SectionKind::Heartbeat if heartbeat.is_none() => {
                    heartbeat = Some(Departure::decode(bytes).map_err(bad)?);
                }
                SectionKind::DirtyHistory if track_dirty => {
                    let at = usize::from(*index);
                    let seen = slots.get_mut(at).ok_or_else(|| bad("there is no such slot"))?;
                    if std::mem::replace(seen, true) {
                        return Err(bad("one too many"));
                    }
                    history[at] = decode_history(bytes, &clean[at]).map_err(bad)?;
                }
                _ => return Err(bad("not expected")),
            }
        }
        let running = running.ok_or(BadSections::Missing(SectionKind::Progress))?;
        if track_dirty && slots.contains(&false) {
            return Err(BadSections::Missing(SectionKind::DirtyHistory));
        }
        Ok(Self { state: MachineState::decode(sections)?, running, history: track_dirty.then_some(history), heartbeat })
    }
}

fn decode_progress(bytes: &[u8]) -> Result<bool, &'static str> {
    match *bytes {
        [1, 0, flags @ (0 | 1), 0] => Ok(flags == 1),
        [1, 0, _, _] => Err("a flag that there is none of"),
        _ => Err("another version, or another length"),
    }
}

fn encode_history(pages: &PageBitmap) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HISTORY_HEADER + pages.byte_len());
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0_u16.to_le_bytes());
    bytes.extend((pages.page_bytes() as u32).to_le_bytes());
    bytes.extend(pages.pages().to_le_bytes());
    bytes.extend(pages.to_bytes());
    bytes
}

fn decode_history(bytes: &[u8], clean: &PageBitmap) -> Result<PageBitmap, &'static str> {
    let expected = encode_history(&PageBitmap::new(clean.pages(), clean.page_bytes()));
    match bytes.split_at_checked(HISTORY_HEADER) {
        Some((header, bits)) if header == &expected[..HISTORY_HEADER] => {
            PageBitmap::from_bytes(bits, clean.pages(), clean.page_bytes()).map_err(|_| "another number of bits")
        }
        _ => Err("another version, or pages of another size or number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_back_and_another_machines_is_not() {
        let mut pages = PageBitmap::new(70, 4096);
        pages.set(0);
        pages.set(69);
        let bytes = encode_history(&pages);
        let golden = [1, 0, 0, 0, 0, 0x10, 0, 0, 70, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0b10_0000];
        assert_eq!(bytes, golden);
        let clean = PageBitmap::new(70, 4096);
        assert_eq!(decode_history(&bytes, &clean).unwrap(), pages);
        assert!(decode_history(&bytes, &PageBitmap::new(71, 4096)).is_err());
        assert!(decode_history(&bytes, &PageBitmap::new(70, 16384)).is_err());
        assert!(decode_history(&bytes[..bytes.len() - 1], &clean).is_err());
        assert!(decode_history(&[], &clean).is_err());
    }

    #[test]
    fn whether_the_guest_ran_is_one_bit() {
        assert_eq!((decode_progress(&[1, 0, 0, 0]), decode_progress(&[1, 0, 1, 0])), (Ok(false), Ok(true)));
        for bad in [&[][..], &[1, 0, 2, 0], &[1, 0, 1, 1], &[2, 0, 1, 0], &[1, 0, 1, 0, 0]] {
            assert!(decode_progress(bad).is_err(), "{bad:?}");
        }
    }
}
