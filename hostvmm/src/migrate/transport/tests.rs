//! Channels of every kind between two threads: what arrives, what ends a blocked call, who is turned away.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, IntoRawFd as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::tls::keygen;
use super::*;

const BYTES: usize = 6 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn token() -> CancelToken {
    CancelToken::new().unwrap()
}

fn unix(directory: &Path) -> Uri {
    Uri::Unix(directory.join("s"))
}

fn tcp() -> Uri {
    "tcp::0".parse().unwrap()
}

struct Keys {
    directory: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        keygen(&directory.path().join("pki"), &["node-b".to_owned()]).unwrap();
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("pki")
    }

    fn client(&self) -> TlsCreds {
        TlsCreds::load(&self.path(), Role::Client).unwrap()
    }

    fn server(&self) -> TlsCreds {
        TlsCreds::load(&self.path(), Role::Server).unwrap()
    }
}

/// Both ends of a connection.
fn pair(uri: &Uri, keys: Option<&Keys>, cancel: &CancelToken) -> (Channel, Channel) {
    let (client, server) = (keys.map(Keys::client), keys.map(Keys::server));
    let mut listener = Listener::bind(uri, server.as_ref()).unwrap();
    let at = listener.uri().clone();
    thread::scope(|scope| {
        let accepted = scope.spawn(move || listener.accept(Some(soon()), &token()).unwrap());
        let connected = connect(&at, client.as_ref(), soon(), cancel).unwrap();
        (connected, accepted.join().unwrap())
    })
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..BYTES).map(|i| (i.wrapping_mul(31) ^ (i >> 9) ^ seed) as u8).collect()
}

/// Sends in both directions at once, each end with a thread that reads and one that writes.
fn exchange(left: Channel, right: Channel) {
    thread::scope(|scope| {
        for (channel, own, other) in [(left, 1, 2), (right, 2, 1)] {
            let (mut reader, mut writer) = channel.split();
            scope.spawn(move || {
                let bytes = pattern(own);
                let (head, rest) = bytes.split_at(10);
                let mut slices = [IoSlice::new(head), IoSlice::new(rest)];
                let mut slices = &mut slices[..];
                while !slices.is_empty() {
                    let count = writer.write_vectored(slices).unwrap();
                    IoSlice::advance_slices(&mut slices, count);
                }
                writer.finish(soon()).unwrap();
            });
            scope.spawn(move || {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                assert!(bytes == pattern(other));
            });
        }
    });
}

#[test]
fn bytes_go_both_ways_at_once_over_every_socket() {
    let directory = tempfile::tempdir().unwrap();
    let keys = Keys::new();
    for uri in [tcp(), unix(directory.path())] {
        for keys in [None, Some(&keys)] {
            let (left, right) = pair(&uri, keys, &token());
            exchange(left, right);
        }
    }
    let (left, right) = pair(&Uri::Fd(FdAddress::Passing(directory.path().join("s"))), None, &token());
    exchange(left, right);
}

#[test]
fn an_inherited_descriptor_is_a_channel() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let number = |socket: UnixStream| {
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
        Uri::Fd(FdAddress::Inherited(socket.into_raw_fd() as u32))
    };
    let left = connect(&number(ours), None, soon(), &token()).unwrap();
    let mut listener = Listener::bind(&number(theirs), None).unwrap();
    let right = listener.accept(None, &token()).unwrap();
    exchange(left, right);
    assert!(matches!(listener.accept(None, &token()), Err(TransportError::Single { .. })));
    let closed = Uri::Fd(FdAddress::Inherited(i32::MAX as u32));
    assert!(connect(&closed, None, soon(), &token()).is_err());
}

#[test]
fn a_command_is_a_channel_and_its_failure_an_error() {
    let exec = |command: &str| connect(&Uri::Exec(command.to_owned()), None, soon(), &token()).unwrap();
    let (mut reader, mut writer) = exec("cat").split();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = vec![0; BYTES];
            reader.read_exact(&mut bytes).unwrap();
            assert!(bytes == pattern(3));
        });
        writer.write_all(&pattern(3)).unwrap();
    });
    writer.finish(soon()).unwrap();
    assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);

    let failure = |error: io::Error| error.to_string();
    let error = failure(exec("exit 3").read(&mut [0; 8]).unwrap_err());
    assert!(error.contains("\"exit 3\" failed with exit status 3"), "{error}");
    let error = failure(exec("no-such-command-here 2>/dev/null").read(&mut [0; 8]).unwrap_err());
    assert!(error.contains("was not found"), "{error}");
    let (_reader, mut writer) = exec("exec <&-; kill -9 $$").split();
    let error = failure(writer.write_all(&pattern(0)).unwrap_err());
    assert!(error.contains("killed by signal 9"), "{error}");
    let (_reader, writer) = exec("cat >/dev/null; exit 1").split();
    assert!(failure(writer.finish(soon()).unwrap_err()).contains("exit status 1"));
}

#[test]
fn a_command_ends_with_its_channel() {
    let mut channel = connect(&Uri::Exec("echo $$; sleep 600".to_owned()), None, soon(), &token()).unwrap();
    let mut text = [0; 16];
    let count = channel.read(&mut text).unwrap();
    let pid: u32 = String::from_utf8_lossy(&text[..count]).trim().parse().unwrap();
    drop(channel);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it was killed and waited for");
}

#[test]
fn a_listener_of_a_command_has_one_channel() {
    let mut listener = Listener::bind(&Uri::Exec("printf hello".to_owned()), None).unwrap();
    let (mut channel, opening) = listener.accept_opening(4, |_| Ok(()), Some(soon()), &token()).unwrap();
    assert_eq!(opening, b"hell");
    let mut rest = String::new();
    channel.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "o");
    assert!(matches!(listener.accept(None, &token()), Err(TransportError::Single { .. })));
    let mut short = Listener::bind(&Uri::Exec("printf x".to_owned()), None).unwrap();
    assert!(short.accept_opening(4, |_| Ok(()), Some(soon()), &token()).is_err(), "nobody else can come");
}

#[test]
fn shutdown_and_cancel_end_blocked_calls_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let keys = Keys::new();
    for keys in [None, Some(&keys)] {
        for by_token in [false, true] {
            let cancel = token();
            let (left, _right) = pair(&unix(directory.path()), keys, &cancel);
            let handle = left.handle();
            let (mut reader, mut writer) = left.split();
            thread::scope(|scope| {
                let read = scope.spawn(move || reader.read(&mut [0; 8]).unwrap_err());
                let write = scope.spawn(move || {
                    loop {
                        if let Err(error) = writer.write(&[0; 1 << 16]) {
                            return error;
                        }
                    }
                });
                if by_token {
                    cancel.cancel();
                } else {
                    handle.shutdown();
                }
                assert!(cancel::is_cancelled(&read.join().unwrap()));
                assert!(cancel::is_cancelled(&write.join().unwrap()));
            });
        }
    }
    let channel = connect(&Uri::Exec("sleep 600".to_owned()), None, soon(), &token()).unwrap();
    let handle = channel.handle();
    let (mut reader, _writer) = channel.split();
    thread::scope(|scope| {
        let read = scope.spawn(move || reader.read(&mut [0; 8]).unwrap_err());
        handle.shutdown();
        assert!(cancel::is_cancelled(&read.join().unwrap()));
    });
}

#[test]
fn cancel_ends_accept_and_connect() {
    let directory = tempfile::tempdir().unwrap();
    let keys = Keys::new();
    let mut listener = Listener::bind(&unix(directory.path()), None).unwrap();
    let cancel = token();
    thread::scope(|scope| {
        // Nobody accepts, so the handshake never goes on.
        let client = keys.client();
        let connecting = scope.spawn({
            let (cancel, uri) = (cancel.clone(), listener.uri().clone());
            move || connect(&uri, Some(&client), soon(), &cancel).map(drop)
        });
        cancel.cancel();
        assert!(matches!(connecting.join().unwrap(), Err(TransportError::Cancelled)));
        let accepting = scope.spawn(|| listener.accept_opening(1, |_| Ok(()), None, &cancel).map(drop));
        assert!(matches!(accepting.join().unwrap(), Err(TransportError::Cancelled)));
    });
}

#[test]
fn time_limits_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let uri = unix(directory.path());
    let now = Instant::now();
    let mut listener = Listener::bind(&uri, None).unwrap();
    assert!(matches!(listener.accept(Some(now), &token()), Err(TransportError::Timeout { .. })));
    let keys = Keys::new();
    let error = connect(&uri, Some(&keys.client()), now, &token()).unwrap_err();
    assert!(matches!(error, TransportError::Timeout { .. }), "{error}");
    let mut channel = connect(&uri, None, soon(), &token()).unwrap();
    channel.set_timeouts(Some(Duration::from_millis(1)), Some(Duration::from_millis(1)));
    let error = channel.read(&mut [0; 1]).unwrap_err();
    assert!(error.kind() == io::ErrorKind::TimedOut && error.to_string().contains("has sent nothing for 1ms"));
    let error = loop {
        if let Err(error) = channel.write(&[0; 1 << 16]) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn a_deadline_ends_a_call_beside_a_peer_that_sends_a_byte_now_and_then() {
    let directory = tempfile::tempdir().unwrap();
    let (mut ours, mut theirs) = pair(&unix(directory.path()), None, &token());
    ours.set_timeouts(Some(Duration::from_secs(3600)), None);
    ours.set_deadline(Some(Instant::now() + Duration::from_millis(20)));
    thread::scope(|scope| {
        scope.spawn(move || while theirs.write(b".").is_ok() {});
        let error = loop {
            if let Err(error) = ours.read(&mut [0]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        ours.set_deadline(None);
        assert_eq!(ours.read(&mut [0]).unwrap(), 1, "without one it goes on");
        drop(ours);
    });
}

#[test]
fn last_words_are_said_after_a_cancel_and_for_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let cancel = token();
    let (mut ours, mut theirs) = pair(&unix(directory.path()), None, &cancel);
    let handle = ours.handle();
    cancel.cancel();
    assert!(cancel::is_cancelled(&ours.write(b"x").unwrap_err()));
    handle.part(Duration::from_secs(3600));
    ours.write_all(b"bye").unwrap();
    // Both ends have the token.
    theirs.handle().part(Duration::from_secs(3600));
    let mut word = [0; 3];
    theirs.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"bye");
    handle.part(Duration::ZERO);
    assert_eq!(ours.write(b"x").unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[test]
fn nobody_there_is_told_from_no_answer() {
    let directory = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&tcp(), None).unwrap();
    let free = listener.uri().clone();
    drop(listener);
    for uri in [unix(directory.path()), free] {
        let error = connect(&uri, None, soon(), &token()).unwrap_err();
        assert!(error.is_nobody() && error.to_string().contains(&uri.to_string()), "{error}");
    }
    let file = Uri::File { path: "f".into(), offset: 0 };
    assert!(matches!(connect(&file, None, soon(), &token()), Err(TransportError::File { .. })));
}

#[test]
fn a_listener_is_on_the_loopback_unless_told_otherwise() {
    for text in ["tcp::0", "tcp:0:0"] {
        let listener = Listener::bind(&text.parse().unwrap(), None).unwrap();
        let Uri::Tcp { host, port } = listener.uri() else { panic!("{:?}", listener.uri()) };
        assert!(host == "127.0.0.1" && *port != 0);
    }
}

#[test]
fn silent_and_wrong_peers_are_turned_away_and_delay_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let mut listener = Listener::bind(&unix(directory.path()), None).unwrap();
    let path = directory.path().join("s");
    let silent: Vec<_> = (0..2 * HALF_OPEN).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut wrong = UnixStream::connect(&path).unwrap();
    wrong.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut right = UnixStream::connect(&path).unwrap();
    right.write_all(b"MAGIC and more").unwrap();
    let admit = |opening: &[u8]| if opening == b"MAGIC" { Ok(()) } else { Err("no magic".to_owned()) };
    let (mut channel, opening) = listener.accept_opening(5, admit, Some(soon()), &token()).unwrap();
    assert_eq!(opening, b"MAGIC");
    let mut rest = [0; 9];
    channel.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b" and more");
    assert!(listener.turned_away() > HALF_OPEN as u64);
    let gone = wrong.read(&mut [0; 1]);
    assert!(matches!(gone, Ok(0)) || gone.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    drop(silent);
}

const HALF_OPEN: usize = listener::HALF_OPEN_MAX;

#[test]
fn without_a_valid_certificate_a_peer_gets_nothing_and_the_right_one_is_served() {
    let (ours, others) = (Keys::new(), Keys::new());
    let mut listener = Listener::bind(&tcp(), Some(&ours.server())).unwrap();
    let Uri::Tcp { host, port } = listener.uri().clone() else { panic!("{}", listener.uri()) };
    thread::scope(|scope| {
        let served = scope.spawn(move || {
            let mut channel = listener.accept(Some(soon()), &token()).unwrap();
            channel.write_all(b"welcome").unwrap();
            channel.shutdown();
            listener.turned_away()
        });
        // One that sends garbage, one that hangs up, one that is silent, one that never ends its handshake.
        let address = (host.as_str(), port);
        let mut garbage = TcpStream::connect(address).unwrap();
        garbage.write_all(&[0xa5; 4096]).unwrap();
        let mut answer = Vec::new();
        // An alert, or nothing: never data.
        let _ = garbage.read_to_end(&mut answer);
        assert!(answer.len() < 32, "{answer:?}");
        drop(TcpStream::connect(address).unwrap());
        let _silent = TcpStream::connect(address).unwrap();
        let mut endless = TcpStream::connect(address).unwrap();
        endless.write_all(&[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]).unwrap();
        // A certificate of another authority: refused by both sides, told by the side that refuses.
        let uri = Uri::Tcp { host: host.clone(), port };
        let error = connect(&uri, Some(&others.client()), soon(), &token()).unwrap_err().to_string();
        assert!(error.contains("certificate is not accepted"), "{error}");
        // One that trusts us and is not trusted learns it when it reads.
        let stranger = tempfile::tempdir().unwrap();
        for name in ["client-cert.pem", "client-key.pem"] {
            std::fs::copy(others.path().join(name), stranger.path().join(name)).unwrap();
        }
        std::fs::copy(ours.path().join("ca-cert.pem"), stranger.path().join("ca-cert.pem")).unwrap();
        let stranger = TlsCreds::load(stranger.path(), Role::Client).unwrap();
        let refused = connect(&uri, Some(&stranger), soon(), &token())
            .map_err(|error| error.to_string())
            .and_then(|mut channel| channel.read(&mut [0; 1]).map_err(|error| error.to_string()));
        assert!(refused.as_ref().is_err_and(|error| error.contains("this side's certificate")), "{refused:?}");

        let mut text = Vec::new();
        let mut right = connect(&uri, Some(&ours.client()), soon(), &token()).unwrap();
        let cut = right.read_to_end(&mut text).unwrap_err();
        assert_eq!(text, b"welcome");
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof, "an end that was not announced is told from one that was");
        let turned_away = served.join().unwrap();
        assert!((3..=6).contains(&turned_away), "{turned_away}");
    });
}

#[test]
fn a_server_must_have_the_name_it_is_called_by() {
    let keys = Keys::new();
    let directory = tempfile::tempdir().unwrap();
    let uri = unix(directory.path());
    let mut listener = Listener::bind(&uri, Some(&keys.server())).unwrap();
    thread::scope(|scope| {
        let accepted = scope.spawn(move || listener.accept(Some(soon()), &token()).map(drop));
        let wrong = keys.client().with_hostname("node-c").unwrap();
        let error = connect(&uri, Some(&wrong), soon(), &token()).unwrap_err().to_string();
        assert!(error.contains("node-b") || error.contains("not valid for name"), "{error}");
        let right = keys.client().with_hostname("node-b").unwrap();
        connect(&uri, Some(&right), soon(), &token()).unwrap();
        accepted.join().unwrap().unwrap();
    });
    assert!(keys.client().with_hostname("a b").is_err());
}

#[test]
fn credentials_are_refused_where_they_are_of_no_use() {
    let keys = Keys::new();
    let exec = Uri::Exec("cat".to_owned());
    assert!(matches!(connect(&exec, Some(&keys.client()), soon(), &token()), Err(TransportError::NoTls { .. })));
    assert!(matches!(Listener::bind(&exec, Some(&keys.server())), Err(TransportError::NoTls { .. })));
    assert!(matches!(Listener::bind(&tcp(), Some(&keys.client())), Err(TransportError::Role { .. })));
    assert!(matches!(connect(&tcp(), Some(&keys.server()), soon(), &token()), Err(TransportError::Role { .. })));
}

#[test]
fn files_are_passed_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let uri = Uri::Fd(FdAddress::Passing(directory.path().join("s")));
    let (mut left, mut right) = pair(&uri, None, &token());
    let files: Vec<_> = (0..2_u64)
        .map(|i| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(i + 1).unwrap();
            file
        })
        .collect();
    let borrowed: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    left.write_all(b"before").unwrap();
    left.send_files(&borrowed).unwrap();
    left.write_all(b"after").unwrap();
    left.send_files(&borrowed).unwrap();
    right.read_exact(&mut [0; 6]).unwrap();
    let received = right.receive_files(2).unwrap();
    let sizes: Vec<_> = received.iter().map(|file| rustix::fs::fstat(file).unwrap().st_size).collect();
    assert_eq!(sizes, [1, 2]);
    right.read_exact(&mut [0; 5]).unwrap();
    assert_eq!(right.receive_files(1).unwrap_err().kind(), io::ErrorKind::InvalidData, "two came where one was due");
    drop(left);
    assert_eq!(right.receive_files(1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(right.send_files(&[]).is_err());
}
