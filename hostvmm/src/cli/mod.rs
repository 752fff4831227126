//! The command line: parses it, runs what it asks for, and turns every ending into one line and an exit status.
//!
//! Exit status: 0 verified, 1 a check failed, 2 usage or bad input, 4 skipped.
mod args;
mod quantity;
