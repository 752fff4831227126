//! `run --qmp` and `run --incoming`: from options to a VM under remote control.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::common::{CommonArgs, Mode};
use super::ending::Ending;
use super::points::PointsArg;
use super::registers::{CpuArg, MissingArg, UnknownArg, policy};
use crate::backend::Skew;
use crate::colo::outlet::OutletAddress;
use crate::colo::{ColoFault, PlantedOmission, Side};
use crate::control::Address;
use crate::instance::{ColoOptions, Incoming, Instance, InstanceError, Options};
use crate::migrate::FaultPlan;
use crate::migrate::transport::Uri;
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
    /// What of the CPU the guest is shown: all that the accelerator has (host), or what KVM and the emulator both have, as far as the
    /// accelerator lets features be hidden (baseline), so that the guest can move either way.
    #[arg(long, value_enum, value_name = "MODEL", default_value_t, hide_default_value = true)]
    cpu: CpuArg,
    /// Ticks of the guest's counter a second (CNTFRQ_EL0) on the emulator, for a guest that is to move to a KVM whose host's counter has
    /// this frequency; a guest that arrives keeps its own [default: 62500000].
    #[arg(long, value_name = "HZ")]
    counter_hz: Option<NonZeroU32>,
    /// What becomes of an arriving guest's registers that the table of rules does not know (docs/registers.md): refuse the move, leave
    /// them behind while they are zero or the same on both sides, or leave them behind.
    #[arg(long, value_enum, value_name = "POLICY", default_value_t, hide_default_value = true)]
    unknown_registers: UnknownArg,
    /// What becomes of an arriving guest that was shown CPU features which this host lacks: it is refused, or they are named, for a guest
    /// known not to use them.
    #[arg(long, value_enum, value_name = "POLICY", default_value_t, hide_default_value = true)]
    missing_features: MissingArg,
    /// Have the guest ask to be moved, and stop it there until it has been: a list of mmu-off, table-switch, handler, pending, exclusives,
    /// wfi, workload, or all (docs/hypercall-abi.md). At wfi it only tells, and is to be stopped as it waits.
    #[arg(long, value_name = "LIST|all")]
    points: Option<PointsArg>,
    /// Prove by the certificates in DIR who both sides of a migration are (see tls-keygen).
    #[arg(long, value_name = "DIR")]
    tls_creds: Option<PathBuf>,
    /// Be one side of a COLO pair, two VMs that run the same guest: the primary, or the secondary, which waits for it at
    /// --incoming URI. A primary can also be given a secondary by the command migrate with the capability x-colo.
    #[arg(long, value_name = "SIDE", value_parser = side)]
    colo: Option<Side>,
    /// Begin the pair with the secondary at URI as soon as the guest runs.
    #[arg(long, value_name = "URI", value_parser = uri)]
    colo_peer: Option<Uri>,
    /// Where the guest's output goes, and who says which side goes on alone (see `hostvmm outlet`).
    #[arg(long, value_name = "unix:PATH")]
    colo_outlet: Option<OutletAddress>,
    /// Plant a fault in every pair, or a lie about dirty pages, as omit-primary@3.
    #[arg(long, value_name = "BOUNDARY=ACTION@CHECKPOINT|OMISSION@CHECKPOINT", hide = true)]
    plant_colo_fault: Option<Plant>,
    /// List other registers than the accelerator does.
    #[arg(long, value_name = "SKEW", hide = true)]
    skew_registers: Option<Skew>,
    /// Plant a fault at a step of every migration.
    #[arg(long, value_name = "BOUNDARY=ACTION", hide = true)]
    plant_migration_fault: Option<FaultPlan>,
}

/// What `--plant-colo-fault` plants.
#[derive(Clone, Copy, Debug)]
enum Plant {
    Fault(ColoFault),
    Omission(PlantedOmission),
}

impl FromStr for Plant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('=') { text.parse().map(Self::Fault) } else { text.parse().map(Self::Omission) }
    }
}

fn side(text: &str) -> Result<Side, String> {
    match text {
        "primary" => Ok(Side::Primary),
        "secondary" => Ok(Side::Secondary),
        _ => Err("a side of a pair is the primary or the secondary".to_owned()),
    }
}

fn uri(text: &str) -> Result<Uri, String> {
    text.parse().map_err(|error: crate::migrate::transport::UriError| error.to_string())
}

fn incoming(text: &str) -> Result<Incoming, String> {
    if text == "defer" {
        return Ok(Incoming::Defer);
    }
    uri(text).map(Incoming::From)
}

impl InstanceArgs {
    /// Whether a VM under remote control is asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.qmp.is_some() || self.incoming.is_some() || self.colo.is_some()
    }

    /// An option that is given and means nothing without a VM under remote control.
    pub(crate) fn stray(&self) -> Option<&'static str> {
        let given = [
            ("--paused", self.paused),
            ("--track-dirty", self.track_dirty),
            ("--verify-guest", self.verify_guest),
            ("--tls-creds", self.tls_creds.is_some()),
            ("--counter-hz", self.counter_hz.is_some()),
            ("--cpu", self.cpu != CpuArg::default()),
            ("--unknown-registers", self.unknown_registers != UnknownArg::default()),
            ("--missing-features", self.missing_features != MissingArg::default()),
            ("--points", self.points.is_some()),
            ("--skew-registers", self.skew_registers.is_some()),
            ("--plant-migration-fault", self.plant_migration_fault.is_some()),
            ("--colo-peer", self.colo_peer.is_some()),
            ("--colo-outlet", self.colo_outlet.is_some()),
            ("--plant-colo-fault", self.plant_colo_fault.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given && !self.is_asked()).map(|(name, _)| name)
    }

    /// Refuses what only the firmware can be asked for.
    fn check_kernel(&self, plant_exception: bool) -> Result<(), Ending> {
        let given = [
            ("--track-dirty", self.track_dirty),
            ("--verify-guest", self.verify_guest),
            ("--points", self.points.is_some()),
            ("--colo", self.colo.is_some()),
            ("--colo-outlet", self.colo_outlet.is_some()),
            ("--plant-exception", plant_exception),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Ending::usage(format!(
                "{option} needs the firmware, whose memory a plan foretells; leave out one of {option} and --kernel"
            ))),
            None => Ok(()),
        }
    }

    fn options(&self) -> Result<Options, Ending> {
        if self.qmp.is_none() && (self.paused || matches!(self.incoming, Some(Incoming::Defer))) {
            return Err(Ending::usage(
                "--paused and --incoming defer wait for a command, which needs --qmp unix:PATH".to_owned(),
            ));
        }
        match self.colo {
            Some(Side::Secondary) if self.incoming.is_none() => {
                return Err(Ending::usage("--colo secondary waits for its primary at --incoming URI".to_owned()));
            }
            Some(Side::Primary) if self.incoming.is_some() => {
                return Err(Ending::usage("--colo primary starts its guest itself; leave out --incoming".to_owned()));
            }
            Some(Side::Primary) => {}
            _ if self.colo_peer.is_some() => {
                return Err(Ending::usage("--colo-peer is a primary's; add --colo primary".to_owned()));
            }
            _ => {}
        }
        let (fault, omission) = match self.plant_colo_fault {
            Some(Plant::Fault(fault)) => (Some(fault), None),
            Some(Plant::Omission(omission)) => (None, Some(omission)),
            None => (None, None),
        };
        Ok(Options {
            colo: ColoOptions {
                side: self.colo,
                peer: self.colo_peer.clone(),
                outlet: self.colo_outlet.clone(),
                fault,
                omission,
            },
            qmp: self.qmp.clone(),
            incoming: self.incoming.clone(),
            paused: self.paused,
            track_dirty: self.track_dirty,
            verify_guest: self.verify_guest,
            tls_creds: self.tls_creds.clone(),
            fault: self.plant_migration_fault,
            registers: policy(self.unknown_registers, self.missing_features),
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
    if common.kernel.is_asked() {
        args.check_kernel(plant_exception)?;
    }
    let options = args.options()?;
    let mut spec = common.spec("run")?;
    spec.machine.plant_exception = plant_exception;
    spec.machine.skew = args.skew_registers;
    spec.machine.cpu = args.cpu.into();
    spec.machine.counter_hz = args.counter_hz;
    spec.machine.points = args.points.as_ref().map_or(0, PointsArg::mask);
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
        InstanceError::Vcpus(_) | InstanceError::Incoming(_) | InstanceError::Random(_) => Ending::failed(error),
        InstanceError::Server(_) | InstanceError::Listen(_) | InstanceError::Log(_) => Ending::input(error),
    }
}
