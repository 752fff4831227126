//! A Linux kernel for arm64, its initramfs and its command line, in place of a firmware: [`KernelFiles`] is what is asked for,
//! [`Kernel`] what was read and checked.
//!
//! The kernel is entered as Linux's Documentation/arch/arm64/booting.rst says: the Image lies `text_offset` bytes above a
//! boundary of 2 MiB, x0 has the devicetree, x1 to x3 are zero, MMU and interrupts are off. The devicetree lies where the
//! firmware's does, at the start of RAM; the Image in the next 2 MiB, and the initramfs behind all that the kernel says it
//! needs. Both files are outside input: what is read of them, unpacked as well, is bounded by the guest's RAM.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use abi::{Gpa, GuestRange, map};
use flate2::read::GzDecoder;

use crate::memory::{GuestMemory, MemoryError};

/// Bytes of the Image's header.
const HEADER_BYTES: usize = 64;
/// "ARM\x64" at offset 56.
const MAGIC: [u8; 4] = *b"ARM\x64";
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Bit 0 of the header's flags: the kernel is big-endian.
const FLAG_BIG_ENDIAN: u64 = 1;
/// Image and initramfs begin on boundaries of this: what Linux wants of the one, and a page of any size for the other.
const ALIGN: u64 = 2 << 20;
/// Longest command line: `COMMAND_LINE_SIZE` of arm64 is 2048 with the byte that ends it.
const COMMAND_LINE_BYTES: usize = 2047;

/// What is to run instead of a firmware.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelFiles {
    /// An arm64 Image, as it is or gzipped.
    pub image: PathBuf,
    /// An initramfs, passed on as it is.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
}

impl KernelFiles {
    /// The options of `hostvmm run` that ask for it.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec!["--kernel".to_owned(), self.image.display().to_string()];
        if let Some(initrd) = &self.initrd {
            options.extend(["--initrd".to_owned(), initrd.display().to_string()]);
        }
        if !self.append.is_empty() {
            options.extend(["--append".to_owned(), self.append.clone()]);
        }
        options
    }
}

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file cannot be read.
    #[error("cannot read {option} {path}: {source}", path = path.display())]
    Read {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory, device or pipe.
    #[error("{option} {path} is not a regular file", path = path.display())]
    NotAFile {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// More than fits RAM, unpacked.
    #[error("{option} {path} has more than the guest's {ram_bytes} bytes of RAM; give it more (--ram)", path = path.display())]
    TooLarge {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Bytes of RAM.
        ram_bytes: u64,
    },
    /// No arm64 Image.
    #[error("--kernel {path} is no arm64 Image: {reason}; name the kernel's arch/arm64/boot/Image, or one that is gzipped", path = path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What it is, or lacks.
        reason: &'static str,
    },
    /// The Image is for another kind of machine.
    #[error("--kernel {path} is a big-endian kernel, this machine boots little-endian ones", path = path.display())]
    BigEndian {
        /// The file.
        path: PathBuf,
    },
    /// RAM does not hold it.
    #[error("{option} needs {len_bytes} bytes at {start}, and RAM is {ram}; give the guest more (--ram)")]
    OutsideRam {
        /// The option that names the file.
        option: &'static str,
        /// Where it goes.
        start: Gpa,
        /// Bytes of it; of the kernel with what it needs beside its file.
        len_bytes: u64,
        /// RAM.
        ram: GuestRange,
    },
    /// A command line that the kernel would cut.
    #[error("--append has {len_bytes} bytes, an arm64 kernel takes {COMMAND_LINE_BYTES}")]
    CommandLine {
        /// Its length.
        len_bytes: usize,
    },
    /// A command line with a zero byte in it.
    #[error("--append has a zero byte in it, at which the kernel would end it")]
    ZeroByte,
    /// RAM refused a write.
    #[error("cannot load {option}")]
    Memory {
        /// The option that names the file.
        option: &'static str,
        /// Why.
        source: MemoryError,
    },
}

/// Checked files and where they go.
#[derive(Clone, Debug)]
pub struct Kernel {
    image: Vec<u8>,
    /// All that the kernel occupies before it has looked at the devicetree.
    range: GuestRange,
    initrd: Option<(Vec<u8>, GuestRange)>,
    append: String,
}

impl Kernel {
    /// Reads and checks `files` for a machine with `ram`.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn open(files: &KernelFiles, ram: GuestRange) -> Result<Self, KernelError> {
        let image = read_bounded("--kernel", &files.image, ram.len_bytes())?;
        let initrd = files.initrd.as_ref().map(|path| read_bounded("--initrd", path, ram.len_bytes())).transpose()?;
        Self::parse(files, image, initrd, ram)
    }

    /// Checks the contents of `files`, of which only the names are looked at.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn parse(
        files: &KernelFiles,
        image: Vec<u8>,
        initrd: Option<Vec<u8>>,
        ram: GuestRange,
    ) -> Result<Self, KernelError> {
        if files.append.len() > COMMAND_LINE_BYTES {
            return Err(KernelError::CommandLine { len_bytes: files.append.len() });
        }
        if files.append.contains('\0') {
            return Err(KernelError::ZeroByte);
        }
        let image = unpacked(&files.image, image, ram.len_bytes())?;
        let Header { text_offset, image_bytes } = header(&files.image, &image)?;
        let range = place("--kernel", map::FIRMWARE_BASE, text_offset, image_bytes.max(image.len() as u64), ram)?;
        let initrd = match initrd {
            None => None,
            Some(bytes) => {
                let start = range.end().checked_align_up(ALIGN).unwrap_or(range.end());
                let place = place("--initrd", start, 0, bytes.len() as u64, ram)?;
                Some((bytes, place))
            }
        };
        Ok(Self { image, range, initrd, append: files.append.clone() })
    }

    /// Where it is entered.
    pub fn entry(&self) -> Gpa {
        self.range.start()
    }

    /// The command line.
    pub fn append(&self) -> &str {
        &self.append
    }

    /// Where the initramfs lies.
    pub fn initrd(&self) -> Option<GuestRange> {
        self.initrd.as_ref().map(|(_, range)| *range)
    }

    /// Writes everything to RAM, which is all zeroes.
    ///
    /// # Errors
    /// [`KernelError::Memory`].
    pub fn load(&self, memory: &GuestMemory) -> Result<(), KernelError> {
        let write = |option, start, bytes: &[u8]| {
            memory.write(start, bytes).map_err(|source| KernelError::Memory { option, source })
        };
        write("--kernel", self.range.start(), &self.image)?;
        self.initrd.as_ref().map_or(Ok(()), |(bytes, range)| write("--initrd", range.start(), bytes))
    }
}

/// What an Image says of itself.
struct Header {
    text_offset: u64,
    image_bytes: u64,
}

fn header(path: &Path, image: &[u8]) -> Result<Header, KernelError> {
    let not = |reason| KernelError::NotAnImage { path: path.to_owned(), reason };
    let word = |at: usize| image.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let (Some(text_offset), Some(image_bytes), Some(flags), Some(magic)) =
        (word(8), word(16), word(24), image.get(56..60))
    else {
        return Err(not("it is shorter than an Image's header"));
    };
    if image.get(4..8) == Some(b"zimg") {
        return Err(not("it is an EFI application with a compressed kernel in it (vmlinuz.efi)"));
    }
    if magic != MAGIC {
        return Err(not("it has not the magic number ARM\\x64"));
    }
    if image_bytes == 0 {
        return Err(not("it does not say how much memory it needs, as kernels before Linux 3.17 did not"));
    }
    if flags & FLAG_BIG_ENDIAN != 0 {
        return Err(KernelError::BigEndian { path: path.to_owned() });
    }
    debug_assert!(image.len() >= HEADER_BYTES - 4, "what was read lies in the header");
    Ok(Header { text_offset, image_bytes })
}

fn place(
    option: &'static str,
    base: Gpa,
    offset: u64,
    len_bytes: u64,
    ram: GuestRange,
) -> Result<GuestRange, KernelError> {
    let range = base.checked_add(offset).and_then(|start| GuestRange::new(start, len_bytes));
    range.filter(|range| range.start() >= ram.start() && range.end() <= ram.end()).ok_or(KernelError::OutsideRam {
        option,
        start: base,
        len_bytes: len_bytes.saturating_add(offset),
        ram,
    })
}

fn read_bounded(option: &'static str, path: &Path, ram_bytes: u64) -> Result<Vec<u8>, KernelError> {
    let unreadable = |source| KernelError::Read { option, path: path.to_owned(), source };
    // Before it is opened: a pipe without a writer would block.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(KernelError::NotAFile { option, path: path.to_owned() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let bytes = take(file, ram_bytes).map_err(unreadable)?;
    bytes.ok_or(KernelError::TooLarge { option, path: path.to_owned(), ram_bytes })
}

/// The Image in `bytes`, which may be gzipped.
fn unpacked(path: &Path, bytes: Vec<u8>, ram_bytes: u64) -> Result<Vec<u8>, KernelError> {
    if !bytes.starts_with(&GZIP) {
        return Ok(bytes);
    }
    let option = "--kernel";
    let image = take(GzDecoder::new(&bytes[..]), ram_bytes);
    let image = image.map_err(|source| KernelError::Read { option, path: path.to_owned(), source })?;
    image.ok_or(KernelError::TooLarge { option, path: path.to_owned(), ram_bytes })
}

/// All of `reader`; `None` if that is more than `most_bytes`.
fn take(reader: impl Read, most_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader.take(most_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most_bytes).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn ram() -> GuestRange {
        GuestRange::new(map::RAM_BASE, 32 << 20).unwrap()
    }

    fn files(append: &str) -> KernelFiles {
        KernelFiles { image: "Image".into(), initrd: Some("initrd".into()), append: append.to_owned() }
    }

    fn image(text_offset: u64, image_bytes: u64, flags: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        for (at, value) in [(8, text_offset), (16, image_bytes), (24, flags)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[56..60].copy_from_slice(&MAGIC);
        bytes
    }

    fn parse(image: Vec<u8>, initrd: Option<Vec<u8>>) -> Result<Kernel, KernelError> {
        Kernel::parse(&files("quiet"), image, initrd, ram())
    }

    #[test]
    fn image_and_initramfs_lie_where_linux_wants_them() {
        let kernel = parse(image(0, 5 << 20, 0xa), Some(vec![7; 10_000])).unwrap();
        assert_eq!(kernel.entry(), Gpa::new(0x4020_0000));
        // Behind what the kernel needs beside its file.
        let initrd = GuestRange::new(Gpa::new(0x4080_0000), 10_000).unwrap();
        assert_eq!((kernel.initrd(), kernel.append()), (Some(initrd), "quiet"));
        // Kernels before 5.8 want an offset.
        assert_eq!(parse(image(0x8_0000, 1 << 20, 2), None).unwrap().entry(), Gpa::new(0x4028_0000));

        let memory = GuestMemory::new(ram(), GuestRange::new(map::REGION_BASE, 1 << 16).unwrap(), None).unwrap();
        kernel.load(&memory).unwrap();
        let mut byte = [0];
        memory.read(Gpa::new(0x4080_0000 + 9_999), &mut byte).unwrap();
        assert_eq!(byte, [7]);
        memory.read(Gpa::new(0x4020_0000 + 56), &mut byte).unwrap();
        assert_eq!(byte, [b'A']);
    }

    #[test]
    fn a_gzipped_image_is_unpacked_and_a_broken_or_endless_one_refused() {
        let pack = |bytes: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let packed = pack(&image(0, 1 << 20, 0));
        assert_eq!(parse(packed.clone(), None).unwrap().image, image(0, 1 << 20, 0));
        assert!(matches!(parse(packed[..40].to_vec(), None), Err(KernelError::Read { .. })));
        assert!(matches!(parse(pack(&vec![0; 33 << 20]), None), Err(KernelError::TooLarge { .. })));
    }

    #[test]
    fn what_is_no_image_is_refused_by_its_reason() {
        let refused = |bytes: Vec<u8>| parse(bytes, None).unwrap_err().to_string();
        assert!(refused(Vec::new()).contains("shorter"));
        assert!(refused(b"\x7fELF".repeat(100)).contains("magic number"));
        assert!(refused(image(0, 0, 0)).contains("3.17"));
        assert!(refused(image(0, 1 << 20, 1)).contains("big-endian"));
        let mut zboot = image(0, 1 << 20, 0);
        zboot[4..8].copy_from_slice(b"zimg");
        assert!(refused(zboot).contains("vmlinuz.efi"));
    }

    #[test]
    fn what_does_not_fit_ram_is_refused() {
        for (text_offset, image_bytes) in [(0, 31 << 20), (0, u64::MAX), (u64::MAX, 1), (30 << 20, 1 << 20)] {
            let error = parse(image(text_offset, image_bytes, 0), None).unwrap_err();
            assert!(matches!(error, KernelError::OutsideRam { option: "--kernel", .. }), "{error}");
        }
        let error = parse(image(0, 20 << 20, 0), Some(vec![0; 11 << 20])).unwrap_err();
        assert!(error.to_string().contains("--initrd") && error.to_string().contains("--ram"), "{error}");
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let with = |append: &str| Kernel::parse(&files(append), image(0, 4096, 0), None, ram());
        assert!(with(&"x".repeat(COMMAND_LINE_BYTES)).is_ok());
        assert!(matches!(with(&"x".repeat(COMMAND_LINE_BYTES + 1)), Err(KernelError::CommandLine { .. })));
        assert!(matches!(with("a\0b"), Err(KernelError::ZeroByte)));
    }

    proptest! {
        #[test]
        fn hostile_headers_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), offset: u64, size: u64) {
            drop(parse(bytes.clone(), Some(bytes)));
            let _ = parse(image(offset, size, 0), Some(vec![1; 5]));
        }
    }
}
