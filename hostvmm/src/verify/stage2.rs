//! What the kernel prints of stage 2, counted: [`count_mappings`], for the scenario `hugepages`.

use std::collections::BTreeSet;

use crate::memory::host_page_bytes;

/// Mappings found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mappings {
    /// By blocks.
    pub(crate) blocks: u64,
    /// By pages of the host's.
    pub(crate) pages: u64,
}

/// Block and page mappings that a dump of stage 2 has within `blocks` (numbers: address / `block_bytes`).
///
/// A line of the dump is a range of equal entries: `0xSTART-0xEND SIZE LEVEL ATTRIBUTES…` (arch/arm64/mm/ptdump.c,
/// `note_page`). Level 3 maps pages. Entries that map nothing have a line, too, without the attribute `R` that every mapping
/// has. Other lines, like the title, have no range.
pub(crate) fn count_mappings(dump: &str, blocks: &BTreeSet<u64>, block_bytes: u64) -> Mappings {
    let page_bytes = host_page_bytes();
    let mut found = Mappings::default();
    for (start, end, level) in dump.lines().filter_map(mappings) {
        for number in start / block_bytes..end.div_ceil(block_bytes) {
            if !blocks.contains(&number) {
                continue;
            }
            let bytes = end.min((number + 1) * block_bytes) - start.max(number * block_bytes);
            if level == 3 {
                found.pages += bytes / page_bytes;
            } else {
                // A block of a higher level counts for each of ours that it covers.
                found.blocks += bytes.div_ceil(block_bytes);
            }
        }
    }
    found
}

/// Start, end and level of one line of mappings.
fn mappings(line: &str) -> Option<(u64, u64, u32)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let level = words.nth(1)?.parse().ok()?;
    let (start, end) = (hex(start)?, hex(end)?);
    let maps = words.any(|attribute| attribute == "R");
    (maps && start < end && level <= 3).then_some((start, end, level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_counted_by_level_within_the_blocks_asked_for() {
        let dump = "---[ Guest IPA ]---\n\
                    0x0000000000000000-0x0000000020000000         512M 1\n\
                    0x0000000020000000-0x0000000020400000           4M 2   R W   AF BLK\n\
                    0x0000000020400000-0x0000000020401000           4K 3   R   X AF    \n\
                    0x0000000020401000-0x0000000020402000           4K 3\n\
                    0x0000000020402000-0x0000000020410000          56K 3   R W X       \n\
                    0x0000000020410000-0x0000000020600000        1984K 3 F           \n\
                    0x0000000020600000-0x0000000040000000         506M 2\n\
                    0x0000000040000000-0x0000000080000000           1G 1   R W   AF BLK\n\
                    nonsense\n0x20-0x10 4K 3 R\n---[ (null) ]---\n";
        // The test's pages are the host's; the dump's are 4K.
        let pages = |bytes: u64| bytes / host_page_bytes();
        let count = |blocks: &[u64]| count_mappings(dump, &blocks.iter().copied().collect(), 2 << 20);
        assert_eq!(count(&[256, 257]), Mappings { blocks: 2, pages: 0 });
        assert_eq!(count(&[257, 258]), Mappings { blocks: 1, pages: pages(0x1000) + pages(0xe000) });
        assert_eq!(count(&[512, 600]), Mappings { blocks: 2, pages: 0 }, "a block of a higher level covers each");
        assert_eq!(count(&[259]), Mappings { blocks: 0, pages: 0 });
    }
}
