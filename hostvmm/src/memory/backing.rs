//! What guest memory is made of ([`Backing`]), and whether this host has it ([`BackingUnavailable`]).
//!
//! Stage 2 maps a block only where the host's own page is at least as large, lies whole in the memslot, and where guest and
//! host address are congruent modulo the block (`fault_supports_stage2_huge_mapping` in the kernel). So every mapping is
//! placed by [`Backing::block_bytes`]; whether the kernel then has a large page for it depends on the backing.
//!
//! Neighbours: `slot` makes the mappings; `hostvmm verify hugepages` shows what comes of them.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::SlotId;
use super::mapping::is_thp_disabled_here;

/// Where the kernel tells about its large pages (Documentation/admin-guide/mm/transhuge.rst, hugetlbpage.rst).
const SYSFS: &str = "/sys/kernel/mm";

/// What the memslots are mapped on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Backing {
    /// Shared memory on a memfd: base pages, unless the host's `shmem_enabled` says otherwise.
    #[default]
    Memfd,
    /// Private anonymous memory, as the host's THP policy has it.
    Anonymous,
    /// Private anonymous memory with MADV_HUGEPAGE.
    Thp,
    /// A memfd of reserved huge pages.
    Hugetlb {
        /// Bytes of one; the host's default without it.
        page_bytes: Option<u64>,
    },
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memfd => f.pad("memfd"),
            Self::Anonymous => f.pad("anon"),
            Self::Thp => f.pad("thp"),
            Self::Hugetlb { page_bytes: None } => f.pad("hugetlb"),
            Self::Hugetlb { page_bytes: Some(bytes) } => write!(f, "hugetlb:{}", Size(*bytes)),
        }
    }
}

/// Why this host has no such backing. Not a failure: exit status 4, "skipped".
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BackingUnavailable {
    /// A kernel without transparent huge pages, or one that left them off.
    #[error("--backing thp: this host's kernel has no transparent huge pages; use --backing hugetlb or memfd")]
    NoThp,
    /// Transparent huge pages are switched off.
    #[error(
        "--backing thp: transparent huge pages are off ({file} says never; Linux sets this by itself at boot with 512 MiB or less); \
         run `echo madvise > {file}`",
        file = file.display()
    )]
    ThpNever {
        /// What says so.
        file: PathBuf,
    },
    /// Transparent huge pages are switched off for this process, which a parent has done.
    #[error(
        "--backing thp: transparent huge pages are off for this process (PR_SET_THP_DISABLE); start hostvmm otherwise"
    )]
    ThpProcess,
    /// No huge pages of that size.
    #[error(
        "--backing hugetlb: this host has no huge pages{}; it has {}",
        page_bytes.map_or(String::new(), |bytes| format!(" of {}", Size(bytes))),
        if offered.is_empty() { "none of any size (CONFIG_HUGETLBFS)".to_owned() } else { list(offered) }
    )]
    NoHugetlb {
        /// What was asked for.
        page_bytes: Option<u64>,
        /// What there is.
        offered: Vec<u64>,
    },
    /// Too few huge pages are reserved.
    #[error(
        "--backing hugetlb: the guest's memory needs {needed} huge pages of {}, {free} are free; run `echo {total} > {}`, \
         or give the guest less memory (--ram, --region-size)",
        Size(*page_bytes),
        file.display()
    )]
    TooFewHugetlb {
        /// Bytes of one.
        page_bytes: u64,
        /// How many RAM and region take.
        needed: u64,
        /// How many nobody has.
        free: u64,
        /// How many must be reserved.
        total: u64,
        /// Where they are reserved.
        file: PathBuf,
    },
    /// The kernel refuses advice or mapping all the same.
    #[error("--backing {backing}: the host refuses it for the {slot}: {reason}; use --backing memfd")]
    Refused {
        /// Which backing.
        backing: Backing,
        /// For which slot.
        slot: SlotId,
        /// In the kernel's words.
        reason: String,
    },
}

impl Backing {
    /// Checks that this host has the backing at all, and for `slots` (lengths in bytes) enough of it.
    ///
    /// # Errors
    /// [`BackingUnavailable`]: the first thing missing.
    pub fn check(self, slots: &[u64]) -> Result<(), BackingUnavailable> {
        let host = HostPages { root: Path::new(SYSFS), host_page_bytes: super::host_page_bytes() };
        match self {
            Self::Memfd | Self::Anonymous => Ok(()),
            Self::Thp if is_thp_disabled_here() => Err(BackingUnavailable::ThpProcess),
            Self::Thp => host.check_thp(),
            Self::Hugetlb { page_bytes } => host.check_hugetlb(page_bytes, default_hugetlb_bytes(), slots),
        }
    }

    /// The largest block, in bytes, by which stage 2 could map this backing on this host; the host's page where there is
    /// none. Guest and host address are congruent modulo it.
    pub fn block_bytes(self) -> u64 {
        let page_bytes = super::host_page_bytes();
        match self {
            Self::Memfd | Self::Anonymous | Self::Thp => pmd_bytes(page_bytes),
            Self::Hugetlb { .. } => block_within(self.page_bytes(), page_bytes),
        }
    }

    /// Whether huge pages were asked for.
    pub const fn wants_huge_pages(self) -> bool {
        matches!(self, Self::Thp | Self::Hugetlb { .. })
    }

    /// Bytes of the pages that the kernel is asked for: huge ones with `hugetlb`, else the host's.
    pub(super) fn page_bytes(self) -> u64 {
        match self {
            Self::Hugetlb { page_bytes } => {
                page_bytes.or_else(default_hugetlb_bytes).unwrap_or_else(super::host_page_bytes)
            }
            _ => super::host_page_bytes(),
        }
    }
}

/// Bytes that an entry of the host's last but one level maps: 2M, 32M or 512M by its page of 4K, 16K or 64K. A table is
/// one page of 8-byte entries (DDI 0487 D8.2.1); x86 has the same.
const fn pmd_bytes(page_bytes: u64) -> u64 {
    page_bytes / 8 * page_bytes
}

/// The largest stage-2 block within a huge page of `huge_bytes`. Sizes between are contiguous entries, which stage 2
/// maps one by one; 1G blocks are for 4K pages only (DDI 0487 D8.2.1).
const fn block_within(huge_bytes: u64, page_bytes: u64) -> u64 {
    let pmd = pmd_bytes(page_bytes);
    let pud = pmd * (page_bytes / 8);
    if page_bytes == 4096 && huge_bytes >= pud {
        pud
    } else if huge_bytes >= pmd {
        pmd
    } else {
        page_bytes
    }
}

/// What the kernel says about large pages.
struct HostPages<'a> {
    root: &'a Path,
    host_page_bytes: u64,
}

impl HostPages<'_> {
    fn check_thp(&self) -> Result<(), BackingUnavailable> {
        let directory = self.root.join("transparent_hugepage");
        let global = directory.join("enabled");
        let Ok(policy) = std::fs::read_to_string(&global) else { return Err(BackingUnavailable::NoThp) };
        // Linux 6.8 has a switch for each size besides, which "inherit"s unless someone says otherwise.
        let sized = directory.join(format!("hugepages-{}kB/enabled", pmd_bytes(self.host_page_bytes) >> 10));
        match std::fs::read_to_string(&sized).ok().as_deref().map(chosen) {
            Some("always" | "madvise") => Ok(()),
            Some("never") => Err(BackingUnavailable::ThpNever { file: sized }),
            _ if chosen(&policy) == "never" => Err(BackingUnavailable::ThpNever { file: global }),
            _ => Ok(()),
        }
    }

    fn check_hugetlb(&self, asked: Option<u64>, default: Option<u64>, slots: &[u64]) -> Result<(), BackingUnavailable> {
        let offered = self.hugetlb_sizes();
        let Some(page_bytes) = asked.or(default).filter(|bytes| offered.contains(bytes)) else {
            return Err(BackingUnavailable::NoHugetlb { page_bytes: asked, offered });
        };
        let directory = self.root.join(format!("hugepages/hugepages-{}kB", page_bytes >> 10));
        let count = |name: &str| -> u64 {
            std::fs::read_to_string(directory.join(name)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        let surplus = count("nr_overcommit_hugepages").saturating_sub(count("surplus_hugepages"));
        let free = count("free_hugepages").saturating_sub(count("resv_hugepages")) + surplus;
        let needed: u64 = slots.iter().map(|len_bytes| len_bytes.div_ceil(page_bytes)).sum();
        if needed <= free {
            return Ok(());
        }
        let total = count("nr_hugepages") + (needed - free);
        let file = directory.join("nr_hugepages");
        Err(BackingUnavailable::TooFewHugetlb { page_bytes, needed, free, total, file })
    }

    fn hugetlb_sizes(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(self.root.join("hugepages")).into_iter().flatten().flatten();
        let mut sizes: Vec<u64> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
                kib.checked_mul(1024)
            })
            .collect();
        sizes.sort_unstable();
        sizes
    }
}

/// The word in brackets of a sysfs file that lists its choices.
fn chosen(text: &str) -> &str {
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(text.trim(), |(word, _)| word)
}

/// The size that MFD_HUGETLB takes by itself.
fn default_hugetlb_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A size in bytes as people write it: 64K, 2M, 1G.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = [(30, 'G'), (20, 'M'), (10, 'K')];
        match unit.into_iter().find(|(shift, _)| self.0 > 0 && self.0.is_multiple_of(1 << shift)) {
            Some((shift, letter)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

fn list(sizes: &[u64]) -> String {
    sizes.iter().map(|bytes| Size(*bytes).to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    #[test]
    fn blocks_follow_the_host_s_page() {
        assert_eq!([4 << 10, 16 << 10, 64 << 10].map(pmd_bytes), [2 * M, 32 * M, 512 * M]);
        assert_eq!(
            [64 << 10, 2 * M, 32 * M, 1 << 30].map(|huge| block_within(huge, 4096)),
            [4096, 2 * M, 2 * M, 1 << 30]
        );
        assert_eq!([2 * M, 512 * M, 16 << 30].map(|huge| block_within(huge, 64 << 10)), [64 << 10, 512 * M, 512 * M]);
    }

    #[test]
    fn names_show_their_size_as_people_write_it() {
        let name = |page_bytes| Backing::Hugetlb { page_bytes }.to_string();
        assert_eq!([name(None), name(Some(2 * M)), name(Some(1 << 30))], ["hugetlb", "hugetlb:2M", "hugetlb:1G"]);
        assert_eq!(
            [Backing::Memfd, Backing::Anonymous, Backing::Thp].map(|it| it.to_string()),
            ["memfd", "anon", "thp"]
        );
    }

    /// A host's sysfs in a directory.
    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn thp(files: &[(&str, &str)]) -> Result<(), BackingUnavailable> {
        HostPages { root: sysfs(files).path(), host_page_bytes: 4096 }.check_thp()
    }

    #[test]
    fn thp_that_is_missing_or_off_is_refused_with_the_switch_to_turn() {
        let global = "transparent_hugepage/enabled";
        let sized = "transparent_hugepage/hugepages-2048kB/enabled";
        assert_eq!(thp(&[]), Err(BackingUnavailable::NoThp));
        assert_eq!(thp(&[(global, "always [madvise] never\n")]), Ok(()));
        let error = thp(&[(global, "always madvise [never]\n")]).unwrap_err().to_string();
        assert!(error.contains("echo madvise > ") && error.contains(global), "{error}");
        assert_eq!(thp(&[(global, "[always] madvise never\n"), (sized, "always [inherit] madvise never\n")]), Ok(()));
        assert_eq!(thp(&[(global, "always madvise [never]\n"), (sized, "always inherit [madvise] never\n")]), Ok(()));
        let error = thp(&[(global, "[always] madvise never\n"), (sized, "always inherit madvise [never]\n")]);
        assert!(error.unwrap_err().to_string().contains(sized));
    }

    fn hugetlb(files: &[(&str, &str)], asked: Option<u64>, slots: &[u64]) -> Result<(), BackingUnavailable> {
        let root = sysfs(files);
        HostPages { root: root.path(), host_page_bytes: 4096 }.check_hugetlb(asked, Some(2 * M), slots)
    }

    #[test]
    fn too_few_huge_pages_are_refused_with_the_number_to_reserve() {
        let pool = |free, reserved| {
            [
                ("hugepages/hugepages-2048kB/nr_hugepages", "10\n"),
                ("hugepages/hugepages-2048kB/free_hugepages", free),
                ("hugepages/hugepages-2048kB/resv_hugepages", reserved),
            ]
        };
        assert_eq!(hugetlb(&pool("10", "0"), None, &[16 * M, 4 * M]), Ok(()));
        let error = hugetlb(&pool("8", "2"), None, &[16 * M, 3 * M]).unwrap_err();
        assert!(
            matches!(error, BackingUnavailable::TooFewHugetlb { needed: 10, free: 6, total: 14, .. }),
            "a part of a page takes a whole one: {error}"
        );
        assert!(error.to_string().contains("echo 14 > "), "{error}");
    }

    #[test]
    fn sizes_that_the_host_lacks_are_refused_with_those_it_has() {
        let files =
            [("hugepages/hugepages-2048kB/free_hugepages", "9"), ("hugepages/hugepages-1048576kB/free_hugepages", "0")];
        let error = hugetlb(&files, Some(64 << 10), &[M]).unwrap_err().to_string();
        assert!(error.contains("no huge pages of 64K; it has 2M, 1G"), "{error}");
        let error = hugetlb(&[], None, &[M]).unwrap_err().to_string();
        assert!(error.contains("none of any size"), "{error}");
        assert_eq!(hugetlb(&files, None, &[M]), Ok(()));
    }
}
