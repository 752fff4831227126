//! The memory-mapped registers of [`GicState`]: distributor, and each vCPU's two redistributor frames.
//!
//! Registers are read and written by 32-bit words; 64-bit accesses are two words, and bytes exist for priorities only
//! (IHI 0069 section 12.1.3); other narrow writes are ignored, as KVM does.

use super::state::{GicState, INTIDS, Interrupt};

/// Which 64 KiB frame an access hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// GICD.
    Distributor,
    /// GICR's RD frame of a vCPU.
    Redistributor(usize),
    /// GICR's SGI frame of a vCPU.
    Private(usize),
}

/// GICD_CTLR's fixed bits: DS and ARE.
const GICD_CTLR_FIXED: u32 = 1 << 6 | 1 << 4;
/// GICD_TYPER: No1N, ten INTID bits, and the number of 32-INTID blocks less one.
const GICD_TYPER: u32 = 1 << 25 | 9 << 19 | (INTIDS as u32 / 32 - 1);
/// Product KVM, revision 2 (KVM's of GICR_CTLR without LPIs), implementer Arm, so that KVM takes it for its own.
const IIDR: u32 = 0x4b00_243b;
/// GICv3.
const PIDR2: u32 = 0x3b;
const ID_PIDR2: u64 = 0xffe8;

/// A group of registers with one or more bits per interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bank {
    Group,
    Enable { set: bool },
    Pending { set: bool },
    Active { set: bool },
    Priority,
    Config,
}

/// The bank at `offset` and the first INTID of the word there.
fn bank(offset: u64) -> Option<(Bank, usize)> {
    let bits = |start: u64| (offset - start) as usize / 4 * 32;
    Some(match offset {
        0x080..0x100 => (Bank::Group, bits(0x080)),
        0x100..0x180 => (Bank::Enable { set: true }, bits(0x100)),
        0x180..0x200 => (Bank::Enable { set: false }, bits(0x180)),
        0x200..0x280 => (Bank::Pending { set: true }, bits(0x200)),
        0x280..0x300 => (Bank::Pending { set: false }, bits(0x280)),
        0x300..0x380 => (Bank::Active { set: true }, bits(0x300)),
        0x380..0x400 => (Bank::Active { set: false }, bits(0x380)),
        0x400..0x800 => (Bank::Priority, (offset - 0x400) as usize & !3),
        0xc00..0xd00 => (Bank::Config, (offset - 0xc00) as usize / 4 * 16),
        _ => return None,
    })
}

fn bank_read(bank: Bank, interrupts: &[Interrupt]) -> u32 {
    let flags = |flag: fn(&Interrupt) -> bool| {
        interrupts.iter().take(32).enumerate().fold(0, |word, (bit, irq)| word | u32::from(flag(irq)) << bit)
    };
    match bank {
        Bank::Group => flags(|_| true),
        Bank::Enable { .. } => flags(|irq| irq.enabled),
        Bank::Pending { .. } => flags(Interrupt::pending),
        Bank::Active { .. } => flags(|irq| irq.active),
        Bank::Priority => interrupts
            .iter()
            .take(4)
            .enumerate()
            .fold(0, |word, (byte, irq)| word | u32::from(irq.priority) << (8 * byte)),
        Bank::Config => {
            interrupts.iter().take(16).enumerate().fold(0, |word, (i, irq)| word | u32::from(irq.edge) << (2 * i + 1))
        }
    }
}

fn bank_write(bank: Bank, interrupts: &mut [Interrupt], value: u32, byte_lanes: u8) {
    let chosen = |(bit, irq)| (value >> bit & 1 != 0).then_some(irq);
    let chosen = |interrupts| <&mut [Interrupt]>::into_iter(interrupts).take(32).enumerate().filter_map(chosen);
    match bank {
        Bank::Group => {}
        Bank::Enable { set } => chosen(interrupts).for_each(|irq: &mut Interrupt| irq.enabled = set),
        Bank::Pending { set } => chosen(interrupts).for_each(|irq: &mut Interrupt| irq.latch = set),
        Bank::Active { set } => chosen(interrupts).for_each(|irq: &mut Interrupt| irq.active = set),
        Bank::Priority => {
            for (byte, irq) in interrupts.iter_mut().take(4).enumerate() {
                if byte_lanes >> byte & 1 != 0 {
                    irq.set_priority((value >> (8 * byte)) as u8);
                }
            }
        }
        Bank::Config => {
            for (i, irq) in interrupts.iter_mut().take(16).enumerate() {
                irq.edge = value >> (2 * i + 1) & 1 != 0;
            }
        }
    }
}

impl GicState {
    pub(super) fn frame_read(&self, frame: Frame, offset: u64, size_bytes: u8) -> u64 {
        let word = |at: u64| u64::from(self.word_read(frame, at));
        match size_bytes {
            8 => word(offset & !7) | word(offset & !7 | 4) << 32,
            _ => {
                let shifted = word(offset & !3) >> (8 * (offset & 3));
                shifted & (u64::MAX >> (64 - 8 * u64::from(size_bytes.clamp(1, 4))))
            }
        }
    }

    pub(super) fn frame_write(&mut self, frame: Frame, offset: u64, size_bytes: u8, value: u64) {
        match size_bytes {
            8 => {
                self.word_write(frame, offset & !7, value as u32, 0b1111);
                self.word_write(frame, offset & !7 | 4, (value >> 32) as u32, 0b1111);
            }
            4 => self.word_write(frame, offset & !3, value as u32, 0b1111),
            1 if matches!(bank(offset), Some((Bank::Priority, _))) => {
                let lane = offset & 3;
                self.word_write(frame, offset & !3, (value as u32 & 0xff) << (8 * lane), 1 << lane);
            }
            _ => {}
        }
    }

    fn word_read(&self, frame: Frame, offset: u64) -> u32 {
        match frame {
            Frame::Distributor => match offset {
                0x0 => GICD_CTLR_FIXED | u32::from(self.group1_enabled) << 1,
                0x4 => GICD_TYPER,
                0x8 => IIDR,
                ID_PIDR2 => PIDR2,
                0x6100..0x8000 => {
                    let (index, high) = Self::router(offset);
                    self.shared.get(index).map_or(0, |irq| (irq.route >> (32 * u32::from(high))) as u32)
                }
                // Registers of private interrupts are zero here: with affinity routing they are in the redistributors.
                _ => bank(offset)
                    .and_then(|(bank, first)| Some(bank_read(bank, self.shared.get(first.checked_sub(32)?..)?)))
                    .unwrap_or(0),
            },
            Frame::Redistributor(vcpu) => match offset {
                0x4 => IIDR,
                0x8 => (vcpu as u32) << 8 | u32::from(vcpu + 1 == self.private.len()) << 4,
                0xc => vcpu as u32,
                ID_PIDR2 => PIDR2,
                // GICR_CTLR without LPIs is zero; GICR_WAKER is zero: the redistributor never sleeps, as under KVM.
                _ => 0,
            },
            Frame::Private(vcpu) => match (offset, bank(offset)) {
                (ID_PIDR2, _) => PIDR2,
                (_, Some((bank, first))) => self.private[vcpu].get(first..).map_or(0, |list| bank_read(bank, list)),
                _ => 0,
            },
        }
    }

    fn word_write(&mut self, frame: Frame, offset: u64, value: u32, byte_lanes: u8) {
        match frame {
            Frame::Distributor => match offset {
                0x0 => self.group1_enabled = value & 2 != 0,
                0x6100..0x8000 => {
                    let vcpus = self.private.len();
                    let (index, high) = Self::router(offset);
                    if let Some(irq) = self.shared.get_mut(index) {
                        let shift = 32 * u32::from(high);
                        // Aff3 in bits 39:32, Aff2, Aff1, Aff0 in 23:0; bit 31 (1-of-N) is RES0 with No1N.
                        let kept = irq.route & !(0xffff_ffff << shift);
                        irq.route = (kept | u64::from(value) << shift) & 0xff_00ff_ffff;
                        irq.target = usize::try_from(irq.route).ok().filter(|target| *target < vcpus);
                    }
                }
                _ => {
                    if let Some((bank, first)) = bank(offset)
                        && let Some(list) = first.checked_sub(32).and_then(|first| self.shared.get_mut(first..))
                    {
                        bank_write(bank, list, value, byte_lanes);
                    }
                }
            },
            Frame::Redistributor(_) => {}
            Frame::Private(vcpu) => {
                if let Some((bank, first)) = bank(offset)
                    // What triggers SGIs and PPIs is fixed.
                    && bank != Bank::Config
                    && let Some(list) = self.private[vcpu].get_mut(first..)
                {
                    bank_write(bank, list, value, byte_lanes);
                }
            }
        }
    }

    /// Index of the SPI whose GICD_IROUTER has the word at `offset`, and whether that is its high word.
    fn router(offset: u64) -> (usize, bool) {
        ((offset as usize - 0x6100) / 8, offset & 4 != 0)
    }
}
