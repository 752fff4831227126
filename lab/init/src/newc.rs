//! The `newc` form of cpio archives, which the kernel unpacks as an initramfs (Linux, driver-api/early-userspace
//! "buffer format"): written and read. Own code, since the crates for it bring a reader of files from the host's disk
//! for what is one header of fourteen numbers.

use std::io::{self, Write};

const MAGIC: &[u8; 6] = b"070701";
const HEADER_BYTES: usize = 6 + 13 * 8;
const TRAILER: &str = "TRAILER!!!";
const TYPE_MASK: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Why bytes are no whole archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end inside an entry, or before the trailer.
    #[error("the archive breaks off at byte {0}")]
    BrokenOff(usize),
    /// No header where one must be.
    #[error("no archive entry at byte {0}")]
    NotAnEntry(usize),
    /// A name that is not text, or that leads out of the archive.
    #[error("the archive entry at byte {0} has an unusable name")]
    Name(usize),
}

/// A regular file of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File<'a> {
    /// Relative, without `.` or `..`.
    pub name: &'a str,
    /// The content.
    pub bytes: &'a [u8],
}

/// Writes an archive; [`Writer::finish`] makes it whole.
#[derive(Debug)]
pub struct Writer<W> {
    sink: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    /// An empty archive on `sink`.
    pub fn new(sink: W) -> Self {
        Self { sink, inode: 0 }
    }

    /// A directory; its parents must have been written.
    ///
    /// # Errors
    /// The sink's.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY | 0o755, [0, 0], &[])
    }

    /// A regular file, executable or not.
    ///
    /// # Errors
    /// The sink's; `InvalidInput` from 4 GiB on, which the header cannot say.
    pub fn file(&mut self, name: &str, executable: bool, bytes: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | if executable { 0o755 } else { 0o644 }, [0, 0], bytes)
    }

    /// A character device.
    ///
    /// # Errors
    /// The sink's.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | 0o600, [major, minor], &[])
    }

    /// A symbolic link to `target`.
    ///
    /// # Errors
    /// The sink's.
    pub fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, LINK | 0o777, [0, 0], target.as_bytes())
    }

    /// Ends the archive and gives the sink back.
    ///
    /// # Errors
    /// The sink's.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry(TRAILER, 0, [0, 0], &[])?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    fn entry(&mut self, name: &str, mode: u32, device: [u32; 2], bytes: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too large for the archive"));
        let len = u32::try_from(bytes.len()).map_err(too_large)?;
        let name_len = u32::try_from(name.len() + 1).map_err(too_large)?;
        self.inode += 1;
        let fields = [self.inode, mode, 0, 0, 1, 0, len, 0, 0, device[0], device[1], name_len, 0];
        self.sink.write_all(MAGIC)?;
        for field in fields {
            write!(self.sink, "{field:08x}")?;
        }
        self.sink.write_all(name.as_bytes())?;
        self.sink.write_all(&[0; 4][..1 + padding(HEADER_BYTES + name.len() + 1)])?;
        self.sink.write_all(bytes)?;
        self.sink.write_all(&[0; 4][..padding(bytes.len())])
    }
}

/// The regular files of a whole archive. Other entries are left out; what follows the trailer is not looked at.
///
/// # Errors
/// Whatever is not an archive with its trailer; the writer may have been stopped anywhere.
pub fn read(archive: &[u8]) -> Result<Vec<File<'_>>, Error> {
    let mut files = Vec::new();
    let mut at = 0;
    loop {
        let start = at;
        let header = take(archive, &mut at, HEADER_BYTES)?;
        if !header.starts_with(MAGIC) {
            return Err(Error::NotAnEntry(start));
        }
        let field = |index: usize| {
            let digits = header.get(6 + index * 8..14 + index * 8).unwrap_or_default();
            let text = str::from_utf8(digits).map_err(|_| Error::NotAnEntry(start))?;
            u32::from_str_radix(text, 16).map_err(|_| Error::NotAnEntry(start))
        };
        let (mode, len, name_len) = (field(1)?, field(6)? as usize, field(11)? as usize);
        let name = take(archive, &mut at, name_len)?;
        take(archive, &mut at, padding(HEADER_BYTES + name_len))?;
        let bytes = take(archive, &mut at, len)?;
        take(archive, &mut at, padding(len))?;
        let name = name.strip_suffix(b"\0").and_then(|name| str::from_utf8(name).ok()).ok_or(Error::Name(start))?;
        if name == TRAILER {
            return Ok(files);
        }
        if name.split('/').any(|part| matches!(part, "" | "." | "..") || part.contains('\0')) {
            return Err(Error::Name(start));
        }
        if mode & TYPE_MASK == REGULAR {
            files.push(File { name, bytes });
        }
    }
}

fn take<'a>(archive: &'a [u8], at: &mut usize, len: usize) -> Result<&'a [u8], Error> {
    let bytes = archive.get(*at..).and_then(|rest| rest.get(..len)).ok_or(Error::BrokenOff(archive.len()))?;
    *at += len;
    Ok(bytes)
}

/// Bytes that fill up to a multiple of four.
fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Byte for byte what `printf '/init' | …; cpio -o -H newc` writes for one executable file, but for inode and time.
    #[test]
    fn one_file_is_laid_out_as_the_kernel_reads_it() {
        let mut writer = Writer::new(Vec::new());
        writer.file("init", true, b"hello").unwrap();
        let archive = writer.finish().unwrap();
        let mut expected = Vec::new();
        expected.extend(b"07070100000001000081ed000000000000000000000001000000000000000500000000");
        expected.extend(b"0000000000000000000000000000000500000000init\0\0");
        expected.extend(b"hello\0\0\0");
        assert_eq!(archive[..expected.len()], expected);
        assert!(archive.ends_with(b"TRAILER!!!\0\0\0\0"));
        assert_eq!(archive.len() % 4, 0);
    }

    #[test]
    fn directories_devices_and_links_are_not_files() {
        let mut writer = Writer::new(Vec::new());
        writer.directory("dev").unwrap();
        writer.device("dev/console", 5, 1).unwrap();
        writer.link("bin/sh", "busybox").unwrap();
        assert_eq!(read(&writer.finish().unwrap()), Ok(Vec::new()));
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../x", "/x", "a//b", "a/./b", ""] {
            let mut writer = Writer::new(Vec::new());
            writer.file(name, false, b"").unwrap();
            assert_eq!(read(&writer.finish().unwrap()), Err(Error::Name(0)), "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_any_shorter_archive_is_refused(
            files in proptest::collection::vec(("[a-z]{1,9}(/[a-z]{1,9})?", proptest::collection::vec(any::<u8>(), 0..50)), 0..5),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut writer = Writer::new(Vec::new());
            for (name, bytes) in &files {
                writer.file(name, false, bytes).unwrap();
            }
            let archive = writer.finish().unwrap();
            let expected: Vec<_> = files.iter().map(|(name, bytes)| File { name, bytes }).collect();
            prop_assert_eq!(read(&archive), Ok(expected));
            prop_assert!(read(&archive[..cut.index(archive.len())]).is_err());
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }
    }
}
