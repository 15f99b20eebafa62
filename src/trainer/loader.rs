//! The input pipeline: batches gathered on the host, ahead of the steps that need them if asked.
//!
//! The order of examples is drawn in one place, before any thread sees it, and batches are handed over
//! in that order, so that the number of threads changes no bit of training. What it costs is kept apart:
//! the time spent on gathering, wherever it was spent, and the time for which training had to wait.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::datasets::{Batch, BatchOrder, Examples};
use crate::study::InputPipeline;

/// What loading took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LoadTimes {
    /// Gathering batches, over all threads.
    pub gathering: Duration,
    /// Training stood still until its batch was there.
    pub waiting: Duration,
}

/// Where batches come from.
#[derive(Debug, Clone)]
struct Source {
    examples: Arc<Examples>,
    delay: Duration,
}

impl Source {
    fn gather(&self, indices: &[u32]) -> Batch {
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        self.examples.gather(indices)
    }
}

/// Hands out the batches of training, one after the other.
#[derive(Debug)]
pub(super) struct Loader {
    source: Source,
    order: BatchOrder,
    threads: Option<Threads>,
    times: LoadTimes,
}

impl Loader {
    /// `delay` is a fault: what each batch takes longer.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn new(
        examples: Arc<Examples>,
        order: BatchOrder,
        pipeline: &InputPipeline,
        delay: Duration,
    ) -> io::Result<Self> {
        let source = Source { examples, delay };
        let threads = if pipeline.threads == 0 {
            None
        } else {
            Some(Threads::start(&source, pipeline)?)
        };
        Ok(Self {
            source,
            order,
            threads,
            times: LoadTimes::default(),
        })
    }

    /// The next batch.
    ///
    /// # Errors
    /// When a loading thread has ended, which only a panic in it can do.
    pub(super) fn next_batch(&mut self) -> io::Result<Batch> {
        let before = Instant::now();
        let (batch, gathering) = match &mut self.threads {
            None => (self.source.gather(self.order.next_batch()), None),
            Some(threads) => {
                let (batch, gathering) = threads.next_batch(&mut self.order)?;
                (batch, Some(gathering))
            }
        };
        let waiting = before.elapsed();
        self.times.waiting += waiting;
        self.times.gathering += gathering.unwrap_or(waiting);
        Ok(batch)
    }

    /// What loading took so far.
    pub(super) fn times(&self) -> LoadTimes {
        self.times
    }
}

/// Which batch of the order, and its examples.
type Job = (u64, Vec<u32>);
/// Which batch of the order, the batch, and how long gathering it took.
type Gathered = (u64, Batch, Duration);

#[derive(Debug)]
struct Threads {
    /// Absent only while the threads are being ended.
    jobs: Option<SyncSender<Job>>,
    gathered: Receiver<Gathered>,
    /// Came before their turn.
    early: BTreeMap<u64, (Batch, Duration)>,
    asked: u64,
    given: u64,
    /// Batches asked for and not yet given, at most.
    ahead: u64,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    fn start(source: &Source, pipeline: &InputPipeline) -> io::Result<Self> {
        let ahead = u64::from(pipeline.prefetch_batches.max(1));
        let room = usize::try_from(ahead).unwrap_or(usize::MAX);
        // Both channels have room for everything that is ever under way: nobody waits to send.
        let (jobs, to_do) = sync_channel::<Job>(room);
        let (done, gathered) = sync_channel::<Gathered>(room);
        let to_do = Arc::new(Mutex::new(to_do));
        let handles = (0..pipeline.threads)
            .map(|number| {
                let (source, to_do, done) = (source.clone(), Arc::clone(&to_do), done.clone());
                std::thread::Builder::new()
                    .name(format!("loader-{number}"))
                    .spawn(move || gather_all(&source, &to_do, &done))
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            jobs: Some(jobs),
            gathered,
            early: BTreeMap::new(),
            asked: 0,
            given: 0,
            ahead,
            handles,
        })
    }

    fn next_batch(&mut self, order: &mut BatchOrder) -> io::Result<(Batch, Duration)> {
        let ended = || io::Error::other("a loading thread has ended");
        while self.asked < self.given + self.ahead {
            let job = (self.asked, order.next_batch().to_vec());
            let jobs = self.jobs.as_ref().ok_or_else(ended)?;
            jobs.send(job).map_err(|_| ended())?;
            self.asked += 1;
        }
        let batch = loop {
            if let Some(batch) = self.early.remove(&self.given) {
                break batch;
            }
            let (number, batch, gathering) = self.gathered.recv().map_err(|_| ended())?;
            self.early.insert(number, (batch, gathering));
        };
        self.given += 1;
        Ok(batch)
    }
}

fn gather_all(source: &Source, to_do: &Mutex<Receiver<Job>>, done: &SyncSender<Gathered>) {
    loop {
        // The lock is held while waiting: the others wait for it instead, which is the same.
        let job = to_do.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, indices)) = job else {
            return;
        };
        let before = Instant::now();
        let batch = source.gather(&indices);
        if done.send((number, batch, before.elapsed())).is_err() {
            return;
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.jobs = None;
        for handle in self.handles.drain(..) {
            // A panic in it was printed when it happened.
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets;
    use crate::study::BuiltinDataset;

    fn batches(pipeline: &InputPipeline, count: usize) -> Vec<Batch> {
        let split = datasets::generate(&BuiltinDataset::Digits {}).expect("loads");
        let order = BatchOrder::new(split.training.len(), 100, 5);
        let mut loader =
            Loader::new(Arc::new(split.training), order, pipeline, Duration::ZERO).expect("starts");
        (0..count)
            .map(|_| loader.next_batch().expect("a batch"))
            .collect()
    }

    #[test]
    fn the_number_of_threads_changes_no_batch() {
        let expected = batches(&InputPipeline::default(), 40);
        for (threads, prefetch_batches) in [(1, 1), (1, 4), (3, 2), (4, 16)] {
            let pipeline = InputPipeline {
                threads,
                prefetch_batches,
            };
            assert_eq!(batches(&pipeline, 40), expected, "{pipeline:?}");
        }
    }

    #[test]
    fn a_loader_that_is_dropped_ends_its_threads() {
        let split = datasets::generate(&BuiltinDataset::Digits {}).expect("loads");
        let examples = Arc::new(split.training);
        let pipeline = InputPipeline {
            threads: 3,
            prefetch_batches: 8,
        };
        let order = BatchOrder::new(examples.len(), 10, 0);
        let mut loader =
            Loader::new(Arc::clone(&examples), order, &pipeline, Duration::ZERO).expect("starts");
        loader.next_batch().expect("a batch");
        assert!(Arc::strong_count(&examples) > 3);
        drop(loader);
        assert_eq!(Arc::strong_count(&examples), 1);
    }

    #[test]
    fn what_loading_took_is_counted() {
        let split = datasets::generate(&BuiltinDataset::Digits {}).expect("loads");
        let order = BatchOrder::new(split.training.len(), 1000, 0);
        let examples = Arc::new(split.training);
        let mut loader = Loader::new(examples, order, &InputPipeline::default(), Duration::ZERO)
            .expect("starts");
        loader.next_batch().expect("a batch");
        let times = loader.times();
        assert!(times.gathering > Duration::ZERO && times.waiting >= times.gathering);
    }
}
