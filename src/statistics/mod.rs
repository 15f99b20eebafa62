//! Confidence intervals, sequential stopping, randomised block designs, least squares. Pure:
//! seeds and times are arguments.

pub mod blocked;
pub mod intervals;
pub mod ranking;
pub mod regression;
pub mod stopping;
