//! What the tests share: the error measure, the reference files, engines on them.

use gritlm::model::reference::relative_error;
use gritlm::model::weights::{Dtype, decode};
use gritlm::{Device, Engine, Options};
use pollster::block_on;
use safetensors::SafeTensors;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Fails with the name where the error is above the bound.
#[track_caller]
pub(crate) fn close(name: &str, out: &[f32], reference: &[f32], bound: f64) {
    let error = relative_error(out, reference);
    assert!(error <= bound, "{name}: relative error {error:.2e}, bound {bound:.0e}");
}

/// A line on stderr that is seen although the test passes: the runner captures `eprintln!` only.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

pub(crate) fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// A folder with `mistral-odd` whose tokenizer's unused tokens have become the two words that
/// ranking needs.
pub(crate) fn with_a_yes() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(data("mistral-odd").join(file), folder.path().join(file)).unwrap();
    }
    let tokenizer = std::fs::read_to_string(data("mistral-odd/tokenizer.json")).unwrap();
    let tokenizer = tokenizer.replace("<unused100>", "▁yes").replace("<unused101>", "▁no");
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    folder
}

/// `tokenizer.json` of Mistral 7B, whose vocabulary has 32000 tokens.
pub(crate) fn mistral_tokenizer() -> Vec<u8> {
    let file = std::fs::File::open(data("mistral-tokenizer/tokenizer.json.gz")).unwrap();
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut text).unwrap();
    text
}

/// The path of SmolLM2-135M's GGUF file, or `None` where it is not here and the test is skipped.
pub(crate) fn smollm2(test: &str) -> Option<String> {
    let path = std::env::var("GRITLM_SMOLLM2").ok();
    if path.is_none() {
        let expected = std::env::var_os("GRITLM_EXPECT_SMOLLM2");
        assert!(expected.is_none(), "GRITLM_SMOLLM2 is missing, GRITLM_EXPECT_SMOLLM2 is set");
        say(&format!("SKIPPED {test}: set GRITLM_SMOLLM2=FILE.gguf to run it"));
    }
    path
}

/// Every device that is here, with the largest relative error of a whole model on it.
pub(crate) fn devices() -> Vec<(Device, f64)> {
    let adapters = block_on(gritlm_shaders::adapters()).into_iter().filter(|a| a.lacks.is_none());
    let mut all = vec![(Device::Cpu, 1e-5)];
    all.extend(adapters.map(|a| (Device::Wgpu(a.label()), 1e-4)));
    all
}

/// Whether the long forms of tests were asked for.
pub(crate) fn long() -> bool {
    std::env::var_os("GRITLM_LONG").is_some()
}

/// The CPU and one adapter; all of [`devices`] in the long form. For what is the same code on every
/// adapter once each op is right there, which the case table and the golden files say.
pub(crate) fn two_devices() -> Vec<(Device, f64)> {
    let mut all = devices();
    if !long() {
        all.truncate(2);
    }
    all
}

/// A reference model and what Hugging Face computes with it; see `tests/data/README.md`.
pub(crate) struct Reference {
    pub(crate) engine: Engine,
    bytes: Vec<u8>,
}

impl Reference {
    pub(crate) fn open(name: &str) -> Self {
        Self::open_on(name, Device::Cpu)
    }

    pub(crate) fn open_on(name: &str, device: Device) -> Self {
        Self::open_with(name, Options::default().device(device))
    }

    pub(crate) fn open_with(name: &str, options: Options) -> Self {
        // The script that made the references cast each model to bf16 and back, and with it the
        // rotary frequencies.
        let options = options.bf16_frequencies(true);
        let engine = Engine::open(data(name).to_str().unwrap(), &options).unwrap();
        Self { engine, bytes: std::fs::read(data(name).join("cases.safetensors")).unwrap() }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).is_ok()
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        let all = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = all.tensor(name).unwrap();
        let mut out = vec![0.0; tensor.data().len() / 4];
        decode(Dtype::F32, tensor.data(), &mut out);
        out
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<u32> {
        let all = SafeTensors::deserialize(&self.bytes).unwrap();
        let bytes = all.tensor(name).unwrap().data();
        bytes.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect()
    }

    /// The rows of the reference's padded batch, without the padding.
    pub(crate) fn texts(&self) -> Vec<Vec<u32>> {
        let ids = self.ids("ids");
        let width = ids.len() / self.ids("lengths").len();
        let rows = ids.chunks(width).zip(self.ids("lengths"));
        rows.map(|(row, n)| row[..n as usize].to_vec()).collect()
    }

    /// Drops the padding of a tensor `(…, texts, width, columns)`: for each leading index the
    /// texts' rows one after the other.
    pub(crate) fn unpadded(&self, name: &str, columns: usize) -> Vec<f32> {
        let lengths = self.ids("lengths");
        let width = self.ids("ids").len() / lengths.len();
        let values = self.f32(name);
        let rows = values.chunks(width * columns).zip(lengths.iter().cycle());
        rows.flat_map(|(text, &n)| text[..n as usize * columns].to_vec()).collect()
    }
}
