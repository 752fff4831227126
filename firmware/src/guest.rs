//! The guest: boot, then a loop of commands on every vCPU.
//!
//! ```text
//!   entry (boot table) ─▶ devicetree ─▶ mmu (own tables) ─▶ heap ─▶ gic ─▶ smp (secondaries) ─▶ command loop ─▶ psci off
//! ```
//!
//! - [`arch`]: what the architecture asks for; [`image`], [`mmu`], [`exceptions`]: what rests on it directly;
//! - [`devicetree`], [`console`], [`gic`], [`timer`], [`psci`], [`hypercall`]: the machine around the CPU;
//! - [`heartbeat`], [`clock`]: what the guest itself notices of time; [`command`], [`pattern`], [`selfcheck`]: the work;
//! - [`points`]: asking to be moved to another machine.
//!
//! [`Machine`] is what boot finds out once; all vCPUs share it and never change it.
#![expect(unsafe_code, reason = "symbols that the entry code jumps to have to keep their names")]

mod arch;
mod clock;
mod command;
mod console;
mod devicetree;
mod exceptions;
mod gic;
mod heap;
mod heartbeat;
mod hypercall;
mod image;
mod mmu;
mod panic;
mod pattern;
mod points;
mod psci;
mod selfcheck;
mod smp;
mod timer;

use abi::boot::{BootInfo, FLAG_HVC, FLAG_PLANT_EXCEPTION, FLAG_STANDALONE};
use abi::hypercall::{FEATURE_GRANULE, Outcome};
use alloc::boxed::Box;
use workload::{Geometry, Plan, Workload};

use arch::cpu;
use arch::features::Features;
use devicetree::Devices;
use hypercall::Transport;
use mmu::AddressSpace;

/// All that boot found out.
pub(crate) struct Machine {
    /// What the host asked for.
    pub(crate) boot: BootInfo,
    /// Where the devices are.
    pub(crate) devices: Devices,
    /// What the CPU can do.
    pub(crate) features: Features,
    /// Where the region and its aliases are mapped.
    pub(crate) space: AddressSpace,
    /// What to write.
    pub(crate) plan: Plan,
}

/// The primary vCPU, on its own stack, at EL1, under the boot table, with a blank `.bss`. `dtb` is the devicetree's
/// address.
#[unsafe(no_mangle)]
extern "C" fn primary_entry(dtb: usize) -> ! {
    let devices = devicetree::read(dtb);
    let boot = devices.boot;
    let transport = if boot.flags & FLAG_HVC != 0 { Transport::Hvc } else { devices.transport() };
    hypercall::set_transport(transport);
    let features = Features::detect();
    if !features.has_tables(boot.tables) {
        // The boot table is all the translation there will be, and all that is needed to say so.
        command::refuse(0, devices.psci, Outcome::Unsupported { feature: FEATURE_GRANULE });
    }
    let plan = plan(&boot);
    let (space, free) = mmu::build(&boot, &devices, &features, &plan);
    space.registers().switch_to(points::at_table_switch(boot.points, devices.doorbell));
    heap::init(free);
    if let Some(uart) = devices.uart {
        console::init(uart);
    }

    let machine: &'static Machine = Box::leak(Box::new(Machine { boot, devices, features, space, plan }));
    console::say(format_args!(
        "tidemark firmware: {} vCPU(s), {} granule with {}-bit VA, region {}, free RAM {} KiB\n",
        boot.vcpus,
        boot.tables.granule(),
        boot.tables.va_bits(),
        boot.region,
        free.len_bytes() / 1024
    ));
    points::print_first(machine);
    gic::init(machine);
    smp::start_secondaries(machine);
    start(machine, 0)
}

/// A secondary vCPU, on its own stack, under the translation that the primary built.
#[unsafe(no_mangle)]
extern "C" fn secondary_entry(machine: *const Machine, vcpu: usize) -> ! {
    // SAFETY: the primary leaked the machine before it started this vCPU and nobody changes it; its translation, which
    // is on, is the primary's.
    start(unsafe { &*machine }, vcpu)
}

/// What primary and secondaries do alike once they translate: take interrupts, obey commands.
fn start(machine: &'static Machine, vcpu: usize) -> ! {
    gic::init_vcpu();
    if vcpu == 0 {
        points::tour(machine);
    }
    timer::init(machine, vcpu);
    cpu::unmask_irq();
    if vcpu == 0 && machine.boot.flags & FLAG_PLANT_EXCEPTION != 0 {
        exceptions::plant();
    }
    if machine.boot.flags & FLAG_STANDALONE != 0 {
        command::run_alone(machine, vcpu)
    }
    command::run(machine, vcpu)
}

/// The plan that the boot block asks for. The host has made the same one already, so a refusal is the host's bug.
fn plan(boot: &BootInfo) -> Plan {
    let workload =
        Workload::decode(boot.pattern, boot.params).expect("the boot block names a workload that this firmware knows");
    let geometry = Geometry { region: boot.region, tables: boot.tables, vcpus: boot.vcpus };
    Plan::new(&workload, boot.seed, geometry).expect("the workload fits the region")
}
