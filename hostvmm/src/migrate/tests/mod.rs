//! Whole migrations between two machines that are memory and a loop in the test.

mod boundaries;
mod cancels;
mod fixture;
mod hostile;
mod moves;
mod postcopy;
