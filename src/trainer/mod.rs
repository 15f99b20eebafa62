//! What runs inside the child process: all of burn.
//!
//! [`run_probe`] reads a probe's specification on stdin, does what it says on the named device and
//! writes events; see [`crate::probe`] for the contract. One process runs one probe, so the number
//! of threads, the random seed and the allocator's watch can be set once, before burn is first used.

mod accumulation;
mod energy;
mod events;
mod faults;
mod gpu;
mod learner;
mod loader;
pub mod memory;
mod network;
mod noise_scale;
mod objective;
mod optimizer;
mod parts;
mod pool_memory;
mod process;
mod quadratic;
mod range_test;
mod run_queue;
mod session;
mod step_time;
mod tasks;
mod training;
mod turns;

pub use faults::Faults;
pub use gpu::run_inventory;
pub use process::{run_probe, run_probe_with};
