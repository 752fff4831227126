//! What the two sides must agree on before a byte of memory moves: [`Description`], and the first [`Mismatch`] of two.

use std::fmt;

use abi::boot::{BootInfo, FLAG_KERNEL};
use abi::{Granule, GuestRange};
use workload::Workload;
use zerocopy::IntoBytes as _;

use super::batch::Geometry;
use super::error::WireError;
use super::fields::{Reader, Text, Writer};
use crate::backend::Accelerator;
use crate::memory::Size;

const WHAT: &str = "description";

/// A machine, as far as the guest can tell and the stream depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Description {
    /// What executes the guest. Registers are translated where it is another one at the destination; a COLO pair has one kind.
    pub accelerator: Accelerator,
    /// What the guest was told at boot: tables, vCPUs, RAM, region, seed, workload and flags.
    pub boot: BootInfo,
    /// Bytes of a page on the wire: what one bit of the dirty log stands for.
    pub page_bytes: u32,
    /// Frequency of the guest's counter (CNTFRQ) in Hz.
    pub counter_hz: u64,
    /// Whether every page that the guest ever dirtied is remembered, and moves along.
    pub track_dirty: bool,
}

/// What of a [`Description`] differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Field {
    /// [`Description::accelerator`].
    Accelerator,
    /// The guest's architecture.
    Arch,
    /// The format of its translation tables.
    Tables,
    /// The page of these tables.
    Granule,
    /// Their virtual address bits.
    VaBits,
    /// Number of vCPUs.
    Vcpus,
    /// Where RAM lies and how large it is.
    Ram,
    /// Where the region lies and how large it is.
    Region,
    /// [`Description::page_bytes`].
    PageBytes,
    /// [`Description::counter_hz`].
    CounterHz,
    /// Seed of the plan.
    Seed,
    /// The plan's pattern and its parameters.
    Workload,
    /// The beat of the guest's vCPUs.
    Heartbeat,
    /// What the guest sends on its virtual link.
    Output,
    /// The boot block's flags.
    BootFlags,
    /// [`Description::track_dirty`].
    TrackDirty,
    /// Anything else that the guest was told at boot.
    BootBlock,
    /// [`super::Offer::cpu`]: the source's value has every reason, the destination's is empty.
    Cpu,
}

impl Field {
    const ALL: [(Self, u16, &'static str); 18] = [
        (Self::Accelerator, 1, "accelerator"),
        (Self::Arch, 2, "architecture"),
        (Self::Tables, 3, "translation tables"),
        (Self::Granule, 4, "granule"),
        (Self::VaBits, 5, "VA bits"),
        (Self::Vcpus, 6, "number of vCPUs"),
        (Self::Ram, 7, "RAM"),
        (Self::Region, 8, "region"),
        (Self::PageBytes, 9, "dirty log page"),
        (Self::CounterHz, 10, "counter frequency"),
        (Self::Seed, 11, "seed"),
        (Self::Workload, 12, "workload"),
        (Self::Heartbeat, 16, "heartbeat"),
        (Self::Output, 17, "guest output"),
        (Self::BootFlags, 13, "boot flags"),
        (Self::TrackDirty, 14, "dirty history (--track-dirty)"),
        (Self::BootBlock, 15, "boot block"),
        (Self::Cpu, 18, "CPU"),
    ];

    fn row(self) -> (Self, u16, &'static str) {
        Self::ALL.into_iter().find(|row| row.0 == self).expect("every field has a row")
    }

    pub(super) fn raw(self) -> u16 {
        self.row().1
    }

    pub(super) fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.1 == raw).map(|row| row.0)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

/// The first thing in which two descriptions differ, told as the destination tells it and the source repeats it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct Mismatch {
    /// In what.
    pub field: Field,
    /// The source's value.
    pub source_has: Text,
    /// The destination's value.
    pub destination_has: Text,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, source_has, destination_has } = self;
        match field {
            Field::Cpu => write!(f, "{field}: {source_has}"),
            Field::CounterHz => write!(
                f,
                "{field}: the source has {source_has}, the destination {destination_has}; KVM's is the host's: use a host of the same frequency, or start the guest on an emulator with --counter-hz"
            ),
            _ => write!(
                f,
                "{field}: the source has {source_has}, the destination {destination_has}; start the destination with the source's options"
            ),
        }
    }
}

impl Mismatch {
    /// That the guest's vCPUs cannot be moved here, `why`.
    pub fn of_cpu(why: impl fmt::Display) -> Self {
        Self { field: Field::Cpu, source_has: Text::new(why), destination_has: Text::default() }
    }
}

impl Description {
    /// As [`Self::mismatch`], of the two sides of a COLO pair, which have one accelerator: a checkpoint is restored as it is.
    pub fn mismatch_of_pair(&self, primary: &Self) -> Option<Mismatch> {
        differ(Field::Accelerator, primary.accelerator, self.accelerator)
            .or_else(|| differ(Field::CounterHz, primary.counter(), self.counter()))
            .or_else(|| self.mismatch(primary))
    }

    fn counter(&self) -> String {
        format!("{} Hz", self.counter_hz)
    }

    /// A guest that has read the frequency relies on it. The emulator goes on at any; under KVM it is the host's.
    fn mismatch_of_counter(&self, source: &Self) -> Option<Mismatch> {
        match self.accelerator {
            Accelerator::Emulator => None,
            Accelerator::Kvm => differ(Field::CounterHz, source.counter(), self.counter()),
        }
    }

    /// What this, the destination's description, has otherwise than the source's; `None` where they agree.
    pub fn mismatch(&self, source: &Self) -> Option<Mismatch> {
        let (theirs, ours) = (&source.boot, &self.boot);
        let page = |description: &Self| Size(description.page_bytes.into()).to_string();
        let seed = |boot: &BootInfo| format!("{:#x}", boot.seed);
        let flags = |boot: &BootInfo| match boot.flags {
            flags if flags & FLAG_KERNEL != 0 => format!("{flags:#x} (a kernel in the firmware's place)"),
            flags => format!("{flags:#x}"),
        };
        let beat = |boot: &BootInfo| match boot.heartbeat_us {
            0 => "none".to_owned(),
            us => format!("one every {us} µs"),
        };
        let tracked = |description: &Self| if description.track_dirty { "one" } else { "none" };
        differ(Field::Arch, theirs.tables.arch(), ours.tables.arch())
            .or_else(|| differ(Field::Tables, theirs.tables.name(), ours.tables.name()))
            .or_else(|| differ(Field::Granule, theirs.tables.granule(), ours.tables.granule()))
            .or_else(|| differ(Field::VaBits, theirs.tables.va_bits(), ours.tables.va_bits()))
            .or_else(|| differ(Field::Vcpus, theirs.vcpus, ours.vcpus))
            .or_else(|| differ(Field::Ram, place(theirs.ram), place(ours.ram)))
            .or_else(|| differ(Field::Region, place(theirs.region), place(ours.region)))
            .or_else(|| differ(Field::PageBytes, page(source), page(self)))
            .or_else(|| self.mismatch_of_counter(source))
            .or_else(|| differ(Field::Seed, seed(theirs), seed(ours)))
            .or_else(|| differ(Field::Workload, workload(theirs), workload(ours)))
            .or_else(|| differ(Field::Heartbeat, beat(theirs), beat(ours)))
            .or_else(|| differ(Field::Output, theirs.output.name(), ours.output.name()))
            .or_else(|| differ(Field::BootFlags, flags(theirs), flags(ours)))
            .or_else(|| differ(Field::TrackDirty, tracked(source), tracked(self)))
            .or_else(|| {
                // A field of the boot block that nobody named above.
                (theirs != ours).then(|| Mismatch {
                    field: Field::BootBlock,
                    source_has: Text::new("another"),
                    destination_has: Text::new("its own"),
                })
            })
    }

    /// Pages of the slots.
    pub fn geometry(&self) -> Geometry {
        let page_bytes = u64::from(self.page_bytes);
        Geometry::new(
            self.page_bytes,
            [self.boot.ram, self.boot.region].map(|range| (range.start(), range.len_bytes() / page_bytes)),
        )
    }

    pub(super) fn encode(&self, fields: &mut Writer<'_>) {
        fields.u16(match self.accelerator {
            Accelerator::Kvm => 1,
            Accelerator::Emulator => 2,
        });
        fields.u16(u16::from(self.track_dirty));
        fields.u32(self.page_bytes);
        fields.u64(self.counter_hz);
        let block = self.boot.encode();
        fields.u32(block.as_bytes().len() as u32);
        fields.bytes(block.as_bytes());
    }

    pub(super) fn decode(fields: &mut Reader<'_>) -> Result<Self, WireError> {
        let refused = |field, value| WireError::Value { what: WHAT, field, value };
        let accelerator = match fields.u16()? {
            1 => Accelerator::Kvm,
            2 => Accelerator::Emulator,
            other => return Err(refused("accelerator", other.into())),
        };
        let track_dirty = match fields.u16()? {
            0 => false,
            1 => true,
            other => return Err(refused("flags", other.into())),
        };
        let page_bytes = fields.u32()?;
        let counter_hz = fields.u64()?;
        let block_bytes = fields.u32()?;
        let boot =
            BootInfo::decode(fields.bytes(block_bytes as usize)?).map_err(|reason| WireError::Boot { reason })?;
        if !Granule::ALL.iter().any(|granule| granule.bytes() == u64::from(page_bytes)) {
            return Err(refused("page bytes", page_bytes.into()));
        }
        if counter_hz == 0 {
            return Err(refused("counter Hz", counter_hz));
        }
        for range in [boot.ram, boot.region] {
            let whole = range.start().is_aligned(page_bytes.into())
                && range.len_bytes().is_multiple_of(page_bytes.into())
                && !range.is_empty();
            if !whole {
                return Err(refused("bytes of memory", range.len_bytes()));
            }
        }
        Ok(Self { accelerator, boot, page_bytes, counter_hz, track_dirty })
    }
}

fn differ<T: PartialEq + fmt::Display>(field: Field, source: T, destination: T) -> Option<Mismatch> {
    (source != destination).then(|| Mismatch {
        field,
        source_has: Text::new(source),
        destination_has: Text::new(destination),
    })
}

fn place(range: GuestRange) -> String {
    format!("{} at {}", Size(range.len_bytes()), range.start())
}

fn workload(boot: &BootInfo) -> String {
    Workload::decode(boot.pattern, boot.params)
        .map_or_else(|_| format!("pattern {} of {:?}", boot.pattern, boot.params), |workload| workload.to_string())
}
