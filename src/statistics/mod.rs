//! Confidence intervals, sequential stopping, randomised block designs, least squares. Pure:
//! seeds and times are arguments.
