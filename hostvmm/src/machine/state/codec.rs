//! The bytes of a [`MachineState`]: one part for the machine, one for each vCPU, one for the GIC.
//!
//! Little-endian, fixed-width, each part with its version first. What is reserved is zero. Counts are checked
//! against bounds and against the bytes that are there before anything is allocated; what follows the last field, or is
//! missing, is an error. What a part *claims* (addresses, registers) is checked when it is restored.
//!
//! ```text
//! machine   version u16, vcpus u16, flags u32, ticks u64, hz u64, at u64, physical u64,
//!           instructions u64, turn's vcpu u32, idle turns u32, turn's instructions u64,
//!           PL011: seven registers u32, line's length u32, line
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
use crate::vcpus::state::{CallState, MAX_REGISTERS, SeatState, TurnState, VcpuPower, VcpuState};

/// Version of every part.
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

/// What a part describes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PartKind {
    /// What the machine has once: counter, instruction clock, console.
    Machine,
    /// One vCPU.
    Vcpu,
    /// The interrupt controller.
    Gic,
}

/// A part of a machine's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatePart {
    /// What it describes.
    pub kind: PartKind,
    /// Which vCPU; 0 of the others.
    pub index: u16,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Parts that are no machine's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the {kind:?} part {index} of the machine's state: {reason}")]
pub struct BadBytes {
    /// Which part.
    pub kind: PartKind,
    /// Which vCPU.
    pub index: u16,
    /// What is wrong.
    pub reason: &'static str,
}

impl MachineState {
    /// Its parts, the machine's first, then the vCPUs' in their order, then the GIC's.
    pub fn encode(&self) -> Vec<StatePart> {
        let part = |kind, index, bytes| StatePart { kind, index, bytes };
        let vcpus = (0..).zip(&self.vcpus).map(|(index, vcpu)| part(PartKind::Vcpu, index, encode_vcpu(vcpu)));
        let mut parts = vec![part(PartKind::Machine, 0, self.encode_machine())];
        parts.extend(vcpus);
        parts.push(part(PartKind::Gic, 0, encode_gic(&self.gic)));
        parts
    }

    /// The state in `parts`, which [`Self::encode`] has made, in its order.
    ///
    /// # Errors
    /// [`BadBytes`] for anything else.
    pub fn decode(parts: &[StatePart]) -> Result<Self, BadBytes> {
        let mut parts = parts.iter();
        let machine = expect(parts.next(), PartKind::Machine, 0)?;
        let (mut state, count) = decode_part(machine, Self::decode_machine)?;
        for index in 0..count {
            let part = expect(parts.next(), PartKind::Vcpu, index)?;
            state.vcpus.push(decode_part(part, decode_vcpu)?);
        }
        state.gic = decode_part(expect(parts.next(), PartKind::Gic, 0)?, decode_gic)?;
        match parts.next() {
            Some(StatePart { kind, index, .. }) => Err(BadBytes { kind: *kind, index: *index, reason: "one too many" }),
            None => Ok(state),
        }
    }

    fn encode_machine(&self) -> Vec<u8> {
        let CounterState { ticks, physical, hz, at } = self.counter;
        let turn = TurnState { vcpu: 0, left: 0, idle: 0 };
        let icount = self.icount.unwrap_or(IcountState { instructions: 0, turn });
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
        bytes.extend(self.uart.registers.iter().flat_map(|register| register.to_le_bytes()));
        bytes.extend((self.uart.line.len() as u32).to_le_bytes());
        bytes.extend(&self.uart.line);
        bytes
    }

    /// The state without vCPUs and GIC, and how many vCPUs it has.
    fn decode_machine(bytes: &mut Reader<'_>) -> Result<(Self, u16), &'static str> {
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
        if instructions.is_none() && turn != (TurnState { vcpu: 0, left: 0, idle: 0 }) {
            return Err("a turn without an instruction clock");
        }
        let mut registers = [0; 7];
        for register in &mut registers {
            *register = bytes.u32()?;
        }
        let len_bytes = bytes.u32()? as usize;
        if len_bytes >= MAX_LINE_BYTES {
            return Err("a console line longer than any");
        }
        let uart = Pl011State { registers, line: bytes.take(len_bytes)?.to_vec() };
        let counter = CounterState { ticks, physical, hz, at };
        let icount = instructions.map(|instructions| IcountState { instructions, turn });
        Ok((Self { vcpus: Vec::new(), gic: GicState::default(), uart, counter, icount }, vcpus))
    }
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

fn expect(part: Option<&StatePart>, kind: PartKind, index: u16) -> Result<&StatePart, BadBytes> {
    match part {
        Some(part) if part.kind == kind && part.index == index => Ok(part),
        Some(_) => Err(BadBytes { kind, index, reason: "another part in its place" }),
        None => Err(BadBytes { kind, index, reason: "missing" }),
    }
}

fn decode_part<T>(
    part: &StatePart,
    decode: impl FnOnce(&mut Reader<'_>) -> Result<T, &'static str>,
) -> Result<T, BadBytes> {
    let mut bytes = Reader(&part.bytes);
    let decoded = decode(&mut bytes).and_then(|decoded| if bytes.0.is_empty() { Ok(decoded) } else { Err("too long") });
    decoded.map_err(|reason| BadBytes { kind: part.kind, index: part.index, reason })
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
        let parts = state().encode();
        let kinds: Vec<_> = parts.iter().map(|part| (part.kind, part.index)).collect();
        use PartKind::{Gic, Machine, Vcpu};
        assert_eq!(kinds, [(Machine, 0), (Vcpu, 0), (Vcpu, 1), (Gic, 0)]);
        #[rustfmt::skip]
        assert_eq!(parts[0].bytes, [
            1, 0, 2, 0, 3, 0, 0, 0,
            2, 1, 0, 0, 0, 0, 0, 0,
            0xa0, 0xac, 0xb9, 3, 0, 0, 0, 0,
            0xcd, 0xab, 0, 0, 0, 0, 0, 0,
            9, 0, 0, 0, 0, 0, 0, 0,
            16, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, 2, 0, 0, 0,
            0x10, 0x27, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0,
            4, 0, 0, 0, b'h', b'a', b'l', b'f',
        ]);
        #[rustfmt::skip]
        assert_eq!(parts[1].bytes, [
            &[1, 0, 1, 2, 1, 0, 0, 0,
              0, 0, 0x31, 0x40, 0, 0, 0, 0,
              0x40, 0, 0x30, 0x40, 0, 0, 0, 0,
              2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0][..],
            &[0; 48],
            &[2, 0, 0, 0, 0, 0, 0, 0,
              0, 0, 0x10, 0, 0, 0, 0x30, 0x60, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0, 0,
              0x54, 0, 0x10, 0, 0, 0, 0x40, 0x60, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80],
        ].concat());
        #[rustfmt::skip]
        assert_eq!(parts[3].bytes, [
            1, 0, 0, 0, 2, 0, 0, 0,
            1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0x3b, 4, 0, 0, 0, 0, 0, 0,
            6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255,
        ]);
        assert_eq!(MachineState::decode(&parts), Ok(state()));
    }

    #[test]
    fn parts_that_are_missing_twice_or_out_of_order_are_refused_by_name() {
        let parts = state().encode();
        for missing in 0..parts.len() {
            let mut without = parts.clone();
            without.remove(missing);
            assert!(MachineState::decode(&without).is_err());
        }
        let mut more = parts.clone();
        more.push(parts[3].clone());
        assert_eq!(MachineState::decode(&more).unwrap_err().reason, "one too many");
        let mut swapped = parts;
        swapped.swap(1, 2);
        let error = MachineState::decode(&swapped).unwrap_err();
        assert_eq!((error.kind, error.index, error.reason), (PartKind::Vcpu, 0, "another part in its place"));
    }

    #[test]
    fn counts_beyond_what_is_there_allocate_nothing() {
        let parts = state().encode();
        // Of vCPUs, of the line's bytes, of a vCPU's registers, of the GIC's.
        for (part, at, value) in
            [(0, 2, 0xffff_u32), (0, 92, u32::MAX), (1, 88, u32::MAX), (3, 4, u32::MAX), (3, 4, 4095)]
        {
            let mut parts = parts.clone();
            parts[part].bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(MachineState::decode(&parts).is_err(), "{part} {at}");
        }
    }

    #[test]
    fn every_truncation_and_every_surplus_byte_is_refused() {
        let parts = state().encode();
        for part in 0..parts.len() {
            for len_bytes in 0..parts[part].bytes.len() {
                let mut parts = parts.clone();
                parts[part].bytes.truncate(len_bytes);
                assert!(MachineState::decode(&parts).is_err(), "{part} {len_bytes}");
            }
            let mut parts = parts.clone();
            parts[part].bytes.push(0);
            assert!(MachineState::decode(&parts).is_err());
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
            part in 0..4_usize, at in any::<prop::sample::Index>(), value in any::<u8>(),
        ) {
            let mut parts = state().encode();
            let at = at.index(parts[part].bytes.len());
            parts[part].bytes[at] = value;
            if let Ok(state) = MachineState::decode(&parts) {
                prop_assert_eq!(state.encode(), parts);
            }
        }

        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), part in 0..4_usize) {
            let mut parts = state().encode();
            parts[part].bytes = bytes;
            let _ = MachineState::decode(&parts);
        }
    }
}
