//! The engine behind a scheduler, so that all that Python's threads and tasks ask for shares steps.

use crate::cache::Cache;
use crate::embed::{self, Embedded};
use crate::error::{GritLMError, raise, refused, unknown};
use crate::job::Job;
use crate::{run, sampling};
use gritlm::model::chat_template::{self, ChatTemplate};
use gritlm::model::prompt::CHAT_TEMPLATE;
use gritlm::model::quantize::Quantization;
use gritlm::schedule::{Limits, Past, Request, Scheduler, Work};
use gritlm::{Message, Options, Prompt, Role};
use gritlm_rag::{Passes, Scheduled};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A loaded model.
#[pyclass(frozen, module = "gritlm_rs._native")]
pub(crate) struct Engine {
    scheduler: Scheduler,
}

/// Refuses to compute in a fork of the process that opened the first engine. A fork has its memory,
/// but neither the scheduler's threads nor those of the CPU's pool, for which it would wait for ever.
fn not_forked() -> PyResult<()> {
    static FIRST: OnceLock<u32> = OnceLock::new();
    let here = std::process::id();
    let first = *FIRST.get_or_init(|| here);
    match first == here {
        true => Ok(()),
        false => Err(GritLMError::new_err(format!(
            "process {here} is a fork of {first}, which has opened an engine, and has none of its \
             threads: start processes with the method \"spawn\", or before the first engine"
        ))),
    }
}

/// Keyword arguments of opening a model; the package's Python files always give all of them.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Opening {
    device: String,
    attn: String,
    chat_template: String,
    batch_tokens: Option<usize>,
    kv_tokens: Option<usize>,
    weights: Option<String>,
    adapter: Option<std::path::PathBuf>,
    compute: Option<String>,
    kv_type: Option<String>,
    kernels: Option<std::path::PathBuf>,
    tune: bool,
    bf16_frequencies: bool,
    progress: bool,
}

/// A format of matrices or of KV pages.
fn format(option: &'static str, name: &str) -> PyResult<Quantization> {
    Quantization::from_str(name).map_err(|expected| unknown(option, &expected, name))
}

impl Opening {
    pub(crate) fn options(self) -> PyResult<Options> {
        let default = Options::default();
        let weights = self.weights.map(|name| format("weights", &name)).transpose()?;
        let kv_type = self.kv_type.map(|name| format("kv_type", &name)).transpose()?;
        let compute = self.compute.map(|name| name.parse().map_err(raise)).transpose()?;
        Ok(Options::default()
            .device(self.device.parse().map_err(raise)?)
            .attn(self.attn.parse().map_err(raise)?)
            .chat_template(self.chat_template.parse().map_err(raise)?)
            .batch_tokens(self.batch_tokens.unwrap_or(default.batch_tokens))
            .kv_tokens(self.kv_tokens.unwrap_or(default.kv_tokens))
            .weights(weights)
            .adapter(self.adapter)
            .compute(compute)
            .kv_type(kv_type.map(Quantization::dtype))
            .kernels(self.kernels)
            .tune(self.tune)
            .bf16_frequencies(self.bf16_frequencies)
            .progress(self.progress))
    }
}

/// What an answer begins with.
#[derive(FromPyObject)]
enum Start {
    Text(String),
    Tokens(Vec<u32>),
    Messages(Vec<(String, String)>),
}

/// Messages as pairs of role and content.
fn messages(pairs: Vec<(String, String)>) -> PyResult<Vec<Message>> {
    let one = |(role, content): (String, String)| {
        let role = match role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return Err(unknown("role", "system, user or assistant", &role)),
        };
        Ok(Message { role, content })
    };
    pairs.into_iter().map(one).collect()
}

/// An array `(texts, dim)`, and the texts' keys and values where they are kept.
type Vectors<'py> = (Bound<'py, PyArray2<f32>>, Vec<Option<Cache>>);

#[pymethods]
impl Engine {
    #[new]
    fn new(py: Python<'_>, model: &str, options: Opening) -> PyResult<Self> {
        not_forked()?;
        let options = options.options()?;
        let scheduler = py.detach(|| {
            let engine = gritlm::Engine::open(model, &options)?;
            let limits = Limits::default().batch_tokens(options.batch_tokens);
            Scheduler::start(engine, limits)
        });
        Ok(Self { scheduler: scheduler.map_err(raise)? })
    }

    /// The device in use and why it was chosen.
    #[getter]
    fn device(&self) -> String {
        self.engine().device()
    }

    /// Numbers of the model's shape, by name.
    #[getter]
    fn shape(&self) -> Vec<(&'static str, usize)> {
        let c = self.engine().config();
        vec![
            ("dim", c.dim),
            ("layers", c.layers),
            ("heads", c.heads),
            ("kv_heads", c.kv_heads),
            ("head_dim", c.head_dim),
            ("hidden", c.hidden),
            ("vocab", c.vocab),
            ("max_positions", c.max_positions),
        ]
    }

    /// Ids that end an answer.
    #[getter]
    fn eos(&self) -> Vec<u32> {
        self.engine().config().eos.clone()
    }

    /// The id of `<s>`.
    #[getter]
    fn bos(&self) -> u32 {
        self.engine().config().bos
    }

    /// Ids in front of every text that starts a sequence.
    #[getter]
    fn start(&self) -> Vec<u32> {
        self.engine().tokenizer().start().to_vec()
    }

    /// Whether the checkpoint can generate and rank.
    #[getter]
    fn generates(&self) -> bool {
        self.engine().generates()
    }

    /// Token ids of a text, with those in front that start a sequence or without.
    fn tokenize(&self, text: &str, special: bool) -> PyResult<Vec<u32>> {
        let tokenizer = self.engine().tokenizer();
        let ids = match special {
            true => tokenizer.encode(text),
            false => tokenizer.encode_continued(text),
        };
        ids.map_err(|error| raise(error.into()))
    }

    /// The text of token ids, special ones as spelled or left out.
    fn detokenize(&self, ids: Vec<u32>, skip_special: bool) -> PyResult<String> {
        let tokenizer = self.engine().tokenizer();
        let text = if skip_special { tokenizer.decode(&ids) } else { tokenizer.spell(&ids) };
        text.map_err(|error| raise(error.into()))
    }

    /// A token as the vocabulary spells it.
    fn piece(&self, id: u32) -> Option<String> {
        self.engine().tokenizer().piece(id)
    }

    /// The id of a token that is spelled so.
    fn id(&self, piece: &str) -> Option<u32> {
        self.engine().tokenizer().id(piece)
    }

    /// Token ids of a conversation, ready for the next answer or, where its last message is the
    /// assistant's, for the rest of it.
    fn conversation(&self, talk: Vec<(String, String)>, continues: bool) -> PyResult<Vec<u32>> {
        let prompt = Prompt::Messages(messages(talk)?);
        self.engine().tokenize_prompt(&prompt, continues).map_err(raise)
    }

    /// The text of a conversation in the checkpoint's template or, without one, GritLM's.
    fn render(&self, talk: Vec<(String, String)>, add_generation_prompt: bool) -> PyResult<String> {
        let engine = self.engine();
        let own;
        let template = match engine.chat_template() {
            Some(template) => template,
            None => {
                let source = CHAT_TEMPLATE.to_string();
                own = ChatTemplate::new(source, engine.config(), engine.tokenizer());
                &own
            }
        };
        let messages: Vec<chat_template::Message<'_>> =
            talk.iter().map(|(role, content)| chat_template::Message { role, content }).collect();
        let text = template.render(&messages, add_generation_prompt);
        text.map_err(|error| raise(error.into()))
    }

    /// Embeds texts.
    fn embed<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<PyBackedStr>,
        options: embed::Options,
        progress: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Vectors<'py>> {
        let (scheduler, count) = (self.scheduler()?, texts.len());
        let (how, encoded) = options.encode(py, self.engine(), &texts)?;
        drop(texts);
        let found = embed::embed(py, scheduler, encoded, &how, progress.as_ref())?;
        let Embedded { vectors, dim, caches } = found;
        Ok((PyArray1::from_vec(py, vectors).reshape([count, dim])?, caches))
    }

    /// Queues an answer; its pieces come from the job.
    #[expect(clippy::too_many_arguments, reason = "as many as an answer has options")]
    fn generate(
        &self,
        py: Python<'_>,
        start: Start,
        options: sampling::Options,
        raw: bool,
        past: Option<PyRef<'_, Cache>>,
        priority: i32,
        timeout: Option<f64>,
    ) -> PyResult<Job> {
        let (scheduler, engine) = (self.scheduler()?, self.engine());
        let sampling = options.sampling(py, engine)?;
        let prompt = match start {
            Start::Text(text) if raw => Prompt::Raw(text),
            Start::Text(text) => Prompt::User(text),
            Start::Tokens(ids) => Prompt::Tokens(ids),
            Start::Messages(talk) => Prompt::Messages(messages(talk)?),
        };
        let ids = engine.tokenize_prompt(&prompt, past.is_some()).map_err(raise)?;
        let verbatim = sampling.verbatim || prompt.is_verbatim();
        let sampling = sampling.verbatim(verbatim);
        let past =
            past.map(|past| Past { cache: past.snapshot.clone(), tokens: past.tokens.clone() });
        let count = ids.len();
        let work = Work::Generate { prompt: ids, sampling, past };
        let deadline = timeout.map(|seconds| {
            let limit = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            Instant::now().checked_add(limit)
        });
        let request = Request { priority, deadline: deadline.flatten(), ..Request::from(work) };
        py.detach(|| Job::submit(scheduler, request, count)).map_err(refused)
    }

    /// Index, logit of "yes" and probability of each passage, the most relevant first.
    fn rerank(
        &self,
        py: Python<'_>,
        query: &str,
        passages: Vec<PyBackedStr>,
    ) -> PyResult<Vec<(usize, f32, f32)>> {
        let passes = self.passes()?;
        let ranked = py.detach(|| {
            let prompts = self.engine().encode_passages(query, &passages).map_err(raise)?;
            passes.rank_prompts(prompts).map_err(crate::error::raise_rag)
        })?;
        Ok(ranked.into_iter().map(|r| (r.index, r.score, r.probability)).collect())
    }

    /// Runs sequences in one pass.
    fn run<'py>(
        &self,
        py: Python<'py>,
        sequences: Vec<run::Sequence>,
    ) -> PyResult<Vec<run::Output<'py>>> {
        run::run(py, self.scheduler()?.engine(), sequences)
    }

    /// Indices and scores of the vectors with the largest inner products, best first.
    fn search(
        &self,
        py: Python<'_>,
        queries: PyReadonlyArray2<'_, f32>,
        corpus: PyReadonlyArray2<'_, f32>,
        top_k: usize,
    ) -> PyResult<Vec<Vec<(u32, f32)>>> {
        let flat = |array: &PyReadonlyArray2<'_, f32>| -> Vec<f32> {
            array.as_array().iter().copied().collect()
        };
        let (dim, queries, corpus) = (corpus.as_array().ncols(), flat(&queries), flat(&corpus));
        let engine = self.scheduler()?.engine();
        let found = py.detach(|| engine.search(dim, &queries, &corpus, top_k));
        let found = found.map_err(raise)?.into_iter();
        Ok(found.map(|hits| hits.into_iter().map(|m| (m.index, m.score)).collect()).collect())
    }

    /// The scheduler's counters as JSON.
    fn stats(&self) -> PyResult<String> {
        serde_json::to_string(&self.scheduler.stats())
            .map_err(|e| pyo3::exceptions::PyRuntimeError::new_err(e.to_string()))
    }
}

impl Engine {
    pub(crate) fn engine(&self) -> &gritlm::Engine {
        self.scheduler.engine()
    }

    /// Returns the scheduler, for whatever needs its threads.
    pub(crate) fn scheduler(&self) -> PyResult<&Scheduler> {
        not_forked()?;
        Ok(&self.scheduler)
    }

    pub(crate) fn passes(&self) -> PyResult<Scheduled<'_>> {
        let (scheduler, cancel) = (self.scheduler()?, Default::default());
        Ok(Scheduled { scheduler, priority: 0, deadline: None, cancel })
    }
}

/// Devices of this machine: what `device` takes, whether it can be opened, and its name or what is
/// wrong with it.
#[pyfunction]
pub(crate) fn devices(py: Python<'_>) -> Vec<(String, bool, String)> {
    let found = py.detach(gritlm::devices).into_iter();
    found.map(|device| (device.device, device.available, device.description)).collect()
}
