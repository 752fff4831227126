//! Huge pages of a VM in another process, as the kernel's dump of its stage 2 shows them: [`Blocks`].
//!
//! Where the kernel shows none (CONFIG_PTDUMP_STAGE2_DEBUGFS, Linux 6.12), a ledger says so. Neighbours: `verify::stage2` counts,
//! `verify::hugepages` proves them of a VM of its own, with faults as a second witness.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{MigrateSpec, Side};
use crate::backend::Accelerator;
use crate::memory::host_page_bytes;
use crate::verify::stage2::count_mappings;

/// Where the kernel has a directory for each machine: `THREAD-DESCRIPTOR`, of who made it (virt/kvm/kvm_main.c,
/// `kvm_create_vm_debugfs`).
const MACHINES: &str = "/sys/kernel/debug/kvm";

/// The blocks of a VM's region.
#[derive(Debug)]
pub(in crate::verify) struct Blocks {
    numbers: BTreeSet<u64>,
    block_bytes: u64,
}

impl Blocks {
    /// Those that VMs of `spec` are to have; `None` on memory without huge pages, and where KVM splits them by itself.
    pub(in crate::verify) fn of(spec: &MigrateSpec) -> Option<Self> {
        let machine = &spec.base.machine;
        let block_bytes = machine.backing.block_bytes();
        let has = machine.accelerator == Accelerator::Kvm && machine.eager_split.is_none();
        let region = machine.layout().ok()?.region();
        if !has || !machine.backing.wants_huge_pages() || block_bytes <= host_page_bytes() {
            return None;
        }
        let start = region.start().raw();
        let numbers = start.div_ceil(block_bytes)..(start + region.len_bytes()) / block_bytes;
        Some(Self { numbers: numbers.collect(), block_bytes })
    }

    /// How many of them stage 2 of `side` maps by blocks; `None` where the kernel does not show it.
    pub(in crate::verify) fn count(&self, side: &Side) -> Option<u64> {
        let dump = dump_of(Path::new(MACHINES), side.process_id())?;
        Some(count_mappings(&dump, &self.numbers, self.block_bytes).blocks)
    }
}

/// The dump of the machine that a thread of process `id` made.
fn dump_of(machines: &Path, id: u32) -> Option<String> {
    fs::read_dir(machines).ok()?.flatten().find_map(|machine| {
        let name = machine.file_name();
        let (thread, _) = name.to_str()?.split_once('-')?;
        thread.parse::<u32>().ok()?;
        if !Path::new(&format!("/proc/{id}/task/{thread}")).exists() {
            return None;
        }
        fs::read_to_string(machine.path().join("stage2_page_tables")).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_found_by_the_threads_of_its_process() {
        let machines = tempfile::tempdir().unwrap();
        let id = std::process::id();
        for (name, text) in [("1-7", "another's"), ("x-y", "nonsense"), (&format!("{id}-9"), "ours")] {
            let directory = machines.path().join(name);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("stage2_page_tables"), text).unwrap();
        }
        fs::write(machines.path().join("halt_poll_ns"), "0").unwrap();
        assert_eq!(dump_of(machines.path(), id).as_deref(), Some("ours"));
        assert_eq!(dump_of(&machines.path().join("none"), id), None);
    }
}
