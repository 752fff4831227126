//! Lowering of SIMD and floating-point data processing.
//!
//! Every op is entered through `trap::fp_checked`, which takes the trap of CPACR_EL1.FPEN and goes on to `Op::then`.

use disarm64::Opcode;

use super::Insn;
use crate::op::Op;

/// The op of a SIMD&FP instruction, or `None` if it is not modelled.
pub(super) fn lower(_insn: Insn, _opcode: Opcode) -> Option<Op> {
    None
}
