//! Pages that were written and not sent: [`LostPages`], what a migration finds of a dirty log that lost them.

use std::fmt;

use abi::Gpa;

use crate::memory::Size;

/// Pages of one slot that are not in the source's memory as they were last sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostPages {
    /// The first of them.
    pub first: Gpa,
    /// How many.
    pub pages: u64,
    /// In how many blocks they lie that the host could map memory by.
    pub blocks: u64,
    /// Bytes of such a block, of which `first` lies in one that is aligned to as many; the host's page where there is none.
    pub block_bytes: u64,
    /// Which log lost them.
    pub log: String,
    /// How it loses writes on this host, where that is known.
    pub flaw: Option<String>,
}

impl LostPages {
    /// The pages at `lost`, in ascending order; `None` if there is none.
    pub(super) fn of(
        lost: impl IntoIterator<Item = Gpa>,
        block_bytes: u64,
        log: String,
        flaw: Option<String>,
    ) -> Option<Self> {
        let mut lost = lost.into_iter();
        let first = lost.next()?;
        let (mut pages, mut blocks, mut last) = (1, 1, first.raw() / block_bytes);
        for page in lost {
            let block = page.raw() / block_bytes;
            pages += 1;
            blocks += u64::from(block != last);
            last = block;
        }
        Some(Self { first, pages, blocks, block_bytes, log, flaw })
    }

    /// The block of the first.
    fn block(&self) -> Gpa {
        Gpa::new(self.first.raw() / self.block_bytes * self.block_bytes)
    }
}

impl fmt::Display for LostPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, pages, blocks, block_bytes, log, flaw } = self;
        write!(f, "the dirty log {log} lost a write: {pages} pages were written and not sent, the first at {first}")?;
        match blocks {
            1 => write!(f, ", all in the block of {} at {}", Size(*block_bytes), self.block())?,
            _ => write!(f, ", in {blocks} blocks of {}, the first at {}", Size(*block_bytes), self.block())?,
        }
        flaw.as_ref().map_or(Ok(()), |flaw| write!(f, "; on this host {flaw}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(pages: &[u64], block_bytes: u64) -> Option<LostPages> {
        LostPages::of(
            pages.iter().map(|page| Gpa::new(0x2000_0000 + page * 0x1000)),
            block_bytes,
            "bitmap".to_owned(),
            None,
        )
    }

    #[test]
    fn pages_of_one_block_are_told_with_it() {
        let text = lost(&[3, 4, 511], 2 << 20).unwrap().to_string();
        assert_eq!(
            text,
            "the dirty log bitmap lost a write: 3 pages were written and not sent, the first at 0x20003000, \
             all in the block of 2M at 0x20000000"
        );
    }

    #[test]
    fn each_block_is_counted_once() {
        let found = lost(&[511, 512, 513, 2000], 2 << 20).unwrap();
        assert_eq!((found.pages, found.blocks), (4, 3));
        assert!(found.to_string().ends_with("in 3 blocks of 2M, the first at 0x20000000"), "{found}");
        let known = LostPages { flaw: Some("it is known to".to_owned()), ..found };
        assert!(known.to_string().ends_with("at 0x20000000; on this host it is known to"), "{known}");
        assert_eq!(lost(&[], 2 << 20), None);
    }
}
