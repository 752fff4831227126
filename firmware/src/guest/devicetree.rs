//! What the guest takes from the devicetree: the boot block, where the devices are, how PSCI is called, which CPUs
//! there are.
//!
//! It is read once, before there is a heap. A devicetree that lacks something needed is a panic that names it:
//! the machine is not one that this firmware can run on.
#![expect(unsafe_code, reason = "the blob is at an address that a register holds")]

use abi::boot::{BOOT_BLOCK_PROPERTY, BootInfo, DOORBELL_COMPATIBLE};
use abi::map::{DTB_MAX_BYTES, GICR_STRIDE, MAX_VCPUS, RAM_BASE};
use abi::{Gpa, GuestRange};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

use crate::guest::hypercall::Transport;
use crate::guest::psci::Conduit;

/// What the devicetree says.
pub(crate) struct Devices {
    /// The host's wishes.
    pub(crate) boot: BootInfo,
    /// The hypercall doorbell, where there is one.
    pub(crate) doorbell: Option<Gpa>,
    /// The console, where there is one.
    pub(crate) uart: Option<Gpa>,
    /// The interrupt distributor.
    pub(crate) gicd: GuestRange,
    /// The redistributors.
    pub(crate) gicr: GuestRange,
    /// How PSCI is called.
    pub(crate) psci: Conduit,
    mpidrs: [Option<u64>; MAX_VCPUS],
}

impl Devices {
    /// Affinity of `vcpu`, the `vcpu`th CPU of the tree.
    pub(crate) fn mpidr(&self, vcpu: usize) -> Option<u64> {
        *self.mpidrs.get(vcpu)?
    }

    /// The doorbell if there is one, else HVC.
    pub(crate) fn transport(&self) -> Transport {
        self.doorbell.map_or(Transport::Hvc, Transport::Doorbell)
    }

    /// Registers of all devices, each with the name that a message uses.
    pub(crate) fn windows(&self) -> impl Iterator<Item = GuestRange> {
        // One page of registers each; the mapping rounds to the largest granule.
        let page = |base: Gpa| GuestRange::new(base, 0x1000).expect("a device's registers do not wrap");
        [Some(self.gicd), Some(self.gicr), self.uart.map(page), self.doorbell.map(page)].into_iter().flatten()
    }
}

/// Reads the devicetree at `address`; at the start of RAM where that is zero, as it is for loaders that know only ELF.
///
/// # Panics
/// If there is none, or it lacks what is needed.
pub(crate) fn read(address: usize) -> Devices {
    let address = if address == 0 { RAM_BASE.raw() as usize } else { address };
    let blob = blob(address);
    let fdt = Fdt::new(blob).expect("the devicetree is well-formed");
    let root = fdt.root();

    let chosen = root.child("chosen").expect("the devicetree has /chosen");
    let block = chosen.property(BOOT_BLOCK_PROPERTY).expect("/chosen has the boot block");
    let boot = BootInfo::decode(block.value()).expect("the boot block is valid");

    let gic = find(root, "arm,gic-v3").expect("the devicetree has a GICv3");
    let gicd = register(gic, 0).expect("the GIC has a distributor");
    let gicr = register(gic, 1).expect("the GIC has redistributors");
    // No more than there are vCPUs: a machine may reserve room for many.
    let gicr_len = gicr.len_bytes().min(u64::from(boot.vcpus) * GICR_STRIDE);
    let gicr = GuestRange::new(gicr.start(), gicr_len).expect("a shorter range does not wrap");

    Devices {
        boot,
        doorbell: find(root, DOORBELL_COMPATIBLE).and_then(|node| register(node, 0)).map(GuestRange::start),
        uart: find(root, "arm,pl011").and_then(|node| register(node, 0)).map(GuestRange::start),
        gicd,
        gicr,
        psci: conduit(root),
        mpidrs: mpidrs(root),
    }
}

/// The blob's bytes, as many as its header says.
fn blob(address: usize) -> &'static [u8] {
    /// Offset of `totalsize`, big-endian, in the header (Devicetree Specification 0.4, 5.2).
    const TOTAL_SIZE: usize = 4;
    let size = (address + TOTAL_SIZE) as *const [u8; 4];
    // SAFETY: the boot protocol puts a devicetree there; its header alone is read, any bytes are a valid array.
    let size = u32::from_be_bytes(unsafe { size.read() });
    assert!(u64::from(size) <= 16 * DTB_MAX_BYTES, "there is no devicetree at {address:#x}");
    // SAFETY: the blob lies in RAM below the image, and nobody writes it.
    unsafe { core::slice::from_raw_parts(address as *const u8, size as usize) }
}

/// The first node at the root, or in a bus below it, that is `compatible`.
fn find<'a>(root: FdtNode<'a>, compatible: &str) -> Option<FdtNode<'a>> {
    root.children().find_map(|node| {
        if node.is_compatible(compatible) {
            Some(node)
        } else {
            node.children().find(|below| below.is_compatible(compatible))
        }
    })
}

/// The `index`th range of a node's registers.
fn register(node: FdtNode<'_>, index: usize) -> Option<GuestRange> {
    let register = node.reg().ok()??.nth(index)?;
    GuestRange::new(Gpa::new(register.address().ok()?), register.size().ok()?)
}

/// How PSCI is called; HVC where the tree does not say, which is what a machine without EL2 can have.
fn conduit(root: FdtNode<'_>) -> Conduit {
    let method = root.child("psci").and_then(|node| node.property("method"));
    match method.and_then(|property| property.value_as::<&str>().ok()) {
        Some("smc") => Conduit::Smc,
        _ => Conduit::Hvc,
    }
}

/// The affinity of each CPU, in the tree's order.
fn mpidrs(root: FdtNode<'_>) -> [Option<u64>; MAX_VCPUS] {
    let mut mpidrs = [None; MAX_VCPUS];
    let Some(cpus) = root.child("cpus") else { return mpidrs };
    let cpus = cpus.children().filter(|node| node.name_without_address() == "cpu");
    for (slot, cpu) in mpidrs.iter_mut().zip(cpus) {
        *slot = cpu.reg().ok().flatten().and_then(|mut registers| registers.next()?.address::<u64>().ok());
    }
    mpidrs
}
