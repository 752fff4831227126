//! The packets that the firmware sends on its virtual link, taken by a tap: both architectures, both ways of calling, one and four
//! vCPUs. Each digest is computed once more from the plan alone.

use std::path::Path;
use std::time::Duration;

use abi::Arch;
use abi::hypercall::{Command, Outcome};
use abi::packet::{GuestOutput, StepPacket};
use hostvmm::colo::output::{Record, StreamId};
use hostvmm::machine::{Image, Machine, MachineConfig, Transport, armv7_tables};
use hostvmm::vcpus::{Event, Vcpus, Wait};
use tests::{armv7_firmware_or_skip, firmware_or_skip};
use workload::{Geometry, Plan, Workload};

/// Only reached by a test that has already failed.
const LIVENESS: Duration = Duration::from_secs(120);
const STEPS: u64 = 6;

fn firmware_of(arch: Arch) -> Option<&'static Path> {
    match arch {
        Arch::Aarch64 => firmware_or_skip(),
        Arch::Armv7 => armv7_firmware_or_skip(),
    }
}

fn config(arch: Arch, vcpus: usize, transport: Transport, output: GuestOutput) -> MachineConfig {
    let (pattern, params) = Workload::parse("mixed:runs=8").unwrap().encode();
    let mut config = MachineConfig { vcpus, transport, pattern, params, output, seed: 7, ..MachineConfig::default() };
    config.ram_bytes = 64 << 20;
    config.region_bytes = 4 << 20;
    if arch == Arch::Armv7 {
        config.tables = armv7_tables(true, abi::Granule::K4, 32).unwrap();
    }
    config
}

/// Waits until every vCPU has said something.
fn parked(vcpus: &Vcpus, count: usize) -> Vec<Outcome> {
    let mut outcomes = vec![None; count];
    while outcomes.contains(&None) {
        match vcpus.wait_event(Some(LIVENESS)) {
            Wait::Event(Event::Parked { vcpu, outcome }) => outcomes[vcpu] = Some(outcome),
            other => panic!("{other:?}"),
        }
    }
    outcomes.into_iter().flatten().collect()
}

/// What a guest emits in its first steps.
fn emitted(config: &MachineConfig, firmware: &Path) -> Vec<Record> {
    let machine = Machine::build(config, &Image::open(firmware).unwrap()).unwrap();
    let vcpus = Vcpus::start_paused(&machine).unwrap();
    vcpus.output().start();
    vcpus.resume();
    let command_all = |command| {
        let commands: Vec<_> = (0..config.vcpus).map(|vcpu| (vcpu, command)).collect();
        vcpus.command_all(&commands).unwrap();
        parked(&vcpus, config.vcpus)
    };
    parked(&vcpus, config.vcpus);
    for first in [0, 2] {
        let count = if first == 0 { 2 } else { STEPS - 2 };
        let ran = command_all(Command::RunSteps { first, count });
        assert_eq!(ran, vec![Outcome::Ran { next: first + count }; config.vcpus]);
    }
    assert!(command_all(Command::SelfCheck { steps: STEPS }).iter().all(|it| *it == Outcome::SelfCheckPassed));
    vcpus.output().take()
}

fn packets(records: &[Record], vcpu: usize) -> Vec<StepPacket> {
    let stream = StreamId::packets(vcpu).unwrap();
    let of_stream: Vec<_> = records.iter().filter(|record| record.stream == stream).collect();
    assert!((0..).zip(&of_stream).all(|(sequence, record)| record.sequence == sequence));
    of_stream.iter().map(|record| StepPacket::read(&record.bytes).unwrap()).collect()
}

/// The digests of the steps of `vcpu`, by the plan.
fn predicted(config: &MachineConfig, vcpu: u32) -> Vec<u64> {
    let region = config.layout().unwrap().region();
    let workload = Workload::decode(config.pattern, config.params).unwrap();
    let geometry = Geometry { region, tables: config.tables, vcpus: config.vcpus as u32 };
    let plan = Plan::new(&workload, config.seed, geometry).unwrap();
    let mut memory = vec![0; region.len_bytes() as usize];
    (0..STEPS).map(|step| plan.step_digest(vcpu, step, &mut memory)).collect()
}

#[test]
fn every_vcpu_sends_what_it_wrote_in_each_step() {
    for arch in [Arch::Aarch64, Arch::Armv7] {
        let Some(firmware) = firmware_of(arch) else { return };
        for (transport, vcpus) in [(Transport::Mmio, 1), (Transport::Hvc, 4)] {
            let config = config(arch, vcpus, transport, GuestOutput::Steps);
            let records = emitted(&config, firmware);
            let console = records.iter().find(|record| record.stream == StreamId::CONSOLE).unwrap();
            assert!(console.bytes.starts_with(b"tidemark firmware") && console.bytes.ends_with(b"\r\n"));
            for vcpu in 0..vcpus {
                let packets = packets(&records, vcpu);
                let digests: Vec<_> = packets.iter().map(|packet| packet.digest.get()).collect();
                assert_eq!(digests, predicted(&config, vcpu as u32), "{arch} {transport:?} vCPU {vcpu}");
                for (step, packet) in (0..).zip(&packets) {
                    let found = (packet.step.get(), packet.clock.get(), packet.vcpu.get(), packet.reserved.get());
                    assert_eq!(found, (step, 0, vcpu as u32, 0), "{arch} {transport:?}");
                }
            }
        }
    }
}

#[test]
fn the_counter_is_in_the_packets_where_the_host_wants_it_and_off_is_silent() {
    let Some(firmware) = firmware_or_skip() else { return };
    let of = |output| packets(&emitted(&config(Arch::Aarch64, 1, Transport::Mmio, output), firmware), 0);
    assert!(of(GuestOutput::Off).is_empty());
    let clocks: Vec<_> = of(GuestOutput::Counter).iter().map(|packet| packet.clock.get()).collect();
    assert!(clocks[0] > 0 && clocks.is_sorted_by(|a, b| a < b), "{clocks:?}");
    let drifts: Vec<_> = of(GuestOutput::Drift).iter().map(|packet| packet.clock.get()).collect();
    assert!(drifts.is_sorted() && drifts[0] < clocks[0], "{drifts:?}");
}
