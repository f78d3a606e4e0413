//! The order of training: which samples each step sees. It depends on the data, the options and
//! the step's number alone, so that a run resumes from the number.

use crate::data::{Data, Generative, Pair, Passage, Place};
use crate::{Error, Result};
use fastrand::Rng;
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// What a batch is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batching {
    /// Number of queries in a batch; 0 for none.
    pub pairs: usize,
    /// Number of texts and conversations in a batch; 0 for none.
    pub generative: usize,
    /// Seed of the order.
    pub seed: u64,
}

gritlm_model::setters!(Batching { pairs: usize, generative: usize, seed: u64 });

impl Default for Batching {
    /// Returns small batches with the paper's share of generative samples, 1 to 8.
    fn default() -> Self {
        Self { pairs: 32, generative: 4, seed: 0 }
    }
}

/// A query with the passages that were drawn for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The query.
    pub query: Passage,
    /// A positive passage, then the negative ones; as many as the data's group.
    pub passages: Vec<Passage>,
    /// Where the sample stands.
    pub place: Place,
}

/// The samples of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The queries with their passages.
    pub pairs: Vec<Group>,
    /// The texts and conversations.
    pub texts: Vec<Generative>,
}

/// What is drawn at random. Each has numbers of its own.
#[derive(Clone, Copy)]
enum Draw {
    Pairs = 1,
    Texts = 2,
    Passages = 3,
}

/// An order of all samples, for each of the last epochs that were asked for.
type Orders = Mutex<Vec<(usize, Arc<Vec<usize>>)>>;

/// The batches of a run.
///
/// As in the original, the pairs of a batch come from one file, where the negatives are hard,
/// because the passages of other queries are like a query's own. Files take turns at random, in
/// proportion to their size. An epoch draws each pair once; what is left of the files makes mixed
/// batches, and what is left of these, fewer than a batch, is dropped until the next epoch.
///
/// Texts and conversations are drawn from all files of them, each once until all were drawn, and
/// then again in another order.
///
/// ```
/// use gritlm::{Engine, Options};
/// use gritlm_train::{Batches, Batching, Data, Encoder, Lengths};
/// use std::path::Path;
///
/// let engine = Engine::open("demo", &Options::default())?;
/// let lengths = Lengths::default().within(engine.config());
/// let encoder = Encoder::new(engine.tokenizer(), engine.config(), lengths)?;
/// let data = Data::open(Path::new("../../examples/train"), &encoder, 2)?;
/// let batches = Batches::new(&data, Batching::default().pairs(8).generative(2))?;
/// let batch = encoder.batch(&batches.batch(41)?)?;
/// assert_eq!((batch.queries.len(), batch.passages.len(), batch.answers.len()), (8, 16, 2));
/// # Ok::<(), gritlm_train::Error>(())
/// ```
pub struct Batches<'d> {
    data: &'d Data,
    options: Batching,
    /// Number of pairs in each file.
    files: Vec<usize>,
    /// Batches of pairs in an epoch; 0 if there are none in a batch.
    epoch: usize,
    pairs: Orders,
    texts: Orders,
}

impl<'d> Batches<'d> {
    /// Returns the batches of a run on `data`. Where the data has no pairs, or no texts, batches
    /// have none.
    ///
    /// # Errors
    /// When a batch has more pairs than the data, or nothing.
    pub fn new(data: &'d Data, options: Batching) -> Result<Self> {
        let files = data.pairs_by_file();
        let have = data.pairs();
        let invalid = |option, expected: String, found: usize| {
            Err(Error::Option { option, expected, found: found.to_string() })
        };
        let pairs = if have == 0 { 0 } else { options.pairs };
        let generative = if data.generative() == 0 { 0 } else { options.generative };
        if pairs > have {
            return invalid("pairs", format!("at most {have}, the pairs of the data"), pairs);
        }
        if pairs + generative == 0 {
            let option = if have > 0 { "pairs" } else { "generative" };
            return invalid(option, "1 or more, to have something in a batch".into(), 0);
        }
        let options = Batching { pairs, generative, ..options };
        let epoch = match pairs {
            0 => 0,
            size => {
                let whole: usize = files.iter().map(|n| n / size).sum();
                whole + files.iter().map(|n| n % size).sum::<usize>() / size
            }
        };
        let (pairs, texts) = Default::default();
        Ok(Self { data, options, files, epoch, pairs, texts })
    }

    /// Returns the options, with 0 where the data has no samples of the kind.
    pub fn options(&self) -> &Batching {
        &self.options
    }

    /// Returns the number of steps that see each pair once, or `None` where batches have no pairs.
    pub fn epoch(&self) -> Option<usize> {
        (self.epoch > 0).then_some(self.epoch)
    }

    /// Returns the batch of a step, counted from 0. Its samples are read on all threads.
    ///
    /// # Errors
    /// When a file cannot be read, or has changed since it was opened.
    pub fn batch(&self, step: usize) -> Result<Batch> {
        let pairs = self.pair_indices(step);
        let pairs = pairs
            .par_iter()
            .map(|&(epoch, index)| Ok(self.group(self.data.pair(index)?, epoch, index)));
        let pairs = pairs.collect::<Result<_>>()?;
        let texts = self.text_indices(step);
        let texts = texts.par_iter().map(|&i| self.data.text(i)).collect::<Result<_>>()?;
        Ok(Batch { pairs, texts })
    }

    /// Returns the pairs of a step, each with its epoch.
    fn pair_indices(&self, step: usize) -> Vec<(usize, usize)> {
        let Some(epoch_steps) = self.epoch() else { return Vec::new() };
        let (epoch, batch) = (step / epoch_steps, step % epoch_steps);
        let order = kept(&self.pairs, epoch, || {
            pair_order(&self.files, self.options.pairs, self.rng(Draw::Pairs, epoch, 0))
        });
        let size = self.options.pairs;
        order[batch * size..][..size].iter().map(|&index| (epoch, index)).collect()
    }

    fn text_indices(&self, step: usize) -> Vec<usize> {
        let (size, all) = (self.options.generative, self.data.generative());
        let index = |position: usize| {
            let epoch = position / all;
            let order = kept(&self.texts, epoch, || {
                let mut order: Vec<usize> = (0..all).collect();
                self.rng(Draw::Texts, epoch, 0).shuffle(&mut order);
                order
            });
            order[position % all]
        };
        (0..size).map(|i| index(step * size + i)).collect()
    }

    /// Draws the passages of a query.
    fn group(&self, pair: Pair, epoch: usize, index: usize) -> Group {
        let Pair { query, mut positives, negatives, place } = pair;
        let mut rng = self.rng(Draw::Passages, epoch, index);
        let mut passages = vec![positives.swap_remove(rng.usize(..positives.len()))];
        let more = self.data.group() - 1;
        // As in the original: none twice, unless there are too few.
        let times = if negatives.is_empty() { 0 } else { more.div_ceil(negatives.len()).max(1) };
        let mut order: Vec<usize> = (0..negatives.len() * times).collect();
        for i in 0..more.min(order.len()) {
            let drawn = rng.usize(i..order.len());
            order.swap(i, drawn);
            passages.push(negatives[order[i] % negatives.len()].clone());
        }
        Group { query, passages, place }
    }

    /// Returns the random numbers of a draw. They depend on nothing that was drawn before.
    fn rng(&self, draw: Draw, epoch: usize, index: usize) -> Rng {
        let parts = [draw as u64, epoch as u64, index as u64];
        Rng::with_seed(parts.into_iter().fold(mix(self.options.seed), |hash, n| mix(hash ^ n)))
    }
}

/// Returns the pairs of an epoch, batch by batch.
fn pair_order(files: &[usize], size: usize, mut rng: Rng) -> Vec<usize> {
    let (mut batches, mut left) = (Vec::new(), Vec::new());
    let mut first = 0;
    for &count in files {
        let mut indices: Vec<usize> = (first..first + count).collect();
        first += count;
        rng.shuffle(&mut indices);
        left.push(indices.split_off(count - count % size));
        batches.extend(indices.chunks_exact(size).map(<[usize]>::to_vec));
    }
    rng.shuffle(&mut left);
    batches.extend(left.concat().chunks_exact(size).map(<[usize]>::to_vec));
    rng.shuffle(&mut batches);
    batches.concat()
}

/// Returns the order of an epoch, made if it is not one of the last two that were asked for. A
/// batch has texts of two epochs where one ends.
fn kept(orders: &Orders, epoch: usize, make: impl FnOnce() -> Vec<usize>) -> Arc<Vec<usize>> {
    let mut orders = orders.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, order)) = orders.iter().find(|(kept, _)| *kept == epoch) {
        return order.clone();
    }
    if orders.len() == 2 {
        orders.remove(0);
    }
    let order = Arc::new(make());
    orders.push((epoch, order.clone()));
    order
}

/// Spreads a number over all bits: the finalizer of SplitMix64.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
