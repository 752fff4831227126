//! What can be seen of a machine's stage 2: faults by KVM's binary statistics ([`FaultCounter`], kvm/api.rst 4.133), and
//! the tables themselves where the kernel dumps them ([`tables`]).
//!
//! No statistic counts stage-2 faults alone on arm64. `exits` counts every return from the guest; of the others, those with
//! a statistic of their own (HVC, WFE, WFI, accesses to devices) are taken off. What is left are faults and the host's
//! interrupts, some hundred a second.
#![expect(unsafe_code, reason = "an ioctl that kvm-ioctls has not")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::FileExt as _;

use kvm_ioctls::{VcpuFd, VmFd};

// include/uapi/linux/kvm.h
const KVM_GET_STATS_FD: u64 = 0xaece;
/// Bytes of `struct kvm_stats_header`, and of `struct kvm_stats_desc` before the name.
const HEADER_BYTES: usize = 24;
const DESCRIPTOR_BYTES: usize = 16;
/// More than any kernel has; a bound for what is read.
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_NAME_BYTES: u32 = 1024;

const EXITS: &str = "exits";
/// Exits that are no faults. `signal_exits` is not among them: a signal is noticed after an exit that is counted.
const OTHERS: [&str; 5] = ["hvc_exit_stat", "wfe_exit_stat", "wfi_exit_stat", "mmio_exit_user", "mmio_exit_kernel"];

/// Counts the stage-2 faults of one vCPU. Reading it does not stop the vCPU.
#[derive(Debug)]
pub(super) struct FaultCounter {
    file: File,
    exits: u64,
    others: Vec<u64>,
}

impl FaultCounter {
    /// The counter of `vcpu`.
    ///
    /// # Errors
    /// The kernel's words where it has no statistics, or not this one.
    pub(super) fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: the call has no argument and makes a new descriptor.
        let raw = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD as libc::Ioctl, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        let file = unsafe { File::from_raw_fd(raw) };
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let name_bytes = word(&header, 4).min(MAX_NAME_BYTES);
        let count = word(&header, 8).min(MAX_DESCRIPTORS);
        let size = DESCRIPTOR_BYTES + name_bytes as usize;
        let mut descriptors = vec![0; size * count as usize];
        file.read_exact_at(&mut descriptors, word(&header, 16).into())?;
        let data = word(&header, 20);
        let (mut exits, mut others) = (None, Vec::new());
        for descriptor in descriptors.chunks_exact(size) {
            let at = u64::from(data) + u64::from(word(descriptor, 8));
            let name = descriptor[DESCRIPTOR_BYTES..].split(|byte| *byte == 0).next().unwrap_or_default();
            match std::str::from_utf8(name) {
                Ok(EXITS) => exits = Some(at),
                Ok(name) if OTHERS.contains(&name) => others.push(at),
                _ => {}
            }
        }
        let exits = exits.ok_or_else(|| io::Error::other("there is no statistic \"exits\""))?;
        Ok(Self { file, exits, others })
    }

    /// Faults so far.
    ///
    /// # Errors
    /// Where the statistics cannot be read.
    pub(super) fn read(&self) -> io::Result<u64> {
        // The others first: an exit between the readings is then counted too much, never too little.
        let mut others = 0;
        for &at in &self.others {
            others += self.value(at)?;
        }
        Ok(self.value(self.exits)?.saturating_sub(others))
    }

    fn value(&self, at: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// The `u32` at `at` of a structure of the kernel's.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The calling thread, by which debugfs names the machines that it makes.
pub(super) fn thread_id() -> i32 {
    // SAFETY: the call takes nothing and touches no memory of ours.
    unsafe { libc::gettid() }
}

/// The kernel's dump of the stage-2 tables of `vm`, made by thread `maker`; `None` where it has none
/// (CONFIG_PTDUMP_STAGE2_DEBUGFS, Linux 6.12), or debugfs is not mounted or not for this user.
pub(super) fn tables(vm: &VmFd, maker: i32) -> Option<String> {
    // virt/kvm/kvm_main.c, kvm_create_vm_debugfs: the thread's id and the descriptor's number.
    let directory = format!("/sys/kernel/debug/kvm/{maker}-{}", vm.as_raw_fd());
    std::fs::read_to_string(format!("{directory}/stage2_page_tables")).ok()
}
