//! The least of a block that still disagrees: [`shrink`].

use super::block::Block;
use super::isa::Isa;
use super::{CpuError, Effects, Pair};

/// Replaces instructions of `block` by NOP as long as it disagrees without them. `None` if it does not disagree by itself: only a
/// store-exclusive that failed spuriously may do so; anything else is returned as it was found, with `found`.
pub(super) fn shrink(
    pair: &mut Pair,
    isa: &dyn Isa,
    block: &Block,
    found: Effects,
) -> Result<Option<(Block, Effects)>, CpuError> {
    let Some(mut effects) = pair.disagrees(isa, block)? else {
        return Ok((!isa.may_fail_spuriously(block)).then(|| (block.clone(), found)));
    };
    let mut smallest = block.clone();
    if isa.may_loop_if_cut(block) {
        return Ok(Some((smallest, effects)));
    }
    for index in 0..block.words.len() {
        let without = without(isa, &smallest, index);
        if let Some(still) = pair.disagrees(isa, &without)? {
            (smallest, effects) = (without, still);
        }
    }
    Ok(Some((smallest, effects)))
}

/// `block` with a NOP in place of instruction `index`.
fn without(isa: &dyn Isa, block: &Block, index: usize) -> Block {
    let mut block = block.clone();
    block.words[index] = isa.nop();
    let (at, start) = isa.code(&block);
    let place = start as usize + 4 * index;
    for (offset, bytes) in &mut block.memory {
        if *offset == at {
            bytes[place..place + 4].copy_from_slice(&isa.nop().to_le_bytes());
        }
    }
    block
}
