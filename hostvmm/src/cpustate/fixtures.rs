//! What KVM listed, as fixtures: [`kvm`] and [`named`]. Each file says in its first line which kernel and which CPU it is of.

use super::Snapshot;

const KVM: [(&str, &str); 6] = [
    ("6.1-aarch64", include_str!("fixtures/kvm-6.1-aarch64.txt")),
    ("6.1-armv7", include_str!("fixtures/kvm-6.1-armv7.txt")),
    ("6.12-aarch64", include_str!("fixtures/kvm-6.12-aarch64.txt")),
    ("6.12-aarch64-a57", include_str!("fixtures/kvm-6.12-aarch64-a57.txt")),
    ("6.12-armv7", include_str!("fixtures/kvm-6.12-armv7.txt")),
    ("6.12-sve", include_str!("fixtures/kvm-6.12-sve.txt")),
];

/// All of them.
pub(super) fn kvm() -> impl Iterator<Item = Snapshot> {
    KVM.iter().map(|(_, text)| Snapshot::parse(text).unwrap())
}

/// The one of this name.
pub(super) fn named(name: &str) -> Snapshot {
    let (_, text) = KVM.iter().find(|(found, _)| *found == name).unwrap();
    Snapshot::parse(text).unwrap()
}
