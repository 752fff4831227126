//! CPU compatibility: what identification registers promise the guest, field by field.
//!
//! - [`compare`]: what the guest may rely on and the destination lacks, by field and by FEAT_ name ([`Lack`]);
//! - [`baseline`]: the most that two machines both offer ([`Baseline`]), and what a vCPU must be told at its start to show no more.
//!
//! Fields have an order of their own ([`Order`]): most count up from 0, in some 0b1111 is "none" and less than 0, of some less is
//! more, some say nothing to a guest at EL1. A field that the lists ([`aarch64`], [`aarch32`]) do not name is taken to count up, so
//! that what an architecture yet to come adds is never taken for nothing. DDI 0487 D24.1.3, "Principles of the ID scheme".
//!
//! Neighbours: `translate` refuses by these; a machine is made with a baseline before its guest starts.

mod aarch32;
mod aarch64;

use std::fmt;

use abi::Arch;

use super::{Rule, Snapshot, id, table};

/// How the values of a field compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// More is more.
    Unsigned,
    /// Two's complement: 0b1111 is less than 0.
    Signed,
    /// More is more, but 0b1111 is none that the architecture knows.
    NoneAtTop,
    /// Less is more; 0 says that nothing is known, which is the worst.
    Least,
    /// Nothing that a guest at EL1 relies on.
    Silent,
}

/// What the bits of a register are that its list of fields leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rest {
    /// Nothing.
    Nothing,
    /// Fields of four bits that count up.
    Fields,
    /// Services, a bit each.
    Bits,
}

/// A field of an identification register.
#[derive(Clone, Copy, Debug)]
struct Field {
    name: &'static str,
    low: u32,
    width: u32,
    order: Order,
    /// What the field promises from a value on, in rising order.
    promises: &'static [(u8, &'static str)],
}

const fn field(name: &'static str, low: u32, promises: &'static [(u8, &'static str)]) -> Field {
    Field { name, low, width: 4, order: Order::Unsigned, promises }
}

impl Field {
    const fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    const fn width(mut self, width: u32) -> Self {
        self.width = width;
        self
    }

    const fn mask(&self) -> u64 {
        ((1 << self.width) - 1) << self.low
    }

    const fn of(&self, register: u64) -> u64 {
        (register & self.mask()) >> self.low
    }

    /// Comparable: the more, the more the guest may do.
    fn rank(&self, value: u64) -> i64 {
        let value = value as i64;
        let top = (1 << self.width) - 1;
        match self.order {
            Order::Unsigned => value,
            Order::Signed if value > top / 2 => value - top - 1,
            Order::Signed => value,
            Order::NoneAtTop if value == top => 0,
            Order::NoneAtTop => value,
            Order::Least if value == 0 => -top - 1,
            Order::Least => -value,
            Order::Silent => 0,
        }
    }

    /// What is promised by `more` and not by `less`, both values of this field.
    fn promised(&self, more: u64, less: u64) -> Vec<&'static str> {
        let (more, less) = (self.rank(more), self.rank(less));
        let between = |value: u8| (less < i64::from(value)) && (i64::from(value) <= more);
        self.promises.iter().filter(|(value, _)| between(*value)).map(|(_, name)| *name).collect()
    }
}

/// Something that the guest may rely on and the destination lacks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lack {
    /// The register's id.
    pub id: u64,
    /// The register's name.
    pub register: &'static str,
    /// The field's name, its bits where the architecture has not named it yet.
    pub field: String,
    /// What is lacking, FEAT_ names where there are.
    pub features: Vec<&'static str>,
    /// The field's value that the guest was shown.
    pub shown: u64,
    /// Its value at the destination.
    pub offered: u64,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { register, field, features, shown, offered, .. } = self;
        if features.is_empty() {
            return write!(
                f,
                "{register}.{field}: the guest may rely on {shown:#x}, the destination offers {offered:#x}"
            );
        }
        let features = features.join(", ");
        write!(
            f,
            "{register}.{field}: the guest may rely on {features} ({shown:#x}), which the destination lacks ({offered:#x})"
        )
    }
}

/// The fields of the register of `id`, those not named included; `None` where it has none to compare for guests of `arch`.
fn fields(id: u64, arch: Arch) -> Option<impl Iterator<Item = Field>> {
    let (named, rest) = match (aarch64::fields(id), aarch32::fields(id)) {
        (Some(_), _) if arch == Arch::Armv7 && id::is_feature_space(id) => return None,
        (Some(fields), _) => fields,
        (None, Some(fields)) => fields,
        (None, None) if id::is_feature_space(id) => (&[][..], Rest::Fields),
        (None, None) => return None,
    };
    let (width, end) = match rest {
        Rest::Nothing => (1, 0),
        Rest::Fields => (4, 64),
        Rest::Bits => (1, 64),
    };
    let taken = named.iter().fold(0, |taken, field| taken | field.mask());
    let unnamed = (0..end).step_by(width).map(move |low| field("", low, &[]).width(width as u32));
    // No list is made of them: that was a third of what a translation took.
    Some(named.iter().copied().chain(unnamed.filter(move |field| field.mask() & taken == 0)))
}

/// The named fields of the register of `id`: name, bits, how they compare, and what they promise.
#[cfg(test)]
pub(super) fn described(id: u64) -> Vec<[String; 4]> {
    let fields = [Arch::Aarch64, Arch::Armv7].into_iter().find_map(|arch| fields(id, arch)).into_iter().flatten();
    let describe = |field: &Field| {
        let order = match field.order {
            Order::Unsigned => "more is more",
            Order::Signed => "signed",
            Order::NoneAtTop => "more is more, all ones is none",
            Order::Least => "less is more, 0 is unknown",
            Order::Silent => "not compared",
        };
        let promises: Vec<_> = field.promises.iter().map(|(value, name)| format!("{value:#x} {name}")).collect();
        let bits = format!("{}:{}", field.low + field.width - 1, field.low);
        [field.name.to_owned(), bits, order.to_owned(), promises.join(", ")]
    };
    fields.filter(|field| !field.name.is_empty()).map(|field| describe(&field)).collect()
}

/// Whether the register of `id` tells of features that software may choose.
pub fn is_feature(id: u64) -> bool {
    table::lookup(id).is_some_and(|entry| matches!(entry.rule, Rule::Features { .. }))
}

/// Whether the register tells of AArch32 alone.
pub(super) fn is_aarch32(id: u64) -> bool {
    id::is_feature_space(id) && id < id::sysreg(3, 0, 0, 4, 0)
}

/// What a guest of `arch` that was shown `shown` in the register of `id` may rely on and a machine with `offered` lacks.
pub(super) fn lacks(id: u64, arch: Arch, shown: u64, offered: u64) -> Vec<Lack> {
    if shown == offered {
        return Vec::new();
    }
    let register = table::lookup(id).map_or("", |entry| entry.name.as_str());
    let lack = |field: Field| {
        let (shown, offered) = (field.of(shown), field.of(offered));
        (field.rank(shown) > field.rank(offered)).then(|| Lack {
            id,
            register,
            field: if field.name.is_empty() {
                format!("bits {}:{}", field.low + field.width - 1, field.low)
            } else {
                field.name.to_owned()
            },
            features: field.promised(shown, offered),
            shown,
            offered,
        })
    };
    fields(id, arch).into_iter().flatten().filter_map(lack).collect()
}

/// The value of `id`.
fn value(registers: &[(u64, u128)], id: u64) -> Option<u64> {
    registers.iter().find(|(found, _)| *found == id).map(|(_, value)| *value as u64)
}

/// Whether EL0 can execute AArch32.
fn has_aarch32(registers: &[(u64, u128)]) -> bool {
    value(registers, id::ID_AA64PFR0_EL1).is_none_or(|pfr0| pfr0 & 0xf >= 2)
}

/// `present` with every field that offers more than `wanted` lowered to that.
pub(super) fn least(id: u64, arch: Arch, wanted: u64, present: u64) -> u64 {
    if wanted == present {
        return present;
    }
    let lower = |value, field: Field| {
        let (wanted, present) = (field.of(wanted), field.of(present));
        if field.rank(wanted) < field.rank(present) { value & !field.mask() | wanted << field.low } else { value }
    };
    fields(id, arch).into_iter().flatten().fold(present, lower)
}

/// Everything that a guest of `arch` may rely on at the source and the destination lacks. Registers that only one of them has are
/// compared by the table's rules for those (`translate`).
///
/// What is said of AArch32 counts for AArch64 guests only where the source offers AArch32 at EL0 and so does the destination: where
/// the destination does not, that is the lack.
pub fn compare(source: &[(u64, u128)], destination: &[(u64, u128)], arch: Arch) -> Vec<Lack> {
    let aarch32 = arch == Arch::Armv7 || (has_aarch32(source) && has_aarch32(destination));
    let mut lacks_found = Vec::new();
    for (id, shown) in source {
        if (is_aarch32(*id) && !aarch32) || fields(*id, arch).is_none() {
            continue;
        }
        if let Some(offered) = value(destination, *id) {
            lacks_found.extend(lacks(*id, arch, *shown as u64, offered));
        }
    }
    lacks_found
}

/// The most that two machines both offer: each identification register with each field the lesser of both.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Baseline {
    /// Id and value, by id.
    pub registers: Vec<(u64, u64)>,
}

/// What to write to a vCPU before its guest starts, and what cannot be taken from it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Masks {
    /// Id and value.
    pub writes: Vec<(u64, u128)>,
    /// What the vCPU goes on to show beyond the baseline.
    pub unmasked: Vec<Lack>,
}

/// The common subset of what two machines for guests of `arch` offer. What only one of them has is not offered, where it is a set of
/// services. What is said of AArch32 counts where both have it, as in [`compare`].
pub fn baseline(one: &[(u64, u128)], other: &[(u64, u128)], arch: Arch) -> Baseline {
    let aarch32 = arch == Arch::Armv7 || (has_aarch32(one) && has_aarch32(other));
    let offered = |id, there: Option<u64>| there.unwrap_or_else(|| table::offered_without(id));
    let mut ids: Vec<u64> = one.iter().chain(other).map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|id| (aarch32 || !is_aarch32(*id)) && fields(*id, arch).is_some());
    let registers = ids.into_iter().map(|id| {
        let (one, other) = (offered(id, value(one, id)), offered(id, value(other, id)));
        (id, least(id, arch, other, one))
    });
    Baseline { registers: registers.collect() }
}

impl Baseline {
    /// What makes `vcpu` show no more than this, by the bits that it lets software choose.
    pub fn masks(&self, vcpu: &Snapshot, arch: Arch) -> Masks {
        let mut masks = Masks::default();
        for &(id, wanted) in &self.registers {
            let Some(present) = vcpu.value(id) else { continue };
            let settable = table::lookup(id).is_some_and(|entry| entry.rule == Rule::Features { settable: true });
            let (present, writable) = (present as u64, if settable { u64::MAX } else { vcpu.writable(id) });
            let possible = present & !writable | least(id, arch, wanted, present) & writable;
            if possible != present {
                masks.writes.push((id, possible.into()));
            }
            masks.unmasked.extend(lacks(id, arch, possible, wanted));
        }
        masks
    }
}

#[cfg(test)]
mod tests;
