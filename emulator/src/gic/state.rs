//! The state of a GICv3 and its rules: which interrupt is pending, which may preempt, what acknowledging changes.
//!
//! Plain data, no locks: [`GicState`] is also what a migration carries. IHI 0069 chapter 4 has the rules.

/// Number of INTIDs: 32 private to each vCPU, 96 shared.
pub const INTIDS: usize = 128;
/// What an acknowledge returns when there is nothing to take.
pub const SPURIOUS: u32 = 1023;

/// Bits of a priority that exist: five, so that steps are of 8 and ICC_AP1R0 alone holds the active priorities.
const PRIORITY_MASK: u8 = 0xf8;
const PRIORITY_SHIFT: u32 = 3;
/// The running priority when nothing is active.
pub(super) const IDLE_PRIORITY: u8 = 0xff;
/// Least ICC_BPR0_EL1 and ICC_BPR1_EL1 with five priority bits.
const BPR0_MIN: u8 = 2;
pub(super) const BPR1_MIN: u8 = 3;

/// One interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Interrupt {
    /// Forwarding is enabled.
    pub enabled: bool,
    /// Latched pending: an edge was seen, or software set it pending.
    pub latch: bool,
    /// Level of the input line.
    pub line: bool,
    /// Acknowledged and not yet deactivated.
    pub active: bool,
    /// Edge-triggered; otherwise level-sensitive.
    pub edge: bool,
    /// Priority, 0 is highest; the low three bits are zero.
    pub priority: u8,
    /// Shared interrupts: the vCPU it is routed to; `None` where GICD_IROUTER names no vCPU.
    pub target: Option<usize>,
    /// Shared interrupts: GICD_IROUTER as written.
    pub route: u64,
}

impl Interrupt {
    /// Whether it is pending: latched, or its level is asserted.
    pub fn pending(&self) -> bool {
        self.latch || (self.line && !self.edge)
    }

    pub(super) fn drive(&mut self, level: bool) {
        if self.edge && level && !self.line {
            self.latch = true;
        }
        self.line = level;
    }

    pub(super) fn set_priority(&mut self, priority: u8) {
        self.priority = priority & PRIORITY_MASK;
    }
}

/// The CPU interface of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuInterface {
    /// ICC_PMR_EL1: only priorities below it (numerically) are signalled.
    pub priority_mask: u8,
    /// ICC_BPR0_EL1.
    pub bpr0: u8,
    /// ICC_BPR1_EL1 as written; CBPR overrides it.
    pub bpr1: u8,
    /// ICC_CTLR_EL1.CBPR: group 1 uses ICC_BPR0_EL1.
    pub cbpr: bool,
    /// ICC_CTLR_EL1.EOImode: EOIR drops the priority, DIR deactivates.
    pub eoi_mode: bool,
    /// ICC_IGRPEN1_EL1.Enable.
    pub group1_enabled: bool,
    /// ICC_AP1R0_EL1: one bit for each active group priority, bit 0 the highest.
    pub active_priorities: u32,
}

impl Default for CpuInterface {
    fn default() -> Self {
        Self {
            priority_mask: 0,
            bpr0: BPR0_MIN,
            bpr1: BPR1_MIN,
            cbpr: false,
            eoi_mode: false,
            group1_enabled: false,
            active_priorities: 0,
        }
    }
}

impl CpuInterface {
    /// Binary point in force for group 1: bits of the priority from this one up decide preemption.
    pub(super) fn group1_point(&self) -> u8 {
        if self.cbpr { (self.bpr0 + 1).min(7) } else { self.bpr1 }
    }

    pub(super) fn set_bpr0(&mut self, value: u64) {
        self.bpr0 = ((value & 7) as u8).max(BPR0_MIN);
    }

    pub(super) fn set_bpr1(&mut self, value: u64) {
        self.bpr1 = ((value & 7) as u8).max(BPR1_MIN);
    }

    pub(super) fn set_priority_mask(&mut self, value: u64) {
        self.priority_mask = value as u8 & PRIORITY_MASK;
    }

    /// The running priority: that of the highest active group, or [`IDLE_PRIORITY`].
    pub(super) fn running_priority(&self) -> u8 {
        match self.active_priorities {
            0 => IDLE_PRIORITY,
            bits => (bits.trailing_zeros() as u8) << PRIORITY_SHIFT,
        }
    }

    fn group_priority(&self, priority: u8) -> u8 {
        priority & (0xff_u8 << self.group1_point())
    }

    fn admits(&self, priority: u8) -> bool {
        priority < self.priority_mask && self.group_priority(priority) < self.running_priority()
    }

    fn activate(&mut self, priority: u8) {
        self.active_priorities |= 1 << (self.group_priority(priority) >> PRIORITY_SHIFT);
    }

    pub(super) fn drop_priority(&mut self) {
        self.active_priorities &= self.active_priorities.wrapping_sub(1);
    }
}

/// All state of a GICv3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicState {
    /// GICD_CTLR.EnableGrp1.
    pub group1_enabled: bool,
    /// By vCPU: its SGIs and PPIs, INTIDs 0 to 31.
    pub private: Vec<[Interrupt; 32]>,
    /// SPIs, from INTID 32.
    pub shared: Vec<Interrupt>,
    /// By vCPU: its CPU interface.
    pub interfaces: Vec<CpuInterface>,
}

impl GicState {
    pub(super) fn new(vcpus: usize) -> Self {
        let mut private = [Interrupt::default(); 32];
        for sgi in &mut private[..16] {
            sgi.edge = true;
        }
        Self {
            group1_enabled: false,
            private: vec![private; vcpus],
            shared: vec![Interrupt { target: Some(0), ..Interrupt::default() }; INTIDS - 32],
            interfaces: vec![CpuInterface::default(); vcpus],
        }
    }

    /// The interrupt `intid` as `vcpu` sees it.
    pub(super) fn interrupt(&mut self, vcpu: usize, intid: u32) -> Option<&mut Interrupt> {
        match (intid as usize).checked_sub(32) {
            None => self.private.get_mut(vcpu)?.get_mut(intid as usize),
            Some(index) => self.shared.get_mut(index),
        }
    }

    /// The highest priority pending interrupt for `vcpu`, whether or not it may preempt; the lowest INTID among equals.
    pub(super) fn highest_pending(&self, vcpu: usize) -> Option<(u8, u32)> {
        if !self.group1_enabled || !self.interfaces[vcpu].group1_enabled {
            return None;
        }
        let mine = self.private[vcpu].iter().zip(0_u32..);
        let routed = self.shared.iter().zip(32_u32..).filter(|(irq, _)| irq.target == Some(vcpu));
        mine.chain(routed)
            .filter(|(irq, _)| irq.enabled && irq.pending() && !irq.active)
            .map(|(irq, intid)| (irq.priority, intid))
            .min()
    }

    /// The interrupt that raises `vcpu`'s line.
    pub(super) fn signalled(&self, vcpu: usize) -> Option<(u8, u32)> {
        self.highest_pending(vcpu).filter(|&(priority, _)| self.interfaces[vcpu].admits(priority))
    }

    /// ICC_IAR1_EL1: takes the signalled interrupt, or [`SPURIOUS`].
    pub(super) fn acknowledge(&mut self, vcpu: usize) -> u32 {
        let Some((priority, intid)) = self.signalled(vcpu) else { return SPURIOUS };
        if let Some(irq) = self.interrupt(vcpu, intid) {
            irq.active = true;
            irq.latch = false;
        }
        self.interfaces[vcpu].activate(priority);
        intid
    }

    /// ICC_EOIR1_EL1: drops the running priority and, unless EOImode splits the two, deactivates.
    pub(super) fn end(&mut self, vcpu: usize, intid: u32) {
        if intid as usize >= INTIDS {
            return;
        }
        self.interfaces[vcpu].drop_priority();
        if !self.interfaces[vcpu].eoi_mode {
            self.deactivate(vcpu, intid);
        }
    }

    pub(super) fn deactivate(&mut self, vcpu: usize, intid: u32) {
        if let Some(irq) = self.interrupt(vcpu, intid) {
            irq.active = false;
        }
    }

    /// ICC_SGI1R_EL1 written by `from`.
    pub(super) fn send_sgi(&mut self, from: usize, value: u64) {
        let intid = (value >> 24 & 15) as usize;
        let everyone_else = value >> 40 & 1 != 0;
        // Aff3, Aff2, Aff1 and the range selector: all vCPUs lie in cluster 0.0.0, range 0.
        let cluster_exists = value & 0x00ff_f0ff_00ff_0000 == 0;
        for (vcpu, private) in self.private.iter_mut().enumerate() {
            let listed = cluster_exists && vcpu < 16 && value >> vcpu & 1 != 0;
            if if everyone_else { vcpu != from } else { listed } {
                private[intid].latch = true;
            }
        }
    }
}
