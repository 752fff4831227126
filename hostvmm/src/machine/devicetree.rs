//! The flattened devicetree that the guest finds at the start of RAM: what the machine has and where.
//!
//! Nodes and properties follow the Devicetree Specification 0.4 and the bindings of Linux (arm,gic-v3.yaml,
//! arm,arch_timer.yaml, arm,pl011.yaml, psci.yaml). The doorbell and the boot block are ours (docs/hypercall-abi.md).

use abi::boot::{BOOT_BLOCK_PROPERTY, BootInfo, DOORBELL_COMPATIBLE, FLAG_STANDALONE};
use abi::{Arch, Gpa, GuestRange, map};
use vm_fdt::FdtWriter;
use zerocopy::IntoBytes as _;

const GIC_PHANDLE: u32 = 1;
const CLOCK_PHANDLE: u32 = 2;
/// Interrupt cells of the GIC binding: kind, number, flags.
const PPI: u32 = 1;
const SPI: u32 = 0;
const LEVEL_HIGH: u32 = 4;
/// INTIDs of PPIs and SPIs begin here; the binding counts from them.
const PPI_BASE: u32 = 16;
const SPI_BASE: u32 = 32;
/// PPIs of the timers in the binding's order: secure physical, physical, virtual, hypervisor. The guest runs at EL1 and
/// has the second and third; the others are named as the common `virt` machine names them.
const TIMER_INTIDS: [u32; 4] = [29, map::PTIMER_INTID, map::VTIMER_INTID, 26];
/// The PL011's reference clock, as on `virt`.
const UART_CLOCK_HZ: u32 = 24_000_000;

/// Why no devicetree could be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceTreeError {
    /// The writer refused.
    #[error("cannot write the devicetree: {0}")]
    Writer(#[from] vm_fdt::Error),
    /// The blob does not fit where the guest looks for it.
    #[error("the devicetree has {len_bytes} bytes, only {max} fit before the firmware", max = map::DTB_MAX_BYTES)]
    TooLarge {
        /// Its size.
        len_bytes: usize,
    },
}

/// Who reads the blob, and what `/chosen` has for it.
enum Reader<'a> {
    /// The firmware: its boot block, and a doorbell.
    Firmware,
    /// A kernel: its command line, and where its initramfs lies.
    Kernel { append: &'a str, initrd: Option<GuestRange> },
}

/// The blob for the machine that `boot` describes, with the firmware in it.
///
/// # Errors
/// [`DeviceTreeError`]; for a checked machine neither happens.
pub fn build(boot: &BootInfo) -> Result<Vec<u8>, DeviceTreeError> {
    blob(boot, &Reader::Firmware)
}

/// The blob for the machine that `boot` describes, with a kernel in it: RAM alone is told of, and no doorbell.
///
/// # Errors
/// As [`build`].
pub fn build_for_kernel(boot: &BootInfo, append: &str, initrd: Option<GuestRange>) -> Result<Vec<u8>, DeviceTreeError> {
    blob(boot, &Reader::Kernel { append, initrd })
}

fn blob(boot: &BootInfo, reader: &Reader<'_>) -> Result<Vec<u8>, DeviceTreeError> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "tidemark,machine-1")?;
    fdt.property_string("model", "Tidemark")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;
    chosen(&mut fdt, boot, reader)?;
    memory(&mut fdt, boot.ram)?;
    cpus(&mut fdt, boot.vcpus)?;
    psci(&mut fdt)?;
    timer(&mut fdt, boot.tables.arch())?;
    gic(&mut fdt, boot.vcpus)?;
    uart(&mut fdt)?;
    if matches!(reader, Reader::Firmware) && boot.flags & FLAG_STANDALONE == 0 {
        doorbell(&mut fdt)?;
    }
    fdt.end_node(root)?;
    let blob = fdt.finish()?;
    if blob.len() as u64 > map::DTB_MAX_BYTES {
        return Err(DeviceTreeError::TooLarge { len_bytes: blob.len() });
    }
    Ok(blob)
}

fn uart_name() -> String {
    format!("pl011@{:x}", map::PL011_BASE.raw())
}

fn chosen(fdt: &mut FdtWriter, boot: &BootInfo, reader: &Reader<'_>) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("stdout-path", &format!("/{}", uart_name()))?;
    match reader {
        Reader::Firmware => fdt.property(BOOT_BLOCK_PROPERTY, boot.encode().as_bytes())?,
        Reader::Kernel { append, initrd } => {
            fdt.property_string("bootargs", append)?;
            if let Some(initrd) = initrd {
                fdt.property_u64("linux,initrd-start", initrd.start().raw())?;
                fdt.property_u64("linux,initrd-end", initrd.end().raw())?;
            }
        }
    }
    fdt.end_node(node)
}

fn memory(fdt: &mut FdtWriter, ram: GuestRange) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node(&format!("memory@{:x}", ram.start().raw()))?;
    fdt.property_string("device_type", "memory")?;
    reg(fdt, &[(ram.start(), ram.len_bytes())])?;
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, vcpus: u32) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for index in 0..vcpus {
        let cpu = fdt.begin_node(&format!("cpu@{index:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u32("reg", index)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)
}

fn psci(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter, arch: Arch) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("timer")?;
    let compatible = match arch {
        Arch::Aarch64 => "arm,armv8-timer",
        Arch::Armv7 => "arm,armv7-timer",
    };
    fdt.property_string("compatible", compatible)?;
    let cells = TIMER_INTIDS.map(|intid| [PPI, intid - PPI_BASE, LEVEL_HIGH]);
    fdt.property_array_u32("interrupts", cells.as_flattened())?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn gic(fdt: &mut FdtWriter, vcpus: u32) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node(&format!("intc@{:x}", map::GICD_BASE.raw()))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_phandle(GIC_PHANDLE)?;
    let redistributors = u64::from(vcpus) * map::GICR_STRIDE;
    reg(fdt, &[(map::GICD_BASE, map::GICD_SIZE), (map::GICR_BASE, redistributors)])?;
    fdt.end_node(node)
}

fn uart(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", UART_CLOCK_HZ)?;
    fdt.property_phandle(CLOCK_PHANDLE)?;
    fdt.end_node(clock)?;

    let node = fdt.begin_node(&uart_name())?;
    fdt.property_string_list("compatible", vec!["arm,pl011".into(), "arm,primecell".into()])?;
    reg(fdt, &[(map::PL011_BASE, map::PL011_SIZE)])?;
    fdt.property_array_u32("interrupts", &[SPI, map::PL011_INTID - SPI_BASE, LEVEL_HIGH])?;
    fdt.property_array_u32("clocks", &[CLOCK_PHANDLE, CLOCK_PHANDLE])?;
    fdt.property_string_list("clock-names", vec!["uartclk".into(), "apb_pclk".into()])?;
    fdt.end_node(node)
}

fn doorbell(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node(&format!("doorbell@{:x}", map::DOORBELL_BASE.raw()))?;
    fdt.property_string("compatible", DOORBELL_COMPATIBLE)?;
    reg(fdt, &[(map::DOORBELL_BASE, map::DOORBELL_SIZE)])?;
    fdt.end_node(node)
}

/// A `reg` property: pairs of two-cell address and two-cell size.
fn reg(fdt: &mut FdtWriter, windows: &[(Gpa, u64)]) -> Result<(), vm_fdt::Error> {
    let cells: Vec<u64> = windows.iter().flat_map(|(gpa, size)| [gpa.raw(), *size]).collect();
    fdt.property_array_u64("reg", &cells)
}

#[cfg(test)]
mod tests {
    use abi::Tables;
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node as _, Property as _};

    use super::*;
    use crate::machine::MachineConfig;

    fn blob(vcpus: usize) -> (Vec<u8>, BootInfo) {
        let config = MachineConfig { vcpus, seed: 7, ..MachineConfig::default() };
        let boot = config.boot_info(&config.layout().unwrap());
        (build(&boot).unwrap(), boot)
    }

    #[test]
    fn an_independent_parser_finds_the_boot_block_and_the_doorbell() {
        let (blob, boot) = blob(4);
        let fdt = Fdt::new(&blob).unwrap();
        let chosen = fdt.find_node("/chosen").unwrap();
        let block = chosen.property(BOOT_BLOCK_PROPERTY).unwrap();
        assert_eq!(BootInfo::decode(block.value()), Ok(boot));
        let doorbell = fdt.find_node("/doorbell@b000000").unwrap();
        assert_eq!(doorbell.property("compatible").unwrap().value(), b"tidemark,doorbell-1\0");
        let reg = doorbell.property("reg").unwrap();
        assert_eq!(reg.value(), [0, 0, 0, 0, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]);
    }

    #[test]
    fn a_guest_on_its_own_has_no_doorbell() {
        let config = MachineConfig { standalone: true, ..MachineConfig::default() };
        let blob = build(&config.boot_info(&config.layout().unwrap())).unwrap();
        assert!(Fdt::new(&blob).unwrap().find_node("/doorbell@b000000").is_none());
    }

    #[test]
    fn a_kernel_is_told_its_command_line_and_where_its_initramfs_lies() {
        let config = MachineConfig::default();
        let boot = config.boot_info(&config.layout().unwrap());
        let initrd = GuestRange::new(Gpa::new(0x4280_0000), 0x1234);
        let blob = build_for_kernel(&boot, "console=ttyAMA0 -- a=1", initrd).unwrap();
        let fdt = Fdt::new(&blob).unwrap();
        let chosen = fdt.find_node("/chosen").unwrap();
        let value = |name: &str| chosen.property(name).map(|property| property.value().to_vec());
        assert_eq!(value("bootargs").as_deref(), Some(&b"console=ttyAMA0 -- a=1\0"[..]));
        assert_eq!(value("linux,initrd-start"), Some(0x4280_0000_u64.to_be_bytes().to_vec()));
        assert_eq!(value("linux,initrd-end"), Some(0x4280_1234_u64.to_be_bytes().to_vec()));
        assert_eq!(value(BOOT_BLOCK_PROPERTY), None);
        assert!(fdt.find_node("/doorbell@b000000").is_none());
        let without = build_for_kernel(&boot, "", None).unwrap();
        let fdt = Fdt::new(&without).unwrap();
        assert!(fdt.find_node("/chosen").unwrap().property("linux,initrd-start").is_none());
    }

    #[test]
    fn the_timer_is_of_the_guest_s_architecture() {
        for (tables, name) in
            [(MachineConfig::default().tables, "arm,armv8-timer\0"), (Tables::Lpae, "arm,armv7-timer\0")]
        {
            let config = MachineConfig { tables, ..MachineConfig::default() };
            let blob = build(&config.boot_info(&config.layout().unwrap())).unwrap();
            let fdt = Fdt::new(&blob).unwrap();
            let timer = fdt.find_node("/timer").unwrap();
            assert_eq!(timer.property("compatible").unwrap().value(), name.as_bytes());
        }
    }

    #[test]
    fn every_vcpu_is_started_by_psci_and_has_a_redistributor() {
        for vcpus in 1..=map::MAX_VCPUS {
            let (blob, _) = blob(vcpus);
            let fdt = Fdt::new(&blob).unwrap();
            let cpus: Vec<_> = fdt.find_node("/cpus").unwrap().children().collect();
            assert_eq!(cpus.len(), vcpus);
            for (index, cpu) in cpus.iter().enumerate() {
                assert_eq!(cpu.property("reg").unwrap().value(), (index as u32).to_be_bytes());
                assert_eq!(cpu.property("enable-method").unwrap().value(), b"psci\0");
            }
            let gic = fdt.find_node("/intc@8000000").unwrap();
            let reg = gic.property("reg").unwrap().value().to_vec();
            let size = u64::from_be_bytes(reg[24..32].try_into().unwrap());
            assert_eq!(size, vcpus as u64 * map::GICR_STRIDE);
        }
    }
}
