//! `run --qmp` and `run --incoming`: from options to a VM under remote control.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::common::{CommonArgs, Mode};
use super::ending::Ending;
use crate::control::Address;
use crate::instance::{ColoOptions, Incoming, Instance, InstanceError, Options};
use crate::migrate::FaultPlan;
use crate::report::{Ledger, Verdict};

/// Options of `run` for a VM that is controlled from outside: it makes no passes, but runs its workload without end.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Options of run for a VM under remote control, which runs its workload without end")]
pub(crate) struct InstanceArgs {
    /// Take commands by QEMU's monitor protocol at unix:PATH, or at a loopback address like tcp:127.0.0.1:4444 (docs/qmp.md).
    #[arg(long, value_name = "ADDRESS")]
    qmp: Option<Address>,
    /// Start no guest but wait for one at URI, like unix:PATH or tcp:0:4321 (loopback; all interfaces only as
    /// tcp:0.0.0.0:4321); `defer` waits for the command migrate-incoming.
    #[arg(long, value_name = "URI|defer", value_parser = incoming)]
    incoming: Option<Incoming>,
    /// Do not run before the command cont.
    #[arg(long)]
    paused: bool,
    /// Remember every page that the guest writes after its first step; it must be what the plan says, however often the guest
    /// has moved.
    #[arg(long)]
    track_dirty: bool,
    /// Verify a guest as soon as it has arrived, before it goes on.
    #[arg(long)]
    verify_guest: bool,
    /// Prove by the certificates in DIR who both sides of a migration are (see tls-keygen).
    #[arg(long, value_name = "DIR")]
    tls_creds: Option<PathBuf>,
    /// Plant a fault at a step of every migration.
    #[arg(long, value_name = "BOUNDARY=ACTION", hide = true)]
    plant_migration_fault: Option<FaultPlan>,
}

fn incoming(text: &str) -> Result<Incoming, String> {
    if text == "defer" {
        return Ok(Incoming::Defer);
    }
    text.parse().map(Incoming::From).map_err(|error: crate::migrate::transport::UriError| error.to_string())
}

impl InstanceArgs {
    /// Whether a VM under remote control is asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.qmp.is_some() || self.incoming.is_some()
    }

    /// An option that is given and means nothing without a VM under remote control.
    pub(crate) fn stray(&self) -> Option<&'static str> {
        let given = [
            ("--paused", self.paused),
            ("--track-dirty", self.track_dirty),
            ("--verify-guest", self.verify_guest),
            ("--tls-creds", self.tls_creds.is_some()),
            ("--plant-migration-fault", self.plant_migration_fault.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given && !self.is_asked()).map(|(name, _)| name)
    }

    fn options(&self) -> Result<Options, Ending> {
        if self.qmp.is_none() && (self.paused || matches!(self.incoming, Some(Incoming::Defer))) {
            return Err(Ending::usage(
                "--paused and --incoming defer wait for a command, which needs --qmp unix:PATH".to_owned(),
            ));
        }
        Ok(Options {
            qmp: self.qmp.clone(),
            incoming: self.incoming.clone(),
            paused: self.paused,
            track_dirty: self.track_dirty,
            verify_guest: self.verify_guest,
            tls_creds: self.tls_creds.clone(),
            fault: self.plant_migration_fault,
            colo: ColoOptions::default(),
        })
    }
}

/// Runs a VM under remote control until it is told to end.
///
/// # Errors
/// An [`Ending`] by what is wrong with the options, what the host lacks, or why no guest arrived.
pub(super) fn run(args: &InstanceArgs, common: &CommonArgs, plant_exception: bool) -> Result<Ledger, Ending> {
    if common.mode == Some(Mode::Lockstep) {
        return Err(Ending::usage("a VM under remote control runs on its own; leave out --mode lockstep".to_owned()));
    }
    if common.dest.is_some() {
        return Err(Ending::usage("a VM under remote control makes no copy; leave out --dest".to_owned()));
    }
    let options = args.options()?;
    let mut spec = common.spec("run")?;
    spec.machine.plant_exception = plant_exception;
    let instance = Instance::new(&spec, options).map_err(ending)?;
    end_on_signals(&instance)?;
    instance.run().map_err(ending)
}

/// Ctrl-C and SIGTERM ask for a clean end; a second one ends the process at once.
fn end_on_signals(instance: &Arc<Instance>) -> Result<(), Ending> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Ending::failed)?;
    let instance = Arc::clone(instance);
    std::thread::spawn(move || {
        let mut asked = false;
        for _ in &mut signals {
            if std::mem::replace(&mut asked, true) {
                std::process::exit(i32::from(Verdict::Fail.exit_code()));
            }
            instance.end();
        }
    });
    Ok(())
}

fn ending(error: InstanceError) -> Ending {
    match error {
        InstanceError::Run(error) => super::ending(error),
        InstanceError::Vcpus(_) | InstanceError::Incoming(_) => Ending::failed(error),
        InstanceError::Server(_) | InstanceError::Listen(_) | InstanceError::Log(_) => Ending::input(error),
    }
}
