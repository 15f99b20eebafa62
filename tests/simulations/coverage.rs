//! What share of the published intervals holds the truth, when several children are timed in rounds,
//! each child's median comes from the stopping rule, and rounds are added until the intervals are
//! narrow enough: at one of three looks (3, 5 and 8 rounds).

use rand::RngExt;
use trialhead::analysis::{Evidence, ThroughputAnalysis, saturation, throughput};

use crate::worlds::{World, add_round, default_rule, random, sample, standard_normal};

const WORLDS: u64 = 2000;
const SIZES: [u64; 7] = [8, 16, 32, 64, 128, 256, 512];
const LOOKS: [usize; 3] = [3, 5, 8];

/// What differs between children and between rounds.
#[derive(Debug, Clone, Copy)]
struct Children {
    name: &'static str,
    /// Standard deviation of ln t between children.
    scatter: f64,
    /// One child in twenty is slower by this share.
    slow_child: f64,
    /// Standard deviation of what a round adds to ln t of all its children.
    round_scatter: f64,
    /// What each round adds to ln t over the round before.
    round_drift: f64,
}

const CHILDREN: [Children; 4] = [
    Children {
        name: "steady",
        scatter: 0.02,
        slow_child: 0.0,
        round_scatter: 0.0,
        round_drift: 0.0,
    },
    Children {
        name: "drift between rounds",
        scatter: 0.02,
        slow_child: 0.0,
        round_scatter: 0.03,
        round_drift: 0.03,
    },
    Children {
        name: "children that differ by 11%",
        scatter: 0.11,
        slow_child: 0.0,
        round_scatter: 0.03,
        round_drift: 0.0,
    },
    Children {
        name: "one child in twenty 6% slower",
        scatter: 0.02,
        slow_child: 0.06,
        round_scatter: 0.03,
        round_drift: 0.0,
    },
];

/// When no more rounds are wanted.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// Three rounds, whatever they say.
    ThreeRounds,
    /// The interval of t is at most this wide either way.
    HalfWidth(f64),
}

impl Until {
    fn is_reached(self, analysis: &ThroughputAnalysis) -> bool {
        match self {
            Self::ThreeRounds => true,
            Self::HalfWidth(limit) => analysis.points.iter().all(|point| {
                let time = point.time_per_step_secs;
                time.ci_upper
                    .is_some_and(|upper| upper / time.value - 1.0 <= limit)
            }),
        }
    }
}

/// Intervals that held the truth, of all: of t (what slowed the rounds measured included) and of the
/// gain of a doubling.
#[derive(Debug, Default)]
struct Coverage {
    time: (u64, u64),
    gain: (u64, u64),
    rounds: usize,
}

fn share((held, of): (u64, u64)) -> f64 {
    held as f64 / of as f64
}

fn true_secs(size: u64) -> f64 {
    1e-3 * (1.0 + size as f64 / 64.0)
}

fn simulate(children: Children, until: Until) -> Coverage {
    let mut coverage = Coverage::default();
    // A slow child shifts the mean of ln t; that is what a mean over children estimates.
    let bias = 0.05 * children.slow_child.ln_1p();
    for world in 0..WORLDS {
        let mut draws = random(world);
        let mut evidence = Evidence::default();
        let mut effects = Vec::new();
        for (look, &rounds) in LOOKS.iter().enumerate() {
            while effects.len() < rounds {
                let effect = children.round_drift * effects.len() as f64
                    + children.round_scatter * standard_normal(&mut draws);
                effects.push(effect);
                add_round(&mut evidence, &SIZES, |size, _| {
                    let mut ln = true_secs(size).ln() + effect;
                    ln += children.scatter * standard_normal(&mut draws);
                    if draws.random::<f64>() < 0.05 {
                        ln += children.slow_child.ln_1p();
                    }
                    let blocks = World::QUIET.series(random(draws.random()));
                    sample(default_rule(), blocks).0.median * ln.exp()
                });
            }
            let analysis = throughput::analyze(&evidence).expect("an analysis");
            if until.is_reached(&analysis) || look + 1 == LOOKS.len() {
                let mean_effect = effects.iter().sum::<f64>() / effects.len() as f64;
                coverage.count(&analysis, mean_effect + bias);
                coverage.rounds += effects.len();
                break;
            }
        }
    }
    println!(
        "{:>30}, {until:?}: t {:.1}%, gain {:.1}%, {:.1} rounds",
        children.name,
        share(coverage.time) * 100.0,
        share(coverage.gain) * 100.0,
        coverage.rounds as f64 / WORLDS as f64,
    );
    coverage
}

impl Coverage {
    fn count(&mut self, analysis: &ThroughputAnalysis, ln_shift: f64) {
        let add = |(held, of): &mut (u64, u64), lower: Option<f64>, upper, truth: f64| {
            let (lower, upper) = lower.zip(upper).expect("an interval");
            *held += u64::from((lower..=upper).contains(&truth));
            *of += 1;
        };
        for point in &analysis.points {
            let time = point.time_per_step_secs;
            let truth = true_secs(point.batch_size.0) * ln_shift.exp();
            add(&mut self.time, time.ci_lower, time.ci_upper, truth);
        }
        let saturation = saturation::analyze(analysis).expect("an analysis");
        for gain in &saturation.gains {
            let truth = 2.0 * true_secs(gain.from.0) / true_secs(gain.to.0);
            let interval = gain.gain;
            add(&mut self.gain, interval.ci_lower, interval.ci_upper, truth);
        }
    }
}

#[test]
fn row_22_23_published_intervals_hold_the_truth_93_to_97_percent_of_the_time() {
    for children in CHILDREN {
        for until in [
            Until::ThreeRounds,
            Until::HalfWidth(0.02),
            Until::HalfWidth(0.05),
        ] {
            let coverage = simulate(children, until);
            for covered in [share(coverage.time), share(coverage.gain)] {
                assert!(
                    (0.93..=0.97).contains(&covered),
                    "{}, {until:?}: {covered}",
                    children.name
                );
            }
        }
    }
}
