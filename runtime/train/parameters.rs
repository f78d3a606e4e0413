//! The weights that are trained, with their gradients and the optimiser's moments, all in f32.

use crate::Result;
use gritlm::layer::Layer;
use gritlm_model::config::Config;
use gritlm_model::ops::{AdamW, Backward};
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
    pub(crate) slots: Slots<O>,
}

/// What belongs to the matrices of [`Parameters`], in the same places.
pub(crate) struct Slots<O: Backward> {
    pub(crate) table: Slot<O>,
    pub(crate) layers: Vec<Layer<Slot<O>>>,
    pub(crate) norm: Slot<O>,
    pub(crate) head: Option<Slot<O>>,
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
            let len = tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum::<usize>();
            let zeros = || -> Result<O::Buffer> {
                let mut buffer = ops.buffer(len / cols, cols)?;
                ops.clear(&mut buffer, len);
                Ok(buffer)
            };
            let moments = match moments {
                None => [zeros()?, zeros()?],
                Some([first, second]) => [
                    ops.upload(len / cols, cols, &stacked(first)?)?,
                    ops.upload(len / cols, cols, &stacked(second)?)?,
                ],
            };
            Ok((matrix, Slot { tensors, len, gradient: zeros()?, moments }))
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
        Ok(Self { table, layers, norm, head, slots })
    }

    /// Calls `f` with each matrix and its slot, in the order of the forward pass.
    pub(crate) fn each<'a>(&'a self, mut f: impl FnMut(&'a O::Matrix, &'a Slot<O>)) {
        f(&self.table, &self.slots.table);
        for (layer, slots) in self.layers.iter().zip(&self.slots.layers) {
            layer.all().into_iter().zip(slots.all()).for_each(|(matrix, slot)| f(matrix, slot));
        }
        f(&self.norm, &self.slots.norm);
        if let (Some(head), Some(slot)) = (&self.head, &self.slots.head) {
            f(head, slot);
        }
    }

    /// Calls `f` with each matrix and its slot, in the order of the forward pass.
    pub(crate) fn each_mut<E>(
        &mut self,
        mut f: impl FnMut(&mut O::Matrix, &mut Slot<O>) -> Result<(), E>,
    ) -> Result<(), E> {
        f(&mut self.table, &mut self.slots.table)?;
        for (layer, slots) in self.layers.iter_mut().zip(&mut self.slots.layers) {
            for (matrix, slot) in layer.all_mut().into_iter().zip(slots.all_mut()) {
                f(matrix, slot)?;
            }
        }
        f(&mut self.norm, &mut self.slots.norm)?;
        match (&mut self.head, &mut self.slots.head) {
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
    }
}
