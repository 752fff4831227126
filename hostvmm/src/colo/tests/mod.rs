//! Whole pairs in one process: [`fixture`] has guests without a CPU, and an outlet.

mod checkpoints;
mod failover;
mod fixture;
