//! The lab's machine as a QEMU command line: an arm64 board that boots its kernel at EL2, which is what makes KVM there
//! real.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lab_init::Port;

use crate::outside;

/// QEMU's program.
pub(crate) const PROGRAM: &str = "qemu-system-aarch64";
/// Debian's package of it.
pub(crate) const PACKAGE: &str = "qemu-system-arm";

/// The CPU that QEMU models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CpuModel {
    /// Everything QEMU has; VHE.
    Max,
    /// Armv8.0: KVM without VHE.
    CortexA57,
    /// Armv8.2: VHE, no AArch32 at EL1.
    NeoverseN1,
}

/// What the guest's time follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Clock {
    /// The machine's clock.
    Wall,
    /// Instructions executed: the same run takes the same time, to the tick.
    Icount,
}

/// A machine to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) image: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) cpu: CpuModel,
    pub(crate) clock: Clock,
    pub(crate) cpus: u8,
    pub(crate) memory_mib: u32,
    /// Whether it has channels to a shell outside.
    pub(crate) outside: bool,
}

/// Where the guest's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// The console on the caller's terminal.
    Terminal,
    /// The console and each port to a file of this directory.
    Files(PathBuf),
}

impl Output {
    /// The console's file in a directory of output.
    pub(crate) fn console(directory: &Path) -> PathBuf {
        directory.join("console.log")
    }

    /// A port's file in a directory of output.
    pub(crate) fn port(directory: &Path, port: Port) -> PathBuf {
        directory.join(match port {
            Port::Stdout => "stdout",
            Port::Stderr => "stderr",
            Port::Results => "results.cpio",
        })
    }
}

/// QEMU's arguments.
pub(crate) fn arguments(machine: &Machine, output: &Output) -> Vec<OsString> {
    let mut line = CommandLine(Vec::new());
    line.option("-machine", "virt,virtualization=on,gic-version=3");
    // Pointer authentication in QEMU's architected algorithm costs more than the rest of the boot together.
    line.option(
        "-cpu",
        match machine.cpu {
            CpuModel::Max => "max,pauth=off",
            CpuModel::CortexA57 => "cortex-a57",
            CpuModel::NeoverseN1 => "neoverse-n1",
        },
    );
    let mut kernel_command_line = "console=ttyAMA0 quiet panic=-1".to_owned();
    match machine.clock {
        Clock::Wall => {
            line.option("-accel", "tcg,thread=multi");
            line.option("-smp", machine.cpus.to_string());
        }
        Clock::Icount => {
            line.option("-accel", "tcg,thread=single");
            line.option("-icount", "shift=1,sleep=off");
            line.option("-rtc", "base=2020-01-01,clock=vm");
            line.option("-seed", "1");
            line.option("-smp", "1");
            kernel_command_line += " norandmaps";
        }
    }
    line.option("-m", machine.memory_mib.to_string());
    line.flag("-nodefaults").option("-display", "none").flag("-no-reboot");
    line.option("-kernel", &machine.image).option("-initrd", &machine.initramfs);
    line.option("-append", kernel_command_line);
    match output {
        Output::Terminal => {
            line.option("-serial", "mon:stdio");
        }
        Output::Files(directory) => {
            line.option("-serial", keyed("file:", &Output::console(directory), false));
            line.option("-device", "virtio-serial-device");
            for port in Port::ALL {
                let id = format!("port{}", port.number());
                let chardev = format!("file,id={id},path=");
                line.option("-chardev", keyed(&chardev, &Output::port(directory, port), true));
                line.option("-device", format!("virtserialport,chardev={id},nr={}", port.number()));
            }
            for port in machine.outside.then(outside::ports).into_iter().flatten() {
                let chardev = format!("socket,id=port{port},path=");
                line.option("-chardev", keyed(&chardev, &outside::socket(directory, port), true));
                line.option("-device", format!("virtserialport,chardev=port{port},nr={port}"));
            }
        }
    }
    line.0
}

struct CommandLine(Vec<OsString>);

impl CommandLine {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.extend([name.into(), value.into()]);
        self
    }
}

/// A path as the value of a key; in a list of keys, QEMU wants commas doubled.
fn keyed(key: &str, path: &Path, in_list: bool) -> String {
    let path = path.display().to_string();
    format!("{key}{}", if in_list { path.replace(',', ",,") } else { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(cpu: CpuModel, clock: Clock, output: &Output) -> String {
        let machine = Machine {
            image: "/k/Image".into(),
            initramfs: "/i".into(),
            cpu,
            clock,
            cpus: 2,
            memory_mib: 1024,
            outside: true,
        };
        let arguments = arguments(&machine, output);
        arguments.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_kernel_is_booted_at_el2_and_a_panic_ends_qemu() {
        let line = line(CpuModel::Max, Clock::Wall, &Output::Files("/o".into()));
        for part in [
            "-machine virt,virtualization=on,gic-version=3",
            "-cpu max,pauth=off",
            "-smp 2",
            "-m 1024",
            "-no-reboot",
            "panic=-1",
            "-serial file:/o/console.log",
            "file,id=port3,path=/o/results.cpio",
            "virtserialport,chardev=port3,nr=3",
            "socket,id=port4,path=/o/outside4",
            "virtserialport,chardev=port4,nr=4",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn icount_runs_one_cpu_on_one_thread_with_a_fixed_date_and_seed() {
        let line = line(CpuModel::CortexA57, Clock::Icount, &Output::Terminal);
        for part in
            ["-cpu cortex-a57 ", "thread=single", "shift=1,sleep=off", "clock=vm", "-seed 1", "-smp 1", "norandmaps"]
        {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains("virtserialport"));
    }

    #[test]
    fn commas_in_paths_are_doubled_where_qemu_splits_at_them() {
        let line = line(CpuModel::Max, Clock::Wall, &Output::Files("/a,b".into()));
        assert!(line.contains("path=/a,,b/stdout") && line.contains("file:/a,b/console.log"), "{line}");
    }
}
