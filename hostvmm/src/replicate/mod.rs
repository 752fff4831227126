//! Replication of a region to a file or to a peer, as the original tests did it.

mod sum_r;

pub use sum_r::SumR;
