//! The firmware's ELF, 64-bit for AArch64 or 32-bit for ARMv7: checked whole, then copied into RAM.
//!
//! [`Image::open`] reads and checks the file, [`Image::check_fits`] checks its segments against RAM, [`Image::load`]
//! writes them; [`Image::arch_of`] looks at its header alone. The file is outside input: time and memory are bounded by [`MAX_FILE_BYTES`] and
//! [`MAX_PROGRAM_HEADERS`], whatever its headers claim.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use abi::{Arch, Gpa, GuestRange, map};
use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{EI_CLASS, EI_DATA, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, ELFMAG, ET_EXEC, Header};
use goblin::elf::header::{EM_AARCH64, EM_ARM, EM_RISCV, EM_X86_64};
use goblin::elf::program_header::{PF_X, PT_LOAD};
use goblin::elf::{Elf, ProgramHeader};

use crate::memory::{GuestMemory, MemoryError};

/// Largest file that is read.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Bytes of an ELF64 header; those of a 32-bit one are fewer.
const HEADER_BYTES: usize = 64;
/// Most program headers that are looked at.
pub const MAX_PROGRAM_HEADERS: usize = 64;

/// Why an ELF was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the firmware {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory, device or pipe.
    #[error("the firmware {path} is not a regular file; name an ELF", path = path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// A file larger than any firmware.
    #[error("the firmware {path} has {len_bytes} bytes; {max} MiB are allowed, strip it", path = path.display(), max = MAX_FILE_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        len_bytes: u64,
    },
    /// Not an ELF.
    #[error("the firmware {path} is not an ELF file", path = path.display())]
    NotElf {
        /// The file.
        path: PathBuf,
    },
    /// An ELF for another machine.
    #[error("the firmware {path} is for {machine}, not for little-endian AArch64 or 32-bit Arm", path = path.display())]
    ForeignMachine {
        /// The file.
        path: PathBuf,
        /// What it is for.
        machine: String,
    },
    /// An ELF for the architecture that was not asked for.
    #[error("the firmware {path} is for {found}, not for {wanted}: leave out --arch, or name another ELF", path = path.display())]
    OtherArch {
        /// The file.
        path: PathBuf,
        /// What it is for.
        found: Arch,
        /// What the machine is.
        wanted: Arch,
    },
    /// Not a fixed-address executable.
    #[error("the firmware {path} is {kind}, not a fixed-address executable (ET_EXEC); link it with the linker script", path = path.display())]
    NotExecutable {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The file ends before what its headers name.
    #[error("the firmware {path} is truncated: {what} lies past its end", path = path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// No, or absurdly many, program headers, or of another size than the format's.
    #[error("the firmware {path} has {count} program headers of {size_bytes} bytes each; 1 to {MAX_PROGRAM_HEADERS} of 56, or of 32 in a 32-bit file, are allowed", path = path.display())]
    ProgramHeaders {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Of what size.
        size_bytes: usize,
    },
    /// Nothing to load.
    #[error("the firmware {path} has no loadable segment", path = path.display())]
    NoSegments {
        /// The file.
        path: PathBuf,
    },
    /// A segment with more bytes in the file than in memory.
    #[error("segment {index} at {start} has {file_bytes} bytes in the file but {memory_bytes} in memory")]
    FileLargerThanMemory {
        /// Which program header.
        index: usize,
        /// Where it goes.
        start: Gpa,
        /// Bytes in the file.
        file_bytes: u64,
        /// Bytes in memory.
        memory_bytes: u64,
    },
    /// A segment whose end lies past 2^64.
    #[error("segment {index} of {memory_bytes} bytes at {start} wraps past the end of the address space")]
    Wraps {
        /// Which program header.
        index: usize,
        /// Where it goes.
        start: Gpa,
        /// Bytes in memory.
        memory_bytes: u64,
    },
    /// A segment outside RAM.
    #[error("segment {index} {segment} lies outside RAM {ram}; link it inside, or give the guest more RAM (--ram)")]
    OutsideRam {
        /// Which program header.
        index: usize,
        /// Where it goes.
        segment: GuestRange,
        /// RAM.
        ram: GuestRange,
    },
    /// A segment over the devicetree.
    #[error("segment {index} {segment} lies over the devicetree {devicetree}; link it at {base} or above", base = map::FIRMWARE_BASE)]
    OverDevicetree {
        /// Which program header.
        index: usize,
        /// Where it goes.
        segment: GuestRange,
        /// Room kept for the devicetree.
        devicetree: GuestRange,
    },
    /// Two segments share bytes.
    #[error("segments {first} {first_range} and {second} {second_range} overlap")]
    Overlap {
        /// Program header of one.
        first: usize,
        /// Where it goes.
        first_range: GuestRange,
        /// Program header of the other.
        second: usize,
        /// Where it goes.
        second_range: GuestRange,
    },
    /// The entry point is not in loaded, executable, aligned bytes.
    #[error("the entry point {entry} does not lie in a loaded executable segment")]
    Entry {
        /// The entry point.
        entry: Gpa,
    },
    /// RAM refused a write.
    #[error("cannot load segment {index}")]
    Memory {
        /// Which program header.
        index: usize,
        /// Why.
        source: MemoryError,
    },
}

#[derive(Clone, Debug)]
struct Segment {
    /// Position among the program headers, as `readelf -l` counts them.
    index: usize,
    range: GuestRange,
    file: Range<usize>,
}

/// A checked ELF.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
    bytes: Vec<u8>,
    arch: Arch,
    entry: Gpa,
    segments: Vec<Segment>,
}

impl Image {
    /// Reads the ELF at `path` and checks all that can be checked without a machine.
    ///
    /// # Errors
    /// Any [`LoadError`] but those that speak of RAM.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        Self::parse(path, read_bounded(path)?)
    }

    /// Checks the ELF in `bytes`; `path` is only for messages and symbols.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self, LoadError> {
        let checker = Checker { path, bytes: &bytes };
        let headers = checker.program_headers()?;
        let segments = checker.segments(&headers.program)?;
        check_overlaps(&segments)?;
        let entry = entry_gpa(&headers)?;
        Ok(Self { path: path.to_owned(), arch: headers.arch, entry, segments, bytes })
    }

    /// The architecture that the ELF at `path` is for; `None` where it cannot be read or is no ELF of ours.
    pub fn arch_of(path: &Path) -> Option<Arch> {
        let mut bytes = [0; HEADER_BYTES];
        std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        File::open(path).ok()?.read_exact(&mut bytes).ok()?;
        Checker { path, bytes: &bytes }.header().ok().map(|(arch, _)| arch)
    }

    /// The architecture that it is for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Checks that it is for `wanted`.
    ///
    /// # Errors
    /// [`LoadError::OtherArch`].
    pub fn check_arch(&self, wanted: Arch) -> Result<(), LoadError> {
        if self.arch == wanted {
            return Ok(());
        }
        Err(LoadError::OtherArch { path: self.path.clone(), found: self.arch, wanted })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// First instruction, as a physical address: the guest starts with its MMU off.
    pub fn entry(&self) -> Gpa {
        self.entry
    }

    /// Checks that every segment lies in `ram` and none over the devicetree at its start.
    ///
    /// # Errors
    /// [`LoadError::OutsideRam`] and [`LoadError::OverDevicetree`].
    pub fn check_fits(&self, ram: GuestRange) -> Result<(), LoadError> {
        let devicetree = GuestRange::new(ram.start(), map::DTB_MAX_BYTES.min(ram.len_bytes())).unwrap_or(ram);
        for &Segment { index, range: segment, .. } in &self.segments {
            if !ram.contains_range(segment) {
                return Err(LoadError::OutsideRam { index, segment, ram });
            }
            if segment.overlaps(devicetree) {
                return Err(LoadError::OverDevicetree { index, segment, devicetree });
            }
        }
        Ok(())
    }

    /// Writes the segments to fresh, zeroed RAM.
    ///
    /// # Errors
    /// [`LoadError::Memory`] where a segment lies in no slot.
    pub fn load(&self, memory: &GuestMemory) -> Result<(), LoadError> {
        for segment in &self.segments {
            memory
                .write(segment.range.start(), &self.bytes[segment.file.clone()])
                .map_err(|source| LoadError::Memory { index: segment.index, source })?;
        }
        Ok(())
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, LoadError> {
    let unreadable = |source| LoadError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(LoadError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(LoadError::TooLarge { path: path.to_owned(), len_bytes: bytes.len() as u64 });
    }
    Ok(bytes)
}

struct Headers {
    arch: Arch,
    entry: u64,
    program: Vec<ProgramHeader>,
}

struct Checker<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl Checker<'_> {
    /// The ELF header, and the architecture that it names by class and machine.
    fn header(&self) -> Result<(Arch, Header), LoadError> {
        let path = self.path.to_owned();
        if !self.bytes.starts_with(ELFMAG) {
            return Err(LoadError::NotElf { path });
        }
        if self.bytes.get(EI_CLASS).is_some_and(|class| ![ELFCLASS32, ELFCLASS64].contains(class)) {
            return Err(LoadError::ForeignMachine { path, machine: "a machine of unknown width".into() });
        }
        if self.bytes.get(EI_DATA).is_some_and(|byte| *byte != ELFDATA2LSB) {
            return Err(LoadError::ForeignMachine { path, machine: "a big-endian machine".into() });
        }
        let header = Elf::parse_header(self.bytes)
            .map_err(|_| LoadError::Truncated { path: path.clone(), what: "the ELF header".into() })?;
        let arch = match (header.e_ident[EI_CLASS], header.e_machine) {
            (ELFCLASS64, EM_AARCH64) => Arch::Aarch64,
            (ELFCLASS32, EM_ARM) => Arch::Armv7,
            (class, machine) => {
                let bits = if class == ELFCLASS32 { 32 } else { 64 };
                let machine = format!("{} in a {bits}-bit file", machine_name(machine));
                return Err(LoadError::ForeignMachine { path, machine });
            }
        };
        Ok((arch, header))
    }

    fn program_headers(&self) -> Result<Headers, LoadError> {
        let path = self.path.to_owned();
        let (arch, header) = self.header()?;
        if header.e_type != ET_EXEC {
            return Err(LoadError::NotExecutable { path, kind: kind_name(header.e_type) });
        }
        let container = match arch {
            Arch::Aarch64 => Container::Big,
            Arch::Armv7 => Container::Little,
        };
        let context = Ctx::new(container, Endian::Little);
        let (count, size_bytes) = (usize::from(header.e_phnum), usize::from(header.e_phentsize));
        if count == 0 || count > MAX_PROGRAM_HEADERS || size_bytes != ProgramHeader::size(context) {
            return Err(LoadError::ProgramHeaders { path, count, size_bytes });
        }
        let truncated = || LoadError::Truncated { path: self.path.to_owned(), what: "the program header table".into() };
        let at = usize::try_from(header.e_phoff).map_err(|_| truncated())?;
        let end = at.checked_add(count * size_bytes).ok_or_else(truncated)?;
        if end > self.bytes.len() {
            return Err(truncated());
        }
        let program = ProgramHeader::parse(self.bytes, at, count, context).map_err(|_| truncated())?;
        Ok(Headers { arch, entry: header.e_entry, program })
    }

    fn segments(&self, program: &[ProgramHeader]) -> Result<Vec<Segment>, LoadError> {
        let mut segments = Vec::new();
        for (index, header) in program.iter().enumerate() {
            if header.p_type == PT_LOAD && header.p_memsz > 0 {
                segments.push(self.segment(index, header)?);
            } else if header.p_type == PT_LOAD && header.p_filesz > 0 {
                return Err(larger_than_memory(index, header));
            }
        }
        if segments.is_empty() {
            return Err(LoadError::NoSegments { path: self.path.to_owned() });
        }
        Ok(segments)
    }

    fn segment(&self, index: usize, header: &ProgramHeader) -> Result<Segment, LoadError> {
        let start = Gpa::new(header.p_paddr);
        if header.p_filesz > header.p_memsz {
            return Err(larger_than_memory(index, header));
        }
        let range = GuestRange::new(start, header.p_memsz).ok_or(LoadError::Wraps {
            index,
            start,
            memory_bytes: header.p_memsz,
        })?;
        let end = header.p_offset.checked_add(header.p_filesz).filter(|end| *end <= self.bytes.len() as u64);
        let Some(end) = end else {
            return Err(LoadError::Truncated { path: self.path.to_owned(), what: format!("segment {index}") });
        };
        Ok(Segment { index, range, file: header.p_offset as usize..end as usize })
    }
}

fn larger_than_memory(index: usize, header: &ProgramHeader) -> LoadError {
    LoadError::FileLargerThanMemory {
        index,
        start: Gpa::new(header.p_paddr),
        file_bytes: header.p_filesz,
        memory_bytes: header.p_memsz,
    }
}

fn check_overlaps(segments: &[Segment]) -> Result<(), LoadError> {
    for (position, a) in segments.iter().enumerate() {
        if let Some(b) = segments[position + 1..].iter().find(|b| a.range.overlaps(b.range)) {
            return Err(LoadError::Overlap {
                first: a.index,
                first_range: a.range,
                second: b.index,
                second_range: b.range,
            });
        }
    }
    Ok(())
}

/// The physical address of the entry point, which the header gives as a virtual one.
fn entry_gpa(headers: &Headers) -> Result<Gpa, LoadError> {
    let entry = headers.entry;
    let refused = LoadError::Entry { entry: Gpa::new(entry) };
    let in_file = |header: &&ProgramHeader| {
        let offset = entry.checked_sub(header.p_vaddr);
        let executable = header.p_type == PT_LOAD && header.p_flags & PF_X != 0;
        executable && offset.is_some_and(|offset| offset.saturating_add(4) <= header.p_filesz)
    };
    match headers.program.iter().find(in_file) {
        Some(header) if entry.is_multiple_of(4) => {
            Gpa::new(header.p_paddr).checked_add(entry - header.p_vaddr).ok_or(refused)
        }
        _ => Err(refused),
    }
}

fn machine_name(machine: u16) -> String {
    match machine {
        EM_X86_64 => "x86-64".into(),
        EM_AARCH64 => "AArch64".into(),
        EM_ARM => "32-bit Arm".into(),
        EM_RISCV => "RISC-V".into(),
        other => match goblin::elf::header::machine_to_str(other) {
            "EM_UNKNOWN" => format!("machine number {other}"),
            name => name.trim_start_matches("EM_").to_owned(),
        },
    }
}

fn kind_name(kind: u16) -> &'static str {
    match kind {
        1 => "a relocatable object",
        3 => "position-independent or a shared library",
        4 => "a core dump",
        _ => "of an unknown type",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::test_elf::{TestSegment, elf, elf32};

    const BASE: u64 = map::FIRMWARE_BASE.raw();
    const NOP: u32 = 0xd503_201f;

    fn ram() -> GuestRange {
        GuestRange::new(map::RAM_BASE, map::RAM_MIN).unwrap()
    }

    fn sample() -> Vec<u8> {
        elf(BASE, &[TestSegment::code(BASE, &[NOP; 8]), TestSegment::data(BASE + 0x1000, b"data", 0x2000)])
    }

    fn parse(bytes: Vec<u8>) -> Result<Image, LoadError> {
        Image::parse(Path::new("test.elf"), bytes)
    }

    fn refused(segments: &[TestSegment]) -> LoadError {
        parse(elf(BASE, segments)).and_then(|image| image.check_fits(ram())).unwrap_err()
    }

    #[test]
    fn a_good_elf_is_loaded_where_it_says() {
        let image = parse(sample()).unwrap();
        assert_eq!(image.entry(), map::FIRMWARE_BASE);
        image.check_fits(ram()).unwrap();
        let region = GuestRange::new(map::REGION_BASE, 0x1_0000).unwrap();
        let memory = GuestMemory::new(ram(), region, None).unwrap();
        image.load(&memory).unwrap();
        assert_eq!(memory.read_obj::<u32>(Gpa::new(BASE + 28)).unwrap(), NOP);
        assert_eq!(&memory.read_obj::<[u8; 6]>(Gpa::new(BASE + 0x1000)).unwrap(), b"data\0\0");
    }

    #[test]
    fn files_that_cannot_be_firmware_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Image::open(&dir.path().join("none")), Err(LoadError::Read { .. })));
        assert!(matches!(Image::open(dir.path()), Err(LoadError::NotAFile { .. })));
        assert!(matches!(Image::open(Path::new("/dev/zero")), Err(LoadError::NotAFile { .. })));
        assert!(matches!(parse(b"#!/bin/sh\n".to_vec()), Err(LoadError::NotElf { .. })));
        assert!(matches!(parse(Vec::new()), Err(LoadError::NotElf { .. })));
        let huge = dir.path().join("huge");
        File::create(&huge).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(matches!(Image::open(&huge), Err(LoadError::TooLarge { .. })));
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = sample();
        for len in 4..whole.len() {
            let error = parse(whole[..len].to_vec()).unwrap_err();
            assert!(matches!(error, LoadError::Truncated { .. }), "{len}: {error}");
        }
    }

    #[test]
    fn foreign_machines_are_named() {
        let with = |at: usize, byte: u8| {
            let mut bytes = sample();
            bytes[at] = byte;
            parse(bytes).unwrap_err().to_string()
        };
        assert!(with(18, 62).contains("x86-64"));
        assert!(with(18, 40).contains("32-bit Arm in a 64-bit file"));
        assert!(with(18, 243).contains("RISC-V"));
        assert!(with(4, 1).contains("AArch64 in a 32-bit file"));
        assert!(with(4, 0).contains("unknown width"));
        assert!(with(5, 2).contains("big-endian"));
        assert!(with(16, 3).contains("position-independent"));
    }

    #[test]
    fn class_and_machine_name_the_architecture() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let narrow = elf32(BASE as u32, &[TestSegment::code(BASE, &[NOP; 8])]);
        assert_eq!(Image::arch_of(&file("64", &sample())), Some(Arch::Aarch64));
        assert_eq!(Image::arch_of(&file("32", &narrow)), Some(Arch::Armv7));
        for (name, bytes) in [("short", &sample()[..40]), ("text", b"#!/bin/sh\n")] {
            assert_eq!(Image::arch_of(&file(name, bytes)), None);
        }
        assert_eq!(Image::arch_of(&dir.path().join("none")), None);
        assert_eq!(Image::arch_of(Path::new("/dev/zero")), None);

        let image = parse(narrow.clone()).unwrap();
        assert_eq!((image.arch(), image.entry()), (Arch::Armv7, map::FIRMWARE_BASE));
        image.check_fits(ram()).unwrap();
        let other = image.check_arch(Arch::Aarch64).unwrap_err();
        assert!(other.to_string().contains("is for armv7, not for aarch64"), "{other}");
        for len in 4..narrow.len() {
            let error = parse(narrow[..len].to_vec()).unwrap_err();
            assert!(matches!(error, LoadError::Truncated { .. }), "{len}: {error}");
        }
        // T32 code: bit 0 of the entry point is set (ELF for the Arm Architecture, 5.3).
        let thumb = elf32(BASE as u32 + 1, &[TestSegment::code(BASE, &[NOP; 8])]);
        assert!(matches!(parse(thumb), Err(LoadError::Entry { .. })));
    }

    #[test]
    fn absurd_program_headers_are_refused() {
        let with = |at: usize, half: u16| {
            let mut bytes = sample();
            bytes[at..at + 2].copy_from_slice(&half.to_le_bytes());
            parse(bytes).unwrap_err()
        };
        assert!(matches!(with(56, 0), LoadError::ProgramHeaders { count: 0, .. }));
        assert!(matches!(with(56, u16::MAX), LoadError::ProgramHeaders { count: 65535, .. }));
        assert!(matches!(with(54, 1), LoadError::ProgramHeaders { size_bytes: 1, .. }));
        let mut bytes = sample();
        bytes[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(parse(bytes), Err(LoadError::Truncated { .. })));
    }

    #[test]
    fn segments_must_lie_in_ram_apart_and_off_the_devicetree() {
        let code = TestSegment::code(BASE, &[NOP; 8]);
        let with = |address, memory_bytes| refused(&[code.clone(), TestSegment::data(address, b"x", memory_bytes)]);
        assert!(matches!(with(0x2000_0000, 1), LoadError::OutsideRam { index: 1, .. }));
        assert!(matches!(with(ram().end().raw() - 1, 2), LoadError::OutsideRam { .. }));
        assert!(matches!(with(u64::MAX, 2), LoadError::Wraps { .. }));
        assert!(matches!(with(BASE + 16, 4), LoadError::Overlap { first: 0, second: 1, .. }));
        assert!(matches!(with(map::RAM_BASE.raw() + 0xffff, 4), LoadError::OverDevicetree { .. }));
        assert!(matches!(with(BASE + 0x1000, 0), LoadError::FileLargerThanMemory { .. }));
        assert!(matches!(refused(&[]), LoadError::ProgramHeaders { count: 0, .. }));
        assert!(matches!(refused(&[TestSegment::data(BASE, b"", 0)]), LoadError::NoSegments { .. }));
    }

    #[test]
    fn the_entry_must_be_loaded_code() {
        let segments = [TestSegment::code(BASE, &[NOP; 8]), TestSegment::data(BASE + 0x1000, b"data", 0x2000)];
        for entry in [0, BASE - 4, BASE + 2, BASE + 32, BASE + 0x1000, u64::MAX] {
            assert!(matches!(parse(elf(entry, &segments)), Err(LoadError::Entry { .. })), "{entry:#x}");
        }
        assert_eq!(parse(elf(BASE + 28, &segments)).unwrap().entry(), Gpa::new(BASE + 28));
    }

    proptest! {
        #[test]
        fn damaged_elves_never_panic(flips in prop::collection::vec((0usize..212, any::<u8>()), 1..8)) {
            let mut bytes = sample();
            for (at, byte) in flips {
                bytes[at] = byte;
            }
            if let Ok(image) = parse(bytes) {
                let _ = image.check_fits(ram());
            }
        }
    }
}
