//! A kernel that answers as the test says, so that its failures are met on every host.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use abi::{Arch, Gpa, GuestRange, map};

use super::{Kernel, Kick, ProtocolVcpu, Report, X0};
use crate::backend::{BackendError, Exit, Vcpu as _};
use crate::memory::{GuestMemory, host_page_bytes};

const PC: u64 = X0 + 64;

/// What the vCPU asked of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// KVM_RUN, with `immediate_exit` set or not.
    Run {
        immediate_exit: bool,
    },
    Answer([u8; 8]),
    Get(u64),
    Set(u64, u64),
    EmptyRings,
}

struct Script {
    reports: VecDeque<io::Result<Report>>,
    calls: Vec<Call>,
}

/// Its `KVM_RUN`s come back as scripted; after the script's end, the test has failed.
struct ScriptedKernel {
    script: Arc<Mutex<Script>>,
    /// Stands for `kvm_run.immediate_exit`; never moves.
    immediate_exit: *mut u8,
    registers_fail: Option<i32>,
}

// SAFETY: the byte is leaked, and written only under the lock of the `Kick` that has it.
#[expect(unsafe_code, reason = "the flag that stands for the kernel's is a raw pointer")]
unsafe impl Send for ScriptedKernel {}

impl ScriptedKernel {
    fn note(&self, call: Call) {
        self.script.lock().unwrap().calls.push(call);
    }

    #[expect(unsafe_code, reason = "reads the flag that stands for the kernel's")]
    fn immediate_exit(&self) -> bool {
        // SAFETY: a leaked byte, which no other thread of these tests writes.
        unsafe { self.immediate_exit.read_volatile() != 0 }
    }
}

impl Kernel for ScriptedKernel {
    fn run(&mut self) -> io::Result<Report> {
        let call = Call::Run { immediate_exit: self.immediate_exit() };
        let mut script = self.script.lock().unwrap();
        script.calls.push(call);
        script.reports.pop_front().expect("a run that the script has not")
    }

    fn answer(&mut self, data: [u8; 8]) {
        self.note(Call::Answer(data));
    }

    fn get_one_reg(&self, id: u64, value: &mut [u8]) -> io::Result<()> {
        self.note(Call::Get(id));
        if let Some(errno) = self.registers_fail {
            return Err(errno_of(errno));
        }
        value.copy_from_slice(&id.to_le_bytes()[..value.len()]);
        Ok(())
    }

    fn set_one_reg(&self, id: u64, value: &[u8]) -> io::Result<()> {
        let mut bytes = [0; 8];
        bytes[..value.len()].copy_from_slice(value);
        self.note(Call::Set(id, u64::from_le_bytes(bytes)));
        self.registers_fail.map_or(Ok(()), |errno| Err(errno_of(errno)))
    }

    fn reg_list(&self) -> io::Result<Vec<u64>> {
        self.registers_fail.map_or_else(|| Ok(vec![X0, PC]), |errno| Err(errno_of(errno)))
    }

    fn is_stopped(&self) -> io::Result<bool> {
        self.registers_fail.map_or(Ok(true), |errno| Err(errno_of(errno)))
    }

    fn set_stopped(&self, _: bool) -> io::Result<()> {
        self.registers_fail.map_or(Ok(()), |errno| Err(errno_of(errno)))
    }

    fn empty_rings(&self) -> Result<(), BackendError> {
        self.note(Call::EmptyRings);
        Ok(())
    }
}

fn errno_of(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

struct Rig {
    vcpu: ProtocolVcpu<ScriptedKernel>,
    script: Arc<Mutex<Script>>,
}

impl Rig {
    fn new(reports: impl IntoIterator<Item = io::Result<Report>>) -> Self {
        Self::with(reports, None)
    }

    fn with(reports: impl IntoIterator<Item = io::Result<Report>>, registers_fail: Option<i32>) -> Self {
        Self::of(Arch::Aarch64, reports, registers_fail)
    }

    fn of(arch: Arch, reports: impl IntoIterator<Item = io::Result<Report>>, registers_fail: Option<i32>) -> Self {
        let page = host_page_bytes();
        let ram = GuestRange::new(map::RAM_BASE, page).unwrap();
        let memory = GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, page).unwrap(), None).unwrap();
        let script = Arc::new(Mutex::new(Script { reports: reports.into_iter().collect(), calls: Vec::new() }));
        let immediate_exit: *mut u8 = Box::leak(Box::new(0));
        let kernel = ScriptedKernel { script: Arc::clone(&script), immediate_exit, registers_fail };
        Self { vcpu: ProtocolVcpu::new(kernel, 3, arch, Kick::new(immediate_exit), &memory), script }
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.script.lock().unwrap().calls)
    }
}

fn interrupted() -> io::Result<Report> {
    Err(errno_of(libc::EINTR))
}

fn load() -> io::Result<Report> {
    Ok(Report::MmioRead { gpa: map::DOORBELL_BASE.raw(), len_bytes: 4 })
}

#[test]
fn every_way_not_to_go_on_names_the_vcpu_the_slots_and_the_registers() {
    let region = map::REGION_BASE.raw();
    for (report, words) in [
        (Ok(Report::FailEntry { reason: 0x2a, cpu: 7 }), ["KVM_EXIT_FAIL_ENTRY", "host CPU 7", "0x2a"]),
        (Ok(Report::InternalError { suberror: 4, data: vec![0xabc] }), ["INTERNAL_ERROR", "suberror 4", "0xabc"]),
        (Ok(Report::Other { reason: 38, name: "Notify".into() }), ["unexpected exit", "38", "Notify"]),
        (Ok(Report::SystemEvent { kind: 3 }), ["system event", "3", "guest"]),
        (Ok(Report::MemoryFault { flags: 8, gpa: region, len_bytes: 64 }), ["64 bytes", "memslot region", "0x8"]),
        (Ok(Report::MemoryFault { flags: 0, gpa: 0, len_bytes: 1 }), ["MEMORY_FAULT", "0x0", "no memslot"]),
        (Err(errno_of(libc::ENOMEM)), ["KVM_RUN", "(os error", "12"]),
        (Err(errno_of(libc::ENOEXEC)), ["KVM_RUN", "(os error", "8"]),
        (Err(errno_of(libc::EFAULT)), ["KVM_RUN", "(os error", "14"]),
        (Err(errno_of(libc::EPERM)), ["KVM_RUN", "(os error", "1"]),
        (Err(errno_of(libc::ENOSYS)), ["KVM_RUN", "instruction", "hardware does not describe"]),
    ] {
        let mut rig = Rig::new([report]);
        let error = rig.vcpu.run(None).unwrap_err();
        assert!(matches!(error, BackendError::Run { vcpu: 3, .. }), "{error:?}");
        let text = error.to_string();
        for word in words.into_iter().chain(["vCPU 3", "memslots RAM ", "region ", "pc=0x6030000000100040", "x30="]) {
            assert!(text.contains(word), "{word:?} is not in {text}");
        }
        assert_eq!(rig.calls()[0], Call::Run { immediate_exit: false });
    }
}

#[test]
fn a_vcpu_whose_registers_cannot_be_read_is_reported_without_them() {
    let mut rig = Rig::with([Ok(Report::FailEntry { reason: 1, cpu: 0 })], Some(libc::ENOEXEC));
    let text = rig.vcpu.run(None).unwrap_err().to_string();
    assert!(text.contains("KVM_EXIT_FAIL_ENTRY") && text.contains("memslots RAM") && !text.contains("pc="), "{text}");
    for error in [
        rig.vcpu.get_reg(PC).unwrap_err(),
        rig.vcpu.set_reg(PC, 0).unwrap_err(),
        rig.vcpu.reg_list().unwrap_err(),
        rig.vcpu.is_on().unwrap_err(),
        rig.vcpu.set_on(true).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains("vCPU 3") && text.contains("os error 8"), "{text}");
    }
}

#[test]
fn an_aarch32_vcpu_is_reported_by_its_own_names() {
    let mut rig = Rig::of(Arch::Armv7, [Ok(Report::FailEntry { reason: 1, cpu: 0 })], None);
    let text = rig.vcpu.run(None).unwrap_err().to_string();
    for word in ["cpsr=", "sp_svc=0x6030000000100026", "dfsr=", "r14="] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!text.contains("r15=") && !text.contains("x0="), "{text}");
}

#[test]
fn interruptions_come_back_one_by_one_however_many() {
    const STORM: usize = 10_000;
    let rest = [Ok(Report::Interrupted), Err(errno_of(libc::EAGAIN)), Ok(Report::Shutdown)];
    let mut rig = Rig::new((0..STORM).map(|_| interrupted()).chain(rest));
    for _ in 0..STORM + 2 {
        assert_eq!(rig.vcpu.run(None).unwrap(), Exit::Kicked);
    }
    assert_eq!(rig.vcpu.run(None).unwrap(), Exit::SystemOff);
    assert_eq!(rig.calls().len(), STORM + 3, "no run more than was asked for");
}

#[test]
fn an_answered_access_is_completed_once_before_state_is_touched() {
    type Touch = fn(&mut ProtocolVcpu<ScriptedKernel>) -> Result<(), BackendError>;
    let touches: [Touch; 5] = [
        |vcpu| vcpu.get_reg(PC).map(drop),
        |vcpu| vcpu.set_reg(PC, 1),
        |vcpu| vcpu.reg_list().map(drop),
        |vcpu| vcpu.is_on().map(drop),
        |vcpu| vcpu.set_on(true),
    ];
    for touch in touches {
        let mut rig = Rig::new([load(), interrupted(), interrupted()]);
        assert!(matches!(rig.vcpu.run(None).unwrap(), Exit::MmioRead { len_bytes: 4, .. }));
        rig.vcpu.complete_mmio_read(0x1234);
        touch(&mut rig.vcpu).unwrap();
        touch(&mut rig.vcpu).unwrap();
        let answer = Call::Answer(0x1234_u64.to_le_bytes());
        let runs = [Call::Run { immediate_exit: false }, answer, Call::Run { immediate_exit: true }];
        let calls = rig.calls();
        assert_eq!(calls[..3], runs, "nothing between the answer and the run that takes it");
        assert!(!calls[3..].iter().any(|call| matches!(call, Call::Run { .. })), "{calls:?}");
        // No kick came: the guest runs on.
        assert_eq!(rig.vcpu.run(None).unwrap(), Exit::Kicked);
        assert_eq!(rig.calls(), [Call::Run { immediate_exit: false }]);
    }
}

#[test]
fn a_kick_outlives_the_completion_of_an_access() {
    let mut rig = Rig::new([load(), interrupted(), interrupted(), load()]);
    rig.vcpu.run(None).unwrap();
    rig.vcpu.kick().kick();
    rig.vcpu.get_reg(PC).unwrap();
    rig.calls();
    assert_eq!(rig.vcpu.run(None).unwrap(), Exit::Kicked);
    assert_eq!(rig.calls(), [Call::Run { immediate_exit: true }]);
    rig.vcpu.run(None).unwrap();
    assert_eq!(rig.calls(), [Call::Run { immediate_exit: false }], "a kick is reported once");
}

#[test]
fn a_kernel_that_runs_instead_of_completing_is_reported() {
    for (report, word) in [(load(), "MmioRead"), (Err(errno_of(libc::ENOMEM)), "os error 12")] {
        let mut rig = Rig::new([load(), report]);
        rig.vcpu.run(None).unwrap();
        let text = rig.vcpu.get_reg(PC).unwrap_err().to_string();
        assert!(text.contains("vCPU 3 stopped") && text.contains(word) && text.contains("pc="), "{text}");
    }
}

#[test]
fn a_full_ring_is_emptied_and_the_guest_runs_on() {
    let mut rig = Rig::new([Ok(Report::RingFull), Ok(Report::RingFull), Ok(Report::Reset)]);
    assert_eq!(rig.vcpu.run(None).unwrap(), Exit::SystemReset);
    let run = Call::Run { immediate_exit: false };
    assert_eq!(rig.calls(), [run, Call::EmptyRings, run, Call::EmptyRings, run]);
}

#[test]
fn a_hypercall_brings_its_arguments_and_takes_its_results() {
    let mut rig = Rig::new([Ok(Report::Hypercall { function: 0x8600_0001 })]);
    let args = [1, 2, 3, 4, 5, 6, 7].map(|number| X0 + 2 * number);
    assert_eq!(rig.vcpu.run(None).unwrap(), Exit::Hvc { function: 0x8600_0001, args });
    rig.calls();
    rig.vcpu.complete_hvc([5, 6, 7, 8]);
    let set = |number: u64| Call::Set(X0 + 2 * number, 5 + number);
    assert_eq!(rig.calls(), [set(0), set(1), set(2), set(3)]);
}

#[test]
fn a_store_is_told_with_its_bytes() {
    let gpa = map::DOORBELL_BASE.raw();
    let mut rig = Rig::new([Ok(Report::MmioWrite { gpa, len_bytes: 2, data: [1, 2, 0, 0, 0, 0, 0, 0] })]);
    assert_eq!(rig.vcpu.run(None).unwrap(), Exit::MmioWrite { gpa: Gpa::new(gpa), len_bytes: 2, data: 0x201 });
}

#[test]
fn what_does_not_fit_a_register_is_refused_by_name() {
    let mut rig = Rig::new([]);
    let fpsr = 0x6020_0000_0010_00d4;
    let text = rig.vcpu.set_reg(fpsr, 1 << 32).unwrap_err().to_string();
    assert!(text.contains("0x60200000001000d4") && text.contains("4 bytes"), "{text}");
    let z0 = 0x6080_0000_0015_0000;
    for error in [rig.vcpu.get_reg(z0).unwrap_err(), rig.vcpu.set_reg(z0, 0).unwrap_err()] {
        assert!(error.to_string().contains("256 bytes") && error.to_string().contains("SVE"), "{error}");
    }
    assert!(rig.vcpu.run(Some(1)).unwrap_err().to_string().contains("count instructions"));
    assert!(rig.calls().is_empty(), "the kernel was not asked");
}
