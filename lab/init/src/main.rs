//! PID 1 of the lab's guest: mounts what programs expect, inserts the modules of the results' way out, runs one command,
//! sends its output, files and exit code to the host, says so on the console, and powers off.
//!
//! Any failure is one line on the console and power-off without the end marker, which the host takes as a failure. A
//! panic here is a kernel panic, hence one too.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lab_init::{COMMAND, END_MARKER, EXIT_CODE, MODULES, OUT, Port, newc};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// For the port devices to appear after the driver is there: instant, but asynchronous.
const PORTS_WITHIN: Duration = Duration::from_secs(20);
/// `MODULE_INIT_COMPRESSED_FILE` of finit_module(2).
const COMPRESSED: i32 = 4;
/// As shells do: a command killed by signal n ends with 128 + n.
const SIGNALLED: i32 = 128;
/// As shells do: the command could not be started.
const NOT_STARTED: i32 = 127;

fn main() {
    let ended = mount_all().and_then(|()| insert_modules()).and_then(|()| run());
    let line = match ended {
        Ok(()) => END_MARKER.to_owned(),
        Err(error) => format!("lab-init: {error}"),
    };
    // The console opened by the kernel, or, with none before /dev was mounted, nothing to say it on.
    let _ = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush());
    rustix::fs::sync();
    let error = reboot(RebootCommand::PowerOff);
    panic!("power-off refused: {error:?}");
}

fn mount_all() -> io::Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")] {
        mount(kind, place, kind, MountFlags::empty(), None).map_err(|error| named(place, error.into()))?;
    }
    fs::create_dir_all("/dev/shm")?;
    mount("tmpfs", "/dev/shm", "tmpfs", MountFlags::empty(), None)?;
    // Only some kernels have it, and only some commands want it.
    let _ = mount("debugfs", "/sys/kernel/debug", "debugfs", MountFlags::empty(), None);
    Ok(())
}

fn insert_modules() -> io::Result<()> {
    let mut modules: Vec<_> = match fs::read_dir(Path::new("/").join(MODULES)) {
        Ok(found) => found.collect::<Result<_, _>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    modules.sort_by_key(fs::DirEntry::file_name);
    for module in modules {
        let path = module.path();
        let flags = if path.extension().is_some_and(|suffix| suffix == "ko") { 0 } else { COMPRESSED };
        match finit_module(File::open(&path)?, c"", flags) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(named(&path.to_string_lossy(), error.into())),
        }
    }
    Ok(())
}

fn run() -> io::Result<()> {
    let command = fs::read(Path::new("/").join(COMMAND))?;
    let arguments: Vec<&OsStr> =
        command.split_inclusive(|byte| *byte == 0).map(|arg| OsStr::from_bytes(&arg[..arg.len() - 1])).collect();
    let Some((program, arguments)) = arguments.split_first() else { return shell() };

    let mut stdout = open_port(Port::Stdout)?;
    let stderr = open_port(Port::Stderr)?;
    let results = open_port(Port::Results)?;
    let out = Path::new("/").join(OUT);
    let status = in_environment(Command::new(program).args(arguments))
        .current_dir(&out)
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .status();
    let code = match status {
        Ok(status) => status.code().unwrap_or_else(|| SIGNALLED + status.signal().unwrap_or(0)),
        Err(error) => {
            writeln!(&stderr, "lab-init: cannot run {}: {error}", program.to_string_lossy())?;
            NOT_STARTED
        }
    };
    stdout.flush()?;

    let mut archive = newc::Writer::new(io::BufWriter::with_capacity(1 << 16, results));
    archive.file(EXIT_CODE, false, format!("{code}\n").as_bytes())?;
    add_files(&mut archive, &out, OUT)?;
    archive.finish()?;
    Ok(())
}

/// A shell with job control on the console, which it must make its controlling terminal first.
fn shell() -> io::Result<()> {
    in_environment(&mut Command::new("/bin/busybox"))
        .args(["setsid", "-c", "sh", "-l"])
        .current_dir("/out")
        .status()?;
    Ok(())
}

fn in_environment(command: &mut Command) -> &mut Command {
    command.env_clear().env("PATH", "/target/release:/bin").env("HOME", "/tmp").env("TERM", "vt100")
}

fn open_port(port: Port) -> io::Result<File> {
    let path = port.device();
    let start = Instant::now();
    loop {
        match File::options().write(true).open(&path) {
            // The driver lists a port after its device is there, and until then says that it does not exist.
            Err(error) if is_not_there(&error) && start.elapsed() < PORTS_WITHIN => {
                thread::sleep(Duration::from_millis(1));
            }
            opened => return opened.map_err(|error| named(&path, error)),
        }
    }
}

fn is_not_there(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NXIO))
}

/// Regular files below `directory`, named below `name`. Links and devices stay behind.
fn add_files<W: Write>(archive: &mut newc::Writer<W>, directory: &Path, name: &str) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            add_files(archive, &entry.path(), &name)?;
        } else if kind.is_file() {
            archive.file(&name, false, &fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
