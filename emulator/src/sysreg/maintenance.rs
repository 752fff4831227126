//! System instructions: [`sys_insn`] executes TLBI, IC, DC and AT (DDI 0487 C5.3 to C5.5).
//!
//! A broadcast (inner shareable) returns when every other vCPU has done the same, by a safepoint. The software TLB holds no
//! intermediate entries and is cheap to fill, so every TLBI empties all of it: more than asked is always permitted
//! (D8.17, "over-invalidation"). Data caches are coherent with memory here; their maintenance only checks its address.

use super::access::{sctlr, trapped};
use super::describe;
use super::enc::*;
use crate::cpu::{Cpu, Trap};
use crate::fault::{Access, AccessKind, FaultInfo};
use crate::mmu::{self, TableMemory, Translation};
use crate::safepoint::Work;
use crate::signal;
use crate::vcpu::perform;

/// CRm of TLBI instructions: to the inner shareable domain, and to this vCPU alone.
const TLBI_INNER: u16 = 3;
const TLBI_LOCAL: u16 = 7;

/// Executes the system instruction `enc` with the value of its register, at the current exception level. DC ZVA is the core's own,
/// for it is a store. The syndrome of a trap lacks Rt.
///
/// # Errors
/// [`Trap`]: UNDEFINED where it does not exist (here, or at EL0), an exception where EL1 traps it or its address aborts.
pub fn sys_insn(cpu: &mut Cpu, enc: u16, value: u64) -> Result<(), Trap> {
    let el0 = cpu.pstate.el == 0;
    if el0 && enc >> 11 & 7 != 3 {
        return Err(Trap::Undefined);
    }
    match enc {
        IC_IALLU => cpu.code.flush(),
        IC_IALLUIS => broadcast(cpu, Work::FLUSH_CODE),
        IC_IVAU | DC_CVAC | DC_CVAU | DC_CVAP | DC_CIVAC if el0 && cpu.sys.sctlr & sctlr::UCI == 0 => {
            return Err(trapped(cpu, enc, false));
        }
        // By address to the point of unification: of all vCPUs, since lines are found by physical address.
        IC_IVAU => {
            translate(cpu, value, AccessKind::CacheMaintenance)?;
            broadcast(cpu, Work::FLUSH_CODE);
        }
        DC_CVAC | DC_CVAU | DC_CVAP | DC_CIVAC => {
            translate(cpu, value, AccessKind::CacheMaintenance)?;
        }
        // Invalidation without cleaning could undo a store: it needs write permission (C5.3.16).
        DC_IVAC => {
            translate(cpu, value, AccessKind::Write).inspect_err(|_| cpu.fault.iss |= 1 << 8)?;
        }
        DC_ISW | DC_CSW | DC_CISW => {}
        AT_S1E1R | AT_S1E1W | AT_S1E0R | AT_S1E0W | AT_S1E1RP | AT_S1E1WP => probe(cpu, enc, value),
        _ if is_tlbi(enc) => match enc >> 3 & 15 {
            TLBI_LOCAL => cpu.tlb.flush(),
            _ => broadcast(cpu, Work::FLUSH_TLB),
        },
        _ => {
            cpu.shared.note_unimplemented(&format!("SYS {}", describe(enc)));
            return Err(Trap::Undefined);
        }
    }
    Ok(())
}

/// Whether `enc` is a TLBI of the EL1&0 regime: op1 0, CRn 8, CRm the domain, op2 0 (all), 1 (VA), 2 (ASID), 3 (VA, all
/// ASIDs), 5 and 7 (the same for the last level).
const fn is_tlbi(enc: u16) -> bool {
    enc >> 7 == TLBI_VMALLE1 >> 7
        && matches!(enc >> 3 & 15, TLBI_INNER | TLBI_LOCAL)
        && matches!(enc & 7, 0 | 1 | 2 | 3 | 5 | 7)
}

/// Does `work` on this vCPU and on all others, and waits for them.
fn broadcast(cpu: &mut Cpu, work: Work) {
    perform(cpu, work);
    let shared = std::sync::Arc::clone(&cpu.shared);
    let raise = |vcpu: usize| shared.signals[vcpu].raise(signal::SAFEPOINT);
    shared.safepoints.request_from(cpu.index, work, raise, |work| perform(cpu, work));
}

/// Translates `va` at the current exception level.
fn translate(cpu: &mut Cpu, va: u64, kind: AccessKind) -> Result<Translation, Trap> {
    let access = Access::new(kind, cpu.pstate.el, cpu.pstate.pan);
    outcome(cpu, va, access).map_err(|fault| {
        cpu.fault = fault;
        Trap::Exception
    })
}

fn outcome(cpu: &Cpu, va: u64, access: Access) -> Result<Translation, FaultInfo> {
    let memory = TableMemory { ram: &cpu.shared.ram, dirty: &cpu.shared.dirty };
    mmu::translate(&cpu.sys.regime(), va, access, &memory)
}

/// AT: translates `va` as the named access would be and puts the outcome into PAR_EL1.
fn probe(cpu: &mut Cpu, enc: u16, va: u64) {
    let write = matches!(enc, AT_S1E1W | AT_S1E0W | AT_S1E1WP);
    let access = Access {
        kind: if write { AccessKind::ProbeWrite } else { AccessKind::ProbeRead },
        el: 1,
        unprivileged: matches!(enc, AT_S1E0R | AT_S1E0W),
        // Only the P forms heed PSTATE.PAN (C5.4.5).
        pan: cpu.pstate.pan && matches!(enc, AT_S1E1RP | AT_S1E1WP),
    };
    let outcome = outcome(cpu, va, access);
    // An external abort on the walk is taken as an exception on hardware; here a table outside RAM reports in PAR like the rest.
    cpu.sys.par = mmu::par(cpu.sys.regime().format, outcome);
}
