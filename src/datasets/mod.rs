//! The examples that probes train on.
