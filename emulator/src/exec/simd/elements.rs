//! Handlers of the operations in [`table`]: they differ in where the second operand comes from.

use super::table::{self, Form};
use super::{FPSR_QC, Lane, Shape, element, inserted, mask, placed, replicated, set_v, v};
use crate::cpu::Cpu;
use crate::op::{Flow, Op, next};

/// The second operand is a register.
pub(crate) fn with_register(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let second = v(cpu, op.rm);
    execute(cpu, op, second);
    next(cpu, rest)
}

/// The second operand is element `imm` of a register.
pub(crate) fn with_element(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let bits = Shape::of(op).bits();
    let second = replicated(element(v(cpu, op.rm), op.imm as u32, bits), bits);
    execute(cpu, op, second);
    next(cpu, rest)
}

/// The second operand is `imm`: a shift, or zero.
pub(crate) fn with_immediate(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let bits = Shape::of(op).bits();
    let wide = table::by_number(op.aux).form == Form::Narrow;
    let second = replicated(op.imm, if wide { 2 * bits } else { bits });
    execute(cpu, op, second);
    next(cpu, rest)
}

/// `Vpart` of the pseudocode: the lower or upper half of a register, as its lower half.
fn half(vector: u128, upper: bool) -> u128 {
    if upper { vector >> 64 } else { vector & u128::from(u64::MAX) }
}

fn execute(cpu: &mut Cpu, op: &Op, second: u128) {
    let shape = Shape::of(op);
    let entry = table::by_number(op.aux);
    let (first, old) = (v(cpu, op.rn), v(cpu, op.rd));
    let bits = shape.bits();
    let mut lane = Lane { a: 0, a_bits: bits, b: 0, b_bits: bits, d: 0, bits, saturated: false };
    let result = match entry.form {
        Form::Same => {
            let result = map(&mut lane, shape.lanes(), [first, second, old], entry.element);
            shape.cut(result)
        }
        Form::Pairwise => {
            let lanes = shape.lanes();
            let pick = |index: u32| {
                if index < lanes { element(first, index, bits) } else { element(second, index - lanes, bits) }
            };
            (0..lanes).fold(0, |result, index| {
                (lane.a, lane.b) = (pick(2 * index), pick(2 * index + 1));
                result | placed((entry.element)(&mut lane), index, bits)
            })
        }
        Form::Long => {
            lane.bits = 2 * bits;
            let lanes = if shape.scalar { 1 } else { 64 / bits };
            map(&mut lane, lanes, [half(first, shape.full), half(second, shape.full), old], entry.element)
        }
        Form::Wide => {
            (lane.bits, lane.a_bits) = (2 * bits, 2 * bits);
            map(&mut lane, 64 / bits, [first, half(second, shape.full), old], entry.element)
        }
        Form::Narrow => {
            (lane.a_bits, lane.b_bits) = (2 * bits, 2 * bits);
            let lanes = if shape.scalar { 1 } else { 64 / bits };
            let narrow = map(&mut lane, lanes, [first, second, 0], entry.element);
            if shape.full { inserted(old, narrow as u64, 1, 64) } else { narrow }
        }
        Form::LongPairwise => {
            lane.bits = 2 * bits;
            (0..shape.lanes() / 2).fold(0, |result, index| {
                (lane.a, lane.b) = (element(first, 2 * index, bits), element(first, 2 * index + 1, bits));
                lane.d = element(old, index, 2 * bits);
                result | placed((entry.element)(&mut lane), index, 2 * bits)
            })
        }
        Form::Across => {
            // The scalar ADDP reduces two doublewords.
            let lanes = if shape.scalar { 2 } else { shape.lanes() };
            u128::from((1..lanes).fold(element(first, 0, bits), |sum, index| {
                (lane.a, lane.b) = (sum, element(first, index, bits));
                (entry.element)(&mut lane) & mask(bits)
            }))
        }
        Form::LongAcross => {
            (lane.bits, lane.a_bits) = (2 * bits, 2 * bits);
            u128::from((0..shape.lanes()).fold(0, |sum, index| {
                (lane.a, lane.b) = (sum, element(first, index, bits));
                (entry.element)(&mut lane) & mask(2 * bits)
            }))
        }
    };
    if lane.saturated {
        cpu.fpsr |= FPSR_QC;
    }
    set_v(cpu, op.rd, result);
}

/// Applies `element_of` to elements of both sources and of the old destination, each in its own width.
fn map(lane: &mut Lane, lanes: u32, [first, second, old]: [u128; 3], element_of: super::lane::Element) -> u128 {
    (0..lanes).fold(0, |result, index| {
        lane.a = element(first, index, lane.a_bits);
        lane.b = element(second, index, lane.b_bits);
        lane.d = element(old, index, lane.bits);
        result | placed(element_of(lane), index, lane.bits)
    })
}
