//! The `hostvmm` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostvmm::cli::main()
}
