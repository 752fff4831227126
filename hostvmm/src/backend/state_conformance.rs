//! What every accelerator must keep of a machine that is saved and restored, run on those that this host has.

use std::collections::BTreeMap;

use abi::{Arch, GuestRange, map};

use super::gic_state::{self, CPU_INTERFACE, DISTRIBUTOR, GicKey, LINE_LEVEL, REDISTRIBUTOR};
use super::state_guest::{PC, StateGuest, V0, WINDOW, X0};
use super::{Accelerator, Exit, GicState, VmHandle, open, register_bytes, why_no_kvm_guest};
use crate::machine::{MachineConfig, Start};
use crate::memory::{GuestMemory, SlotId, host_page_bytes};

/// KVM_REG_ARM_TIMER_CNT: the virtual counter.
const TIMER_CNT: u64 = 0x6030_0000_0013_df1a;
/// KVM_REG_ARM_PTIMER_CNT: the physical counter.
const PTIMER_CNT: u64 = 0x6030_0000_0013_df01;
/// CNTV_CTL_EL0 and CNTP_CTL_EL0, whose ISTATUS follows from the counter.
const TIMER_CONTROLS: [u64; 2] = [TIMER_CTL, 0x6030_0000_0013_df11];
const TIMER_CTL: u64 = 0x6030_0000_0013_df19;
/// KVM_REG_ARM_TIMER_CVAL: CNTV_CVAL_EL0.
const TIMER_CVAL: u64 = 0x6030_0000_0013_df02;

const ICC_CTLR: u64 = gic_state::ICC_CTLR;
const ICC_PMR: u64 = 0xc230;
const ICC_BPR0: u64 = 0xc643;
const ICC_BPR1: u64 = 0xc663;
const ICC_AP1R0: u64 = 0xc648;
const ICC_IGRPEN1: u64 = 0xc667;

/// Each accelerator that this host has.
fn accelerators() -> Vec<Accelerator> {
    accelerators_of(Arch::Aarch64)
}

/// Each accelerator of this host that has guests of `arch`.
fn accelerators_of(arch: Arch) -> Vec<Accelerator> {
    match why_no_kvm_guest(arch) {
        None => vec![Accelerator::Emulator, Accelerator::Kvm],
        Some(reason) => {
            println!("skipped: {reason}");
            vec![Accelerator::Emulator]
        }
    }
}

fn memory() -> GuestMemory {
    let page = host_page_bytes();
    let ram = GuestRange::new(map::RAM_BASE, 16 * page).unwrap();
    GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, page).unwrap(), None).unwrap()
}

fn machine(accelerator: Accelerator, vcpus: usize, memory: &GuestMemory) -> VmHandle {
    machine_of(Arch::Aarch64, accelerator, vcpus, memory)
}

fn machine_of(arch: Arch, accelerator: Accelerator, vcpus: usize, memory: &GuestMemory) -> VmHandle {
    let config = MachineConfig { accelerator, vcpus, ..MachineConfig::default() };
    let start = Start { arch, entry: map::RAM_BASE, devicetree: map::RAM_BASE, point: None };
    open(&config, &config.layout().unwrap(), memory, start).unwrap()
}

/// Every register of a vCPU, in the order of the list.
fn registers(guest: &mut StateGuest) -> Vec<(u64, u128)> {
    let ids = guest.vcpu.reg_list().unwrap();
    ids.into_iter().map(|id| (id, guest.get(id))).collect()
}

fn assert_equal_but_for_time(found: &[(u64, u128)], saved: &[(u64, u128)]) {
    let found: BTreeMap<_, _> = found.iter().copied().collect();
    assert_eq!(found.len(), saved.len());
    for (id, saved) in saved {
        let found = found[id];
        match *id {
            // They run on: less than a minute, at any frequency.
            TIMER_CNT => assert!((*saved..*saved + (60 << 30)).contains(&found), "{found:#x} after {saved:#x}"),
            PTIMER_CNT => {}
            id if TIMER_CONTROLS.contains(&id) => assert_eq!(found & 3, saved & 3, "{id:#x}"),
            _ => assert_eq!(found, *saved, "{id:#018x}"),
        }
    }
}

#[test]
fn every_register_listed_can_be_read_and_written_back_here_and_elsewhere() {
    for accelerator in accelerators() {
        let memory = memory();
        StateGuest::load(&memory);
        let vm = machine(accelerator, 1, &memory);
        let mut guest = StateGuest::take(&vm, 0);
        guest.set(V0 + 4, 3 << 64 | 2);
        guest.sum(100);
        for number in 0..50 {
            assert!(matches!(guest.run(), Exit::MmioRead { len_bytes: 4, .. }));
            guest.vcpu.complete_mmio_read(number);
        }
        let saved = registers(&mut guest);
        let unique: BTreeMap<_, _> = saved.iter().copied().collect();
        assert_eq!(unique.len(), saved.len(), "each id once");
        assert!(saved.iter().all(|(id, _)| [4, 8, 16].contains(&register_bytes(*id))));
        // The list is what decides what a destination must have.
        assert!([X0, PC, V0, TIMER_CNT].iter().all(|id| unique.contains_key(id)));
        guest.vcpu.restore_regs(&saved).unwrap();
        assert_equal_but_for_time(&registers(&mut guest), &saved);

        let other = machine(accelerator, 1, &memory);
        let mut there = StateGuest::take_as_it_is(&other, 0);
        there.vcpu.restore_regs(&saved).unwrap();
        assert_equal_but_for_time(&registers(&mut there), &saved);
        // The fiftieth load was answered and is complete: the guest goes on with the fifty-first.
        for number in 50..100 {
            assert!(matches!(there.run(), Exit::MmioRead { len_bytes: 4, .. }), "{accelerator}: load {number}");
            there.vcpu.complete_mmio_read(number);
        }
        there.expect(0, (0..100).sum());
        assert_eq!(there.get(V0), 300 << 64 | 200, "{accelerator}");
    }
}

#[test]
fn an_aarch32_guest_goes_on_in_another_machine_with_every_register() {
    // R8 to R14 of all modes, SPSRs of the five of them, and parts of system registers, by X8 to X30 and spsr[].
    let banked = (8..31).map(|number| X0 + 2 * number).chain((0..5).map(|number| X0 + 72 + 2 * number));
    let banked: Vec<u64> = banked.collect();
    for accelerator in accelerators_of(Arch::Armv7) {
        let memory = memory();
        StateGuest::load(&memory);
        let vm = machine_of(Arch::Armv7, accelerator, 1, &memory);
        let mut guest = StateGuest::take_as_it_is(&vm, 0);
        for (id, value) in banked.iter().zip(1..) {
            guest.set(*id, value << 8);
        }
        guest.sum_a32(10);
        for number in 0..5 {
            assert!(matches!(guest.run(), Exit::MmioRead { len_bytes: 4, .. }));
            guest.vcpu.complete_mmio_read(number);
        }
        let saved = registers(&mut guest);
        guest.vcpu.restore_regs(&saved).unwrap();
        assert_equal_but_for_time(&registers(&mut guest), &saved);
        let other = machine_of(Arch::Armv7, accelerator, 1, &memory);
        let mut there = StateGuest::take_as_it_is(&other, 0);
        there.vcpu.restore_regs(&saved).unwrap();
        assert_equal_but_for_time(&registers(&mut there), &saved);
        for (id, value) in banked.iter().zip(1_u128..) {
            assert_eq!(there.get(*id), value << 8, "{accelerator}: {id:#x}");
        }
        for number in 5..10 {
            assert!(matches!(there.run(), Exit::MmioRead { len_bytes: 4, .. }), "{accelerator}: load {number}");
            there.vcpu.complete_mmio_read(number);
        }
        there.expect(0, 45);
    }
}

#[test]
fn an_access_is_complete_before_state_is_read() {
    for accelerator in accelerators() {
        let memory = memory();
        StateGuest::load(&memory);
        let vm = machine(accelerator, 1, &memory);
        let mut guest = StateGuest::take(&vm, 0);
        guest.sum(2);
        let load = guest.get(PC);
        assert!(matches!(guest.run(), Exit::MmioRead { .. }));
        guest.vcpu.complete_mmio_read(0x1234_5678);
        // A kick that comes meanwhile is still reported, and nothing else was executed.
        vm.kick(0);
        assert_eq!(guest.get(X0 + 4), 0x1234_5678, "{accelerator}: the load's register");
        assert_eq!(guest.get(PC), load + 4, "{accelerator}: past the load");
        assert_eq!(guest.get(X0 + 2), 0, "{accelerator}: not yet added");
        assert_eq!(guest.vcpu.run(None).unwrap(), Exit::Kicked);
        assert!(matches!(guest.run(), Exit::MmioRead { .. }));
        guest.vcpu.complete_mmio_read(1);
        guest.expect(0, 0x1234_5679);
        let stored = guest.get(PC);
        assert_eq!(stored, load + 0x18, "{accelerator}: past the store");
    }
}

#[test]
fn power_is_state_of_its_own() {
    for accelerator in accelerators() {
        let memory = memory();
        let vm = machine(accelerator, 2, &memory);
        let mut vcpus = [vm.take_vcpu(0).unwrap(), vm.take_vcpu(1).unwrap()];
        for on in [[true, false], [false, true], [true, true]] {
            for (vcpu, on) in vcpus.iter_mut().zip(on) {
                vcpu.set_on(on).unwrap();
            }
            for (vcpu, on) in vcpus.iter_mut().zip(on) {
                assert_eq!(vcpu.is_on().unwrap(), on, "{accelerator}");
            }
            if on == [false, true] {
                vm.kick(0);
                assert_eq!(vcpus[0].run(None).unwrap(), Exit::Kicked, "off, and still to be interrupted");
            }
        }
    }
}

fn key(group: u32, attr: u64) -> GicKey {
    GicKey { group, attr }
}

/// The register `attr` of `group`.
fn gic(state: &GicState, group: u32, attr: u64) -> u64 {
    state.registers.iter().find(|(found, _)| *found == key(group, attr)).map(|(_, value)| *value).unwrap()
}

fn gic_mut(state: &mut GicState, group: u32, attr: u64) -> &mut u64 {
    state.registers.iter_mut().find(|(found, _)| *found == key(group, attr)).map(|(_, value)| value).unwrap()
}

fn bit(intid: u64) -> u64 {
    1 << (intid % 32)
}

// SPIs of the test, by what becomes of them.
const NESTED_LOW: u64 = 33;
const NESTED_HIGH: u64 = 34;
const ELSEWHERE: u64 = 35;
const EDGE: u64 = 36;
const DISABLED: u64 = 37;
// SGIs.
const TO_ZERO: u64 = 3;
const TO_ONE: u64 = 4;

/// A controller of two vCPUs as a guest would set it up.
fn set_up(vm: &VmHandle) {
    let mut state = vm.save_gic().unwrap();
    *gic_mut(&mut state, DISTRIBUTOR, 0) |= 0b10;
    *gic_mut(&mut state, DISTRIBUTOR, 0x104) = bit(NESTED_LOW) | bit(NESTED_HIGH) | bit(ELSEWHERE) | bit(EDGE);
    for (intid, priority) in
        [(NESTED_LOW, 0xa0), (NESTED_HIGH, 0x40), (ELSEWHERE, 0x80), (EDGE, 0xb0), (DISABLED, 0x20)]
    {
        *gic_mut(&mut state, DISTRIBUTOR, 0x400 + intid / 4 * 4) |= priority << (8 * (intid % 4));
    }
    // KVM's shared interrupts begin as edges, the emulator's as levels.
    *gic_mut(&mut state, DISTRIBUTOR, 0xc08) = 2 << (2 * (EDGE % 16));
    *gic_mut(&mut state, DISTRIBUTOR, 0x6000 + 8 * ELSEWHERE) = 1;
    for vcpu in [0, 1 << 32] {
        *gic_mut(&mut state, REDISTRIBUTOR, vcpu | 0x1_0100) = 0xffff;
        for word in 0..4 {
            *gic_mut(&mut state, REDISTRIBUTOR, vcpu | (0x1_0400 + 4 * word)) = 0xa0a0_a0a0;
        }
        *gic_mut(&mut state, CPU_INTERFACE, vcpu | ICC_PMR) = 0xf0;
        *gic_mut(&mut state, CPU_INTERFACE, vcpu | ICC_IGRPEN1) = 1;
    }
    vm.restore_gic(&state).unwrap();
    assert_eq!(vm.save_gic().unwrap(), state);
}

/// Drives the line of `intid`.
fn line(vm: &VmHandle, intid: u64, level: bool) {
    vm.set_irq_line(intid as u32, level);
}

#[test]
fn interrupts_saved_in_the_middle_of_nested_handlers_go_on_in_another_machine_and_again() {
    for accelerator in accelerators() {
        let memory = memory();
        StateGuest::load(&memory);
        let vm = machine(accelerator, 2, &memory);
        let (mut zero, mut one) = (StateGuest::take(&vm, 0), StateGuest::take(&vm, 1));
        set_up(&vm);

        // vCPU 0 is in a handler, interrupted by a more urgent one; both lines stay high.
        zero.mask(false);
        zero.expect_nothing();
        line(&vm, NESTED_LOW, true);
        zero.expect_interrupt(NESTED_LOW);
        line(&vm, NESTED_HIGH, true);
        zero.expect_interrupt(NESTED_HIGH);
        // An edge and an SGI wait behind them, an enabled line at a vCPU that masks it, a line that is not enabled.
        for level in [true, false, true, false] {
            line(&vm, EDGE, level);
        }
        line(&vm, ELSEWHERE, true);
        line(&vm, DISABLED, true);
        one.send_sgi(TO_ZERO << 24 | 0b01);
        one.send_sgi(TO_ONE << 24 | 0b10);
        one.expect_nothing();

        let state = vm.save_gic().unwrap();
        let spis = |group, attr| gic(&state, group, attr);
        assert_eq!(spis(DISTRIBUTOR, 0x304), bit(NESTED_LOW) | bit(NESTED_HIGH), "{accelerator}: active");
        assert_eq!(spis(DISTRIBUTOR, 0x204), bit(EDGE), "{accelerator}: latched");
        let lines = bit(NESTED_LOW) | bit(NESTED_HIGH) | bit(ELSEWHERE) | bit(DISABLED);
        assert_eq!(spis(LINE_LEVEL, 32), lines, "{accelerator}: lines");
        assert_eq!(gic(&state, REDISTRIBUTOR, 0x1_0200), bit(TO_ZERO), "{accelerator}: SGI of vCPU 0");
        assert_eq!(gic(&state, REDISTRIBUTOR, 1 << 32 | 0x1_0200), bit(TO_ONE), "{accelerator}: SGI of vCPU 1");
        let active = 1 << (0xa0 >> 3) | 1 << (0x40 >> 3);
        assert_eq!(gic(&state, CPU_INTERFACE, ICC_AP1R0), active, "{accelerator}: active priorities");
        assert_eq!(gic(&state, CPU_INTERFACE, 1 << 32 | ICC_AP1R0), 0, "{accelerator}");
        assert_eq!(vm.save_gic().unwrap(), state, "{accelerator}: saving changes nothing");
        let saved = [registers(&mut zero), registers(&mut one)];

        let mut snapshot = vec![0; memory.slot(SlotId::Ram).range().len_bytes() as usize];
        memory.copy_from_slot(SlotId::Ram, 0, &mut snapshot).unwrap();

        let other = machine(accelerator, 2, &memory);
        let guests = [0, 1].map(|index| StateGuest::take_as_it_is(&other, index));
        // In the other machine, again there when it has gone on, and in the first one, which is in the middle of a store.
        for (vm, [mut zero, mut one]) in [(other, guests), (vm, [zero, one])] {
            for round in 0..3 {
                memory.write(map::RAM_BASE, &snapshot).unwrap();
                vm.forget_memory().unwrap();
                vm.restore_gic(&state).unwrap();
                for (guest, saved) in [&mut zero, &mut one].into_iter().zip(&saved) {
                    guest.vcpu.discard().unwrap();
                    guest.vcpu.set_on(true).unwrap();
                    guest.vcpu.restore_regs(saved).unwrap();
                }
                assert_eq!(
                    vm.save_gic().unwrap(),
                    state,
                    "{accelerator}: the same state, restored {round} times before"
                );
                end_nested_handlers(accelerator, &vm, &memory, &mut zero, &mut one);
            }
        }
    }
}

/// What becomes of the machine that was saved in the middle of nested handlers.
fn end_nested_handlers(
    accelerator: Accelerator,
    vm: &VmHandle,
    memory: &GuestMemory,
    zero: &mut StateGuest,
    one: &mut StateGuest,
) {
    // The devices are served, so each handler ends for good; then what waited comes, by priority: among equals the order
    // is the controller's (IHI 0069 4.8), and KVM's depends on what came before.
    line(vm, NESTED_HIGH, false);
    line(vm, NESTED_LOW, false);
    zero.expect_interrupt(TO_ZERO);
    assert_eq!(StateGuest::count(memory, 0, NESTED_HIGH), 1);
    assert_eq!(StateGuest::count(memory, 0, NESTED_LOW), 1);
    zero.expect_interrupt(EDGE);
    zero.expect_nothing();
    // By priority at vCPU 1.
    one.mask(false);
    one.expect(0, ELSEWHERE);
    line(vm, ELSEWHERE, false);
    one.expect(WINDOW, ELSEWHERE);
    one.expect_interrupt(TO_ONE);
    one.expect_nothing();
    // The line that was high all the time comes as soon as it is enabled.
    let mut state = vm.save_gic().unwrap();
    assert_eq!(gic(&state, LINE_LEVEL, 32), bit(DISABLED), "{accelerator}");
    *gic_mut(&mut state, DISTRIBUTOR, 0x104) |= bit(DISABLED);
    vm.restore_gic(&state).unwrap();
    zero.expect(0, DISABLED);
    line(vm, DISABLED, false);
    zero.expect(WINDOW, DISABLED);
    zero.expect_nothing();

    let counts =
        [(0, TO_ZERO), (0, EDGE), (0, NESTED_LOW), (0, NESTED_HIGH), (0, DISABLED), (1, ELSEWHERE), (1, TO_ONE)];
    for vcpu in 0..2 {
        for intid in 0..128 {
            let expected = u32::from(counts.contains(&(vcpu, intid)));
            assert_eq!(StateGuest::count(memory, vcpu, intid), expected, "{accelerator}: {intid} at vCPU {vcpu}");
        }
    }
    let idle = vm.save_gic().unwrap();
    for attr in [0x204, 0x304] {
        assert_eq!(gic(&idle, DISTRIBUTOR, attr), 0, "{accelerator}");
    }
    assert_eq!(gic(&idle, CPU_INTERFACE, ICC_AP1R0), 0, "{accelerator}");
}

/// Redistributor: interrupts that are active.
const ISACTIVER0: u64 = 0x1_0300;

/// Makes the machine of `vm` and its only vCPU what was saved.
fn put_back(vm: &VmHandle, guest: &mut StateGuest, (gic, registers): &(GicState, Vec<(u64, u128)>)) {
    vm.restore_gic(gic).unwrap();
    guest.vcpu.discard().unwrap();
    guest.vcpu.set_on(true).unwrap();
    guest.vcpu.restore_regs(registers).unwrap();
}

#[test]
fn a_timers_interrupt_that_was_active_does_not_stay_so_in_a_machine_that_goes_on_elsewhere() {
    const TIMER: u64 = map::VTIMER_INTID as u64;
    let fire = |guest: &mut StateGuest| {
        guest.set(TIMER_CVAL, 0);
        guest.set(TIMER_CTL, 1);
    };
    for accelerator in accelerators() {
        let memory = memory();
        StateGuest::load(&memory);
        let vm = machine(accelerator, 1, &memory);
        let mut guest = StateGuest::take(&vm, 0);
        let mut state = vm.save_gic().unwrap();
        *gic_mut(&mut state, DISTRIBUTOR, 0) |= 0b10;
        *gic_mut(&mut state, REDISTRIBUTOR, 0x1_0100) |= bit(TIMER);
        *gic_mut(&mut state, CPU_INTERFACE, ICC_PMR) = 0xf0;
        *gic_mut(&mut state, CPU_INTERFACE, ICC_IGRPEN1) = 1;
        vm.restore_gic(&state).unwrap();
        guest.mask(false);
        guest.expect_nothing();
        let idle = (vm.save_gic().unwrap(), registers(&mut guest));

        fire(&mut guest);
        guest.expect(0, TIMER);
        let handling = (vm.save_gic().unwrap(), registers(&mut guest));
        assert_eq!(gic(&handling.0, REDISTRIBUTOR, ISACTIVER0), bit(TIMER), "{accelerator}");
        for round in 0..3 {
            put_back(&vm, &mut guest, &idle);
            assert_eq!(vm.save_gic().unwrap(), idle.0, "{accelerator}: round {round}");
            guest.expect_nothing();
            // It is taken again, as it would not be were it still active.
            fire(&mut guest);
            guest.expect(0, TIMER);
        }
        // And the other way round: the handler comes to its end, and the next interrupt comes.
        put_back(&vm, &mut guest, &idle);
        guest.expect_nothing();
        put_back(&vm, &mut guest, &handling);
        guest.set(TIMER_CTL, 0);
        guest.expect(WINDOW, TIMER);
        guest.expect_nothing();
        fire(&mut guest);
        guest.expect(0, TIMER);
        guest.set(TIMER_CTL, 0);
        guest.expect(WINDOW, TIMER);
        guest.expect_nothing();
        assert_eq!(gic(&vm.save_gic().unwrap(), REDISTRIBUTOR, ISACTIVER0), 0, "{accelerator}");
    }
}

#[test]
fn a_restore_replaces_what_a_machine_had() {
    for accelerator in accelerators() {
        let memory = memory();
        let vm = machine(accelerator, 2, &memory);
        let fresh = vm.save_gic().unwrap();
        let mut state = fresh.clone();
        *gic_mut(&mut state, DISTRIBUTOR, 0x104) = 0xff;
        *gic_mut(&mut state, DISTRIBUTOR, 0x204) = 0xf0;
        *gic_mut(&mut state, DISTRIBUTOR, 0x304) = 0x0f;
        // KVM tells the lines of level-sensitive interrupts alone.
        *gic_mut(&mut state, DISTRIBUTOR, 0xc18) = 0;
        *gic_mut(&mut state, DISTRIBUTOR, 0xc1c) = 0;
        *gic_mut(&mut state, LINE_LEVEL, 96) = 0x8000_0001;
        *gic_mut(&mut state, REDISTRIBUTOR, 1 << 32 | 0x1_0300) = 0x8001_0000;
        *gic_mut(&mut state, CPU_INTERFACE, 1 << 32 | ICC_AP1R0) = 0x10;
        // A binary point of group 1 that CBPR hides.
        *gic_mut(&mut state, CPU_INTERFACE, ICC_BPR1) = 6;
        *gic_mut(&mut state, CPU_INTERFACE, ICC_CTLR) |= 1;
        for state in [&state, &fresh, &state] {
            vm.restore_gic(state).unwrap();
            assert_eq!(vm.save_gic().unwrap(), *state, "{accelerator}");
            assert_eq!(vm.save_gic().unwrap(), *state, "{accelerator}: saving changes nothing");
        }
        let smaller = machine(accelerator, 1, &memory);
        let error = smaller.restore_gic(&state).unwrap_err().to_string();
        assert!(error.contains("GIC register"), "{error}");
    }
}

#[test]
fn the_gic_s_state_has_the_same_keys_everywhere_and_moves_to_the_emulator_and_back() {
    let memory = memory();
    let [kvm] = &accelerators()[1..] else { return };
    let (kvm, emulator) = (machine(*kvm, 2, &memory), machine(Accelerator::Emulator, 2, &memory));
    set_up(&kvm);
    let (ours, theirs) = (emulator.save_gic().unwrap(), kvm.save_gic().unwrap());
    let keys = |state: &GicState| state.registers.iter().map(|(key, _)| *key).collect::<Vec<_>>();
    assert_eq!(keys(&ours), keys(&theirs));
    emulator.restore_gic(&theirs).unwrap();
    // What identifies differs, what is state does not.
    let identification = |key: &GicKey| key.attr & 0xffff_ffff == 8 && key.group == DISTRIBUTOR;
    let is_ctlr = |key: &GicKey| key.attr & 0xffff_ffff == ICC_CTLR && key.group == CPU_INTERFACE;
    for ((key, ours), (_, theirs)) in emulator.save_gic().unwrap().registers.iter().zip(&theirs.registers) {
        if identification(key) {
            assert_eq!(ours & !0xf000, theirs & !0xf000, "GICD_IIDR but for the revision");
        } else if is_ctlr(key) {
            assert_eq!(ours & 0x703, theirs & 0x703, "ICC_CTLR_EL1: priority bits, EOImode, CBPR");
        } else if key.group == CPU_INTERFACE && [ICC_BPR0, ICC_BPR1].contains(&(key.attr & 0xffff_ffff)) {
            // KVM's begin below the least that there is with five bits of priority.
            assert!(ours >= theirs, "{key:x?}");
        } else {
            assert_eq!(ours, theirs, "{key:x?}");
        }
    }
    kvm.restore_gic(&emulator.save_gic().unwrap()).unwrap();
}

#[test]
fn eight_vcpus_take_their_interrupts_and_are_saved_whole() {
    for accelerator in accelerators() {
        let memory = memory();
        StateGuest::load(&memory);
        let vm = machine(accelerator, map::MAX_VCPUS, &memory);
        assert!(vm.take_vcpu(map::MAX_VCPUS).is_none());
        let mut guests: Vec<_> = (0..map::MAX_VCPUS).map(|index| StateGuest::take(&vm, index)).collect();
        let mut state = vm.save_gic().unwrap();
        *gic_mut(&mut state, DISTRIBUTOR, 0) |= 0b10;
        for vcpu in 0..map::MAX_VCPUS as u64 {
            *gic_mut(&mut state, REDISTRIBUTOR, vcpu << 32 | 0x1_0100) = 0xffff;
            *gic_mut(&mut state, CPU_INTERFACE, vcpu << 32 | ICC_PMR) = 0xf0;
            *gic_mut(&mut state, CPU_INTERFACE, vcpu << 32 | ICC_IGRPEN1) = 1;
        }
        vm.restore_gic(&state).unwrap();
        for (sender, guest) in guests.iter_mut().enumerate() {
            let receiver = (sender + 1) % map::MAX_VCPUS;
            guest.send_sgi((sender as u64) << 24 | 1 << receiver);
        }
        for (index, guest) in guests.iter_mut().enumerate() {
            let sender = (index + map::MAX_VCPUS - 1) % map::MAX_VCPUS;
            guest.mask(false);
            guest.expect_interrupt(sender as u64);
            guest.expect_nothing();
            assert_eq!(StateGuest::count(&memory, index, sender as u64), 1, "{accelerator}: vCPU {index}");
            assert_eq!(registers(guest).len(), guest.vcpu.reg_list().unwrap().len());
        }
    }
}
