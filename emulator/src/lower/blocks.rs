//! A64 words for blocks that are run here and by another implementation, and compared: [`tamed`], [`exclusive_pair`]. They keep to
//! what the architecture defines and to the block's own surroundings.

/// `word` of an encoding whose fixed bits are `mask`, with its free bits changed so that a branch or a load of a literal goes
/// as far as `displacement` says, in words, given what the field holds; `None` if it is CONSTRAINED UNPREDICTABLE.
pub fn tamed(word: u32, mask: u32, mut displacement: impl FnMut(u32) -> i32) -> Option<u32> {
    let field = |low: u32, len: u32| word >> low & ((1 << len) - 1);
    let mut fold = |low: u32, len: u32| {
        let places = ((1 << len) - 1) << low;
        Some(word & !places | (displacement(field(low, len)) as u32) << low & places)
    };
    if word >> 26 & 0x1f == 0b00101 {
        return fold(0, 26);
    }
    if word & 0xff00_0010 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 {
        return fold(5, 19);
    }
    if word & 0x7e00_0000 == 0x3600_0000 {
        return fold(5, 14);
    }
    if word >> 25 & 0b101 != 0b100 {
        return Some(word);
    }
    let (rt, rn, rt2, rs) = (field(0, 5), field(5, 5), field(10, 5), field(16, 5));
    let (vector, load) = (field(26, 1) == 1, field(22, 1) == 1);
    match field(27, 3) {
        0b011 => fold(5, 19),
        0b001 if !vector => {
            // Fields that should be one.
            let mut word = word;
            let paired = field(21, 1) == 1;
            if !paired {
                word |= 0x1f << 10 & !mask;
            }
            if (load || field(23, 1) == 1) && !paired {
                word |= 0x1f << 16 & !mask;
            }
            let store_exclusive = !load && field(23, 1) == 0;
            let clash = store_exclusive && (rs == rt || rs == rn && rn != 31 || paired && rs == rt2);
            let double = load && field(23, 1) == 0 && paired && rt == rt2;
            (!clash && !double).then_some(word)
        }
        0b101 => {
            let writes_back = field(23, 1) == 1 && !vector && rn != 31 && (rt == rn || rt2 == rn);
            (!(writes_back || load && rt == rt2)).then_some(word)
        }
        0b111 if field(24, 1) == 0 => {
            let writes_back = field(21, 1) == 0 && field(10, 1) == 1 && !vector && rn != 31 && rt == rn;
            let offset_is_base = field(21, 1) == 1 && field(10, 2) == 2 && rs == rn && rn != 31;
            (!writes_back && !offset_is_base).then_some(word)
        }
        _ => Some(word),
    }
}

/// A load-exclusive and the store-exclusive to it, their registers and kinds by the random bits of `next`.
pub fn exclusive_pair(mut next: impl FnMut() -> u32) -> [u32; 2] {
    loop {
        let any = next();
        let (rn, rt, rt2) = (any & 31, any >> 5 & 31, any >> 10 & 31);
        let (source, source2, status) = (any >> 15 & 31, any >> 20 & 31, any >> 25 & 31);
        let any = next();
        let paired = any & 3 == 0;
        let size = if paired { 2 | any >> 2 & 1 } else { any >> 2 & 3 };
        let (rt2, source2) = if paired { (rt2, source2) } else { (31, 31) };
        let kept = rn == 31 || rt != rn && (!paired || rt2 != rn) && status != rn;
        let unlike = status != source && (!paired || status != source2 && rt != rt2);
        if kept && unlike {
            let common = size << 30 | 1 << 27 | u32::from(paired) << 21 | rn << 5;
            let (acquire, release) = (any >> 4 & 1, any >> 5 & 1);
            return [
                common | 1 << 22 | 31 << 16 | acquire << 15 | rt2 << 10 | rt,
                common | status << 16 | release << 15 | source2 << 10 | source,
            ];
        }
    }
}
