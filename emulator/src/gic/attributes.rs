//! The state of a [`GicState`] by KVM's device attributes (kvm/devices/arm-vgic-v3.rst): one register a call, so that it
//! moves between this controller and the kernel's.
//!
//! Unlike the guest's accesses, these replace what a register has: a write of ISENABLER, ISPENDR or ISACTIVER clears the
//! bits that it has not. ISPENDR is the latch alone, the level of the lines is a register of its own. A value that
//! this controller cannot have is refused: interrupts in group 0, another width of priorities.

use super::GicError;
use super::mmio::Frame;
use super::state::{GicState, INTIDS, Interrupt};
use crate::sysreg::enc::enc as encoding;

/// KVM_DEV_ARM_VGIC_GRP_DIST_REGS: the attribute is an offset in the distributor.
const DISTRIBUTOR: u32 = 1;
/// KVM_DEV_ARM_VGIC_GRP_REDIST_REGS: affinity << 32 | offset in the redistributor.
const REDISTRIBUTOR: u32 = 5;
/// KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS: affinity << 32 | encoding.
const CPU_INTERFACE: u32 = 6;
/// KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO: affinity << 32 | VGIC_LEVEL_INFO_LINE_LEVEL (0) << 10 | first INTID of 32.
const LINE_LEVEL: u32 = 7;

const IIDR: u64 = 0x8;
const IIDR_REVISION: u64 = 0xf000;
const ISPENDR: std::ops::Range<u64> = 0x200..0x280;
const BPR0: u16 = encoding(3, 0, 12, 8, 3);
const BPR1: u16 = encoding(3, 0, 12, 12, 3);
const CTLR: u16 = encoding(3, 0, 12, 12, 4);
/// The registers of the CPU interface that are state: the others command or identify.
const INTERFACE: [u16; 9] = [
    encoding(3, 0, 4, 6, 0),   // ICC_PMR_EL1
    BPR0,                      // ICC_BPR0_EL1
    encoding(3, 0, 12, 8, 4),  // ICC_AP0R0_EL1
    encoding(3, 0, 12, 9, 0),  // ICC_AP1R0_EL1
    BPR1,                      // ICC_BPR1_EL1
    CTLR,                      // ICC_CTLR_EL1
    encoding(3, 0, 12, 12, 5), // ICC_SRE_EL1
    encoding(3, 0, 12, 12, 6), // ICC_IGRPEN0_EL1
    encoding(3, 0, 12, 12, 7), // ICC_IGRPEN1_EL1
];
const PRIORITY_BITS: u64 = 7 << 8;
const CBPR: u64 = 1 << 0;
const EOI_MODE: u64 = 1 << 1;

/// Where an attribute leads.
enum Place {
    Word(Frame, u64),
    Interface(usize, u16),
    Lines(usize, usize),
}

impl GicState {
    fn place(&self, group: u32, attr: u64) -> Option<Place> {
        let (vcpu, low) = ((attr >> 32) as usize, attr & 0xffff_ffff);
        let exists = vcpu < self.private.len();
        match group {
            DISTRIBUTOR if low < 0x1_0000 && low.is_multiple_of(4) => Some(Place::Word(Frame::Distributor, low)),
            REDISTRIBUTOR if exists && low < 0x1_0000 && low.is_multiple_of(4) => {
                Some(Place::Word(Frame::Redistributor(vcpu), low))
            }
            REDISTRIBUTOR if exists && low < 0x2_0000 && low.is_multiple_of(4) => {
                Some(Place::Word(Frame::Private(vcpu), low - 0x1_0000))
            }
            CPU_INTERFACE if exists => {
                let register = u16::try_from(low).ok().filter(|register| INTERFACE.contains(register));
                register.map(|register| Place::Interface(vcpu, register))
            }
            LINE_LEVEL if exists && low < INTIDS as u64 && low.is_multiple_of(32) => {
                Some(Place::Lines(vcpu, low as usize))
            }
            _ => None,
        }
    }

    /// The 32 interrupts from `first`, a multiple of 32, as `vcpu` sees them.
    fn block(&mut self, vcpu: usize, first: usize) -> &mut [Interrupt] {
        match first.checked_sub(32) {
            None => &mut self.private[vcpu],
            Some(index) => &mut self.shared[index..index + 32],
        }
    }

    /// The interrupts of the word at `offset` of a bank with a bit each, at `frame`.
    fn flagged(&mut self, frame: Frame, offset: u64) -> Option<&mut [Interrupt]> {
        let first = (offset & 0x7f) as usize * 8;
        match frame {
            Frame::Distributor if (32..INTIDS).contains(&first) => Some(self.block(0, first)),
            Frame::Private(vcpu) if first == 0 => Some(self.block(vcpu, 0)),
            _ => None,
        }
    }

    /// Reads an attribute.
    pub(super) fn attribute(&mut self, group: u32, attr: u64) -> Result<u64, GicError> {
        let place = self.place(group, attr).ok_or(GicError::NoAttribute { group, attr })?;
        Ok(match place {
            Place::Word(frame, offset) if ISPENDR.contains(&offset) => {
                self.flagged(frame, offset).map_or(0, |list| word(list, |irq| irq.latch))
            }
            Place::Word(frame, offset) => self.frame_read(frame, offset, 4),
            // As written, whatever CBPR makes of it for the guest.
            Place::Interface(vcpu, BPR1) => u64::from(self.interfaces[vcpu].bpr1),
            Place::Interface(vcpu, register) => {
                self.interface_read(vcpu, register).ok_or(GicError::NoAttribute { group, attr })?
            }
            Place::Lines(vcpu, first) => word(self.block(vcpu, first), |irq| irq.line),
        })
    }

    /// Writes an attribute.
    pub(super) fn set_attribute(&mut self, group: u32, attr: u64, value: u64) -> Result<(), GicError> {
        let place = self.place(group, attr).ok_or(GicError::NoAttribute { group, attr })?;
        let now = self.attribute(group, attr)?;
        let refused = GicError::AttributeValue { group, attr, now, given: value };
        match place {
            Place::Word(Frame::Distributor, IIDR) => {
                // KVM's revisions 2 and 3 differ in what GICR_CTLR says of LPIs, which do not exist here.
                let revision = (value & IIDR_REVISION) >> 12;
                return if (now ^ value) & !IIDR_REVISION == 0 && matches!(revision, 2 | 3) {
                    Ok(())
                } else {
                    Err(refused)
                };
            }
            Place::Word(frame, offset @ 0x100..0x400) => {
                let list = self.flagged(frame, offset).ok_or(refused)?;
                match offset & 0x380 {
                    0x100 => list.iter_mut().zip(bits(value)).for_each(|(irq, set)| irq.enabled = set),
                    0x200 => list.iter_mut().zip(bits(value)).for_each(|(irq, set)| irq.latch = set),
                    0x300 => list.iter_mut().zip(bits(value)).for_each(|(irq, set)| irq.active = set),
                    // The clearing halves have no state of their own: KVM ignores writes of them, too.
                    _ => return Ok(()),
                }
            }
            Place::Word(frame, offset) => self.frame_write(frame, offset, 4, value),
            // Binary points below the least that there is become it: KVM has such until the guest writes them.
            Place::Interface(vcpu, BPR0) => {
                self.interfaces[vcpu].set_bpr0(value);
                return Ok(());
            }
            Place::Interface(vcpu, BPR1) => {
                self.interfaces[vcpu].set_bpr1(value);
                return Ok(());
            }
            Place::Interface(_, CTLR) if (now ^ value) & PRIORITY_BITS != 0 => return Err(refused),
            Place::Interface(vcpu, CTLR) => {
                self.interfaces[vcpu].cbpr = value & CBPR != 0;
                self.interfaces[vcpu].eoi_mode = value & EOI_MODE != 0;
                return Ok(());
            }
            Place::Interface(vcpu, register) => {
                self.interface_write(vcpu, register, value).ok_or(refused)?;
            }
            Place::Lines(vcpu, first) => {
                // SGIs have no lines.
                let value = if first == 0 { value & !0xffff } else { value };
                self.block(vcpu, first).iter_mut().zip(bits(value)).for_each(|(irq, level)| irq.line = level);
                return Ok(());
            }
        }
        // What did not take the value cannot have it.
        if self.attribute(group, attr)? == value { Ok(()) } else { Err(refused) }
    }
}

fn word(list: &[Interrupt], flag: fn(&Interrupt) -> bool) -> u64 {
    list.iter().take(32).enumerate().fold(0, |word, (bit, irq)| word | u64::from(flag(irq)) << bit)
}

fn bits(value: u64) -> impl Iterator<Item = bool> {
    (0..32).map(move |bit| value >> bit & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::super::state::BPR1_MIN;
    use super::*;

    const ISENABLER1: u64 = 0x104;
    const ISPENDR1: u64 = 0x204;

    fn state() -> GicState {
        GicState::new(2)
    }

    #[test]
    fn a_write_replaces_what_was_set() {
        let mut gic = state();
        for group_attr in [(DISTRIBUTOR, ISENABLER1), (DISTRIBUTOR, ISPENDR1), (REDISTRIBUTOR, 1 << 32 | 0x1_0300)] {
            let (group, attr) = group_attr;
            for value in [0xff00_00ff, 0x0ff0_0000, 0] {
                gic.set_attribute(group, attr, value).unwrap();
                assert_eq!(gic.attribute(group, attr), Ok(value), "{attr:#x}");
            }
        }
    }

    #[test]
    fn the_latch_and_the_line_are_apart() {
        let mut gic = state();
        gic.set_attribute(LINE_LEVEL, 32, 1 << 8).unwrap();
        assert_eq!(gic.attribute(DISTRIBUTOR, ISPENDR1), Ok(0));
        assert_eq!(gic.frame_read(Frame::Distributor, ISPENDR1, 4), 1 << 8, "the guest sees both");
        gic.set_attribute(DISTRIBUTOR, ISPENDR1, 1 << 9).unwrap();
        assert_eq!(gic.attribute(LINE_LEVEL, 32), Ok(1 << 8));
        assert_eq!(gic.frame_read(Frame::Distributor, ISPENDR1, 4), 3 << 8);
        gic.set_attribute(LINE_LEVEL, 1 << 32, !0).unwrap();
        assert_eq!(gic.attribute(LINE_LEVEL, 1 << 32), Ok(0xffff_0000), "SGIs have no lines");
        assert_eq!(gic.attribute(LINE_LEVEL, 0), Ok(0), "those of the other vCPU");
    }

    #[test]
    fn a_binary_point_hidden_by_cbpr_is_kept() {
        let mut gic = state();
        let (bpr1, ctlr) = (u64::from(BPR1), u64::from(CTLR));
        gic.set_attribute(CPU_INTERFACE, bpr1, 6).unwrap();
        let fixed = gic.attribute(CPU_INTERFACE, ctlr).unwrap();
        gic.set_attribute(CPU_INTERFACE, ctlr, fixed | CBPR).unwrap();
        assert_eq!(gic.interface_read(0, BPR1), Some(u64::from(BPR1_MIN)), "the guest sees group 0's");
        assert_eq!(gic.attribute(CPU_INTERFACE, bpr1), Ok(6));
    }

    #[test]
    fn what_this_controller_cannot_have_is_refused() {
        let mut gic = state();
        for (group, attr, value) in [
            (DISTRIBUTOR, 0x84, 0),
            (DISTRIBUTOR, IIDR, 0),
            (REDISTRIBUTOR, 0x1_0c04, !0),
            (CPU_INTERFACE, u64::from(CTLR), 6 << 8),
            (CPU_INTERFACE, u64::from(encoding(3, 0, 12, 12, 6)), 1),
        ] {
            let before = gic.clone();
            let refused = gic.set_attribute(group, attr, value);
            assert!(matches!(refused, Err(GicError::AttributeValue { .. })), "{group} {attr:#x}: {refused:?}");
            assert_eq!(gic, before);
        }
        for (group, attr) in [
            (0, 0),
            (DISTRIBUTOR, 2),
            (REDISTRIBUTOR, 2 << 32),
            (CPU_INTERFACE, u64::from(encoding(3, 0, 12, 12, 0))),
            (LINE_LEVEL, 1),
            (LINE_LEVEL, 128),
        ] {
            assert_eq!(gic.attribute(group, attr), Err(GicError::NoAttribute { group, attr }));
            assert_eq!(gic.set_attribute(group, attr, 0), Err(GicError::NoAttribute { group, attr }));
        }
    }
}
