//! Who runs probes, where, and what becomes of them.
//!
//! A probe is run in a **process of its own** ([`child`]): running out of memory, a panic in a
//! kernel or an abort in a driver ends that process and nothing else, memory that an allocator
//! keeps is given back between probes, and time and memory are enforced from outside. This module
//! starts training code only so, never by a call.
//!
//! [`inventory`] says what this host is, [`gpus`] which GPUs it offers beside its processor, [`host_lock`] keeps two services of one host
//! from measuring on the same device at once, and [`cgroup`] reads the limits and the
//! out-of-memory kills of the control group the service lives in.
//!
//! A [`worker`] gets its probes by the lease protocol ([`leases`]), whatever carries it; a [`journal`] says
//! after a restart what was running when the worker was killed.

pub mod cgroup;
pub mod child;
pub mod conformance;
pub mod gpus;
pub mod host_lock;
pub mod housekeeping;
pub mod inventory;
pub mod journal;
mod keeper;
pub mod leases;
pub mod worker;
