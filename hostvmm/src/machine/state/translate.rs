//! A state of another kernel's or accelerator's machine becomes one of this machine's: [`MachineState::translate`].
//!
//! Where every vCPU lists the same registers with the same constants nothing is translated, and the state is restored bit for bit, as it
//! always was. Otherwise [`crate::cpustate`] says what becomes of each register, and the [`Translations`] tell it: each line once,
//! with the vCPUs that it is about.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{MachineState, StateError};
use crate::backend::Accelerator;
use crate::cpustate::{self, Destination, Policy, Source, Translation, Unheld};
use crate::machine::Machine;
use crate::vcpus::{Vcpus, VcpusError};

/// What became of the registers of all vCPUs.
#[derive(Clone, Debug)]
pub struct Translations {
    from: Accelerator,
    to: Accelerator,
    by_vcpu: Vec<Translation>,
    took: Duration,
}

/// [`Translations`] in words, as `query-migrate` shows them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RegistersReport {
    /// The source's accelerator.
    pub from: String,
    /// The destination's.
    pub to: String,
    /// Registers of all vCPUs that were written.
    pub written: u64,
    /// Nanoseconds that the rules took, for all vCPUs; no register is read or written meanwhile.
    pub translate_ns: u64,
    /// What was not simply copied, register by register.
    pub notes: Vec<String>,
    /// What the vCPUs, read back, do not hold of what was written.
    pub unheld: Vec<String>,
}

impl MachineState {
    /// Replaces the registers of this state (and chooses the features of `machine`'s vCPUs), which comes from a machine of `from`, by those that restore it on the paused `machine`;
    /// `None` where they are that already.
    ///
    /// # Errors
    /// [`StateError::Registers`] with every reason why a vCPU cannot be moved here, [`StateError::Vcpus`].
    pub fn translate(
        &mut self,
        from: Accelerator,
        machine: &Machine,
        vcpus: &Vcpus,
        policy: Policy,
    ) -> Result<Option<Translations>, StateError> {
        let present = vcpus.registers()?;
        let (ours, theirs) = (present.len(), self.vcpus.len());
        if ours != theirs {
            return Err(VcpusError::Count { ours, theirs }.into());
        }
        let arch = machine.config().tables.arch();
        let pairs = || present.iter().zip(&self.vcpus).map(|(ours, state)| (&ours[..], &state.registers[..]));
        let has_same_ids =
            pairs().all(|(ours, theirs)| ours.iter().map(|(id, _)| id).eq(theirs.iter().map(|(id, _)| id)));
        if has_same_ids
            && pairs().all(|(ours, theirs)| cpustate::constants(ours, arch) == cpustate::constants(theirs, arch))
        {
            return Ok(None);
        }
        let writable = machine.vm().writable_features();
        let started = Instant::now();
        let translated = present.iter().zip(&self.vcpus).enumerate().map(|(vcpu, (present, state))| {
            let source = Source { arch, registers: &state.registers, wider: &[] };
            let destination = Destination { registers: present, writable: &writable };
            cpustate::translate(&source, &destination, policy).map_err(|source| StateError::Registers { vcpu, source })
        });
        let by_vcpu = translated.collect::<Result<Vec<_>, _>>()?;
        let took = started.elapsed();
        // To show less is a kindness to the guest: where a kernel does not take it, the guest is shown more than before, and loses nothing.
        let refused = vcpus.choose_features(by_vcpu.iter().map(|translation| &translation.writes[..]))?;
        for ((vcpu, translation), refused) in self.vcpus.iter_mut().zip(&by_vcpu).zip(refused) {
            let taken = translation.writes.iter().filter(|(id, _)| !refused.contains(id));
            vcpu.registers = taken.copied().collect();
        }
        Ok(Some(Translations { from, to: machine.vm().accelerator(), by_vcpu, took }))
    }
}

impl Translations {
    /// In words, with what the restored and still paused `vcpus` do not hold.
    ///
    /// # Errors
    /// [`VcpusError`] where they are not paused, or cannot be read.
    pub fn report(&self, vcpus: &Vcpus) -> Result<RegistersReport, VcpusError> {
        let found = vcpus.registers()?;
        let notes = self.by_vcpu.iter().map(|of| of.notes.iter().map(ToString::to_string).collect());
        let unheld = self.by_vcpu.iter().zip(&found).map(|(translation, found)| {
            let unheld: Vec<Unheld> = translation.unheld(found);
            unheld.iter().map(ToString::to_string).collect()
        });
        Ok(RegistersReport {
            from: self.from.to_string(),
            to: self.to.to_string(),
            written: self.by_vcpu.iter().map(|translation| translation.writes.len() as u64).sum(),
            translate_ns: u64::try_from(self.took.as_nanos()).unwrap_or(u64::MAX),
            notes: merged(notes.collect()),
            unheld: merged(unheld.collect()),
        })
    }
}

/// The lines of all vCPUs, each once; one that is not of all says of which.
fn merged(by_vcpu: Vec<Vec<String>>) -> Vec<String> {
    let count = by_vcpu.len();
    let mut lines: Vec<(String, Vec<usize>)> = Vec::new();
    for (vcpu, of_vcpu) in by_vcpu.into_iter().enumerate() {
        for line in of_vcpu {
            match lines.iter_mut().find(|(found, _)| *found == line) {
                Some((_, vcpus)) => vcpus.push(vcpu),
                None => lines.push((line, vec![vcpu])),
            }
        }
    }
    let told = |(line, vcpus): (String, Vec<usize>)| {
        if vcpus.len() == count {
            return line;
        }
        let vcpus: Vec<_> = vcpus.iter().map(ToString::to_string).collect();
        format!("vCPU {}: {line}", vcpus.join(", "))
    };
    lines.into_iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_every_vcpu_is_told_once_and_others_say_of_which() {
        let lines = |list: &[&str]| list.iter().map(|line| (*line).to_owned()).collect();
        let of = [lines(&["a", "b"]), lines(&["a"]), lines(&["c", "a", "b"])];
        assert_eq!(merged(of.to_vec()), ["a", "vCPU 0, 2: b", "vCPU 2: c"]);
        assert!(merged(vec![Vec::new()]).is_empty());
    }
}
