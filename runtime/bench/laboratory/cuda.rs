//! A user's own CUDA kernels in place of the project's: checked over the case table against the
//! reference, then timed beside ours on a GPU, or predicted for one that is not there.
//!
//! What a kernel is given and what it may assume is in `docs/kernels.md`.

use super::Checked;
use crate::Result;
use crate::case::{Case, Op, Step};
use crate::cases::cases;
use gritlm::predict::{self, Predictor};
use gritlm_kernels::Options;
pub use gritlm_kernels::compile::Compiled;
use gritlm_kernels::compile::Nvrtc;
use gritlm_kernels::source;
pub use gritlm_kernels::source::Source;
use gritlm_kernels::tune::Form;
pub use gritlm_kernels::{Cuda, devices};
use gritlm_model::measure::Measure;
use gritlm_model::ops::{DeviceError, Ops};
use gritlm_model::weights::Dtype;
use serde::Serialize;

/// A user's own sources, and the architecture that they are compiled for where there is no GPU.
#[derive(Debug)]
pub struct Laboratory {
    /// The sources, each in place of the one with its stem.
    pub own: Vec<Source>,
    /// `sm_80` is an A100, `sm_90a` an H200.
    pub arch: String,
}

/// A launch of our kernel and of the user's, both predicted.
#[derive(Clone, Debug, Serialize)]
pub struct Predicted {
    /// Ours.
    pub ours: predict::Row,
    /// The user's.
    pub yours: predict::Row,
}

impl Laboratory {
    /// Returns those cases of the table that launch one of the kernels.
    ///
    /// # Errors
    /// When the architecture has no model.
    pub fn cases(&self) -> Result<Vec<Case>> {
        let (planned, _) = Cuda::planned(&self.arch)?;
        let all = cases().into_iter().filter(|case| planned.takes(case.dtype));
        let all: Vec<Case> = all.map(|case| Case { bf16: true, ..case }).collect();
        self.launching(all, |case| case)
    }

    /// Returns those of `all` whose case launches one of the kernels.
    ///
    /// # Errors
    /// When the architecture has no model.
    pub fn launching<T>(&self, all: Vec<T>, case: impl Fn(&T) -> &Case) -> Result<Vec<T>> {
        let (planned, plan) = Cuda::planned(&self.arch)?;
        let mut wanted = Vec::new();
        for one in all {
            case(&one).ready(&planned)?(Step::Launch)?;
            let mut plan = plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let mut launches = std::mem::take(&mut *plan).into_iter();
            if launches.any(|l| self.own.iter().any(|own| own.stem == l.source)) {
                wanted.push(one);
            }
        }
        Ok(wanted)
    }

    /// Compiles the sources for the GPU with this number, or for the architecture.
    ///
    /// # Errors
    /// When there is no such GPU or no NVRTC for it, or a source does not compile; then with all that
    /// the compiler says.
    pub fn compile(&self, gpu: Option<u32>) -> Result<Vec<(&Source, Compiled)>> {
        let nvrtc = Nvrtc::open()?;
        let arch = match gpu {
            None => self.arch.clone(),
            Some(ordinal) => {
                let gpus = devices()?;
                let gpu = gpus.get(ordinal as usize).ok_or_else(|| {
                    DeviceError(format!("expected a GPU number {ordinal}, found {}", gpus.len()))
                })?;
                nvrtc.architecture(gpu.capability)?
            }
        };
        let compiled = self.own.iter().map(|own| Ok((own, nvrtc.compile(own, &arch)?)));
        compiled.collect()
    }

    /// Opens the interpreter of PTX as the architecture's GPU, with the user's kernels.
    ///
    /// # Errors
    /// As [`Cuda::interpreted`].
    pub fn interpreter(&self) -> Result<Cuda> {
        Ok(Cuda::interpreted(&self.arch, &self.own)?)
    }

    /// Runs the cases on a device, products in every form, and compares them with the reference.
    /// `at(done, all)` is called before each.
    ///
    /// # Errors
    /// That of `at`. What the device or a kernel does wrong is in the result.
    pub fn check(
        &self,
        device: &mut Cuda,
        cases: &[Case],
        mut at: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<Checked> {
        let forms: Vec<Option<Form>> = [None].into_iter().chain(Form::all().map(Some)).collect();
        let of = |case| forms.iter().filter(move |form| form.is_none() || is_product(case));
        let all = cases.iter().map(|case| of(case).count()).sum::<usize>() as u64;
        let mut checked = Checked::default();
        for case in cases {
            let expected = case.expected();
            for form in of(case) {
                at(checked.cases as u64, all)?;
                checked.cases += 1;
                device.compute_as(*form);
                let name = match form {
                    Some(form) => format!("{} as {form}", case.name),
                    None => case.name.clone(),
                };
                match case.compare(device, &expected, device.bound()) {
                    Ok(error) if error > checked.error => {
                        (checked.error, checked.worst) = (error, name);
                    }
                    Ok(_) => {}
                    Err(problem) => checked.failed.push(format!("{name}: {problem}")),
                }
            }
        }
        device.compute_as(None);
        let launched = device.entries().into_iter().filter(|(stem, _)| self.replaces(stem));
        checked.launched = launched.map(|(_, entry)| entry).collect();
        Ok(checked)
    }

    fn replaces(&self, stem: &str) -> bool {
        self.own.iter().any(|own| own.stem == stem)
    }

    /// Predicts the kernels' launches in the steps of a model of this shape, ours and the user's.
    ///
    /// # Errors
    /// When the shape is unknown, a source does not compile, or `nvdisasm` is not on the path.
    pub fn predict(&self, like: &str) -> Result<Vec<Predicted>> {
        let ours: Vec<Source> =
            source::all().iter().filter(|source| self.replaces(source.stem)).cloned().collect();
        let predicted = |sources: &[Source]| -> Result<Vec<predict::Row>> {
            Ok(predict::predict(&Predictor::of(&self.arch, sources)?, like)?)
        };
        let pairs = predicted(&ours)?.into_iter().zip(predicted(&self.own)?);
        Ok(pairs.map(|(ours, yours)| Predicted { ours, yours }).collect())
    }
}

/// Opens the GPU with this number to measure on, with these sources in place of ours.
///
/// # Errors
/// As [`Cuda::open`].
pub fn open(ordinal: u32, own: &[Source]) -> Result<Cuda> {
    let options = Options::default().ordinal(ordinal).profile(true).own(own.to_vec());
    Ok(Cuda::open(&options)?)
}

/// Whether the case is a product, which can be computed in every form.
pub fn is_product(case: &Case) -> bool {
    let op = &case.op;
    case.dtype == Dtype::Bf16
        && matches!(
            op,
            Op::Qkv(..) | Op::LinearAdd(_) | Op::GateUp(_) | Op::Logits { .. } | Op::Expert(_)
        )
}
