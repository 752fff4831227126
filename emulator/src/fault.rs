//! Exception syndromes: what ESR_EL1 and FAR_EL1 say about a synchronous exception.
//!
//! [`FaultInfo`] is one complete syndrome (EC, ISS, FAR); [`Access`] and [`AccessKind`] say what was being done when a
//! memory fault arose; [`Status`] is the cause of an abort. The MMU makes abort syndromes, the system registers make trap syndromes, the
//! executor the rest; [`crate::exception`] delivers them. Encodings: DDI 0487 D24.2.40 (ESR_EL1).

/// Exception classes, ESR_EL1.EC (DDI 0487 D24.2.40, table "EC encodings").
pub mod ec {
    /// Unknown reason: UNDEFINED instructions.
    pub const UNKNOWN: u8 = 0x00;
    /// Trapped WFI or WFE.
    pub const WFX: u8 = 0x01;
    /// Access to SIMD&FP trapped by CPACR_EL1.FPEN.
    pub const FP_ACCESS: u8 = 0x07;
    /// Illegal Execution state.
    pub const ILLEGAL_STATE: u8 = 0x0e;
    /// SVC in AArch64 state.
    pub const SVC64: u8 = 0x15;
    /// Trapped MSR, MRS or system instruction in AArch64 state.
    pub const SYSREG: u8 = 0x18;
    /// Instruction Abort from a lower Exception level.
    pub const INSTRUCTION_ABORT_LOWER: u8 = 0x20;
    /// Instruction Abort from the same Exception level.
    pub const INSTRUCTION_ABORT_SAME: u8 = 0x21;
    /// PC alignment fault.
    pub const PC_ALIGNMENT: u8 = 0x22;
    /// Data Abort from a lower Exception level.
    pub const DATA_ABORT_LOWER: u8 = 0x24;
    /// Data Abort from the same Exception level.
    pub const DATA_ABORT_SAME: u8 = 0x25;
    /// SP alignment fault.
    pub const SP_ALIGNMENT: u8 = 0x26;
    /// SError.
    pub const SERROR: u8 = 0x2f;
    /// BRK in AArch64 state.
    pub const BRK64: u8 = 0x3c;
}

/// What an access is, for permissions and for the syndrome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write, or an atomic that writes; DC ZVA is one too.
    Write,
    /// An instruction fetch.
    Fetch,
    /// Cache maintenance by address: needs a readable page, reports itself as a write with ISS.CM (D24.2.40, ISS for Data Aborts).
    CacheMaintenance,
    /// Address translation instruction (AT) for a read: no dirty-state update, result in PAR_EL1.
    ProbeRead,
    /// Address translation instruction (AT) for a write.
    ProbeWrite,
}

impl AccessKind {
    /// Whether it needs write permission.
    pub const fn needs_write(self) -> bool {
        matches!(self, Self::Write | Self::ProbeWrite)
    }
}

/// One access to memory, as the MMU judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What it does.
    pub kind: AccessKind,
    /// The Exception level it is made from: decides the exception class of a fault.
    pub el: u8,
    /// Made with EL0's permissions although from EL1 (LDTR, STTR, AT S1E0x).
    pub unprivileged: bool,
    /// PSTATE.PAN, as it applies to this access.
    pub pan: bool,
}

impl Access {
    /// An access of `kind` from `el` with `pan` as in PSTATE.
    pub const fn new(kind: AccessKind, el: u8, pan: bool) -> Self {
        Self { kind, el, unprivileged: false, pan }
    }

    /// Whether EL1's permissions apply.
    pub const fn privileged(self) -> bool {
        self.el != 0 && !self.unprivileged
    }
}

/// Why an access aborted: the fault status code without what is around it (DDI 0487 D24.2.40, DFSC and IFSC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// An address beyond the configured or implemented size, at a level of the walk (0 also for TTBR and for the MMU off).
    AddressSize {
        /// Level of the table whose entry it was.
        level: u8,
    },
    /// No translation.
    Translation {
        /// Level at which the walk ended.
        level: u8,
    },
    /// Access flag clear and no hardware to set it.
    AccessFlag {
        /// Level of the descriptor.
        level: u8,
    },
    /// Not permitted.
    Permission {
        /// Level of the descriptor.
        level: u8,
    },
    /// Nothing answers at the physical address.
    External,
    /// Nothing answers at a descriptor's physical address.
    ExternalOnWalk {
        /// Level of the table.
        level: u8,
    },
    /// AArch32, short descriptors: the domain gives no access.
    Domain {
        /// Level of the descriptor: 1 a section, 2 a page.
        level: u8,
    },
    /// Misaligned data access; in AArch32, also a misaligned fetch.
    Alignment,
    /// Exclusive or atomic access to memory that does not support it (Device memory).
    UnsupportedAtomic,
}

impl Status {
    /// The six-bit DFSC or IFSC.
    pub const fn code(self) -> u32 {
        match self {
            Self::AddressSize { level } => level as u32,
            Self::Translation { level } => 0b00_0100 | level as u32,
            Self::AccessFlag { level } => 0b00_1000 | level as u32,
            Self::Permission { level } => 0b00_1100 | level as u32,
            Self::External => 0b01_0000,
            Self::ExternalOnWalk { level } => 0b01_0100 | level as u32,
            Self::Domain { level } => 0b11_1100 | level as u32,
            Self::Alignment => 0b10_0001,
            Self::UnsupportedAtomic => 0b11_0101,
        }
    }
}

/// One complete syndrome of a synchronous exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FaultInfo {
    /// Exception class, one of [`ec`].
    pub ec: u8,
    /// Instruction-specific syndrome, 25 bits.
    pub iss: u32,
    /// What FAR_EL1 gets; `None` leaves it as it was.
    pub far: Option<u64>,
    /// AArch32, short descriptors: the domain of the descriptor that an abort ended at, else 0.
    pub domain: u8,
}

/// ISS.WnR: the access was a write.
const ISS_WNR: u32 = 1 << 6;
/// ISS.CM: the access was cache maintenance or address translation.
const ISS_CM: u32 = 1 << 8;

impl FaultInfo {
    /// An UNDEFINED instruction.
    pub const UNDEFINED: Self = Self { ec: ec::UNKNOWN, iss: 0, far: None, domain: 0 };
    /// An instruction executed with PSTATE.IL set.
    pub const ILLEGAL_STATE: Self = Self { ec: ec::ILLEGAL_STATE, iss: 0, far: None, domain: 0 };
    /// A use of a misaligned SP with SCTLR_EL1.SA (or SA0).
    pub const SP_ALIGNMENT: Self = Self { ec: ec::SP_ALIGNMENT, iss: 0, far: None, domain: 0 };
    /// A SIMD&FP instruction while CPACR_EL1.FPEN forbids it: CV set, COND 0b1110 as for every A64 instruction.
    pub const FP_ACCESS: Self = Self { ec: ec::FP_ACCESS, iss: 1 << 24 | 0b1110 << 20, far: None, domain: 0 };

    /// The abort of `access` at `va`.
    pub const fn abort(status: Status, access: Access, va: u64) -> Self {
        let lower = access.el == 0;
        let (ec, flags) = match access.kind {
            AccessKind::Fetch if lower => (ec::INSTRUCTION_ABORT_LOWER, 0),
            AccessKind::Fetch => (ec::INSTRUCTION_ABORT_SAME, 0),
            kind => {
                let flags = match kind {
                    AccessKind::Write => ISS_WNR,
                    AccessKind::CacheMaintenance | AccessKind::ProbeWrite => ISS_CM | ISS_WNR,
                    AccessKind::ProbeRead => ISS_CM,
                    AccessKind::Read | AccessKind::Fetch => 0,
                };
                (if lower { ec::DATA_ABORT_LOWER } else { ec::DATA_ABORT_SAME }, flags)
            }
        };
        Self { ec, iss: flags | status.code(), far: Some(va), domain: 0 }
    }

    /// A branch to a `pc` that is not a multiple of 4.
    pub const fn pc_alignment(pc: u64) -> Self {
        Self { ec: ec::PC_ALIGNMENT, iss: 0, far: Some(pc), domain: 0 }
    }

    /// SVC with its immediate.
    pub const fn svc(imm: u16) -> Self {
        Self { ec: ec::SVC64, iss: imm as u32, far: None, domain: 0 }
    }

    /// BRK with its comment field.
    pub const fn brk(imm: u16) -> Self {
        Self { ec: ec::BRK64, iss: imm as u32, far: None, domain: 0 }
    }

    /// WFI (or WFE if `wfe`) trapped from EL0 by SCTLR_EL1.nTWI or nTWE: CV set, COND 0b1110, TI in bit 0.
    pub const fn wfx(wfe: bool) -> Self {
        Self { ec: ec::WFX, iss: 1 << 24 | 0b1110 << 20 | wfe as u32, far: None, domain: 0 }
    }

    /// MRS (`read`), MSR or system instruction `enc` (op0:op1:CRn:CRm:op2, packed as in [`crate::sysreg`]) of
    /// register `rt`, trapped. ISS layout: Op0 21:20, Op2 19:17, Op1 16:14, CRn 13:10, Rt 9:5, CRm 4:1, Direction 0.
    pub const fn sysreg(enc: u16, rt: u8, read: bool) -> Self {
        let enc = enc as u32;
        let iss = (enc >> 14 & 3) << 20
            | (enc & 7) << 17
            | (enc >> 11 & 7) << 14
            | (enc >> 7 & 15) << 10
            | (rt as u32 & 31) << 5
            | (enc >> 3 & 15) << 1
            | read as u32;
        Self { ec: ec::SYSREG, iss, far: None, domain: 0 }
    }

    /// The value for ESR_EL1: EC, IL (a 32-bit instruction, as every A64 one is, and as the architecture asks for the
    /// classes without an instruction) and ISS.
    pub const fn esr(self) -> u64 {
        (self.ec as u64) << 26 | 1 << 25 | (self.iss & 0x1ff_ffff) as u64
    }

    /// Whether an abort was of a write, or of maintenance that reports itself as one.
    pub const fn is_write(self) -> bool {
        self.iss & ISS_WNR != 0
    }

    /// Whether an abort was of cache maintenance or address translation.
    pub const fn is_cache_maintenance(self) -> bool {
        self.iss & ISS_CM != 0
    }

    /// The fault status code of an abort.
    pub const fn status_code(self) -> u32 {
        self.iss & 0x3f
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abort_syndromes_match_the_manual() {
        let write = Access::new(AccessKind::Write, 1, false);
        // Linux prints ESR 0x9600004f for a kernel write to a read-only page at level 3, 0x92000006 for a user read
        // that ended at level 2, 0x8600000f for a kernel fetch from a PXN page.
        assert_eq!(FaultInfo::abort(Status::Permission { level: 3 }, write, 0x1234).esr(), 0x9600_004f);
        assert_eq!(FaultInfo::abort(Status::Permission { level: 3 }, write, 0x1234).far, Some(0x1234));
        let read = Access::new(AccessKind::Read, 0, false);
        assert_eq!(FaultInfo::abort(Status::Translation { level: 2 }, read, 0).esr(), 0x9200_0006);
        let fetch = Access::new(AccessKind::Fetch, 1, false);
        assert_eq!(FaultInfo::abort(Status::Permission { level: 3 }, fetch, 0).esr(), 0x8600_000f);
        assert_eq!(FaultInfo::abort(Status::Alignment, Access { el: 1, ..read }, 1).esr(), 0x9600_0021);
        let clean = Access::new(AccessKind::CacheMaintenance, 0, false);
        assert_eq!(FaultInfo::abort(Status::Translation { level: 1 }, clean, 0).esr(), 0x9200_0145);
    }

    #[test]
    fn other_syndromes_match_the_manual() {
        assert_eq!(FaultInfo::UNDEFINED.esr(), 0x0200_0000);
        assert_eq!(FaultInfo::svc(7).esr(), 0x5600_0007);
        assert_eq!(FaultInfo::brk(0x800).esr(), 0xf200_0800);
        assert_eq!(FaultInfo::FP_ACCESS.esr(), 0x1fe0_0000);
        // mrs x5, cntvct_el0 (S3_3_C14_C0_2) from EL0.
        let cntvct = (3 << 14) | (3 << 11) | (14 << 7) | 2;
        assert_eq!(FaultInfo::sysreg(cntvct, 5, true).esr(), 0x6234_f8a1 | 1 << 25);
    }
}
