//! The options of opening a model.

use crate::arithmetic::Arithmetic;
use crate::backend::Device;
use crate::message::ChatFormat;
use crate::{Error, Result};
use gritlm_model::quantize::Quantization;
use gritlm_model::weights::Dtype;
use std::path::PathBuf;
use std::str::FromStr;

/// Attention of embedding and of generation, in the original's notation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attn {
    /// Bidirectional for embedding, causal for generation, as GritLM was published.
    #[default]
    Bbcc,
    /// Causal for both, for checkpoints that were trained this way.
    Cccc,
}

impl FromStr for Attn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "bbcc" => Ok(Self::Bbcc),
            "cccc" => Ok(Self::Cccc),
            found => Err(Error::Option {
                option: "attn",
                expected: "bbcc or cccc".into(),
                found: found.into(),
            }),
        }
    }
}

/// More than the positions of any model, and few enough that page and slot numbers fit a u32.
const MAX_KV_TOKENS: usize = 1 << 31;

/// Options for opening a model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Options {
    /// Device to compute on.
    pub device: Device,
    /// Attention that embedding uses by default.
    pub attn: Attn,
    /// Format of prompts that are conversations.
    pub chat_template: ChatFormat,
    /// Maximum number of tokens in a pass, unless one text alone is longer. More tokens per pass
    /// read the weights less often and take more memory: some 0.7 MB per token for GritLM-7B.
    pub batch_tokens: usize,
    /// Number of tokens that all KV pages together hold. A GPU allocates them when the model is
    /// opened; on the CPU they take memory as they are first used.
    pub kv_tokens: usize,
    /// Formats that the matrices get while the model is loaded, in place of the checkpoint's own:
    /// smaller ones save memory and, in decode, time. The quantised copy is in memory, also on the
    /// CPU. `None` keeps the checkpoint's.
    pub weights: Option<Quantization>,
    /// Folder of a low-rank adapter in PEFT's format that is merged into the weights while the model
    /// is loaded. The merged matrices are in memory, also on the CPU. Quantised weights cannot take
    /// one; with [`Options::weights`] the merged ones are quantised.
    pub adapter: Option<PathBuf>,
    /// Whether to round the rotary frequencies to bfloat16. Casting a whole Hugging Face model
    /// does so (`model.bfloat16()`, and likewise `model.half()`); loading it with a `torch_dtype`
    /// does not. Set this to compare with outputs of a cast model. The original loads GritLM and
    /// does not cast it.
    pub bf16_frequencies: bool,
    /// Whether to draw progress bars on a terminal while downloading and loading.
    pub progress: bool,
    /// Whether to time every op on a GPU; see [`Engine::profile`](crate::Engine::profile).
    pub profile: bool,
    /// Numbers that matrix products are computed in. `None` is f32 on the CPU and on wgpu, exact
    /// and on the CPU with the same bits in any batch, and bf16 on CUDA. In f16, wgpu multiplies
    /// in half precision where there are many rows (embedding, prefill): faster if the adapter has
    /// f16 or matrix units, with relative errors of about 1e-3.
    pub compute: Option<Arithmetic>,
    /// Format of the KV pages. `None` is f32 on the CPU and on wgpu, bf16 on CUDA. The CPU and wgpu
    /// also have F16, BF16 and, for heads of whole blocks of 32, Q8_0, which take a half or a quarter
    /// of the memory.
    pub kv_type: Option<Dtype>,
    /// On wgpu, whether to measure before loading which tiles are fastest, which takes some
    /// seconds. The result is kept in the cache folder for later starts on the same adapter.
    pub tune: bool,
    /// On wgpu, the maximum size in bytes of a buffer that holds a part of a weight matrix, if
    /// the adapter itself allows larger ones.
    pub matrix_bytes: Option<u64>,
    /// On CUDA, a folder of kernels made by `gritlm kernels build`, to load instead of compiling
    /// with NVRTC.
    pub kernels: Option<PathBuf>,
}

gritlm_model::setters!(Options {
    device: Device,
    attn: Attn,
    chat_template: ChatFormat,
    batch_tokens: usize,
    kv_tokens: usize,
    weights: Option<Quantization>,
    adapter: Option<PathBuf>,
    bf16_frequencies: bool,
    progress: bool,
    profile: bool,
    compute: Option<Arithmetic>,
    kv_type: Option<Dtype>,
    tune: bool,
    matrix_bytes: Option<u64>,
    kernels: Option<PathBuf>,
});

impl Default for Options {
    fn default() -> Self {
        let (device, attn) = (Device::default(), Attn::default());
        Self {
            device,
            attn,
            chat_template: ChatFormat::default(),
            batch_tokens: 1024,
            kv_tokens: 16384,
            weights: None,
            adapter: None,
            bf16_frequencies: false,
            progress: false,
            profile: false,
            tune: false,
            compute: None,
            kv_type: None,
            matrix_bytes: None,
            kernels: None,
        }
    }
}

impl Options {
    /// Checks the numbers of tokens.
    pub(crate) fn check(&self) -> Result<()> {
        for (option, tokens) in [("batch_tokens", self.batch_tokens), ("kv_tokens", self.kv_tokens)]
        {
            if tokens == 0 {
                let expected = "a positive number of tokens".into();
                return Err(Error::Option { option, expected, found: "0".into() });
            }
        }
        if self.kv_tokens > MAX_KV_TOKENS {
            return Err(Error::Option {
                option: "kv_tokens",
                expected: format!("at most {MAX_KV_TOKENS}"),
                found: self.kv_tokens.to_string(),
            });
        }
        Ok(())
    }
}
