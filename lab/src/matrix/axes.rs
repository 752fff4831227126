//! What the matrix ranges over: guests, hosts, dirty logs; and hostvmm's command line for each cell.

use std::fmt;

use clap::ValueEnum;

use crate::kernel::{Configuration, KernelChoice, Packaged};

/// A guest's translation regime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "verbatim")]
pub(crate) enum Guest {
    /// AArch64, 4K pages, 39 bits.
    #[value(name = "4k39")]
    K4V39,
    /// AArch64, 4K pages, 48 bits.
    #[value(name = "4k48")]
    K4V48,
    /// AArch64, 16K pages, 47 bits.
    #[value(name = "16k47")]
    K16V47,
    /// AArch64, 64K pages, 42 bits.
    #[value(name = "64k42")]
    K64V42,
    /// AArch64, 64K pages, 48 bits.
    #[value(name = "64k48")]
    K64V48,
    /// ARMv7 with short descriptors.
    #[value(name = "armv7-short")]
    Short,
    /// ARMv7 with the Large Physical Address Extension.
    #[value(name = "armv7-lpae")]
    Lpae,
}

impl Guest {
    /// The guest as the table calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::K4V39 => "4K/39",
            Self::K4V48 => "4K/48",
            Self::K16V47 => "16K/47",
            Self::K64V42 => "64K/42",
            Self::K64V48 => "64K/48",
            Self::Short => "ARMv7 short",
            Self::Lpae => "ARMv7 LPAE",
        }
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::K4V39 => ["--granule", "4k", "--va-bits", "39"],
            Self::K4V48 => ["--granule", "4k", "--va-bits", "48"],
            Self::K16V47 => ["--granule", "16k", "--va-bits", "47"],
            Self::K64V42 => ["--granule", "64k", "--va-bits", "42"],
            Self::K64V48 => ["--granule", "64k", "--va-bits", "48"],
            Self::Short => ["--arch", "armv7", "--tables", "short"],
            Self::Lpae => ["--arch", "armv7", "--tables", "lpae"],
        }
    }

    fn is_original(self) -> bool {
        matches!(self, Self::K4V39 | Self::K4V48 | Self::K64V42 | Self::K64V48)
    }
}

/// A dirty log of KVM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Log {
    /// KVM_GET_DIRTY_LOG that resets as well.
    Bitmap,
    /// KVM_CLEAR_DIRTY_LOG in chunks.
    Manual,
    /// The same, with every page dirty at first.
    Initset,
    /// The dirty ring, where the kernel has it.
    Ring,
}

impl Log {
    /// The log's name, as hostvmm's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bitmap => "bitmap",
            Self::Manual => "manual",
            Self::Initset => "initset",
            Self::Ring => "ring",
        }
    }
}

/// Host kernels of the whole matrix.
pub(crate) fn all_hosts() -> Vec<KernelChoice> {
    use Configuration::{K4V39, K4V48, K64V42, K64V48};
    let built = |configuration| KernelChoice::Built(configuration);
    vec![built(K4V39), built(K4V48), KernelChoice::Packaged(Packaged::K16), built(K64V42), built(K64V48)]
}

/// One run: a guest on a host under a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Coordinates {
    pub(crate) guest: Guest,
    /// Index among the hosts of this matrix.
    pub(crate) host: usize,
    pub(crate) log: Log,
    /// Whether the original ARMv8 test had this pair of guest and host.
    pub(crate) original: bool,
}

impl Coordinates {
    /// What the cell's files begin with.
    pub(crate) fn file_name(&self) -> String {
        let guest = self.guest.to_possible_value().expect("no variant is hidden");
        format!("{}-{}", guest.get_name(), self.log.name())
    }
}

/// The cells, guest by guest.
pub(crate) fn cells(guests: &[Guest], hosts: &[KernelChoice], logs: &[Log]) -> Vec<Coordinates> {
    let mut cells = Vec::new();
    for &guest in guests {
        for (index, host) in hosts.iter().enumerate() {
            for &log in logs {
                cells.push(Coordinates { guest, host: index, log, original: guest.is_original() && is_original(host) });
            }
        }
    }
    cells
}

fn is_original(host: &KernelChoice) -> bool {
    use Configuration::{K4V39, K4V48, K64V42, K64V48};
    matches!(host, KernelChoice::Built(K4V39 | K4V48 | K64V42 | K64V48))
}

/// What every cell runs.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct Work {
    /// Passes after pass 0, which copies everything.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) passes: u32,
    /// What the guest writes, as hostvmm's --workload.
    #[arg(long, default_value = "mixed")]
    pub(crate) workload: String,
    /// vCPUs of the guest.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) vcpus: u8,
    /// Seed of the plan.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// hostvmm's command line for a cell.
pub(crate) fn command(cell: &Coordinates, work: &Work) -> Vec<String> {
    let mut command: Vec<String> = ["hostvmm", "verify", "passes", "--accel", "kvm"].map(str::to_owned).into();
    command.extend(cell.guest.arguments().map(str::to_owned));
    let rest = [
        ("--dirty-log", cell.log.name().to_owned()),
        ("--workload", work.workload.clone()),
        ("--passes", work.passes.to_string()),
        ("--vcpus", work.vcpus.to_string()),
        ("--seed", work.seed.to_string()),
        ("--json", format!("{}.json", cell.file_name())),
    ];
    command.extend(rest.into_iter().flat_map(|(option, value)| [option.to_owned(), value]));
    command
}

impl fmt::Display for Coordinates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {} with {}", self.guest.title(), self.log.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_matrix_has_the_original_sixteen_under_each_log() {
        let cells = cells(Guest::value_variants(), &all_hosts(), &[Log::Bitmap, Log::Manual, Log::Ring]);
        assert_eq!(cells.len(), 7 * 5 * 3);
        assert_eq!(cells.iter().filter(|cell| cell.original).count(), 16 * 3);
        let mut names: Vec<_> = cells.iter().map(|cell| (cell.host, cell.file_name())).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cells.len());
    }

    #[test]
    fn a_cells_command_names_its_guest_its_log_and_kvm() {
        let cell = Coordinates { guest: Guest::Lpae, host: 0, log: Log::Ring, original: false };
        let work = Work { passes: 3, workload: "mixed".to_owned(), vcpus: 2, seed: 7 };
        let line = command(&cell, &work).join(" ");
        for part in ["--accel kvm", "--arch armv7 --tables lpae", "--dirty-log ring", "--json armv7-lpae-ring.json"] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
}
