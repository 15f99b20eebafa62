//! Something that learns step by step: the training of a network, or an exact recursion of what its
//! training would give on average.

use super::faults::Faults;
use super::loader::LoadTimes;
use super::objective::Evaluation;
use super::quadratic::Quadratic;
use super::session::{Session, SessionError};
use super::tasks::read;
use crate::probe::ProbeSpec;

/// What a training probe trains.
pub(super) trait Learner {
    /// One optimizer step; gives the training loss, where it is known without more work.
    fn step(&mut self) -> Result<Option<f64>, SessionError>;

    /// Validates the parameters as they are.
    fn evaluate(&self) -> Evaluation;

    /// The same, and the loss of every validation example; none where there are no examples.
    fn evaluate_examples(&self) -> (Evaluation, Vec<f64>);

    /// Optimizer steps made so far.
    fn steps(&self) -> u64;

    /// Changes the learning rate of the steps to come.
    fn set_learning_rate(&mut self, learning_rate: f64);

    /// What loading took so far, where anything is loaded.
    fn load_times(&self) -> Option<LoadTimes>;

    /// Validation loss of the best predictor that does not look at its input.
    fn chance_loss(&self) -> Option<f64>;

    /// The same of every validation example.
    fn chance_losses(&self) -> Option<Vec<f64>>;
}

/// The learner of a spec; `is_expected` for the expectation instead of a sample.
pub(super) fn open(
    spec: &ProbeSpec,
    is_expected: bool,
    faults: Faults,
) -> Result<Box<dyn Learner>, SessionError> {
    Ok(if is_expected {
        Box::new(Quadratic::new(spec)?)
    } else {
        Box::new(Session::new(spec, faults)?)
    })
}

impl Learner for Session {
    fn step(&mut self) -> Result<Option<f64>, SessionError> {
        let loss = read(Session::step(self)?);
        self.check_memory()?;
        Ok(Some(loss))
    }

    fn evaluate(&self) -> Evaluation {
        Session::evaluate(self)
    }

    fn evaluate_examples(&self) -> (Evaluation, Vec<f64>) {
        Session::evaluate_examples(self)
    }

    fn steps(&self) -> u64 {
        Session::steps(self)
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        Session::set_learning_rate(self, learning_rate);
    }

    fn load_times(&self) -> Option<LoadTimes> {
        Some(Session::load_times(self))
    }

    fn chance_loss(&self) -> Option<f64> {
        Session::chance_loss(self)
    }

    fn chance_losses(&self) -> Option<Vec<f64>> {
        Session::chance_losses(self)
    }
}
