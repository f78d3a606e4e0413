//! Arguments of `train` and `mine`.

use super::values::{PoolingArg, parse, plain};
use crate::error::{Error, Result};
use clap::Args as Group;
use gritlm_model::weights::Dtype;
use gritlm_train::{Batching, GenerativeLoss, Lengths, Lora, Mining, Objective, Options, Parts};
use std::path::PathBuf;

#[derive(Group)]
pub(crate) struct Train {
    /// A folder of JSONL files, or one: pairs to embed, conversations to answer, or both
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// The folder to create, or that of a run to go on with
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Train a model from scratch, of the shape that this config.json says: with random weights and a
    /// tokenizer learned from the data, instead of --model
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    objective: ObjectiveArgs,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Group)]
#[command(next_help_heading = "Batches")]
struct BatchArgs {
    /// Steps of the optimiser [default: as many as see each pair once]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Queries in a batch, each with its passages
    #[arg(long, value_name = "PAIRS", default_value_t = Batching::default().pairs)]
    batch: usize,
    /// Texts and conversations in a batch
    #[arg(long, value_name = "N", default_value_t = Batching::default().generative)]
    generative_batch: usize,
    /// Passages of a query: a positive one, and negative ones
    #[arg(long, value_name = "N", default_value_t = Options::default().group)]
    group_size: usize,
    /// Maximum tokens of a query; the rest is cut off
    #[arg(long, value_name = "N", default_value_t = Lengths::default().query_max_len)]
    query_max_len: usize,
    /// Maximum tokens of a passage or a document
    #[arg(long, value_name = "N", default_value_t = Lengths::default().passage_max_len)]
    passage_max_len: usize,
    /// Maximum tokens of a text or conversation
    #[arg(long, value_name = "N", default_value_t = Lengths::default().generative_max_len)]
    generative_max_len: usize,
    /// Seed of the order of samples
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Group)]
#[command(next_help_heading = "Optimiser (AdamW)")]
struct OptimizerArgs {
    /// Learning rate at its highest
    #[arg(long, value_name = "R", default_value_t = Options::default().learning_rate)]
    learning_rate: f64,
    /// Share of the steps in which the learning rate rises; then it falls to 0
    #[arg(long, value_name = "SHARE", default_value_t = Options::default().warmup)]
    warmup: f64,
    /// Weight decay of matrices
    #[arg(long, value_name = "D", default_value_t = Options::default().weight_decay)]
    weight_decay: f32,
    /// Norm to which a longer gradient is clipped
    #[arg(long, value_name = "NORM", default_value_t = Options::default().max_gradient_norm)]
    max_gradient_norm: f64,
    /// Stop before a step whose gradient is so many times as long as usual (the median of the last 32
    /// steps), and name its batch; 0 never
    #[arg(long, value_name = "FACTOR", default_value_t = Options::default().max_spike)]
    max_spike: f64,
}

#[derive(Group)]
#[command(next_help_heading = "Adapter (LoRA)")]
struct LoraArgs {
    /// Train a low-rank adapter of this rank instead of all weights. The output gets it in PEFT's
    /// format in `adapter/`, and a checkpoint with it merged in
    #[arg(long, value_name = "RANK")]
    lora: Option<usize>,
    /// Scale of the adapter, times the rank [default: four times the rank]
    #[arg(long, value_name = "A", requires = "lora")]
    lora_alpha: Option<f64>,
    /// Share of the adapter's inputs that each step drops, the same ones in all tokens
    #[arg(long, value_name = "P", default_value_t = 0.0, requires = "lora")]
    lora_dropout: f64,
    /// Modules that have an adapter, separated by commas [default: q_proj, k_proj, v_proj, o_proj and
    /// those of the feed-forward]
    #[arg(long, value_name = "MODULE,…", value_delimiter = ',', requires = "lora")]
    lora_targets: Vec<String>,
}

impl LoraArgs {
    fn lora(&self) -> Option<Lora> {
        let mut lora = Lora::new(self.lora?).dropout(self.lora_dropout);
        lora.alpha = self.lora_alpha.unwrap_or(lora.alpha);
        match self.lora_targets.is_empty() {
            true => Some(lora),
            false => Some(lora.targets(self.lora_targets.clone())),
        }
    }
}

#[derive(Group)]
#[command(next_help_heading = "Objective")]
struct ObjectiveArgs {
    /// Divisor of the cosines in the contrastive loss
    #[arg(long, value_name = "T", default_value_t = Objective::default().temperature)]
    temperature: f32,
    /// Weight of the contrastive loss
    #[arg(long, value_name = "W", default_value_t = Objective::default().embedding_weight)]
    embedding_weight: f32,
    /// Weight of the next-token loss
    #[arg(long, value_name = "W", default_value_t = Objective::default().generative_weight)]
    generative_weight: f32,
    /// Next-token loss: the mean over the tokens of groups of conversations (mixed), or the sum over
    /// all tokens by the number of conversations (token)
    #[arg(long, value_name = "HOW", default_value = "mixed", value_parser = ["mixed", "token"])]
    generative_loss: String,
    /// Conversations of one group of the mixed loss
    #[arg(long, value_name = "N", default_value_t = 32)]
    generative_group: usize,
    /// Weight of the auxiliary loss that keeps a mixture's experts equally busy; 0.02 in
    /// GritLM-8x7B
    #[arg(long, value_name = "W", default_value_t = Objective::default().router_weight)]
    router_weight: f32,
    /// Compare a query with its own passages only, not with all of the batch
    #[arg(long)]
    hard_negatives_only: bool,
    /// Learn vectors that can be cut to these numbers of dimensions, separated by commas
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    dimensions: Vec<usize>,
    /// How hidden states become one vector
    #[arg(long, value_enum, default_value_t = PoolingArg::Mean)]
    pooling: PoolingArg,
    /// Which tokens see which: b for both directions, c for causal; of an embedded text's
    /// instruction and text, of a prompt and its answer
    #[arg(long, value_name = "bbcc", default_value_t, value_parser = parse::<Parts>)]
    attn: Parts,
}

#[derive(Group)]
#[command(next_help_heading = "Run")]
struct RunArgs {
    /// Tokens that go through the model at once; more are faster and take more memory
    #[arg(long, value_name = "N", default_value_t = Options::default().chunk_tokens)]
    chunk_tokens: usize,
    /// Run each layer again on the way back instead of keeping its activations [default: only
    /// where they do not fit]
    #[arg(long)]
    recompute: bool,
    /// Steps between two saved states; a run with the same output goes on from the last one
    #[arg(long, value_name = "N", default_value_t = Options::default().save_every)]
    save_every: usize,
    /// Samples to evaluate on, as for --data
    #[arg(long, value_name = "DIR")]
    eval_data: Option<PathBuf>,
    /// Steps between two evaluations; 0 for one at the end
    #[arg(long, value_name = "N", default_value_t = 0, requires = "eval_data")]
    eval_every: usize,
    /// Format of the trained weights: bf16, f16 or f32
    #[arg(long, value_name = "TYPE", default_value_t = Dtype::Bf16, value_parser = plain)]
    save_type: Dtype,
}

#[derive(Group)]
pub(crate) struct Mine {
    /// A folder of JSONL files with pairs, or one file
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Negative passages of each query
    #[arg(long, value_name = "N", default_value_t = Mining::default().negatives)]
    negatives: usize,
    /// Nearest passages that are left out, since they may fit, too
    #[arg(long, value_name = "N", default_value_t = Mining::default().skip)]
    skip: usize,
    /// Leave out passages with a cosine above this share of the positive one's
    #[arg(long, value_name = "SHARE", default_value_t = Mining::default().margin)]
    margin: f32,
    /// Maximum tokens of a query; the rest is cut off
    #[arg(long, value_name = "N", default_value_t = Lengths::default().query_max_len)]
    query_max_len: usize,
    /// Maximum tokens of a passage
    #[arg(long, value_name = "N", default_value_t = Lengths::default().passage_max_len)]
    passage_max_len: usize,
}

impl Mine {
    pub(crate) fn lengths(&self) -> Lengths {
        let lengths = Lengths::default().query_max_len(self.query_max_len);
        lengths.passage_max_len(self.passage_max_len)
    }

    pub(crate) fn how(&self) -> Mining {
        Mining::default().negatives(self.negatives).skip(self.skip).margin(self.margin)
    }
}

impl Train {
    pub(crate) fn options(&self) -> Result<Options> {
        let (b, o, r) = (&self.batch, &self.objective, &self.run);
        let generative = match o.generative_loss.as_str() {
            "token" => GenerativeLoss::Token,
            _ => GenerativeLoss::Mixed { group: o.generative_group },
        };
        if b.group_size == 0 {
            let (expected, found) = ("1 passage or more".into(), "0".into());
            return Err(Error::Option { option: "--group-size", expected, found });
        }
        let objective = Objective::default()
            .temperature(o.temperature)
            .embedding_weight(o.embedding_weight)
            .generative(generative)
            .generative_weight(o.generative_weight)
            .router_weight(o.router_weight)
            .hard_negatives_only(o.hard_negatives_only)
            .dimensions(o.dimensions.clone())
            .pooling(o.pooling.into())
            .attention(o.attn);
        let lengths = Lengths::default()
            .query_max_len(b.query_max_len)
            .passage_max_len(b.passage_max_len)
            .generative_max_len(b.generative_max_len);
        let batching =
            Batching::default().pairs(b.batch).generative(b.generative_batch).seed(b.seed);
        Ok(Options::default()
            .steps(b.steps)
            .batching(batching)
            .group(b.group_size)
            .lengths(lengths)
            .objective(objective)
            .learning_rate(self.optimizer.learning_rate)
            .warmup(self.optimizer.warmup)
            .weight_decay(self.optimizer.weight_decay)
            .max_gradient_norm(self.optimizer.max_gradient_norm)
            .max_spike(self.optimizer.max_spike)
            .chunk_tokens(r.chunk_tokens)
            .keep_activations(r.recompute.then_some(false))
            .save_every(r.save_every)
            .evaluation(r.eval_data.clone())
            .evaluate_every(r.eval_every)
            .dtype(r.save_type)
            .lora(self.lora.lora()))
    }
}
