//! The weights of a model that is trained: all in f32, with their gradients and the optimiser's
//! moments, or frozen in their own format beside adapters that are trained.

use crate::Result;
use crate::adapters::{Adapt, Adapters};
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

/// All weights of a model.
pub(crate) struct Parameters<O: Backward> {
    pub(crate) table: O::Matrix,
    pub(crate) layers: Vec<Layer<O::Matrix>>,
    pub(crate) norm: O::Matrix,
    /// `None` where the table is the head, too.
    pub(crate) head: Option<O::Matrix>,
    pub(crate) trained: Trained<O>,
}

/// What is trained.
pub(crate) enum Trained<O: Backward> {
    /// All weights.
    All(Slots<O>),
    /// Adapters only.
    Adapters(Adapters<O>),
}

/// What belongs to the matrices of [`Parameters`], in the same places.
pub(crate) struct Slots<O: Backward> {
    table: Slot<O>,
    layers: Vec<Layer<Slot<O>>>,
    norm: Slot<O>,
    head: Option<Slot<O>>,
}

/// A layer's matrices, and where their gradients go.
pub(crate) type LayerWithGradients<'a, O> =
    (Layer<&'a <O as Ops>::Matrix>, Layer<Option<&'a mut <O as Ops>::Buffer>>);

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
        let load = |names: &Vec<String>| -> Result<(O::Matrix, Slot<O>)> {
            let stacked = |weights: &Weights| -> Result<Vec<f32>> {
                let stack = names.iter().map(|name| weights.get(name));
                let stack: Vec<Tensor> = stack.collect::<gritlm_model::Result<_>>()?;
                Ok(stack.iter().flat_map(Tensor::to_f32).collect())
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
            Ok((matrix, Slot::new(ops, tensors, moments)?))
        };
        let one = |name: &str| load(&vec![name.to_string()]);
        let (table, table_slot) = one("model.embed_tokens.weight")?;
        let (mut layers, mut layer_slots) = (Vec::new(), Vec::new());
        for l in 0..config.layers {
            let (layer, slots) = Layer::names(config, l).try_map(load)?.unzip();
            layers.push(layer);
            layer_slots.push(slots);
        }
        let (norm, norm_slot) = one("model.norm.weight")?;
        let (head, head_slot) = match config.tied {
            true => (None, None),
            false => {
                let (head, slot) = one("lm_head.weight")?;
                (Some(head), Some(slot))
            }
        };
        let slots =
            Slots { table: table_slot, layers: layer_slots, norm: norm_slot, head: head_slot };
        Ok(Self { table, layers, norm, head, trained: Trained::All(slots) })
    }

    /// Takes the weights of a checkpoint as they are, and makes new adapters of them.
    ///
    /// # Errors
    /// When the device is out of memory, a tensor is missing or quantised, or the adapter's shape is
    /// invalid for the model.
    pub(crate) fn frozen(
        ops: &O,
        config: &Config,
        weights: &Weights,
        adapt: &Adapt<'_>,
    ) -> Result<Self> {
        let names: Vec<String> = expected(config).into_iter().map(|tensor| tensor.name).collect();
        check_plain(weights, names.iter().map(String::as_str))?;
        let adapters = Adapters::new(ops, config, adapt)?;
        let load = |names: &Vec<String>| -> Result<O::Matrix> {
            let stack = names.iter().map(|name| weights.get(name));
            Ok(ops.matrix(&stack.collect::<gritlm_model::Result<Vec<Tensor>>>()?)?)
        };
        let one = |name: &str| load(&vec![name.to_string()]);
        let layers = (0..config.layers).map(|l| Layer::names(config, l).try_map(load));
        Ok(Self {
            table: one("model.embed_tokens.weight")?,
            layers: layers.collect::<Result<_>>()?,
            norm: one("model.norm.weight")?,
            head: if config.tied { None } else { Some(one("lm_head.weight")?) },
            trained: Trained::Adapters(adapters),
        })
    }

    /// Makes the matrices of a layer, before it runs.
    pub(crate) fn hold(&mut self, ops: &O, l: usize) {
        if let Trained::Adapters(adapters) = &mut self.trained {
            adapters.hold(ops, l, &self.layers[l]);
        }
    }

    /// Returns the matrices of a layer that is held, and where their gradients go, if anywhere.
    pub(crate) fn layer(&mut self, l: usize) -> LayerWithGradients<'_, O> {
        let base = &self.layers[l];
        match &mut self.trained {
            Trained::All(slots) => {
                let gradients = slots.layers[l].as_mut().map(|slot| Some(&mut slot.gradient));
                (base.as_ref(), gradients)
            }
            Trained::Adapters(adapters) => adapters.layer(base),
        }
    }

    /// Begins the gradients of a layer for one chunk.
    pub(crate) fn begin_layer(&mut self, ops: &O) {
        if let Trained::Adapters(adapters) = &mut self.trained {
            adapters.clear(ops);
        }
    }

    /// Ends the gradients of a layer for one chunk.
    pub(crate) fn end_layer(&mut self, ops: &O, l: usize) {
        if let Trained::Adapters(adapters) = &mut self.trained {
            adapters.take(ops, l);
        }
    }

    /// Returns where the gradient of the embedding table goes, if anywhere.
    pub(crate) fn table_gradient(&mut self) -> Option<&mut O::Buffer> {
        match &mut self.trained {
            Trained::All(slots) => Some(&mut slots.table.gradient),
            Trained::Adapters(_) => None,
        }
    }

    /// Returns the last norm, and where its gradient goes, if anywhere.
    pub(crate) fn norm(&mut self) -> (&O::Matrix, Option<&mut O::Buffer>) {
        match &mut self.trained {
            Trained::All(slots) => (&self.norm, Some(&mut slots.norm.gradient)),
            Trained::Adapters(_) => (&self.norm, None),
        }
    }

    /// Returns the matrix of the logits, and where its gradient goes, if anywhere.
    pub(crate) fn head(&mut self) -> (&O::Matrix, Option<&mut O::Buffer>) {
        let head = self.head.as_ref().unwrap_or(&self.table);
        match &mut self.trained {
            Trained::All(Slots { table, head: own, .. }) => {
                (head, Some(&mut own.as_mut().unwrap_or(table).gradient))
            }
            Trained::Adapters(_) => (head, None),
        }
    }

    /// Calls `f` with each matrix that is trained and its slot, in the order of the forward pass.
    pub(crate) fn each<'a>(&'a self, mut f: impl FnMut(&'a O::Matrix, &'a Slot<O>)) {
        let slots = match &self.trained {
            Trained::All(slots) => slots,
            Trained::Adapters(adapters) => return adapters.each(f),
        };
        f(&self.table, &slots.table);
        for (layer, slots) in self.layers.iter().zip(&slots.layers) {
            layer.all().into_iter().zip(slots.all()).for_each(|(matrix, slot)| f(matrix, slot));
        }
        f(&self.norm, &slots.norm);
        if let (Some(head), Some(slot)) = (&self.head, &slots.head) {
            f(head, slot);
        }
    }

    /// Calls `f` with each matrix that is trained and its slot, in the order of the forward pass.
    pub(crate) fn each_mut<E>(
        &mut self,
        mut f: impl FnMut(&mut O::Matrix, &mut Slot<O>) -> Result<(), E>,
    ) -> Result<(), E> {
        let slots = match &mut self.trained {
            Trained::All(slots) => slots,
            Trained::Adapters(adapters) => return adapters.each_mut(f),
        };
        f(&mut self.table, &mut slots.table)?;
        for (layer, slots) in self.layers.iter_mut().zip(&mut slots.layers) {
            for (matrix, slot) in layer.all_mut().into_iter().zip(slots.all_mut()) {
                f(matrix, slot)?;
            }
        }
        f(&mut self.norm, &mut slots.norm)?;
        match (&mut self.head, &mut slots.head) {
            (Some(head), Some(slot)) => f(head, slot),
            _ => Ok(()),
        }
    }

    /// Returns the Euclidean norm of all gradients.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn gradient_norm(&mut self, ops: &O) -> Result<f64> {
        let mut sum = 0.0;
        self.each_mut(|_, slot| {
            sum += block_on(ops.squares(&slot.gradient, slot.len))?;
            Ok::<(), crate::Error>(())
        })?;
        Ok(sum.sqrt())
    }

    /// Takes a step of the optimiser and clears the gradients. Vectors (norms) do not decay.
    pub(crate) fn update(&mut self, ops: &O, p: AdamW) {
        let _ = self.each_mut(|matrix, slot| {
            let decay = if slot.tensors[0].shape.len() > 1 { p.decay } else { 0.0 };
            let p = AdamW { len: slot.len as u32, decay, ..p };
            let [m, v] = &mut slot.moments;
            ops.adamw(p, &slot.gradient, [m, v], matrix);
            ops.clear(&mut slot.gradient, slot.len);
            Ok::<(), ()>(())
        });
        if let Trained::Adapters(adapters) = &mut self.trained {
            adapters.step();
        }
    }

    /// Lets the dropout of this step count, or none.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn set_dropout(&mut self, ops: &O, on: bool) -> Result<()> {
        match &mut self.trained {
            Trained::All(_) => Ok(()),
            Trained::Adapters(adapters) => adapters.set_dropout(ops, on),
        }
    }
}
