//! The `ICC_*` system registers of [`GicState`].

use super::state::{GicState, SPURIOUS};
use crate::sysreg::enc::enc as encoding;

const PMR: u16 = encoding(3, 0, 4, 6, 0);
const IAR0: u16 = encoding(3, 0, 12, 8, 0);
const EOIR0: u16 = encoding(3, 0, 12, 8, 1);
const HPPIR0: u16 = encoding(3, 0, 12, 8, 2);
const BPR0: u16 = encoding(3, 0, 12, 8, 3);
const AP0R0: u16 = encoding(3, 0, 12, 8, 4);
const AP1R0: u16 = encoding(3, 0, 12, 9, 0);
const DIR: u16 = encoding(3, 0, 12, 11, 1);
const RPR: u16 = encoding(3, 0, 12, 11, 3);
const SGI1R: u16 = encoding(3, 0, 12, 11, 5);
const ASGI1R: u16 = encoding(3, 0, 12, 11, 6);
const SGI0R: u16 = encoding(3, 0, 12, 11, 7);
const IAR1: u16 = encoding(3, 0, 12, 12, 0);
const EOIR1: u16 = encoding(3, 0, 12, 12, 1);
const HPPIR1: u16 = encoding(3, 0, 12, 12, 2);
const BPR1: u16 = encoding(3, 0, 12, 12, 3);
const CTLR: u16 = encoding(3, 0, 12, 12, 4);
const SRE: u16 = encoding(3, 0, 12, 12, 5);
const IGRPEN0: u16 = encoding(3, 0, 12, 12, 6);
const IGRPEN1: u16 = encoding(3, 0, 12, 12, 7);

/// ICC_CTLR_EL1's fixed fields: five priority bits, 16 INTID bits, Aff3 valid.
const CTLR_FIXED: u64 = 1 << 15 | 4 << 8;
/// ICC_SRE_EL1: system registers enabled, FIQ and IRQ bypass disabled; all read-only.
const SRE_FIXED: u64 = 0b111;

impl GicState {
    /// Reads an `ICC_*` register; reading ICC_IAR1_EL1 acknowledges. `None` where it is UNDEFINED.
    pub(super) fn interface_read(&mut self, vcpu: usize, enc: u16) -> Option<u64> {
        let cpu = self.interfaces.get(vcpu)?;
        Some(match enc {
            PMR => u64::from(cpu.priority_mask),
            BPR0 => u64::from(cpu.bpr0),
            BPR1 => u64::from(cpu.group1_point()),
            AP0R0 | IGRPEN0 => 0,
            AP1R0 => u64::from(cpu.active_priorities),
            IAR0 | HPPIR0 => u64::from(SPURIOUS),
            IAR1 => u64::from(self.acknowledge(vcpu)),
            HPPIR1 => u64::from(self.highest_pending(vcpu).map_or(SPURIOUS, |(_, intid)| intid)),
            RPR => u64::from(cpu.running_priority()),
            CTLR => CTLR_FIXED | u64::from(cpu.eoi_mode) << 1 | u64::from(cpu.cbpr),
            SRE => SRE_FIXED,
            IGRPEN1 => u64::from(cpu.group1_enabled),
            _ => return None,
        })
    }

    /// Writes an `ICC_*` register. `None` where it is UNDEFINED.
    pub(super) fn interface_write(&mut self, vcpu: usize, enc: u16, value: u64) -> Option<()> {
        let intid = (value & 0xff_ffff) as u32;
        let cpu = self.interfaces.get_mut(vcpu)?;
        match enc {
            PMR => cpu.set_priority_mask(value),
            BPR0 => cpu.set_bpr0(value),
            // With CBPR the register shows ICC_BPR0_EL1 and ignores writes.
            BPR1 if cpu.cbpr => {}
            BPR1 => cpu.set_bpr1(value),
            AP1R0 => cpu.active_priorities = value as u32,
            IGRPEN1 => cpu.group1_enabled = value & 1 != 0,
            CTLR => {
                cpu.cbpr = value & 1 != 0;
                cpu.eoi_mode = value & 2 != 0;
            }
            EOIR1 => self.end(vcpu, intid),
            DIR if cpu.eoi_mode => self.deactivate(vcpu, intid),
            SGI1R => self.send_sgi(vcpu, value),
            // Group 0 has no interrupts, DIR does nothing while EOIR deactivates, ICC_SRE_EL1 is read-only.
            DIR | EOIR0 | AP0R0 | IGRPEN0 | SGI0R | ASGI1R | SRE => {}
            _ => return None,
        }
        Some(())
    }
}
