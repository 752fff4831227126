//! Names for addresses in the firmware: the host's half of a symbolised backtrace.

use std::fmt;
use std::path::Path;

use addr2line::Loader;

/// One frame of a backtrace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The address looked up.
    pub address: u64,
    /// The function that holds it, demangled, and the address's offset in it.
    pub function: Option<(String, u64)>,
    /// Source file and line, where the ELF has them.
    pub source: Option<(String, u32)>,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)?;
        if let Some((function, offset)) = &self.function {
            write!(f, " {function}+{offset:#x}")?;
        }
        if let Some((file, line)) = &self.source {
            write!(f, " ({file}:{line})")?;
        }
        Ok(())
    }
}

/// The symbols and line tables of one ELF.
pub struct Symbols {
    loader: Option<Loader>,
}

impl Symbols {
    /// Opens the tables of the ELF at `path`. One that has none, or cannot be read, names nothing: a backtrace of bare
    /// addresses is better than none.
    pub fn open(path: &Path) -> Self {
        Self { loader: Loader::new(path).ok() }
    }

    /// The frame at `address`.
    pub fn frame(&self, address: u64) -> Frame {
        let Some(loader) = &self.loader else {
            return Frame { address, function: None, source: None };
        };
        let function = loader.find_symbol_info(address).map(|symbol| {
            // `{:#}` leaves out the hash that makes the mangled name unique.
            (format!("{:#}", rustc_demangle::demangle(symbol.name())), address.wrapping_sub(symbol.address()))
        });
        let location = loader.find_location(address).ok().flatten();
        let source = location.and_then(|at| Some((at.file?.to_owned(), at.line?)));
        Frame { address, function, source }
    }

    /// The frames of a backtrace: `pc` where it stopped, then return addresses, innermost first.
    ///
    /// A return address is looked up one instruction before, where the call is; a call at the end of a function would
    /// otherwise be blamed on the next one.
    pub fn backtrace(&self, pc: u64, returns: &[u64]) -> Vec<Frame> {
        let mut frames = vec![self.frame(pc)];
        frames.extend(returns.iter().map(|address| Frame { address: *address, ..self.frame(address.wrapping_sub(4)) }));
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_of_this_test_is_found_by_its_address() {
        // The test binary itself is an ELF with symbols; its addresses are relative because it is position-independent.
        let exe = std::env::current_exe().unwrap();
        let symbols = Symbols::open(&exe);
        let bytes = std::fs::read(&exe).unwrap();
        let elf = goblin::elf::Elf::parse(&bytes).unwrap();
        let symbol = elf
            .syms
            .iter()
            .find(|symbol| {
                symbol.st_size > 8
                    && elf
                        .strtab
                        .get_at(symbol.st_name)
                        .is_some_and(|name| name.contains("Symbols") && name.contains("backtrace"))
            })
            .expect("the test binary has its own symbols");
        let frame = symbols.frame(symbol.st_value + 4);
        let (name, offset) = frame.function.clone().unwrap();
        assert!(name.contains("backtrace"), "{name}");
        assert_eq!(offset, 4);
        assert!(frame.to_string().contains("+0x4"));
        let returns = symbols.backtrace(symbol.st_value, &[symbol.st_value + 8]);
        assert_eq!(returns[1].address, symbol.st_value + 8);
    }

    #[test]
    fn a_missing_elf_names_nothing() {
        let frame = Symbols::open(Path::new("/nonexistent")).frame(0x4020_0000);
        assert_eq!(frame.to_string(), "0x40200000");
    }
}
