//! Low-rank adapters that are trained in place of the weights.
//!
//! The weights stay frozen in their own format. Before a layer runs, its matrices with adapters are
//! made in f32 in one set that all layers share, W + scale · B · A; the way back adds the gradients of
//! these matrices to a set of buffers that all layers share, too, and takes those of A and B from
//! them. So a run needs the base model, two layers in f32 and the adapters with their moments.
//!
//! **Dropout.** PEFT drops entries of an adapter's input, other ones in each token. In a merged matrix
//! the adapter has no input of its own, so a step drops the same entries in all tokens, as variational
//! dropout does (Gal and Ghahramani 2016): columns of A, chosen for each matrix, and the others are
//! scaled by 1 / (1 − dropout). A batch whose chunks run twice sees the same columns both times, and
//! evaluation drops none.

use crate::parameters::{Slot, WithGradient};
use crate::{Error, Result};
use gritlm::layer::Layer;
use gritlm_model::adapter::{Adapter, Lora, adaptable, names};
use gritlm_model::config::Config;
use gritlm_model::ops::{Backward, Merge};
use gritlm_model::weights::{Expected, Tensor, expected};
use std::collections::BTreeMap;

/// An adapter to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapt<'a> {
    /// Its shape.
    pub lora: Lora,
    /// Seed of A and of dropout.
    pub seed: u64,
    /// Name of the base model, which the adapter's files tell.
    pub base: &'a str,
}

impl Adapt<'_> {
    /// Checks the shape against a model.
    ///
    /// # Errors
    /// When a number is out of range, or a target is no module of the model.
    pub fn check(&self, config: &Config) -> Result<()> {
        check(&self.lora, config)
    }
}

/// See [`Adapt::check`].
pub(crate) fn check(lora: &Lora, config: &Config) -> Result<()> {
    let wrong = |option, expected: &str, found: String| {
        Err(Error::Option { option, expected: expected.into(), found })
    };
    let largest = config.dim.min(config.hidden);
    if lora.rank == 0 || lora.rank > largest {
        return wrong("lora", &format!("a rank from 1 to {largest}"), lora.rank.to_string());
    }
    if !(lora.alpha.is_finite() && lora.alpha > 0.0) {
        return wrong("lora_alpha", "a number above 0", lora.alpha.to_string());
    }
    if !(0.0..1.0).contains(&lora.dropout) {
        return wrong("lora_dropout", "a share from 0 to less than 1", lora.dropout.to_string());
    }
    // The default names the projections of all kinds of models.
    if lora.targets == Lora::new(lora.rank).targets {
        return Ok(());
    }
    let modules = Lora::modules(config);
    match lora.targets.iter().find(|target| !modules.contains(target)) {
        Some(found) => {
            wrong("lora_targets", &format!("some of {}", modules.join(", ")), found.clone())
        }
        None => Ok(()),
    }
}

/// A and B of one tensor.
struct Pair<O: Backward> {
    /// B and A, and what belongs to each.
    matrices: [O::Matrix; 2],
    slots: [Slot<O>; 2],
    /// Of the columns of A: 0 where it is dropped in this step, else 1 / (1 − dropout).
    mask: Option<O::Buffer>,
}

/// One of the tensors that a matrix stacks by rows.
struct Part<O: Backward> {
    p: Merge,
    pair: Option<Pair<O>>,
}

/// The adapters of a model.
pub(crate) struct Adapters<O: Backward> {
    lora: Lora,
    seed: u64,
    /// Text of `adapter_config.json`.
    text: String,
    /// Steps of the optimiser so far.
    steps: usize,
    layers: Vec<Layer<Vec<Part<O>>>>,
    /// The matrices of one layer, where they have adapters.
    merged: Layer<Option<O::Matrix>>,
    /// Their gradients.
    gradients: Layer<Option<O::Buffer>>,
    /// The layer that `merged` holds.
    held: Option<usize>,
}

impl<O: Backward> Adapters<O> {
    /// Makes new adapters: A uniform in ± 1 / √columns, as PEFT has it, B zero.
    ///
    /// # Errors
    /// When the shape is invalid for the model, or the device is out of memory.
    pub(crate) fn new(ops: &O, config: &Config, adapt: &Adapt<'_>) -> Result<Self> {
        adapt.check(config)?;
        let lora = &adapt.lora;
        let mut random = fastrand::Rng::with_seed(adapt.seed);
        Self::make(ops, config, adapt, &mut |_, [b, a]| {
            let bound = 1.0 / (a.shape[1] as f32).sqrt();
            let uniform = |_| bound * (2.0 * random.f32() - 1.0);
            let a = (0..lora.rank * a.shape[1]).map(uniform).collect();
            let b = Values { values: vec![0.0; b.shape[0] * lora.rank], moments: None };
            Ok([b, Values { values: a, moments: None }])
        })
    }

    /// Continues with the values and both moments of a saved state, `step` steps after the start.
    ///
    /// # Errors
    /// When the state has another shape, or the device is out of memory.
    pub(crate) fn resume(
        ops: &O,
        config: &Config,
        adapt: &Adapt<'_>,
        state: [&Adapter; 3],
        step: usize,
    ) -> Result<Self> {
        let made = Self::make(ops, config, adapt, &mut |tensor, shapes| {
            let of = |adapter: &Adapter, which: usize| -> Result<Vec<f32>> {
                // Files have A first.
                let found = adapter.pairs().get(tensor).map(|pair| &pair[1 - which]);
                match found.filter(|found| found.shape() == shapes[which].shape) {
                    Some(found) => Ok(Tensor::to_f32(found)),
                    None => Err(Error::Output {
                        path: adapter.path().into(),
                        problem: format!(
                            "tensor {}: expected {:?}, found another shape or nothing",
                            shapes[which].name, shapes[which].shape
                        ),
                    }),
                }
            };
            let values = |which| {
                let moments = Some([of(state[1], which)?, of(state[2], which)?]);
                Ok::<_, Error>(Values { values: of(state[0], which)?, moments })
            };
            Ok([values(0)?, values(1)?])
        })?;
        Ok(Self { steps: step, ..made })
    }

    fn make(ops: &O, config: &Config, adapt: &Adapt<'_>, values: &mut Make<'_>) -> Result<Self> {
        let lora = &adapt.lora;
        let shapes: BTreeMap<String, Vec<usize>> =
            expected(config).into_iter().map(|e| (e.name, e.shape)).collect();
        let mut parts = |names: &Vec<String>| -> Result<Vec<Part<O>>> {
            let mut first = 0;
            let part = |name: &String| {
                let shape = &shapes[name];
                let cols = shape.last().copied().unwrap_or(1);
                let rows = shape.iter().product::<usize>() / cols;
                let pair = match lora.has(name) {
                    true => Some(Pair::make(ops, lora.rank, name, [rows, cols], values)?),
                    false => None,
                };
                let p = Merge {
                    first,
                    rows: rows as u32,
                    cols: cols as u32,
                    rank: if pair.is_some() { lora.rank as u32 } else { 0 },
                    scale: lora.scale(),
                };
                first += p.rows;
                Ok(Part { p, pair })
            };
            names.iter().map(part).collect()
        };
        let layers: Vec<Layer<Vec<Part<O>>>> = (0..config.layers)
            .map(|l| Layer::names(config, l).try_map(&mut parts))
            .collect::<Result<_>>()?;
        let sizes = |parts: &[Part<O>]| {
            let any = parts.iter().any(|part| part.pair.is_some());
            let rows = parts.iter().map(|part| part.p.rows as usize).sum::<usize>();
            any.then(|| (rows, parts[0].p.cols as usize))
        };
        let merged = layers[0].try_map(|parts| -> Result<_> {
            let make = |(rows, cols)| ops.parameters(rows, cols, &vec![0.0; rows * cols]);
            Ok(sizes(parts).map(make).transpose()?)
        })?;
        let gradients = layers[0].try_map(|parts| -> Result<_> {
            Ok(sizes(parts).map(|(rows, cols)| ops.buffer(rows, cols)).transpose()?)
        })?;
        Ok(Self {
            lora: lora.clone(),
            seed: adapt.seed,
            text: lora.to_json(adapt.base, config),
            steps: 0,
            layers,
            merged,
            gradients,
            held: None,
        })
    }

    /// Returns the text of `adapter_config.json`.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Makes the matrices of a layer, unless they are there.
    pub(crate) fn hold(&mut self, ops: &O, l: usize, base: Layer<&O::Matrix>) {
        if self.held == Some(l) {
            return;
        }
        let parts = self.layers[l].all().into_iter();
        for ((parts, merged), base) in parts.zip(self.merged.all_mut()).zip(base.all()) {
            let Some(merged) = merged else { continue };
            for Part { p, pair } in parts {
                let ba = pair.as_ref().map(|pair| pair.matrices.each_ref());
                let mask = pair.as_ref().and_then(|pair| pair.mask.as_ref());
                ops.merge(*p, base, ba, mask, merged);
            }
        }
        self.held = Some(l);
    }

    /// Returns the matrices of the layer that is held, and where their gradients go. `base` are the
    /// frozen ones.
    pub(crate) fn layer<'a>(
        &'a mut self,
        base: Layer<WithGradient<'a, O>>,
    ) -> Layer<WithGradient<'a, O>> {
        let mut own = self.merged.all().into_iter().zip(self.gradients.all_mut());
        base.map(|base| match own.next() {
            Some((Some(merged), gradient)) => (merged, gradient.as_mut()),
            _ => base,
        })
    }

    /// Sets the gradients of the layer's matrices to zero.
    pub(crate) fn clear(&mut self, ops: &O) {
        let parts = self.layers[0].all().into_iter();
        for (parts, gradient) in parts.zip(self.gradients.all_mut()) {
            let len = parts.iter().map(|part| part.p.rows * part.p.cols).sum::<u32>();
            if let Some(gradient) = gradient {
                ops.clear(gradient, len as usize);
            }
        }
    }

    /// Adds the gradients of a layer's adapters, from those of its matrices.
    pub(crate) fn take(&mut self, ops: &O, l: usize) {
        let parts = self.layers[l].all_mut().into_iter();
        for (parts, dw) in parts.zip(self.gradients.all()) {
            let Some(dw) = dw else { continue };
            for Part { p, pair } in parts {
                if let Some(Pair { matrices, slots: [b, a], mask }) = pair {
                    let dba = [&mut b.gradient, &mut a.gradient];
                    ops.merge_backward(*p, dw, matrices.each_ref(), mask.as_ref(), dba);
                }
            }
        }
    }

    /// Returns each matrix and its slot.
    pub(crate) fn trained(&self) -> impl Iterator<Item = (&O::Matrix, &Slot<O>)> {
        let parts = self.layers.iter().flat_map(Layer::all).flatten();
        let pairs = parts.filter_map(|part| part.pair.as_ref());
        pairs.flat_map(|pair| pair.matrices.iter().zip(&pair.slots))
    }

    /// Returns each matrix and its slot.
    pub(crate) fn trained_mut(&mut self) -> impl Iterator<Item = (&mut O::Matrix, &mut Slot<O>)> {
        let parts = self.layers.iter_mut().flat_map(Layer::all_mut).flatten();
        let pairs = parts.filter_map(|part| part.pair.as_mut());
        pairs.flat_map(|pair| pair.matrices.iter_mut().zip(&mut pair.slots))
    }

    /// Counts a step: the adapters have changed.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        self.held = None;
    }

    /// Drops the columns of this step, or none.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn set_dropout(&mut self, ops: &O, on: bool) -> Result<()> {
        let dropout = self.lora.dropout;
        if dropout == 0.0 {
            return Ok(());
        }
        let step = (self.steps as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = fastrand::Rng::with_seed(self.seed ^ step);
        let kept = (1.0 / (1.0 - dropout)) as f32;
        let parts = self.layers.iter_mut().flat_map(Layer::all_mut).flatten();
        for Part { p, pair } in parts {
            let Some(pair) = pair else { continue };
            let column = |_| if random.f64() < dropout { 0.0 } else { kept };
            let mask: Vec<f32> = (0..p.cols).map(column).collect();
            pair.mask = if on { Some(ops.upload(1, mask.len(), &mask)?) } else { None };
        }
        self.held = None;
        Ok(())
    }
}

/// Values of A or B, and the moments of the optimiser; all 0 without.
struct Values {
    values: Vec<f32>,
    moments: Option<[Vec<f32>; 2]>,
}

/// Returns the values of B and A of the tensor of this name; the shapes are those of B and A.
type Make<'a> = dyn FnMut(&str, [&Expected; 2]) -> Result<[Values; 2]> + 'a;

impl<O: Backward> Pair<O> {
    fn make(
        ops: &O,
        rank: usize,
        tensor: &str,
        [rows, cols]: [usize; 2],
        values: &mut Make<'_>,
    ) -> Result<Self> {
        let [a_name, b_name] = names(tensor);
        let b = Expected { name: b_name, shape: vec![rows, rank] };
        let a = Expected { name: a_name, shape: vec![rank, cols] };
        let [b_values, a_values] = values(tensor, [&b, &a])?;
        let one = |tensor: Expected, Values { values, moments }: Values| -> Result<_> {
            let [rows, cols] = [tensor.shape[0], tensor.shape[1]];
            let matrix = ops.parameters(rows, cols, &values)?;
            Ok((matrix, Slot::new(ops, vec![tensor], moments)?))
        };
        let ((b, b_slot), (a, a_slot)) = (one(b, b_values)?, one(a, a_values)?);
        Ok(Self { matrices: [b, a], slots: [b_slot, a_slot], mask: None })
    }
}

/// Returns the bytes of an adapter in f32, and those of the matrices of one layer that have one.
pub(crate) fn sizes(lora: &Lora, config: &Config) -> [u64; 2] {
    let mut bytes = [0, 0];
    for Expected { shape, .. } in adaptable(config).iter().filter(|e| lora.has(&e.name)) {
        bytes[0] += 4 * (lora.rank * (shape[0] + shape[1])) as u64;
    }
    let shapes: BTreeMap<String, Vec<usize>> =
        expected(config).into_iter().map(|e| (e.name, e.shape)).collect();
    let stacks = Layer::names(config, 0);
    for stack in stacks.all().into_iter().filter(|stack| stack.iter().any(|name| lora.has(name))) {
        let elements = |name: &String| shapes[name].iter().product::<usize>();
        bytes[1] += 4 * stack.iter().map(elements).sum::<usize>() as u64;
    }
    bytes
}
