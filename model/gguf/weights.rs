//! The tensors of a GGUF file by their published names, in the published order of rows.

use super::files::{Gguf, Part};
use super::names::{self, Place};
use super::tensors::Info;
use crate::config::Config;
use crate::weights::{Expected, Tensor, expected};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

impl Gguf {
    /// Returns every tensor that the config requires.
    ///
    /// # Errors
    /// When a tensor is missing, surplus, or of another shape than the config says.
    pub(crate) fn weights(&self, config: &Config) -> Result<BTreeMap<String, Tensor>> {
        // A layer has several tensors. The names of those that a config requires take memory, so
        // a small file may not claim many layers.
        let (layers, tensors) = (config.layers, self.tensors().count());
        if layers > tensors {
            let key = "llama.block_count";
            let expected = format!("at most as many layers as the file has tensors, {tensors}");
            return self.metadata().fail(key, &expected, self.metadata().get(key));
        }
        let mut used = BTreeSet::from([names::ROPE_FACTORS.to_string()]);
        let mut all = BTreeMap::new();
        for want in expected(config) {
            let tensor = match names::place(&want.name) {
                None => return self.missing(&want.name, &want),
                Some(Place::Own(name)) => {
                    let tensor = self.own(&name, &want, config)?;
                    used.insert(name);
                    tensor
                }
                Some(Place::Expert { stacked, own, index }) => {
                    let name = if self.tensor(&stacked).is_some() { stacked } else { own };
                    let tensor = match name.ends_with("_exps.weight") {
                        true => self.expert(&name, index, &want, config)?,
                        false => self.own(&name, &want, config)?,
                    };
                    used.insert(name);
                    tensor
                }
            };
            all.insert(want.name, tensor);
        }
        match self.tensors().find(|info| !used.contains(&info.name)) {
            None => Ok(all),
            Some(info) => {
                let found = format!("a surplus tensor {} {:?}", info.dtype, info.shape);
                self.fail(&info.name, "no tensor of that name".into(), found)
            }
        }
    }

    fn fail<T>(&self, tensor: &str, expected: String, found: String) -> Result<T> {
        let path = match self.tensor(tensor) {
            Some((part, _)) => part.path.clone(),
            None => self.metadata().path().into(),
        };
        Err(Error::Tensor { path, tensor: tensor.into(), expected, found })
    }

    fn missing<T>(&self, name: &str, want: &Expected) -> Result<T> {
        self.fail(name, format!("{:?}", want.shape), "nothing".into())
    }

    /// Returns a tensor of that name.
    fn shaped(&self, name: &str, shape: &[usize]) -> Result<(&Part, &Info)> {
        match self.tensor(name) {
            None => self.fail(name, format!("{shape:?}"), "nothing".into()),
            Some((_, info)) if info.shape != shape => {
                self.fail(name, format!("{shape:?}"), format!("{:?}", info.shape))
            }
            Some(found) => Ok(found),
        }
    }

    fn own(&self, name: &str, want: &Expected, config: &Config) -> Result<Tensor> {
        let (part, info) = self.shaped(name, &want.shape)?;
        // The norms are read element by element.
        if want.shape.len() == 1 && info.dtype.is_quantized() {
            return self.fail(name, "BF16, F16 or F32".into(), info.dtype.to_string());
        }
        let tensor = part.tensor(info.dtype, &info.shape, info.range.clone());
        // llama.cpp turns neighbours of a head's rows where the published model turns row d and
        // row d + head_dim / 2, and its files have the rows of q and k in that order.
        let turned = [".attn_q.weight", ".attn_k.weight"].iter().any(|end| name.ends_with(end));
        Ok(if turned { tensor.with_halves_apart(config.head_dim) } else { tensor })
    }

    /// Returns the matrix of one expert out of all, `(experts, rows, cols)`.
    fn expert(&self, name: &str, index: usize, want: &Expected, config: &Config) -> Result<Tensor> {
        let count = config.experts.map_or(0, |experts| experts.count);
        let [rows, cols] = want.shape[..] else { return self.missing(name, want) };
        let (part, info) = self.shaped(name, &[count, rows, cols])?;
        let bytes = info.dtype.bytes(rows * cols);
        let start = info.range.start + index * bytes;
        Ok(part.tensor(info.dtype, &want.shape, start..start + bytes))
    }
}
