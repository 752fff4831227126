//! The bytes of a [`MachineState`] in [`Section`]s: time, console, one for each vCPU with its seat, GIC.
//!
//! Little-endian, fixed-width, each section with its version first. What is reserved is zero. Counts are checked
//! against bounds and against the bytes that are there before anything is allocated; what follows the last field, or is
//! missing, is an error. What a section *claims* (addresses, registers) is checked when it is restored.
//!
//! ```text
//! counter   version u16, vcpus u16, flags u32, ticks u64, hz u64, at u64, physical u64,
//!           instructions u64, turn's vcpu u32, idle turns u32, turn's instructions u64
//! uart      version u16, reserved u16, seven registers u32, line's length u32, line
//! vcpu      version u16, power u8, call u8, flags u32, progress u64, request u64, words u64 × 8,
//!           registers u32, reserved u32, then id u64, value u128 for each
//! gic       version u16, reserved u16, registers u32, then group u32, reserved u32, attribute u64, value u64 for each
//! ```

use abi::Gpa;
use abi::hypercall::{Command, Outcome, WORDS};

use super::{CounterState, IcountState, MachineState};
use crate::backend::{GicKey, GicState, register_bytes};
use crate::device::pl011::{MAX_LINE_BYTES, Pl011State};
use crate::machine::Transport;
use crate::migrate::HostTime;
use crate::migrate::wire::{Section, SectionKind};
use crate::vcpus::state::{CallState, MAX_REGISTERS, SeatState, TurnState, VcpuPower, VcpuState};

/// Version of every section.
const VERSION: u16 = 1;
/// Most registers of a GIC: 8 vCPUs with 7 bits of priority have some 500.
const MAX_GIC_REGISTERS: usize = 4096;

const FLAG_PHYSICAL: u32 = 1 << 0;
const FLAG_ICOUNT: u32 = 1 << 1;
const FLAG_PROGRESS: u32 = 1 << 0;

const CALL_FRESH: u8 = 0;
const CALL_PARKED_MMIO: u8 = 1;
const CALL_PARKED_HVC: u8 = 2;
const CALL_EXECUTING: u8 = 3;

/// Sections that are no machine's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("section {kind} {index} of the machine's state: {reason}")]
pub struct BadSection {
    /// What it holds.
    pub kind: SectionKind,
    /// Which vCPU; 0 of the others.
    pub index: u16,
    /// What is wrong.
    pub reason: &'static str,
}

impl MachineState {
    /// Its sections.
    pub fn encode(&self) -> Vec<Section> {
        let section = |kind, index, bytes| Section { kind, index, bytes };
        let mut sections = vec![
            section(SectionKind::Counter, 0, self.encode_time()),
            section(SectionKind::Uart, 0, encode_uart(&self.uart)),
            section(SectionKind::Gic, 0, encode_gic(&self.gic)),
        ];
        let vcpus = (0..).zip(&self.vcpus);
        sections.extend(vcpus.map(|(index, vcpu)| section(SectionKind::Vcpu, index, encode_vcpu(vcpu))));
        sections
    }

    /// The state in `sections`, in any order, among which may be others of kinds that are not a machine's state.
    ///
    /// # Errors
    /// [`BadSection`] for one that is missing, there twice, or not as [`Self::encode`] makes it.
    pub fn decode(sections: &[Section]) -> Result<Self, BadSection> {
        let (counter, icount, vcpus) = decode_section(sections, SectionKind::Counter, 0, decode_time)?;
        let uart = decode_section(sections, SectionKind::Uart, 0, decode_uart)?;
        let gic = decode_section(sections, SectionKind::Gic, 0, decode_gic)?;
        let one_too_many = |section: &&Section| section.kind == SectionKind::Vcpu && section.index >= vcpus;
        if let Some(Section { kind, index, .. }) = sections.iter().find(one_too_many) {
            return Err(BadSection { kind: *kind, index: *index, reason: "one too many" });
        }
        let vcpus = (0..vcpus).map(|index| decode_section(sections, SectionKind::Vcpu, index, decode_vcpu));
        Ok(Self { vcpus: vcpus.collect::<Result<_, _>>()?, gic, uart, counter, icount })
    }

    fn encode_time(&self) -> Vec<u8> {
        let CounterState { ticks, physical, hz, at } = self.counter;
        let icount = self.icount.unwrap_or(IcountState { instructions: 0, turn: NO_TURN });
        let flags = physical.map_or(0, |_| FLAG_PHYSICAL) | self.icount.map_or(0, |_| FLAG_ICOUNT);
        let mut bytes = Vec::new();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.vcpus.len() as u16).to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        for value in [ticks, hz, at.ns(), physical.unwrap_or(0), icount.instructions] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend((icount.turn.vcpu as u32).to_le_bytes());
        bytes.extend((icount.turn.idle as u32).to_le_bytes());
        bytes.extend(icount.turn.left.to_le_bytes());
        bytes
    }
}

const NO_TURN: TurnState = TurnState { vcpu: 0, left: 0, idle: 0 };

/// Counter, instruction clock, and how many vCPUs there are.
fn decode_time(bytes: &mut Reader<'_>) -> Result<(CounterState, Option<IcountState>, u16), &'static str> {
    bytes.version()?;
    let vcpus = bytes.u16()?;
    if usize::from(vcpus) > abi::map::MAX_VCPUS {
        return Err("more vCPUs than a machine can have");
    }
    let flags = bytes.flags(FLAG_PHYSICAL | FLAG_ICOUNT)?;
    let (ticks, hz, at) = (bytes.u64()?, bytes.u64()?, HostTime::from_ns(bytes.u64()?));
    let physical = given(flags & FLAG_PHYSICAL != 0, bytes.u64()?)?;
    let instructions = given(flags & FLAG_ICOUNT != 0, bytes.u64()?)?;
    let turn = TurnState { vcpu: bytes.u32()? as usize, idle: bytes.u32()? as usize, left: bytes.u64()? };
    if instructions.is_none() && turn != NO_TURN {
        return Err("a turn without an instruction clock");
    }
    let icount = instructions.map(|instructions| IcountState { instructions, turn });
    Ok((CounterState { ticks, physical, hz, at }, icount, vcpus))
}

fn encode_uart(state: &Pl011State) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(state.registers.iter().flat_map(|register| register.to_le_bytes()));
    bytes.extend((state.line.len() as u32).to_le_bytes());
    bytes.extend(&state.line);
    bytes
}

fn decode_uart(bytes: &mut Reader<'_>) -> Result<Pl011State, &'static str> {
    bytes.version()?;
    if bytes.u16()? != 0 {
        return Err("a reserved field is not zero");
    }
    let mut registers = [0; 7];
    for register in &mut registers {
        *register = bytes.u32()?;
    }
    let len_bytes = bytes.u32()? as usize;
    if len_bytes >= MAX_LINE_BYTES {
        return Err("a console line longer than any");
    }
    Ok(Pl011State { registers, line: bytes.take(len_bytes)?.to_vec() })
}

fn encode_vcpu(state: &VcpuState) -> Vec<u8> {
    let power = match state.power {
        VcpuPower::Off => 0_u8,
        VcpuPower::On => 1,
        VcpuPower::Waiting => 2,
    };
    let (call, request, words) = match state.seat.call {
        CallState::Fresh => (CALL_FRESH, 0, [0; WORDS]),
        CallState::Parked { request, transport, outcome } => {
            let call = if transport == Transport::Hvc { CALL_PARKED_HVC } else { CALL_PARKED_MMIO };
            (call, request.raw(), outcome.encode())
        }
        CallState::Executing(command) => (CALL_EXECUTING, 0, command.encode()),
    };
    let mut bytes = Vec::with_capacity(96 + 24 * state.registers.len());
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([power, call]);
    bytes.extend(state.seat.progress.map_or(0, |_| FLAG_PROGRESS).to_le_bytes());
    bytes.extend(state.seat.progress.map_or(0, Gpa::raw).to_le_bytes());
    bytes.extend(request.to_le_bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend((state.registers.len() as u32).to_le_bytes());
    bytes.extend([0; 4]);
    for (id, value) in &state.registers {
        bytes.extend(id.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

fn decode_vcpu(bytes: &mut Reader<'_>) -> Result<VcpuState, &'static str> {
    bytes.version()?;
    let [power, call] = bytes.array()?;
    let power = match power {
        0 => VcpuPower::Off,
        1 => VcpuPower::On,
        2 => VcpuPower::Waiting,
        _ => return Err("no such power state"),
    };
    let flags = bytes.flags(FLAG_PROGRESS)?;
    let progress = given(flags & FLAG_PROGRESS != 0, bytes.u64()?)?.map(Gpa::new);
    let request = bytes.u64()?;
    let mut words = [0; WORDS];
    for word in &mut words {
        *word = bytes.u64()?;
    }
    let outcome = || Outcome::decode(words).map_err(|_| "no such outcome");
    let parked = |transport| {
        let request = Gpa::new(request);
        outcome().map(|outcome| CallState::Parked { request, transport, outcome })
    };
    let call = match call {
        CALL_FRESH if request == 0 && words == [0; WORDS] => CallState::Fresh,
        CALL_PARKED_MMIO => parked(Transport::Mmio)?,
        CALL_PARKED_HVC => parked(Transport::Hvc)?,
        CALL_EXECUTING if request == 0 => CallState::Executing(Command::decode(words).map_err(|_| "no such command")?),
        _ => return Err("no such call"),
    };
    let count = bytes.u32()? as usize;
    if count > MAX_REGISTERS || bytes.u32()? != 0 {
        return Err("too many registers, or a reserved field");
    }
    let registers = bytes.many(count, 24, |bytes| {
        let (id, value) = (bytes.u64()?, u128::from_le_bytes(bytes.array()?));
        let bits = 8 * register_bytes(id);
        if bits < 128 && value >> bits != 0 {
            return Err("a value that does not fit its register");
        }
        Ok((id, value))
    })?;
    Ok(VcpuState { registers, power, seat: SeatState { call, progress } })
}

fn encode_gic(state: &GicState) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + 24 * state.registers.len());
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend((state.registers.len() as u32).to_le_bytes());
    for (GicKey { group, attr }, value) in &state.registers {
        bytes.extend(group.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(attr.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

fn decode_gic(bytes: &mut Reader<'_>) -> Result<GicState, &'static str> {
    bytes.version()?;
    if bytes.u16()? != 0 {
        return Err("a reserved field is not zero");
    }
    let count = bytes.u32()? as usize;
    if count > MAX_GIC_REGISTERS {
        return Err("too many registers");
    }
    let registers = bytes.many(count, 24, |bytes| {
        let group = bytes.u32()?;
        if bytes.u32()? != 0 {
            return Err("a reserved field is not zero");
        }
        let key = GicKey { group, attr: bytes.u64()? };
        let value = bytes.u64()?;
        if key.bytes() == 4 && value >> 32 != 0 {
            return Err("a value that does not fit its register");
        }
        Ok((key, value))
    })?;
    Ok(GicState { registers })
}

/// `value` where it is `there`; where it is not, it must be zero.
fn given(there: bool, value: u64) -> Result<Option<u64>, &'static str> {
    match (there, value) {
        (true, value) => Ok(Some(value)),
        (false, 0) => Ok(None),
        (false, _) => Err("a field without its flag"),
    }
}

fn decode_section<T>(
    sections: &[Section],
    kind: SectionKind,
    index: u16,
    decode: impl FnOnce(&mut Reader<'_>) -> Result<T, &'static str>,
) -> Result<T, BadSection> {
    let bad = |reason| BadSection { kind, index, reason };
    let mut found = sections.iter().filter(|section| section.kind == kind && section.index == index);
    let section = found.next().ok_or(bad("missing"))?;
    if found.next().is_some() {
        return Err(bad("there twice"));
    }
    let mut bytes = Reader(&section.bytes);
    let decoded = decode(&mut bytes).map_err(bad)?;
    if bytes.0.is_empty() { Ok(decoded) } else { Err(bad("too long")) }
}

/// The bytes that are left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len_bytes: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(len_bytes).ok_or("too short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("too short")?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, &'static str> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }

    fn version(&mut self) -> Result<(), &'static str> {
        if self.u16()? == VERSION { Ok(()) } else { Err("a version that is not known here") }
    }

    fn flags(&mut self, known: u32) -> Result<u32, &'static str> {
        let flags = self.u32()?;
        if flags & !known == 0 { Ok(flags) } else { Err("a flag that is not known here") }
    }

    /// `count` times what `one` reads, each of `each_bytes`; nothing is allocated for what is not there.
    fn many<T>(
        &mut self,
        count: usize,
        each_bytes: usize,
        one: impl Fn(&mut Self) -> Result<T, &'static str>,
    ) -> Result<Vec<T>, &'static str> {
        if self.0.len() != count * each_bytes {
            return Err("another length than its count says");
        }
        (0..count).map(|_| one(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use abi::{GuestRange, map};
    use proptest::prelude::*;

    use super::*;

    const ID: u64 = 0x6030_0000_0010_0000;

    fn state() -> MachineState {
        let parked = CallState::Parked {
            request: Gpa::new(0x4030_0040),
            transport: Transport::Hvc,
            outcome: Outcome::Ran { next: 7 },
        };
        let vcpu = |call, power| VcpuState {
            registers: vec![(ID, 0x1122_3344_5566_7788), (0x6040_0000_0010_0054, 1 << 127 | 2)],
            power,
            seat: SeatState { call, progress: Some(Gpa::new(0x4031_0000)) },
        };
        MachineState {
            vcpus: vec![
                vcpu(parked, VcpuPower::On),
                vcpu(CallState::Executing(Command::RunSteps { first: 1, count: u64::MAX }), VcpuPower::Waiting),
            ],
            gic: GicState {
                registers: vec![(GicKey { group: 1, attr: 8 }, 0x43b), (GicKey { group: 6, attr: 1 << 32 }, !0)],
            },
            uart: Pl011State { registers: [1, 2, 3, 4, 5, 6, 7], line: b"half".to_vec() },
            counter: CounterState { ticks: 0x0102, physical: Some(9), hz: 62_500_000, at: HostTime::from_ns(0xabcd) },
            icount: Some(IcountState { instructions: 16, turn: TurnState { vcpu: 1, left: 10_000, idle: 2 } }),
        }
    }

    #[test]
    fn the_bytes_are_golden() {
        use SectionKind::{Counter, Gic, Uart, Vcpu};
        let sections = state().encode();
        let kinds: Vec<_> = sections.iter().map(|section| (section.kind, section.index)).collect();
        assert_eq!(kinds, [(Counter, 0), (Uart, 0), (Gic, 0), (Vcpu, 0), (Vcpu, 1)]);
        #[rustfmt::skip]
        assert_eq!(sections[0].bytes, [
            1, 0, 2, 0, 3, 0, 0, 0,
            2, 1, 0, 0, 0, 0, 0, 0,
            0xa0, 0xac, 0xb9, 3, 0, 0, 0, 0,
            0xcd, 0xab, 0, 0, 0, 0, 0, 0,
            9, 0, 0, 0, 0, 0, 0, 0,
            16, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, 2, 0, 0, 0,
            0x10, 0x27, 0, 0, 0, 0, 0, 0,
        ]);
        #[rustfmt::skip]
        assert_eq!(sections[1].bytes, [
            1, 0, 0, 0,
            1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0,
            4, 0, 0, 0, b'h', b'a', b'l', b'f',
        ]);
        #[rustfmt::skip]
        assert_eq!(sections[2].bytes, [
            1, 0, 0, 0, 2, 0, 0, 0,
            1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0x3b, 4, 0, 0, 0, 0, 0, 0,
            6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255,
        ]);
        #[rustfmt::skip]
        assert_eq!(sections[3].bytes, [
            &[1, 0, 1, 2, 1, 0, 0, 0,
              0, 0, 0x31, 0x40, 0, 0, 0, 0,
              0x40, 0, 0x30, 0x40, 0, 0, 0, 0,
              2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0][..],
            &[0; 48],
            &[2, 0, 0, 0, 0, 0, 0, 0,
              0, 0, 0x10, 0, 0, 0, 0x30, 0x60, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0, 0,
              0x54, 0, 0x10, 0, 0, 0, 0x40, 0x60, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80],
        ].concat());
        assert_eq!(MachineState::decode(&sections), Ok(state()));
    }

    #[test]
    fn sections_that_are_missing_or_there_twice_are_refused_by_name() {
        let sections = state().encode();
        for missing in 0..sections.len() {
            let mut without = sections.clone();
            let Section { kind, index, .. } = without.remove(missing);
            assert_eq!(MachineState::decode(&without), Err(BadSection { kind, index, reason: "missing" }));
            let mut twice = sections.clone();
            twice.push(sections[missing].clone());
            assert_eq!(MachineState::decode(&twice), Err(BadSection { kind, index, reason: "there twice" }));
        }
        let mut more = sections.clone();
        more.push(Section { index: 2, ..sections[4].clone() });
        assert_eq!(MachineState::decode(&more).unwrap_err().reason, "one too many");
        // Their order is free, and others may be among them.
        let mut mixed = sections;
        mixed.reverse();
        mixed.push(Section { kind: SectionKind::DirtyHistory, index: 0, bytes: vec![1] });
        assert_eq!(MachineState::decode(&mixed), Ok(state()));
    }

    #[test]
    fn counts_beyond_what_is_there_allocate_nothing() {
        let sections = state().encode();
        // Of vCPUs, of the line's bytes, of a vCPU's registers, of the GIC's.
        for (at, offset, value) in
            [(0, 2, 0xffff_u32), (1, 32, u32::MAX), (3, 88, u32::MAX), (2, 4, u32::MAX), (2, 4, 4095)]
        {
            let mut sections = sections.clone();
            sections[at].bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            assert!(MachineState::decode(&sections).is_err(), "{at} {offset}");
        }
    }

    #[test]
    fn every_truncation_and_every_surplus_byte_is_refused() {
        let sections = state().encode();
        for at in 0..sections.len() {
            for len_bytes in 0..sections[at].bytes.len() {
                let mut sections = sections.clone();
                sections[at].bytes.truncate(len_bytes);
                assert!(MachineState::decode(&sections).is_err(), "{at} {len_bytes}");
            }
            let mut sections = sections.clone();
            sections[at].bytes.push(0);
            assert!(MachineState::decode(&sections).is_err());
        }
    }

    fn any_call() -> impl Strategy<Value = CallState> {
        let gpa = (0..map::RAM_MIN).prop_map(|offset| Gpa::new(map::RAM_BASE.raw() + offset));
        let range = GuestRange::new(map::REGION_BASE, 4096).unwrap();
        prop_oneof![
            Just(CallState::Fresh),
            any::<(u64, u64)>().prop_map(|(first, count)| CallState::Executing(Command::RunSteps { first, count })),
            any::<u64>().prop_map(move |pass| CallState::Executing(Command::Digest { range, pass })),
            (gpa, any::<bool>(), any::<u64>()).prop_map(|(request, hvc, next)| CallState::Parked {
                request,
                transport: if hvc { Transport::Hvc } else { Transport::Mmio },
                outcome: Outcome::Ran { next },
            }),
        ]
    }

    prop_compose! {
        fn any_vcpu()(
            values in proptest::collection::vec(any::<u64>(), 0..300),
            power in prop_oneof![Just(VcpuPower::Off), Just(VcpuPower::On), Just(VcpuPower::Waiting)],
            call in any_call(),
            progress in proptest::option::of(any::<u64>().prop_map(Gpa::new)),
        ) -> VcpuState {
            let registers = (0..).zip(values).map(|(number, value)| (ID + number, value.into())).collect();
            VcpuState { registers, power, seat: SeatState { call, progress } }
        }
    }

    prop_compose! {
        fn any_state()(
            vcpus in proptest::collection::vec(any_vcpu(), 0..=8),
            gic in proptest::collection::vec((0_u32..8, any::<u64>(), any::<u32>()), 0..600),
            registers in any::<[u32; 7]>(),
            line in proptest::collection::vec(any::<u8>(), 0..MAX_LINE_BYTES),
            (ticks, physical, hz, at) in any::<(u64, Option<u64>, u64, u64)>(),
            icount in any::<Option<(u64, u8, u64, u8)>>(),
        ) -> MachineState {
            let key = |(group, attr, value): (u32, u64, u32)| (GicKey { group, attr }, value.into());
            MachineState {
                vcpus,
                gic: GicState { registers: gic.into_iter().map(key).collect() },
                uart: Pl011State { registers, line },
                counter: CounterState { ticks, physical, hz, at: HostTime::from_ns(at) },
                icount: icount.map(|(instructions, vcpu, left, idle)| IcountState {
                    instructions,
                    turn: TurnState { vcpu: vcpu.into(), left, idle: idle.into() },
                }),
            }
        }
    }

    proptest! {
        #[test]
        fn every_state_survives_its_bytes(state in any_state()) {
            prop_assert_eq!(MachineState::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn hostile_bytes_are_an_error_or_a_state_with_those_bytes(
            section in 0..5_usize, at in any::<prop::sample::Index>(), value in any::<u8>(),
        ) {
            let mut sections = state().encode();
            let at = at.index(sections[section].bytes.len());
            sections[section].bytes[at] = value;
            if let Ok(state) = MachineState::decode(&sections) {
                prop_assert_eq!(state.encode(), sections);
            }
        }

        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), section in 0..5_usize) {
            let mut sections = state().encode();
            sections[section].bytes = bytes;
            let _ = MachineState::decode(&sections);
        }
    }
}
