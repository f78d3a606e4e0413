//! The weights of a model that is trained: all in f32, with their gradients and the optimiser's
//! moments, or frozen in their own format beside adapters that are trained.

use crate::Result;
use crate::adapters::Adapters;
use gritlm::layer::Layer;
use gritlm_model::adapter::check_plain;
use gritlm_model::config::Config;
use gritlm_model::ops::{AdamW, Backward, Ops};
use gritlm_model::weights::{Expected, Tensor, Weights, expected};
use pollster::block_on;
use std::collections::BTreeMap;
use std::ops::Range;

/// What belongs to one matrix besides its values.
pub(crate) struct Slot<O: Backward> {
    /// The tensors that the matrix stacks by rows.
    pub(crate) tensors: Vec<Expected>,
    /// Elements.
    pub(crate) len: usize,
    pub(crate) gradient: O::Buffer,
    pub(crate) moments: [O::Buffer; 2],
}

impl<O: Backward> Slot<O> {
    /// Makes the buffers of a matrix that stacks these tensors. Moments are 0 unless they are given.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn new(
        ops: &O,
        tensors: Vec<Expected>,
        moments: Option<[Vec<f32>; 2]>,
    ) -> Result<Self> {
        let cols = tensors[0].shape.last().copied().unwrap_or(1);
        let len = tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum::<usize>();
        let zeros = || -> Result<O::Buffer> {
            let mut buffer = ops.buffer(len / cols, cols)?;
            ops.clear(&mut buffer, len);
            Ok(buffer)
        };
        let moments = match moments {
            None => [zeros()?, zeros()?],
            Some([first, second]) => {
                [ops.upload(len / cols, cols, &first)?, ops.upload(len / cols, cols, &second)?]
            }
        };
        Ok(Self { tensors, len, gradient: zeros()?, moments })
    }

    /// Returns the elements of a tensor in the matrix, if it is one of the stack.
    pub(crate) fn range(&self, name: &str) -> Option<Range<usize>> {
        let mut start = 0;
        self.tensors.iter().find_map(|tensor| {
            let range = start..start + tensor.shape.iter().product::<usize>();
            start = range.end;
            (tensor.name == name).then_some(range)
        })
    }
}

/// A matrix, and what belongs to it if it is trained.
pub(crate) struct Parameter<O: Backward> {
    pub(crate) matrix: O::Matrix,
    pub(crate) slot: Option<Slot<O>>,
}

/// A matrix, and where its gradient goes, if anywhere.
pub(crate) type WithGradient<'a, O> = (&'a <O as Ops>::Matrix, Option<&'a mut <O as Ops>::Buffer>);

impl<O: Backward> Parameter<O> {
    fn with_gradient(&mut self) -> WithGradient<'_, O> {
        (&self.matrix, self.slot.as_mut().map(|slot| &mut slot.gradient))
    }
}

/// All weights of a model.
pub(crate) struct Parameters<O: Backward> {
    table: Parameter<O>,
    layers: Vec<Layer<Parameter<O>>>,
    norm: Parameter<O>,
    /// `None` where the table is the head, too.
    head: Option<Parameter<O>>,
    /// What is trained in place of the weights, if they are frozen.
    adapters: Option<Adapters<O>>,
}

impl<O: Backward> Parameters<O> {
    /// Widens the weights of a checkpoint to f32. `moments` are those of the optimiser; all 0
    /// without.
    ///
    /// # Errors
    /// When the device is out of memory, or a tensor is missing.
    pub(crate) fn load(
        ops: &O,
        config: &Config,
        weights: &Weights,
        moments: Option<[&Weights; 2]>,
    ) -> Result<Self> {
        let shapes: BTreeMap<String, Vec<usize>> =
            expected(config).into_iter().map(|e| (e.name, e.shape)).collect();
        Self::make(config, None, |names| {
            let stacked = |weights: &Weights| -> Result<Vec<f32>> {
                Ok(stack(weights, names)?.iter().flat_map(Tensor::to_f32).collect())
            };
            let shape =
                |name: &String| Expected { name: name.clone(), shape: shapes[name].clone() };
            let tensors: Vec<Expected> = names.iter().map(shape).collect();
            let cols = tensors[0].shape.last().copied().unwrap_or(1);
            let matrix = {
                let values = stacked(weights)?;
                ops.parameters(values.len() / cols, cols, &values)?
            };
            let moments = match moments {
                None => None,
                Some([first, second]) => Some([stacked(first)?, stacked(second)?]),
            };
            Ok(Parameter { matrix, slot: Some(Slot::new(ops, tensors, moments)?) })
        })
    }

    /// Takes the weights of a checkpoint as they are, frozen beside adapters.
    ///
    /// # Errors
    /// When the device is out of memory, or a tensor is missing or quantised.
    pub(crate) fn frozen(
        ops: &O,
        config: &Config,
        weights: &Weights,
        adapters: Adapters<O>,
    ) -> Result<Self> {
        let names: Vec<String> = expected(config).into_iter().map(|tensor| tensor.name).collect();
        check_plain(weights, names.iter().map(String::as_str))?;
        Self::make(config, Some(adapters), |names| {
            Ok(Parameter { matrix: ops.matrix(&stack(weights, names)?)?, slot: None })
        })
    }

    /// Makes each matrix of the tensors that it stacks by rows.
    fn make(
        config: &Config,
        adapters: Option<Adapters<O>>,
        mut make: impl FnMut(&Vec<String>) -> Result<Parameter<O>>,
    ) -> Result<Self> {
        let mut one = |name: &str| make(&vec![name.to_string()]);
        let table = one("model.embed_tokens.weight")?;
        let norm = one("model.norm.weight")?;
        let head = if config.tied { None } else { Some(one("lm_head.weight")?) };
        let layers = (0..config.layers).map(|l| Layer::names(config, l).try_map(&mut make));
        Ok(Self { table, layers: layers.collect::<Result<_>>()?, norm, head, adapters })
    }

    /// Makes the matrices of a layer, before it runs.
    pub(crate) fn hold(&mut self, ops: &O, l: usize) {
        if let Some(adapters) = &mut self.adapters {
            adapters.hold(ops, l, self.layers[l].as_ref().map(|base| &base.matrix));
        }
    }

    /// Returns the matrices of a layer that is held, and where their gradients go.
    pub(crate) fn layer(&mut self, l: usize) -> Layer<WithGradient<'_, O>> {
        let base = self.layers[l].as_mut().map(Parameter::with_gradient);
        match &mut self.adapters {
            None => base,
            Some(adapters) => adapters.layer(base),
        }
    }

    /// Begins the gradients of a layer for one chunk.
    pub(crate) fn begin_layer(&mut self, ops: &O) {
        if let Some(adapters) = &mut self.adapters {
            adapters.clear(ops);
        }
    }

    /// Ends the gradients of a layer for one chunk.
    pub(crate) fn end_layer(&mut self, ops: &O, l: usize) {
        if let Some(adapters) = &mut self.adapters {
            adapters.take(ops, l);
        }
    }

    /// Returns the embedding table, and where its gradient goes.
    pub(crate) fn table(&mut self) -> WithGradient<'_, O> {
        self.table.with_gradient()
    }

    /// Returns the last norm, and where its gradient goes.
    pub(crate) fn norm(&mut self) -> WithGradient<'_, O> {
        self.norm.with_gradient()
    }

    /// Returns the matrix of the logits, and where its gradient goes.
    pub(crate) fn head(&mut self) -> WithGradient<'_, O> {
        self.head.as_mut().unwrap_or(&mut self.table).with_gradient()
    }

    /// Returns what is trained in place of the weights.
    pub(crate) fn adapters(&self) -> Option<&Adapters<O>> {
        self.adapters.as_ref()
    }

    /// Returns each matrix that is trained and its slot.
    pub(crate) fn trained(&self) -> impl Iterator<Item = (&O::Matrix, &Slot<O>)> {
        let layers = self.layers.iter().flat_map(Layer::all);
        let all = [&self.table].into_iter().chain(layers).chain([&self.norm]).chain(&self.head);
        let all = all.filter_map(|one| Some((&one.matrix, one.slot.as_ref()?)));
        all.chain(self.adapters.iter().flat_map(Adapters::trained))
    }

    fn trained_mut(&mut self) -> impl Iterator<Item = (&mut O::Matrix, &mut Slot<O>)> {
        let layers = self.layers.iter_mut().flat_map(Layer::all_mut);
        let all = [&mut self.table].into_iter().chain(layers);
        let all = all.chain([&mut self.norm]).chain(&mut self.head);
        let all = all.filter_map(|one| Some((&mut one.matrix, one.slot.as_mut()?)));
        all.chain(self.adapters.iter_mut().flat_map(Adapters::trained_mut))
    }

    /// Returns the Euclidean norm of all gradients.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn gradient_norm(&self, ops: &O) -> Result<f64> {
        let mut sum = 0.0;
        for (_, slot) in self.trained() {
            sum += block_on(ops.squares(&slot.gradient, slot.len))?;
        }
        Ok(sum.sqrt())
    }

    /// Takes a step of the optimiser and clears the gradients. Vectors (norms) do not decay.
    pub(crate) fn update(&mut self, ops: &O, p: AdamW) {
        for (matrix, slot) in self.trained_mut() {
            let decay = if slot.tensors[0].shape.len() > 1 { p.decay } else { 0.0 };
            let p = AdamW { len: slot.len as u32, decay, ..p };
            let [m, v] = &mut slot.moments;
            ops.adamw(p, &slot.gradient, [m, v], matrix);
            ops.clear(&mut slot.gradient, slot.len);
        }
        if let Some(adapters) = &mut self.adapters {
            adapters.step();
        }
    }

    /// Lets the dropout of this step count, or none.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn set_dropout(&mut self, ops: &O, on: bool) -> Result<()> {
        match &mut self.adapters {
            None => Ok(()),
            Some(adapters) => adapters.set_dropout(ops, on),
        }
    }
}

/// Returns the tensors of these names.
fn stack(weights: &Weights, names: &[String]) -> Result<Vec<Tensor>> {
    Ok(names.iter().map(|name| weights.get(name)).collect::<gritlm_model::Result<_>>()?)
}
