//! Confidence intervals, sequential stopping, randomised block designs, least squares, gradient noise,
//! Sobol sequences. Pure: seeds and times are arguments.

pub mod blocked;
pub mod intervals;
pub mod noise;
pub mod ranking;
pub mod regression;
pub mod sequences;
pub mod stopping;
