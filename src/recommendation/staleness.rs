//! Which advice a change makes stale: each topic rests on some figures, and a change makes some figures stale
//! ([`Change::stale`]).

use super::Topic;
use crate::study::{Change, Changed, Figure};

/// The figures that a topic rests on. `is_decided` says that the study tunes batch sizes to a target: then the configuration
/// to start with is that of the batch size that is decided on.
pub fn rests_on(topic: Topic, is_decided: bool) -> &'static [Figure] {
    match topic {
        Topic::FeasibleBatchSizes => &[Figure::Memory, Figure::Feasibility],
        Topic::TrainingThroughput | Topic::GradientAccumulation => &[Figure::Throughput],
        Topic::Bottleneck => &[Figure::Throughput, Figure::LoaderTime],
        Topic::BatchSize | Topic::ResourceConsumption | Topic::UpfrontCost | Topic::Retuning => {
            &[Figure::Decision]
        }
        Topic::CriticalBatchSize => &[Figure::StepsToTarget, Figure::NoiseScale],
        Topic::QualityAcrossBatchSizes => &[Figure::Quality],
        Topic::StartFrom => &[Figure::StartingModel],
        Topic::InitialConfiguration if is_decided => {
            &[Figure::InitialConfiguration, Figure::Decision]
        }
        Topic::LearningRate if is_decided => &[
            Figure::InitialConfiguration,
            Figure::LearningRate,
            Figure::Decision,
        ],
        Topic::NumberOfSteps if is_decided => &[
            Figure::InitialConfiguration,
            Figure::NumberOfSteps,
            Figure::Decision,
        ],
        Topic::InitialConfiguration => &[Figure::InitialConfiguration],
        Topic::LearningRate => &[Figure::InitialConfiguration, Figure::LearningRate],
        Topic::NumberOfSteps => &[Figure::InitialConfiguration, Figure::NumberOfSteps],
        Topic::Optimizer => &[Figure::OptimizerComparison],
        Topic::BatchNorm => &[Figure::GhostBatch],
    }
}

/// The kinds of change, each once, in the order of the table.
pub fn kinds(changed: &[Changed]) -> Vec<Change> {
    let mut kinds: Vec<Change> = changed.iter().map(|changed| changed.change).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// The topics that changes make stale, each with the changes that do.
pub fn stale_topics(changes: &[Change], is_decided: bool) -> Vec<(Topic, Vec<Change>)> {
    Topic::ALL
        .into_iter()
        .map(|topic| (topic, invalidating(topic, changes, is_decided)))
        .filter(|(_, by)| !by.is_empty())
        .collect()
}

fn invalidating(topic: Topic, changes: &[Change], is_decided: bool) -> Vec<Change> {
    changes
        .iter()
        .copied()
        .filter(|change| {
            rests_on(topic, is_decided)
                .iter()
                .any(|figure| change.invalidates(*figure))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stale(change: Change) -> Vec<Topic> {
        stale_when(change, false)
    }

    fn stale_when(change: Change, is_decided: bool) -> Vec<Topic> {
        stale_topics(&[change], is_decided)
            .into_iter()
            .map(|(topic, by)| {
                assert_eq!(by, [change]);
                topic
            })
            .collect()
    }

    #[test]
    fn each_row_of_the_table_makes_its_topics_stale_and_no_others() {
        use Topic as T;
        for change in [
            Change::Model,
            Change::Dtype,
            Change::DataSetShape,
            Change::Reuse,
        ] {
            assert_eq!(stale(change), T::ALL, "{change:?}");
        }
        // The model to start from is a matter of the data alone.
        let mut measured = T::ALL.to_vec();
        measured.retain(|topic| *topic != T::StartFrom);
        assert_eq!(stale(Change::OptimizerFamily), measured);
        let decision = [
            T::BatchSize,
            T::ResourceConsumption,
            T::UpfrontCost,
            T::Retuning,
        ];
        for change in [Change::Prices, Change::Objective, Change::ProjectPhase] {
            assert_eq!(stale(change), decision, "{change:?}");
            // What to start with is of the batch size that was decided on, where one was.
            let mut with_start = decision.to_vec();
            with_start.extend([T::InitialConfiguration, T::LearningRate, T::NumberOfSteps]);
            with_start.sort_unstable();
            let mut stale = stale_when(change, true);
            stale.sort_unstable();
            assert_eq!(stale, with_start, "{change:?}");
        }
        for change in [
            Change::Budget,
            Change::NameOrLabels,
            Change::Priority,
            Change::Questions,
            Change::StartingLearningRate,
        ] {
            assert_eq!(stale(change), [], "{change:?}");
        }
        assert_eq!(stale(Change::Grid), [T::BatchNorm]);
        for change in [Change::DataSet, Change::Target, Change::Loss] {
            let stale = stale(change);
            for topic in [
                T::CriticalBatchSize,
                T::BatchSize,
                T::QualityAcrossBatchSizes,
                T::Optimizer,
            ] {
                assert!(stale.contains(&topic), "{change:?}: {topic:?}");
            }
            for topic in [T::FeasibleBatchSizes, T::TrainingThroughput, T::Bottleneck] {
                assert!(!stale.contains(&topic), "{change:?}: {topic:?}");
            }
        }
        for change in [Change::DeviceModel, Change::Threads, Change::Runner] {
            let stale = stale(change);
            for topic in [T::FeasibleBatchSizes, T::TrainingThroughput, T::BatchSize] {
                assert!(stale.contains(&topic), "{change:?}: {topic:?}");
            }
            for topic in [
                T::CriticalBatchSize,
                T::QualityAcrossBatchSizes,
                T::InitialConfiguration,
                T::Optimizer,
                T::BatchNorm,
            ] {
                assert!(!stale.contains(&topic), "{change:?}: {topic:?}");
            }
        }
    }
}
