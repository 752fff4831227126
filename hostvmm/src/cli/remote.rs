//! `migrate`, `migrate-cancel` and `info`: clients of a running VM's control socket.

use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::ending::{Ending, say, tell};
use super::tuning::TuningArgs;
use crate::control::address::Stream;
use crate::control::{Address, Client, ClientError};
use crate::migrate::transport::Uri;
use crate::report::{Verdict, migration_text};

/// How long a control socket that is not there is waited for.
const STARTING: Duration = Duration::from_secs(20);
/// Between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(10);
/// Between two looks at a migration.
const INTERVAL: Duration = Duration::from_millis(100);

/// Which VM.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// The VM's control socket, as `hostvmm run` was given it: unix:PATH.
    #[arg(long, value_name = "ADDRESS")]
    qmp: Address,
}

/// Options of `migrate`.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Where the destination waits: tcp:HOST:PORT, unix:PATH, fd:PATH (the same host, without copying RAM), exec:COMMAND; or
    /// file:PATH, to keep the guest in a file.
    #[arg(value_name = "URI")]
    uri: Uri,
    #[command(flatten)]
    vm: VmArgs,
    /// Do not wait for the end.
    #[arg(short, long)]
    detach: bool,
    /// Print what `query-migrate` answers at the end.
    #[arg(long, conflicts_with = "detach")]
    json: bool,
    #[command(flatten)]
    tuning: TuningArgs,
}

/// Options of `migrate-cancel`.
#[derive(Debug, Args)]
pub(crate) struct MigrateCancelArgs {
    #[command(flatten)]
    vm: VmArgs,
}

/// Options of `info`.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// What to show.
    #[arg(value_enum)]
    what: Subject,
    #[command(flatten)]
    vm: VmArgs,
    /// Show it live until the migration has ended.
    #[arg(long)]
    watch: bool,
    /// Print the VM's answer as it is.
    #[arg(long, conflicts_with = "watch")]
    json: bool,
}

/// Options of `relay`.
#[derive(Debug, Args)]
pub(crate) struct RelayArgs {
    /// The VM's control socket, as `hostvmm run` was given it; one that is about to be there is waited for.
    #[arg(value_name = "ADDRESS")]
    address: Address,
}

/// What `info` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// The last migration.
    Migrate,
    /// The VM and how far its guest is.
    Status,
}

/// `hostvmm relay`: ends with either of the two.
///
/// # Errors
/// [`Ending`] where nobody listens there, or standard output is gone.
pub(super) fn relay(args: &RelayArgs) -> Result<Verdict, Ending> {
    let deadline = Instant::now() + STARTING;
    let mut stream = loop {
        match Stream::connect(&args.address) {
            Ok(stream) => break stream,
            Err(_) if Instant::now() < deadline => std::thread::sleep(RETRY),
            Err(source) => {
                return Err(Ending::input(ClientError::Connect { address: args.address.clone(), source }));
            }
        }
    };
    let mut up = stream.try_clone().map_err(Ending::failed)?;
    std::thread::spawn(move || {
        // A VM that has ended is noticed below.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut up);
        up.shutdown();
    });
    let mut output = std::io::stdout().lock();
    let mut bytes = [0; 16 << 10];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(Verdict::Pass),
            Ok(len) => output.write_all(&bytes[..len]).and_then(|()| output.flush()).map_err(Ending::failed)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Ending::failed(error)),
        }
    }
}

/// `hostvmm migrate`.
///
/// # Errors
/// An [`Ending`] with status 2 where there is no such VM, with status 1 where the guest did not move.
pub(super) fn migrate(args: &MigrateArgs) -> Result<Verdict, Ending> {
    let mut client = connect(&args.vm)?;
    let parameters = args.tuning.parameters();
    if !parameters.is_empty() {
        client.execute("migrate-set-parameters", Value::Object(parameters)).map_err(Ending::failed)?;
    }
    let capabilities = args.tuning.capabilities();
    if !capabilities.is_empty() {
        let on: Vec<(&str, bool)> = capabilities.iter().map(|name| (name.as_str(), true)).collect();
        client.set_capabilities(&on).map_err(Ending::failed)?;
    }
    client.migrate(&args.uri.to_string()).map_err(Ending::failed)?;
    if args.detach {
        say(&format!("migration started; `hostvmm info migrate --watch --qmp {}` shows it", args.vm.qmp));
        if args.tuning.postcopy {
            say("post-copy is allowed; the QMP command migrate-start-postcopy starts it");
        }
        return Ok(Verdict::Pass);
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(Ending::failed)?;
    }
    let mut awaits_postcopy = args.tuning.postcopy;
    let start_postcopy = |client: &mut Client, info: &Value| {
        let has_sent_all = info["ram"]["dirty-sync-count"].as_u64() > Some(0);
        if awaits_postcopy && info["status"] == "active" && has_sent_all {
            awaits_postcopy = false;
            // Refused where the guest has been stopped meanwhile: then it arrives without.
            drop(client.execute("migrate-start-postcopy", json!({})));
        }
    };
    let Some(info) = watch(&mut client, &interrupted, start_postcopy)? else {
        // As in QEMU, where the one who watches and the one who migrates are two processes.
        tell(&format!(
            "the migration goes on; `hostvmm info migrate --watch --qmp {0}` shows it, `hostvmm migrate-cancel --qmp {0}` cancels it",
            args.vm.qmp
        ));
        return Ok(Verdict::Fail);
    };
    show(&info, args.json);
    match info["status"].as_str() {
        Some("completed") => Ok(Verdict::Pass),
        Some("cancelled") => Err(Ending::run_failed("the migration was cancelled; the guest runs on at the source")),
        _ => {
            let why = info["error-desc"].as_str().unwrap_or("the source does not say why");
            Err(Ending::run_failed(&format!("the migration failed: {why}")))
        }
    }
}

/// `hostvmm migrate-cancel`.
///
/// # Errors
/// An [`Ending`] with status 2 where there is no such VM, with status 1 where it is too late.
pub(super) fn cancel(args: &MigrateCancelArgs) -> Result<Verdict, Ending> {
    let mut client = connect(&args.vm)?;
    client.execute("migrate_cancel", json!({})).map_err(Ending::failed)?;
    let status = client.migration().map_err(Ending::failed)?["status"].as_str().unwrap_or("none").to_owned();
    say(&format!("migration status: {status}"));
    Ok(Verdict::Pass)
}

/// `hostvmm info`.
///
/// # Errors
/// An [`Ending`] with status 2 where there is no such VM.
pub(super) fn info(args: &InfoArgs) -> Result<Verdict, Ending> {
    let mut client = connect(&args.vm)?;
    match args.what {
        Subject::Status => {
            let status = client.execute("x-tidemark-status", json!({})).map_err(Ending::failed)?;
            if args.json { say(&status.to_string()) } else { say(status_text(&status).trim_end()) }
        }
        Subject::Migrate => {
            let info = if args.watch {
                let forever = Arc::new(AtomicBool::new(false));
                watch(&mut client, &forever, |_, _| {})?.unwrap_or_default()
            } else {
                client.migration().map_err(Ending::failed)?
            };
            show(&info, args.json);
        }
    }
    Ok(Verdict::Pass)
}

fn connect(vm: &VmArgs) -> Result<Client, Ending> {
    Client::connect(&vm.qmp).map_err(|error| match error {
        ClientError::Connect { .. } | ClientError::Protocol { .. } => Ending::input(error),
        error => Ending::failed(error),
    })
}

fn show(info: &Value, json: bool) {
    if json { say(&info.to_string()) } else { say(migration_text(info).trim_end()) }
}

/// Shows a migration live until its end, with `meanwhile` at each look; `None` where the user does not want to see it.
fn watch(
    client: &mut Client,
    interrupted: &AtomicBool,
    mut meanwhile: impl FnMut(&mut Client, &Value),
) -> Result<Option<Value>, Ending> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{prefix:>15} [{bar:30}] {bytes}/{total_bytes} {elapsed} {wide_msg}")
        .expect("the template is a constant that indicatif accepts");
    bar.set_style(style.progress_chars("=> "));
    let result = loop {
        if interrupted.load(Ordering::SeqCst) {
            break Ok(None);
        }
        match client.migration() {
            Ok(info) if has_ended(&info) => break Ok(Some(info)),
            Ok(info) => {
                draw(&bar, &info);
                meanwhile(client, &info);
            }
            Err(error) => break Err(Ending::failed(error)),
        }
        std::thread::sleep(INTERVAL);
    };
    bar.finish_and_clear();
    result
}

fn has_ended(info: &Value) -> bool {
    info["status"].as_str().is_none_or(|status| ["none", "completed", "cancelled", "failed"].contains(&status))
}

fn draw(bar: &ProgressBar, info: &Value) {
    let ram = |name: &str| info["ram"][name].as_u64().unwrap_or(0);
    bar.set_prefix(info["status"].as_str().unwrap_or_default().to_owned());
    bar.set_length(ram("total"));
    bar.set_position(ram("total").saturating_sub(ram("remaining")));
    let expected = info["expected-downtime"].as_u64().map_or_else(String::new, |ms| format!(", {ms} ms to stop"));
    bar.set_message(format!(
        "pass {}, {:.0} Mbit/s, {} pages/s dirtied{expected}",
        ram("dirty-sync-count"),
        info["ram"]["mbps"].as_f64().unwrap_or(0.0),
        ram("dirty-pages-rate"),
    ));
}

fn status_text(status: &Value) -> String {
    let mut text = format!("VM status: {}\n", status["status"].as_str().unwrap_or("unknown"));
    for (vcpu, progress) in status["vcpus"].as_array().into_iter().flatten().enumerate() {
        text.push_str(&format!("vCPU {vcpu}: {} steps completed\n", progress["completed"]));
    }
    text.push_str(&format!("dirty log: {}\n", if status["logging"] == true { "running" } else { "off" }));
    for (slot, pages) in status["history"].as_object().into_iter().flatten() {
        text.push_str(&format!("ever dirtied, {slot}: {pages} pages\n"));
    }
    if let Some(passed) = status["verified"]["passed"].as_bool() {
        text.push_str(&format!("verified on arrival: {}\n", if passed { "passed" } else { "FAILED" }));
    }
    text
}
