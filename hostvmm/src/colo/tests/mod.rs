//! Whole pairs in one process: [`fixture`] has guests without a CPU, and an outlet. [`model`] is the protocol alone, explored.

mod checkpoints;
mod failover;
mod fixture;
mod model;
