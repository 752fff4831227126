//! The outside world of a pair: [`World`], the outlet in this process, and the judge of what it saw.
//!
//! The outlet takes each record once and in order, or refuses it; that it does is proven where it is made. Here it is judged by what
//! a record says: the packets of a vCPU are its steps, one after the other from the first, each with the digest that follows from
//! the plan. A step that is missing, comes twice, or was made from memory that is not what the plan says cannot hide.

use std::io;

use abi::packet::{GuestOutput, StepPacket};
use workload::Plan;

use super::{Findings, PairError, Place};
use crate::colo::outlet::{Accepted, Kept, OutletAddress, OutletServer};
use crate::colo::output::StreamId;
use crate::report::ledger::ColoOutputEntry;
use crate::verify::Spec;
use crate::verify::passes::plan;

/// Bytes of output that are kept: 4 million packets.
const KEPT_BYTES: usize = 512 << 20;
/// Wrong packets of a vCPU that are told.
const TOLD: usize = 4;

/// The outlet of a pair.
pub(in crate::verify) struct World {
    address: OutletAddress,
    kept: Kept,
    _server: OutletServer,
}

impl World {
    /// Opens an outlet in `place`.
    pub(in crate::verify) fn start(place: &Place) -> Result<Self, PairError> {
        let failed = |error: &dyn std::fmt::Display| PairError::Place(io::Error::other(error.to_string()));
        let address: OutletAddress =
            format!("unix:{}", place.path("outlet").display()).parse().map_err(|error| failed(&error))?;
        let kept = Kept::new(KEPT_BYTES);
        let server = OutletServer::start(&address, Box::new(kept.clone())).map_err(|error| failed(&error))?;
        Ok(Self { address, kept, _server: server })
    }

    /// Its address, as `--colo-outlet` has it.
    pub(in crate::verify) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Whether everything that was seen is what the guest of `spec` emits, once and in order; and how much that was.
    pub(in crate::verify) fn judge(
        &self,
        spec: &Spec,
        findings: &mut Findings<'_>,
    ) -> Result<ColoOutputEntry, PairError> {
        let plan = plan(spec).map_err(|error| PairError::Place(io::Error::other(error.to_string())))?;
        Ok(self.kept.with(|seen| judge(spec, &plan, seen, findings)))
    }
}

fn judge(spec: &Spec, plan: &Plan, seen: &[Accepted], findings: &mut Findings<'_>) -> ColoOutputEntry {
    let mut entry = ColoOutputEntry {
        records: seen.len() as u64,
        bytes: seen.iter().map(|accepted| accepted.record.bytes.len() as u64).sum(),
        ..ColoOutputEntry::default()
    };
    for accepted in seen {
        let owner = format!("the {} (epoch {})", accepted.side, accepted.epoch);
        if entry.owners.last() != Some(&owner) {
            entry.owners.push(owner);
        }
    }
    for stream in StreamId::all() {
        let numbers = seen.iter().map(|it| &it.record).filter(|record| record.stream == stream);
        let once = numbers.zip(0..).all(|(record, number)| record.sequence == number);
        findings.check("output", once, &format!("each record of the {stream} once, in order"), || {
            "another order".to_owned()
        });
    }
    for vcpu in 0..spec.machine.vcpus {
        let Some(stream) = StreamId::packets(vcpu) else { break };
        let packets: Vec<&[u8]> =
            seen.iter().filter(|it| it.record.stream == stream).map(|it| it.record.bytes.as_slice()).collect();
        if spec.machine.output == GuestOutput::Off {
            findings.check("output", packets.is_empty(), "no packets", || packets.len().to_string());
            continue;
        }
        let wrong = judge_packets(spec, plan, vcpu as u32, &packets);
        entry.foretold += (packets.len() - wrong.len().min(packets.len())) as u64;
        for (expected, found) in wrong.into_iter().take(TOLD) {
            findings.fail("output", format!("vCPU {vcpu}: {expected}"), found);
        }
        findings.check("output", !packets.is_empty(), &format!("packets of vCPU {vcpu}"), || "none".to_owned());
    }
    entry
}

/// What is expected and what was found, for each packet that is not the next step's.
fn judge_packets(spec: &Spec, plan: &Plan, vcpu: u32, packets: &[&[u8]]) -> Vec<(String, String)> {
    let mut memory = vec![0; spec.machine.region_bytes as usize];
    let mut wrong = Vec::new();
    for (bytes, step) in packets.iter().zip(0_u64..) {
        let digest = plan.step_digest(vcpu, step, &mut memory);
        let expected = format!("step {step}, digest {digest:#018x}");
        match StepPacket::read(bytes) {
            Some(packet) if (packet.step.get(), packet.digest.get(), packet.vcpu.get()) == (step, digest, vcpu) => {}
            Some(packet) => {
                let found = format!(
                    "step {} of vCPU {}, digest {:#018x}",
                    packet.step.get(),
                    packet.vcpu.get(),
                    packet.digest.get()
                );
                wrong.push((expected, found));
            }
            None => wrong.push((expected, format!("{} bytes that are no packet", bytes.len()))),
        }
    }
    wrong
}
