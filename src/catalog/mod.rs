//! What can be asked for, with provenance. Pure.
