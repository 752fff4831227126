//! What a guest and the host may expect of the GIC, and a comparison with a naive model.

use std::collections::{BTreeMap, BTreeSet};

use abi::map;
use proptest::prelude::*;

use super::*;
use crate::sysreg::enc::enc;

const PMR: u16 = enc(3, 0, 4, 6, 0);
const SGI1R: u16 = enc(3, 0, 12, 11, 5);
const DIR: u16 = enc(3, 0, 12, 11, 1);
const RPR: u16 = enc(3, 0, 12, 11, 3);
const IAR1: u16 = enc(3, 0, 12, 12, 0);
const EOIR1: u16 = enc(3, 0, 12, 12, 1);
const HPPIR1: u16 = enc(3, 0, 12, 12, 2);
const BPR1: u16 = enc(3, 0, 12, 12, 3);
const CTLR: u16 = enc(3, 0, 12, 12, 4);
const IGRPEN1: u16 = enc(3, 0, 12, 12, 7);
const SPI: u32 = 40;

/// A controller as a guest sets it up: everything enabled at priority 0xa0, SPIs edge-triggered, routed to vCPU 0.
struct Bench {
    gic: Gic,
    signals: Arc<[Signal]>,
}

impl Bench {
    fn new(vcpus: usize) -> Self {
        let bench = Self::untouched(vcpus);
        bench.gicd(0x0, 4, 0b10);
        for intid in 32..128 {
            bench.gicd(0x400 + intid, 1, 0xa0);
        }
        for word in 1..4 {
            bench.gicd(0x100 + 4 * word, 4, 0xffff_ffff);
        }
        for vcpu in 0..vcpus {
            for intid in 0..32 {
                bench.gicr(vcpu, 0x1_0400 + intid, 1, 0xa0);
            }
            bench.gicr(vcpu, 0x1_0100, 4, 0xffff_ffff);
            bench.write(vcpu, PMR, 0xf8);
            bench.write(vcpu, IGRPEN1, 1);
        }
        bench
    }

    fn untouched(vcpus: usize) -> Self {
        let signals: Arc<[Signal]> = (0..vcpus).map(|_| Signal::default()).collect();
        let gicd = GuestRange::new(map::GICD_BASE, map::GICD_SIZE).unwrap();
        Self { gic: Gic::new(Arc::clone(&signals), gicd, map::gicr_range(vcpus)), signals }
    }

    fn gicd(&self, offset: u64, size_bytes: u8, value: u64) {
        self.gic.mmio_write(map::GICD_BASE.checked_add(offset).unwrap(), size_bytes, value).unwrap();
    }

    fn gicd_read(&self, offset: u64, size_bytes: u8) -> u64 {
        self.gic.mmio_read(map::GICD_BASE.checked_add(offset).unwrap(), size_bytes).unwrap()
    }

    fn at(vcpu: usize, offset: u64) -> Gpa {
        map::GICR_BASE.checked_add(vcpu as u64 * map::GICR_STRIDE + offset).unwrap()
    }

    fn gicr(&self, vcpu: usize, offset: u64, size_bytes: u8, value: u64) {
        self.gic.mmio_write(Self::at(vcpu, offset), size_bytes, value).unwrap();
    }

    fn gicr_read(&self, vcpu: usize, offset: u64, size_bytes: u8) -> u64 {
        self.gic.mmio_read(Self::at(vcpu, offset), size_bytes).unwrap()
    }

    fn write(&self, vcpu: usize, enc: u16, value: u64) {
        self.gic.cpu_write(vcpu, enc, value).unwrap();
    }

    fn read(&self, vcpu: usize, enc: u16) -> u64 {
        self.gic.cpu_read(vcpu, enc).unwrap()
    }

    fn priority(&self, intid: u32, priority: u64) {
        self.gicd(0x400 + u64::from(intid), 1, priority);
    }
}

#[test]
fn identification_is_that_of_a_gicv3_without_lpis() {
    let bench = Bench::untouched(3);
    assert_eq!(bench.gicd_read(0xffe8, 4), 0x3b);
    assert_eq!(bench.gicd_read(0x4, 4) & 0x1f, 3, "128 INTIDs");
    assert_eq!(bench.gicd_read(0x4, 4) >> 17 & 1, 0, "no LPIs");
    assert_eq!(bench.gicd_read(0x0, 4), 0x50, "one security state, affinity routing");
    assert_eq!(bench.gicr_read(1, 0xffe8, 4), 0x3b);
    assert_eq!(bench.gicr_read(1, 0x8, 8), 1 << 32 | 1 << 8);
    assert_eq!(bench.gicr_read(2, 0x8, 8), 2 << 32 | 2 << 8 | 1 << 4, "the last one says so");
    assert_eq!(bench.gicr_read(0, 0x14, 4), 0, "awake");
    assert_eq!(bench.gicr_read(0, 0x1_0c00, 4), 0xaaaa_aaaa, "SGIs are edges");
    assert_eq!(bench.gicd_read(0x80, 4), 0, "no private interrupts in the distributor");
    assert_eq!(bench.gic.mmio_read(Bench::at(3, 0), 4), None);
    assert_eq!(
        bench.gic.cpu_read(0, enc(3, 0, 12, 9, 1)),
        None,
        "ICC_AP1R1_EL1 does not exist with five priority bits"
    );
}

#[test]
fn level_interrupt_comes_again_until_its_line_falls() {
    let bench = Bench::new(1);
    bench.gic.set_spi(SPI, true).unwrap();
    assert!(bench.gic.irq_pending(0));
    assert_eq!(bench.signals[0].take(!0), signal::INTERRUPT);
    assert_eq!(bench.read(0, IAR1), u64::from(SPI));
    assert!(!bench.gic.irq_pending(0), "active");
    assert_eq!(bench.read(0, RPR), 0xa0);
    bench.write(0, EOIR1, u64::from(SPI));
    assert!(bench.gic.irq_pending(0), "still asserted");
    assert_eq!(bench.read(0, IAR1), u64::from(SPI));
    bench.gic.set_spi(SPI, false).unwrap();
    bench.write(0, EOIR1, u64::from(SPI));
    assert!(!bench.gic.irq_pending(0));
    assert_eq!(bench.read(0, IAR1), u64::from(SPURIOUS));
    assert_eq!(bench.read(0, RPR), 0xff);
}

#[test]
fn edge_comes_once_and_is_kept_while_active() {
    let bench = Bench::new(1);
    bench.gicd(0xc00 + 4 * u64::from(SPI / 16), 4, 0xffff_ffff);
    bench.gic.set_spi(SPI, true).unwrap();
    assert_eq!(bench.read(0, IAR1), u64::from(SPI));
    bench.gic.set_spi(SPI, false).unwrap();
    bench.gic.set_spi(SPI, true).unwrap();
    assert_eq!(bench.read(0, HPPIR1), u64::from(SPURIOUS), "active and pending: not to be taken yet");
    bench.write(0, EOIR1, u64::from(SPI));
    assert_eq!(bench.read(0, IAR1), u64::from(SPI));
    bench.write(0, EOIR1, u64::from(SPI));
    assert!(!bench.gic.irq_pending(0));
}

#[test]
fn higher_priority_preempts_and_equal_does_not() {
    let bench = Bench::new(1);
    bench.priority(41, 0xa0);
    bench.priority(42, 0x80);
    bench.gic.set_spi(SPI, true).unwrap();
    assert_eq!(bench.read(0, IAR1), 40);
    bench.gic.set_spi(41, true).unwrap();
    assert!(!bench.gic.irq_pending(0), "equal priority waits");
    bench.gic.set_spi(42, true).unwrap();
    assert_eq!(bench.read(0, IAR1), 42);
    assert_eq!(bench.read(0, RPR), 0x80);
    bench.gic.set_spi(42, false).unwrap();
    bench.write(0, EOIR1, 42);
    assert_eq!(bench.read(0, RPR), 0xa0);
    assert!(!bench.gic.irq_pending(0));
    bench.gic.set_spi(SPI, false).unwrap();
    bench.write(0, EOIR1, 40);
    assert_eq!(bench.read(0, IAR1), 41);
}

#[test]
fn binary_point_joins_priorities_into_groups() {
    let bench = Bench::new(1);
    bench.write(0, BPR1, 0);
    assert_eq!(bench.read(0, BPR1), 3, "the least binary point with five bits");
    bench.write(0, BPR1, 6);
    bench.priority(41, 0x80);
    bench.gic.set_spi(SPI, true).unwrap();
    assert_eq!(bench.read(0, IAR1), 40);
    bench.gic.set_spi(41, true).unwrap();
    assert!(!bench.gic.irq_pending(0), "0x80 and 0xa0 are one group");
    bench.priority(41, 0x40);
    assert!(bench.gic.irq_pending(0));
}

#[test]
fn priority_mask_holds_back() {
    let bench = Bench::new(1);
    bench.write(0, PMR, 0xa0);
    bench.gic.set_spi(SPI, true).unwrap();
    assert!(!bench.gic.irq_pending(0), "only priorities above the mask");
    assert_eq!(bench.read(0, HPPIR1), u64::from(SPI));
    bench.write(0, PMR, 0xa8);
    assert!(bench.gic.irq_pending(0));
}

#[test]
fn split_end_of_interrupt_drops_first_and_deactivates_later() {
    let bench = Bench::new(1);
    bench.write(0, CTLR, 0b10);
    bench.gic.set_spi(SPI, true).unwrap();
    assert_eq!(bench.read(0, IAR1), u64::from(SPI));
    bench.write(0, EOIR1, u64::from(SPI));
    assert_eq!(bench.read(0, RPR), 0xff);
    assert!(!bench.gic.irq_pending(0), "still active");
    bench.write(0, DIR, u64::from(SPI));
    assert!(bench.gic.irq_pending(0));
}

#[test]
fn sgi_reaches_the_list_or_everyone_else() {
    let bench = Bench::new(4);
    let who = || (0..4).filter(|vcpu| bench.gic.irq_pending(*vcpu)).collect::<Vec<_>>();
    bench.write(1, SGI1R, 5 << 24 | 0b1011);
    assert_eq!(who(), [0, 1, 3]);
    assert!(bench.signals[3].take(!0) & signal::INTERRUPT != 0);
    for vcpu in [0, 1, 3] {
        assert_eq!(bench.read(vcpu, IAR1), 5);
        bench.write(vcpu, EOIR1, 5);
    }
    assert!(who().is_empty());
    bench.write(2, SGI1R, 1 << 40 | 9 << 24);
    assert_eq!(who(), [0, 1, 3]);
    bench.write(2, SGI1R, 1 << 16 | 9 << 24 | 0b100);
    bench.write(2, SGI1R, 1 << 44 | 9 << 24 | 0b100);
    assert_eq!(who(), [0, 1, 3], "no such cluster, no such range");
}

#[test]
fn spi_follows_its_route() {
    let bench = Bench::new(2);
    bench.gic.set_spi(SPI, true).unwrap();
    let router = 0x6000 + 8 * u64::from(SPI);
    bench.gicd(router, 8, 1);
    assert_eq!((bench.gic.irq_pending(0), bench.gic.irq_pending(1)), (false, true));
    bench.gicd(router, 8, 0x100);
    assert_eq!((bench.gic.irq_pending(0), bench.gic.irq_pending(1)), (false, false), "no such vCPU");
    assert_eq!(bench.gicd_read(router, 8), 0x100);
    assert_eq!(bench.gic.set_spi(31, true), Err(GicError::NoSpi { intid: 31 }));
    assert_eq!(bench.gic.set_spi(128, true), Err(GicError::NoSpi { intid: 128 }));
}

#[test]
fn accesses_at_every_offset_and_size_are_harmless() {
    let bench = Bench::new(2);
    for frame in [map::GICD_BASE, Bench::at(0, 0), Bench::at(1, 0x1_0000)] {
        for offset in (0..0x1_0000).chain([0xffff]) {
            let gpa = frame.checked_add(offset).unwrap();
            for size_bytes in [1, 2, 4, 8] {
                bench.gic.mmio_write(gpa, size_bytes, u64::MAX);
                bench.gic.mmio_read(gpa, size_bytes);
            }
        }
    }
}

#[test]
fn saved_state_restores_lines_and_all() {
    let bench = Bench::new(2);
    bench.gic.set_spi(SPI, true).unwrap();
    bench.gic.set_ppi(1, 27, true);
    assert_eq!(bench.read(1, IAR1), 27);
    bench.write(0, SGI1R, 3 << 24 | 0b10);
    let saved = bench.gic.save();
    let other = Bench::untouched(2);
    other.gic.restore(&saved).unwrap();
    assert_eq!(other.gic.save(), saved);
    assert!(other.gic.irq_pending(0));
    assert_eq!(other.signals[0].take(!0), signal::INTERRUPT);
    assert!(!other.gic.irq_pending(1), "the SGI waits for the active timer");
    other.write(1, EOIR1, 27);
    assert_eq!(other.read(1, IAR1), 3);
    assert!(matches!(Bench::untouched(1).gic.restore(&saved), Err(GicError::Shape { expected: 1, found: 2, .. })));
}

/// The controller by the book, one vCPU, EOImode 0, binary point 3: sets and a stack.
#[derive(Default)]
struct Model {
    lines: BTreeSet<u32>,
    latched: BTreeSet<u32>,
    enabled: BTreeSet<u32>,
    priorities: BTreeMap<u32, u8>,
    active: Vec<(u8, u32)>,
    mask: u8,
}

impl Model {
    fn next(&self) -> Option<(u8, u32)> {
        let running = self.active.iter().map(|(priority, _)| *priority).min().unwrap_or(0xff);
        let pending = self.lines.union(&self.latched);
        pending
            .filter(|intid| self.enabled.contains(intid) && self.active.iter().all(|(_, other)| other != *intid))
            .map(|intid| (self.priorities.get(intid).copied().unwrap_or(0), *intid))
            .min()
            .filter(|(priority, _)| *priority < self.mask && *priority < running)
    }
}

#[derive(Clone, Debug)]
enum Action {
    Line(u32, bool),
    Latch(u32, bool),
    Enable(u32, bool),
    Priority(u32, u8),
    Mask(u8),
    Acknowledge,
    End,
}

fn action() -> impl Strategy<Value = Action> {
    let spi = 32_u32..40;
    prop_oneof![
        (spi.clone(), any::<bool>()).prop_map(|(intid, level)| Action::Line(intid, level)),
        (spi.clone(), any::<bool>()).prop_map(|(intid, set)| Action::Latch(intid, set)),
        (spi.clone(), any::<bool>()).prop_map(|(intid, set)| Action::Enable(intid, set)),
        (spi, any::<u8>()).prop_map(|(intid, priority)| Action::Priority(intid, priority)),
        any::<u8>().prop_map(Action::Mask),
        Just(Action::Acknowledge),
        Just(Action::End),
    ]
}

proptest! {
    #[test]
    fn any_history_agrees_with_the_model(actions in prop::collection::vec(action(), 0..200)) {
        let bench = Bench::untouched(1);
        bench.gicd(0x0, 4, 0b10);
        bench.write(0, IGRPEN1, 1);
        let mut model = Model::default();
        for action in actions {
            match action {
                Action::Line(intid, level) => {
                    bench.gic.set_spi(intid, level).unwrap();
                    if level { model.lines.insert(intid) } else { model.lines.remove(&intid) };
                }
                Action::Latch(intid, set) => {
                    bench.gicd(if set { 0x204 } else { 0x284 }, 4, 1 << (intid - 32));
                    if set { model.latched.insert(intid) } else { model.latched.remove(&intid) };
                }
                Action::Enable(intid, set) => {
                    bench.gicd(if set { 0x104 } else { 0x184 }, 4, 1 << (intid - 32));
                    if set { model.enabled.insert(intid) } else { model.enabled.remove(&intid) };
                }
                Action::Priority(intid, priority) => {
                    bench.priority(intid, u64::from(priority));
                    model.priorities.insert(intid, priority & 0xf8);
                }
                Action::Mask(mask) => {
                    bench.write(0, PMR, u64::from(mask));
                    model.mask = mask & 0xf8;
                }
                Action::Acknowledge => {
                    let expected = model.next();
                    prop_assert_eq!(bench.read(0, IAR1), u64::from(expected.map_or(SPURIOUS, |(_, intid)| intid)));
                    if let Some((priority, intid)) = expected {
                        model.latched.remove(&intid);
                        model.active.push((priority, intid));
                    }
                }
                Action::End => {
                    if let Some((_, intid)) = model.active.pop() {
                        bench.write(0, EOIR1, u64::from(intid));
                    }
                }
            }
            prop_assert_eq!(bench.gic.irq_pending(0), model.next().is_some());
        }
    }
}
