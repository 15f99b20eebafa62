//! Who runs probes, where, and what becomes of them.
//!
//! A probe is run in a **process of its own** ([`child`]): running out of memory, a panic in a
//! kernel or an abort in a driver ends that process and nothing else, memory that an allocator
//! keeps is given back between probes, and time and memory are enforced from outside. This module
//! starts training code only so, never by a call.
//!
//! [`inventory`] says which device this host offers, [`host_lock`] keeps two services of one host
//! from measuring on the same device at once, and [`cgroup`] reads the limits and the
//! out-of-memory kills of the control group the service lives in.

pub mod cgroup;
pub mod child;
pub mod conformance;
pub mod host_lock;
pub mod housekeeping;
pub mod inventory;
pub mod worker;
