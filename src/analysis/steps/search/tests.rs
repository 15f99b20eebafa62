use uuid::Uuid;

use super::*;
use crate::study::{Axis, Optimizer};

/// Where a world's best learning rate lies, and from where on it diverges, in ln.
#[derive(Clone, Copy)]
struct World {
    best: f64,
    diverges: f64,
    steps: f64,
}

impl World {
    fn outcome(&self, wanted: &Wanted) -> Outcome {
        let off = wanted.configuration.optimizer.learning_rate().ln() - self.best;
        if self.best + off > self.diverges {
            return Outcome::Diverged;
        }
        // Every seed a little different.
        let seed = f64::from(wanted.replicate % 5) * 0.02;
        let steps = self.steps * (off * off + seed).exp();
        if steps <= wanted.max_steps as f64 {
            Outcome::Reached(steps)
        } else {
            Outcome::Capped(wanted.max_steps)
        }
    }

    fn score(&self, wanted: &Wanted) -> f64 {
        (wanted.configuration.optimizer.learning_rate().ln() - self.best).abs()
    }
}

fn search(lower: f64, upper: f64, cap: u64) -> Search {
    Search {
        aim: Aim::StepsToTarget,
        space: SearchSpace {
            configuration: Configuration {
                optimizer: Optimizer::sgd(0.01),
                regularisation: Regularisation::default(),
            },
            axes: vec![Axis {
                hyperparameter: Hyperparameter::LearningRate,
                lower,
                upper,
            }],
        },
        trials: 16,
        seed: 5,
        cap,
        is_exact: false,
        more_seeds: 0,
    }
}

struct Made {
    wanted: Wanted,
    outcome: Outcome,
    score: f64,
    best_step: Option<f64>,
}

fn trials(made: &[Made]) -> Vec<Trial<'_>> {
    (0..)
        .zip(made)
        .map(|(index, it)| Trial {
            probe_id: ProbeId(Uuid::from_u128(index)),
            optimizer: &it.wanted.configuration.optimizer,
            regularisation: it.wanted.configuration.regularisation,
            replicate: it.wanted.replicate,
            max_steps: it.wanted.max_steps,
            wave: 0,
            outcome: it.outcome,
            score: Some(it.score),
            best_step: it.best_step,
        })
        .collect()
}

/// Goes on until the search has its result.
fn run(search: &Search, world: World) -> (Found, Vec<Made>) {
    let mut made: Vec<Made> = Vec::new();
    for _ in 0..40 {
        match search.next(&trials(&made)) {
            Next::Done(found) => return (*found, made),
            Next::Trials(wanted) => {
                assert!(!wanted.is_empty());
                made.extend(wanted.into_iter().map(|wanted| Made {
                    outcome: world.outcome(&wanted),
                    score: world.score(&wanted),
                    best_step: None,
                    wanted,
                }));
            }
        }
    }
    panic!("the search does not end");
}

#[test]
fn the_best_learning_rate_is_found_and_its_steps_are_a_median_over_seeds() {
    let world = World {
        best: -1.0,
        diverges: 0.0,
        steps: 100.0,
    };
    let (found, made) = run(&search(-6.0, 0.5, 300), world);
    let off = found.configuration.optimizer.learning_rate().ln() - world.best;
    assert!(off.abs() < 0.2, "{off}");
    let Steps::Measured { ln, seeds } = found.steps else {
        panic!("{:?}", found.steps);
    };
    assert_eq!(seeds, 10);
    assert!((ln - 100_f64.ln()).abs() < 0.1, "{}", ln.exp());
    assert_eq!(found.scatter.len(), 4);
    assert!(found.at_boundary.is_empty());
    // Three finalists with five seeds, and the winner with five more.
    let with_seeds = made.iter().filter(|it| it.wanted.replicate > 0).count();
    assert_eq!(with_seeds, 20);
    // What comes after the first half stops soon after the best of it.
    let first_best = made[..8]
        .iter()
        .filter_map(|it| match it.outcome {
            Outcome::Reached(steps) => Some(steps),
            _ => None,
        })
        .fold(f64::INFINITY, f64::min);
    let cap = (first_best * 1.15).ceil() as u64 + 3;
    assert!(
        made[8..16]
            .iter()
            .all(|it| it.wanted.max_steps == cap.min(300))
    );
}

#[test]
fn what_comes_next_does_not_depend_on_the_order_in_which_trials_ended() {
    let world = World {
        best: -1.0,
        diverges: 0.0,
        steps: 100.0,
    };
    let search = search(-6.0, 0.5, 300);
    let (found, made) = run(&search, world);
    for end in [8, 16, 20, made.len()] {
        let forward = trials(&made[..end]);
        let mut backward = forward.clone();
        backward.reverse();
        let (a, b) = (search.next(&forward), search.next(&backward));
        match (a, b) {
            (Next::Trials(a), Next::Trials(b)) => assert_eq!(a, b),
            (Next::Done(a), Next::Done(b)) => {
                assert_eq!(a.configuration, b.configuration);
                assert_eq!(a.steps, found.steps);
                assert_eq!(a.steps, b.steps);
            }
            (a, b) => panic!("{a:?} and {b:?}"),
        }
    }
}

#[test]
fn a_best_at_the_end_of_the_range_widens_it() {
    let world = World {
        best: -9.0,
        diverges: 0.0,
        steps: 100.0,
    };
    let (found, _) = run(&search(-7.0, 0.0, 100_000), world);
    let off = found.configuration.optimizer.learning_rate().ln() - world.best;
    assert!(off.abs() < 0.4, "{off}");
    assert!(found.at_boundary.is_empty());
}

#[test]
fn where_most_diverge_the_learning_rates_are_lowered() {
    let world = World {
        best: -7.0,
        diverges: -6.5,
        steps: 100.0,
    };
    let (found, _) = run(&search(-8.0, 2.0, 100_000), world);
    let off = found.configuration.optimizer.learning_rate().ln() - world.best;
    assert!(off.abs() < 0.4, "{off}");
    assert!(found.diverged > 8);
}

#[test]
fn caps_are_doubled_twice_and_then_it_is_more_than_that() {
    let world = |steps| World {
        best: -1.0,
        diverges: 0.0,
        steps,
    };
    // Within four times the first cap.
    let (found, _) = run(&search(-6.0, 0.5, 50), world(150.0));
    assert!(
        matches!(found.steps, Steps::Measured { .. }),
        "{:?}",
        found.steps
    );
    let (found, made) = run(&search(-6.0, 0.5, 50), world(1000.0));
    assert_eq!(found.steps, Steps::MoreThan(200));
    assert_eq!(found.reached, 0);
    let longest = made.iter().map(|it| it.wanted.max_steps).max();
    assert_eq!(longest, Some(200));
}

#[test]
fn when_everything_diverges_that_is_the_result() {
    let world = World {
        best: -1.0,
        diverges: -90.0,
        steps: 100.0,
    };
    let (found, _) = run(&search(-6.0, 0.5, 300), world);
    assert_eq!(found.steps, Steps::Diverged);
}

#[test]
fn without_scatter_the_best_is_approached_and_no_seed_is_spent() {
    let world = World {
        best: -1.234,
        diverges: 0.0,
        steps: 100.0,
    };
    let exact = Search {
        is_exact: true,
        ..search(-6.0, 0.5, 300)
    };
    let (found, made) = run(&exact, world);
    let Steps::Measured { ln, seeds } = found.steps else {
        panic!("{:?}", found.steps);
    };
    assert_eq!(seeds, 0);
    assert!(ln.exp() < 100.5, "{}", ln.exp());
    assert!(made.iter().all(|it| it.wanted.replicate == 0));
}

/// With two axes a step that helped is tried again, and then one of its sides is the point it came from.
#[test]
fn a_point_that_comes_up_twice_is_one_trial_and_one_finalist() {
    let mut search = search(-6.0, 0.0, 1000);
    search.space.axes.push(Axis {
        hyperparameter: Hyperparameter::WeightDecay,
        lower: -10.0,
        upper: -4.0,
    });
    search
        .space
        .configuration
        .set(Hyperparameter::WeightDecay, 1e-3);
    search.trials = 4;
    let world = World {
        best: -0.4,
        diverges: 5.0,
        steps: 100.0,
    };
    let (found, made) = run(&search, world);
    for (index, a) in made.iter().enumerate() {
        for b in &made[..index] {
            let is_same = a.wanted.configuration == b.wanted.configuration
                && a.wanted.replicate == b.wanted.replicate
                && a.wanted.max_steps == b.wanted.max_steps;
            assert!(!is_same, "{:?} is asked for twice", a.wanted);
        }
    }
    let screened = made.iter().filter(|it| it.wanted.replicate == 0).count();
    assert_eq!(found.trials, screened, "none counts twice");
    // Four of each halving, unless one of them is the point before: at least one is.
    assert!((screened - 4) % 4 != 0, "{screened} trials");
}
