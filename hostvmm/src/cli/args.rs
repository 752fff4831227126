//! The command line as clap sees it: subcommands and the options that one of them has alone. Beside it [`super::common`] has
//! those that `run` and `verify` share, [`super::scenario`] those of single scenarios.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::common::{CommonArgs, Format};
use super::instance::InstanceArgs;
use super::quantity::milliseconds;
use super::remote::{InfoArgs, MigrateArgs, MigrateCancelArgs, RelayArgs};
use super::scenario::{ColoArgs, CpuArgs, CrossArgs, MigrationArgs, Scenario};
use super::tuning::TuningArgs;
use crate::colo::OutletAddress;

/// Proves, byte for byte, that a hypervisor's dirty-page log and what rests on it deliver every byte.
#[derive(Debug, Parser)]
#[command(
    name = "hostvmm",
    version,
    max_term_width = 110,
    after_help = "Exit status: 0 verified, 1 a check failed, \
    2 usage or bad input, 4 skipped (the host lacks what was asked for).\n\nExample:\n  hostvmm verify passes --workload \
    dirtyram:pages=2048,step=40 --passes 10 --json ledger.json"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell what this host offers: accelerators, dirty logs, page sizes.
    #[command(after_help = "Example:\n  hostvmm probe --json probe.json")]
    Probe(ProbeArgs),
    /// Run the firmware under a dirty log, copy it pass by pass, and verify; or serve an outside replicator.
    #[command(after_help = "Examples:\n  hostvmm run --seed 7 --passes 5\n  hostvmm run --share /dev/shm/aeshmem \
        --bitmap-file /tmp/dirty_bitmap --workload tstaeshm --passes 200\n  hostvmm run --workload \
        dirtyram:pages=2048,step=40 --qmp unix:/tmp/a.qmp\n  hostvmm run --workload dirtyram:pages=2048,step=40 --qmp \
        unix:/tmp/b.qmp --incoming tcp:0:4321\n  hostvmm run --colo secondary --incoming unix:/tmp/b.colo --colo-outlet \
        unix:/tmp/outlet\n  hostvmm run --colo primary --colo-peer unix:/tmp/b.colo --colo-outlet unix:/tmp/outlet\n  hostvmm run --kernel \
        Image --initrd initramfs.cpio --append \"console=ttyAMA0 quiet\"")]
    Run(RunArgs),
    /// Move a running VM's guest to where another one waits for it, and say how that went.
    #[command(
        after_help = "Examples:\n  hostvmm migrate tcp:127.0.0.1:4321 --qmp unix:/tmp/a.qmp\n  hostvmm migrate -d \
        unix:/tmp/b.mig --qmp unix:/tmp/a.qmp --downtime-limit 30 --max-bandwidth 100M\n  hostvmm migrate fd:/tmp/b.mig --qmp \
        unix:/tmp/a.qmp\n\nThe other one is started with the same options and --incoming URI. Exit status: 0 the guest has moved, 1 it \
        has not, 2 no such VM. Ctrl-C ends the waiting, not the migration."
    )]
    Migrate(MigrateArgs),
    /// Cancel the migration of a running VM: its guest runs on where it is.
    #[command(after_help = "Example:\n  hostvmm migrate-cancel --qmp unix:/tmp/a.qmp")]
    MigrateCancel(MigrateCancelArgs),
    /// Show the migration of a running VM, or how far its guest is.
    #[command(
        after_help = "Examples:\n  hostvmm info migrate --qmp unix:/tmp/a.qmp --watch\n  hostvmm info status --qmp \
        unix:/tmp/a.qmp --json"
    )]
    Info(InfoArgs),
    /// Connect standard input and output with a VM's control socket, to speak QMP to it from another host.
    #[command(after_help = "Example:\n  ssh node-b hostvmm relay unix:/tmp/b.qmp")]
    Relay(RelayArgs),
    /// Run a scenario and check everything in it.
    #[command(after_help = "Examples:\n  hostvmm verify passes --granule 64k --va-bits 42 --workload mixed --vcpus 4 \
        --json ledger.json\n  hostvmm verify passes --arch armv7 --tables lpae --workload mixed\n  hostvmm verify matrix --format \
        ktap\n  hostvmm verify faults --seed 3\n  hostvmm verify hugepages --backing hugetlb:2M --region-size 32M --vcpus 4\n  hostvmm verify cpu --count 4000 --seed 7\n  \
        hostvmm verify migrate --workload dirtyram:pages=409600,step=2048,sleep_ms=50 --region-size 1600M --ram 64M\n  hostvmm verify \
        cancel --kills some\n  hostvmm verify chain --hops 100\n  hostvmm verify cross --from kvm --to emulator --moves 10\n  hostvmm verify \
        cross --skew all\n  hostvmm verify colo --checkpoints 100 --failover primary")]
    Verify(VerifyArgs),
    /// Keep a file, or a peer, equal to a running guest's region; ends when the guest's writers have stopped.
    #[command(
        after_help = "Examples:\n  hostvmm replicate --share /dev/shm/aeshmem --bitmap-file /tmp/dirty_bitmap --dest \
        /tmp/dest_aeshmem\n  hostvmm replicate --listen tcp:127.0.0.1:4321 --dest /tmp/dest_aeshmem"
    )]
    Replicate(ReplicateArgs),
    /// Show a ledger again, in any format.
    #[command(after_help = "Example:\n  hostvmm report ledger.json --format junit > junit.xml")]
    Report(ReportArgs),
    /// Make a directory of TLS credentials for tests: an authority's, a server's and a client's.
    #[command(
        after_help = "Example:\n  hostvmm tls-keygen /tmp/pki --host node-b\n\nThe files are those of QEMU's tls-creds-x509."
    )]
    TlsKeygen(TlsKeygenArgs),
    /// Be the outside world's end of a pair's output: take each record once, from the one side that owns the outlet, and decide
    /// which side may go on alone. Ends on a signal.
    #[command(after_help = "Example:\n  hostvmm outlet unix:/tmp/outlet --record seen.jsonl")]
    Outlet(OutletArgs),
}

/// Options of `outlet`.
#[derive(Debug, Args)]
pub(crate) struct OutletArgs {
    /// Where both sides reach it.
    #[arg(value_name = "unix:PATH")]
    pub(crate) address: OutletAddress,
    /// Append accepted records to FILE, a line of JSON each [default: standard output].
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
}

/// Options of `tls-keygen`.
#[derive(Debug, Args)]
pub(crate) struct TlsKeygenArgs {
    /// Where the files go; none of them may exist.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// A name or address that the server is called by, besides localhost, 127.0.0.1 and ::1; may be repeated.
    #[arg(long = "host", value_name = "NAME")]
    pub(crate) hosts: Vec<String>,
}

/// Options of `probe`.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// Write what was found to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    /// Serve the file protocol of an outside replicator here; the file must have the bitmap's size. Needs --share.
    #[arg(long, value_name = "FILE", requires = "share")]
    pub(crate) bitmap_file: Option<PathBuf>,
    /// Test the report of an unexpected guest exception: the guest reads an unmapped address after it has booted.
    #[arg(long)]
    pub(crate) plant_exception: bool,
    /// Run nothing: write the devicetree of a guest that needs no hostvmm, for another VMM to load at the start of RAM. The
    /// guest runs the workload's steps without end.
    #[arg(long, value_name = "FILE")]
    pub(crate) dump_dtb: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) instance: InstanceArgs,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Which scenario.
    #[arg(value_enum, default_value_t = Scenario::Passes)]
    pub(crate) scenario: Scenario,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(flatten)]
    pub(crate) cpu: CpuArgs,
    #[command(flatten)]
    pub(crate) migration: MigrationArgs,
    #[command(flatten)]
    pub(crate) colo: ColoArgs,
    #[command(flatten)]
    pub(crate) cross: CrossArgs,
    #[command(flatten)]
    pub(crate) tuning: TuningArgs,
}

/// Options of `replicate`.
#[derive(Debug, Args)]
pub(crate) struct ReplicateArgs {
    /// The file that backs the running guest's region.
    #[arg(long, value_name = "FILE", required_unless_present = "listen", conflicts_with = "listen")]
    pub(crate) share: Option<PathBuf>,
    /// The bitmap file that `hostvmm run --bitmap-file` serves.
    #[arg(long, value_name = "FILE", required_unless_present = "listen", conflicts_with = "listen")]
    pub(crate) bitmap_file: Option<PathBuf>,
    /// Where the copy goes: an existing file of the region's size, tcp:HOST:PORT or unix:PATH.
    #[arg(long, value_name = "FILE|PEER")]
    pub(crate) dest: String,
    /// Receive from a peer at tcp:HOST:PORT or unix:PATH instead; --dest is then a file.
    #[arg(long, value_name = "PEER")]
    pub(crate) listen: Option<String>,
    /// Pause between two requests.
    #[arg(long, allow_negative_numbers = true, value_name = "MS", default_value = "100", value_parser = milliseconds)]
    pub(crate) interval_ms: Duration,
    /// Give up when the VMM has not answered for this long.
    #[arg(long, allow_negative_numbers = true, value_name = "MS", default_value = "10000", value_parser = milliseconds)]
    pub(crate) timeout_ms: Duration,
}

/// Options of `report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// A ledger written by --json.
    #[arg(value_name = "LEDGER")]
    pub(crate) ledger: PathBuf,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Write the ledger, every format and an HTML page with plots into DIR.
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
}
