//! What a client of the control socket can ask of an instance: [`Remote`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::log::LogUser;
use super::rate::DirtyRate;
use super::{End, Incoming, Instance, Steps, lock};
use crate::colo::{ColoMode, NoPair, Side};
use crate::control::command::unknown_capability;
use crate::control::types::{
    CapabilityStatus, PointStatus, RunState, StatusInfo, TidemarkStatus, TimeUnit, VcpuStatus,
};
use crate::control::{Command, CommandError, Handler};
use crate::heartbeat::HeartbeatEntry;
use crate::machine::state::MachineState;
use crate::memory::SlotId;
use crate::migrate::transport::Uri;
use crate::migrate::{ParameterError, Phase};
use crate::pass::{PageSource as _, SlotView, sum_r};
use crate::report::ledger::ColoEntry;

/// Reports of checkpoints in one reply.
const REPORTS: usize = 32;

/// An instance as its clients see it.
pub(super) struct Remote(pub(super) Arc<Instance>);

impl Handler for Remote {
    fn execute(&self, command: Command) -> Result<Value, CommandError> {
        let instance = &self.0;
        match command {
            Command::QueryStatus => {
                let status = instance.run_state();
                encode(&StatusInfo { running: status == RunState::Running, status })
            }
            Command::Stop => {
                instance.stop();
                done()
            }
            Command::Cont => instance.cont().map_err(CommandError::generic).map(|()| json!({})),
            Command::Migrate { uri } if instance.monitor.capabilities().x_colo => {
                instance.protect(address(&uri)?).map_err(CommandError::generic).map(|()| json!({}))
            }
            Command::Migrate { uri } => {
                instance.send(address(&uri)?).map_err(CommandError::generic).map(|()| json!({}))
            }
            Command::MigrateIncoming { uri, exit_on_error } => self.incoming(&uri, exit_on_error),
            Command::MigrateCancel => self.cancel(),
            Command::MigrateStartPostcopy => match instance.monitor.start_postcopy() {
                Ok(()) => done(),
                Err(error) => Err(CommandError::generic(error.to_string())),
            },
            Command::MigrateContinue { state: _ } => {
                Err(CommandError::generic(format!("Migration not in expected state: {}", instance.monitor.phase())))
            }
            Command::MigratePause => Err(CommandError::generic(
                "migrate-pause is not supported: a post-copy migration cannot be taken up again",
            )),
            Command::MigrateRecover => {
                Err(CommandError::generic("Migrate recover can only be run when postcopy is paused."))
            }
            Command::MigrateSetParameters(values) => self.set_parameters(&values),
            Command::QueryMigrateParameters => self.parameters(),
            Command::MigrateSetCapabilities(states) => self.set_capabilities(&states),
            Command::QueryMigrateCapabilities => {
                let state =
                    |(capability, state): (&str, bool)| CapabilityStatus { capability: capability.into(), state };
                encode(&instance.monitor.capabilities().list().map(state))
            }
            Command::QueryMigrate if instance.colo.status().mode != ColoMode::None => Ok(json!({ "status": "colo" })),
            Command::ColoLostHeartbeat => instance.colo.lost_heartbeat().map_err(no_pair).map(|()| json!({})),
            Command::QueryColoStatus => encode(&instance.colo.status()),
            Command::Checkpoint => instance.colo.request_checkpoint().map_err(no_pair).map(|()| json!({})),
            Command::Colo { after } => encode(&ColoEntry::new(&instance.colo.after(after, REPORTS))),
            Command::QueryMigrate => match instance.monitor.phase() {
                Phase::None => done(),
                _ => encode(&instance.monitor.info()),
            },
            Command::CalcDirtyRate { time, unit } => self.calc_dirty_rate(DirtyRate::duration(time, unit)),
            Command::QueryDirtyRate { unit } => self.dirty_rate(unit),
            Command::Status => self.status(),
            Command::Registers => self.registers(),
            Command::Checksum => self.checksum(),
            Command::Vcpus => self.vcpus(),
            Command::Quit => {
                instance.ask_end(End::Quit);
                done()
            }
        }
    }
}

impl Remote {
    fn incoming(&self, uri: &str, exit_on_error: bool) -> Result<Value, CommandError> {
        let instance = &self.0;
        if !matches!(instance.options.incoming, Some(Incoming::Defer)) {
            return Err(CommandError::generic("'-incoming' was not specified on the command line"));
        }
        let uri = address(uri)?;
        let waits = instance.run_state() == RunState::Inmigrate && instance.monitor.phase() == Phase::None;
        if !waits || instance.migrations.is_busy() {
            return Err(CommandError::generic("The incoming migration has already been started"));
        }
        let waits = if instance.options.colo.side == Some(Side::Secondary) {
            instance.stand_by(&uri)
        } else {
            instance.receive(&uri, exit_on_error)
        };
        waits.map_err(|error| CommandError::generic(error.to_string()))?;
        done()
    }

    fn cancel(&self) -> Result<Value, CommandError> {
        use crate::migrate::MonitorError;
        match self.0.monitor.cancel() {
            // As in QEMU: there is nothing to cancel, and that is what was wanted.
            Ok(()) | Err(MonitorError::NotRunning) => done(),
            Err(error) => Err(CommandError::generic(error.to_string())),
        }
    }

    fn set_parameters(&self, values: &Map<String, Value>) -> Result<Value, CommandError> {
        let refused = |error: ParameterError| CommandError::generic(error.to_string());
        let mut colo = self.0.colo.parameters();
        let mut others = Vec::new();
        for (name, value) in values {
            match colo.set(name, value) {
                Ok(()) => {}
                Err(ParameterError::Unknown { .. }) => others.push((name.as_str(), value)),
                Err(error) => return Err(refused(error)),
            }
        }
        self.0.monitor.set_parameters(others).map_err(refused)?;
        self.0.colo.use_parameters(colo);
        done()
    }

    fn parameters(&self) -> Result<Value, CommandError> {
        let mut parameters = encode(&self.0.monitor.parameters())?;
        if let (Value::Object(all), Value::Object(colo)) = (&mut parameters, encode(&self.0.colo.parameters())?) {
            all.extend(colo);
        }
        for name in ["tls-creds", "tls-hostname"] {
            // QEMU's way to say that there is none.
            if parameters[name].is_null() {
                parameters[name] = json!("");
            }
        }
        Ok(parameters)
    }

    fn set_capabilities(&self, states: &[CapabilityStatus]) -> Result<Value, CommandError> {
        let named = states.iter().map(|status| (status.capability.as_str(), status.state));
        self.0.monitor.set_capabilities(named).map_err(|error| match error {
            ParameterError::Unknown { name } => unknown_capability(&name),
            ParameterError::Busy { .. } => CommandError::generic("There's a migration process in progress"),
            error @ (ParameterError::Invalid { .. } | ParameterError::Host { .. }) => {
                CommandError::generic(error.to_string())
            }
        })?;
        self.0.migration_events.store(self.0.monitor.capabilities().events, Ordering::SeqCst);
        done()
    }

    fn calc_dirty_rate(&self, time: Duration) -> Result<Value, CommandError> {
        let instance = Arc::clone(&self.0);
        if !lock(&instance.rate).begin(time, instance.started.elapsed().as_secs()) {
            return Err(CommandError::generic("Still measuring dirty rate."));
        }
        let measure = move || {
            let started = Instant::now();
            let log = &instance.log;
            let measured = log.start(LogUser::Rate).and_then(|()| {
                std::thread::sleep(time);
                let seen = log.seen_by(LogUser::Rate)?;
                let elapsed = started.elapsed();
                log.stop(LogUser::Rate)?;
                let pages: u64 = seen.iter().flatten().map(|slot| slot.count() * slot.page_bytes()).sum();
                Ok((pages, elapsed))
            });
            lock(&instance.rate).end(measured.ok());
        };
        match std::thread::Builder::new().name("dirty-rate".to_owned()).spawn(measure) {
            Ok(_) => done(),
            Err(error) => {
                lock(&self.0.rate).end(None);
                Err(CommandError::generic(format!("cannot start a thread to measure: {error}")))
            }
        }
    }

    fn dirty_rate(&self, unit: TimeUnit) -> Result<Value, CommandError> {
        encode(&lock(&self.0.rate).info(unit))
    }

    fn status(&self) -> Result<Value, CommandError> {
        let instance = &self.0;
        let history =
            instance.log.seen_by(LogUser::History).map_err(|error| CommandError::generic(error.to_string()))?;
        let counts = |pages: super::log::Pages| -> BTreeMap<String, u64> {
            SlotId::ALL.into_iter().map(|slot| (slot.to_string(), pages[slot.index()].count())).collect()
        };
        let vcpu = |steps: Steps| VcpuStatus { started: steps.started, completed: steps.completed };
        let beat = |vcpu| {
            // A guest that names a place where no heartbeat can be has none.
            let heartbeat = instance.vcpus.heartbeat(vcpu).ok()??;
            Some(HeartbeatEntry::new(vcpu, &heartbeat.read().ok()?))
        };
        let heartbeat = (0..instance.machine.config().vcpus).filter_map(beat).collect();
        let (status, steps) = (instance.run_state(), instance.steps());
        encode(&TidemarkStatus {
            status,
            vcpus: steps.into_iter().map(vcpu).collect(),
            logging: instance.log.is_running(),
            log_page: instance.machine.vm().log_page_bytes(),
            history: history.map(counts),
            heartbeat,
            verified: instance.agenda().verified.clone(),
            point: instance
                .vcpus
                .asked()
                .map(|asked| PointStatus { vcpu: asked.vcpu, name: asked.point.name().to_owned() }),
            pid: std::process::id(),
        })
    }
}

impl Remote {
    /// Refuses a guest that does not stand still.
    fn check_still(&self, what: &str) -> Result<(), CommandError> {
        let state = self.0.run_state();
        if matches!(state, RunState::Prelaunch | RunState::Paused | RunState::Postmigrate) {
            return Ok(());
        }
        Err(CommandError::generic(format!("A guest that is {} has no {what}: `stop` it first", state.name())))
    }

    /// Every register of every vCPU, of a guest that stands still.
    fn registers(&self) -> Result<Value, CommandError> {
        self.check_still("registers that stay")?;
        let vcpus = self.0.vcpus.registers().map_err(|error| CommandError::generic(error.to_string()))?;
        let register = |(id, value): &(u64, u128)| json!([format!("{id:016x}"), format!("{value:x}")]);
        let vcpu = |registers: &Vec<(u64, u128)>| registers.iter().map(register).collect::<Value>();
        Ok(json!({ "vcpus": vcpus.iter().map(vcpu).collect::<Value>() }))
    }

    /// Where each vCPU stands, in words; a guest that runs is held meanwhile.
    fn vcpus(&self) -> Result<Value, CommandError> {
        let instance = &self.0;
        // Kept: nobody is to let the guest run, or to hold it, meanwhile.
        let control = instance.control();
        let runs = control.state() == RunState::Running;
        if runs {
            instance.vcpus.pause();
        }
        let state = MachineState::save(&instance.machine, &instance.vcpus);
        if runs {
            instance.vcpus.resume();
        }
        drop(control);
        let state = state.map_err(|error| CommandError::generic(error.to_string()))?;
        Ok(json!({ "vcpus": state.standing(), "waiting": state.waiting(instance.machine.memory()) }))
    }

    /// `sum -r` of each slot, of a guest that stands still.
    fn checksum(&self) -> Result<Value, CommandError> {
        self.check_still("checksum")?;
        let instance = &self.0;
        let of = |slot: SlotId| {
            let view = SlotView::new(instance.machine.memory(), slot);
            let sum = sum_r(&view).map_err(|error| CommandError::generic(error.to_string()))?;
            Ok((slot.to_string(), json!({ "sum-r": sum.checksum(), "bytes": view.len_bytes() })))
        };
        SlotId::ALL.into_iter().map(of).collect::<Result<Map<_, _>, _>>().map(Value::Object)
    }
}

fn no_pair(error: NoPair) -> CommandError {
    CommandError::generic(error.to_string())
}

fn address(uri: &str) -> Result<Uri, CommandError> {
    uri.parse().map_err(|error: crate::migrate::transport::UriError| CommandError::generic(error.to_string()))
}

fn encode(value: &impl Serialize) -> Result<Value, CommandError> {
    serde_json::to_value(value).map_err(|error| CommandError::generic(error.to_string()))
}

#[expect(clippy::unnecessary_wraps, reason = "every arm of a command yields a result")]
fn done() -> Result<Value, CommandError> {
    Ok(json!({}))
}
