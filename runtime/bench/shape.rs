//! Formats the texts of [`Row::shape`](super::record::Row::shape). Equal texts mean equal work,
//! so our benchmarks, the peers and the parser of llama.cpp's files all take them from here; the
//! scripts in `benches/peers/torch` write the same texts.

/// A product of `rows` rows with an (outer, inner) matrix: `qkv`, `linear_add`, `gate_up`
/// (`outer` counts both halves), `logits`, `route`.
pub fn product(rows: u64, inner: u64, outer: u64) -> String {
    format!("{rows} x {inner} -> {outer}")
}

/// Products with (outer, inner) expert matrices: each row uses `top` of `experts`.
pub fn experts(rows: u64, inner: u64, experts: u64, outer: u64, top: u64) -> String {
    format!("{rows} x {inner} -> {experts} x {outer}, top {top}")
}

/// Query heads, key/value heads, and their width.
pub fn heads(heads: u64, kv_heads: u64, head_dim: u64) -> String {
    format!("{heads}:{kv_heads} x {head_dim}")
}

/// Attention over one whole sequence; `of` is from [`heads`].
pub fn attention(tokens: u64, of: &str) -> String {
    format!("T {tokens}, {of}")
}

/// Attention of one token in each of `batch` sequences to `context` keys, its own included; `of`
/// is from [`heads`].
pub fn attention_decode(batch: u64, context: u64, of: &str) -> String {
    format!("{}, {of}", decode(batch, context))
}

/// Rows of `cols` values: `rmsnorm`, `embed`.
pub fn rows(rows: u64, cols: u64) -> String {
    format!("{rows} x {cols}")
}

/// Tokens sampled from `rows` rows of logits; `how` is `greedy` or `top-k top-p`.
pub fn sample(rows: u64, vocab: u64, how: &str) -> String {
    format!("{}, {how}", self::rows(rows, vocab))
}

/// Pooling of `texts` texts of `tokens` rows each.
pub fn pool(texts: u64, tokens: u64, dim: u64) -> String {
    format!("{texts} x {tokens} x {dim}")
}

/// An exact search for the `top` nearest vectors.
pub fn search(queries: u64, documents: u64, dim: u64, top: u64) -> String {
    format!("{queries} x {documents} x {dim}, top {top}")
}

/// A model's `decode`: one step of `batch` sequences. `context` is the number of tokens that each
/// has before the first timed step; the time is that of one step.
pub fn decode(batch: u64, context: u64) -> String {
    format!("batch {batch}, context {context}")
}

/// A model's `prefill`: `batch` prompts of `tokens` tokens, up to the logits of the last token of
/// each.
pub fn prefill(batch: u64, tokens: u64) -> String {
    format!("{batch} x {tokens} tokens")
}

/// A model's `embed`: `texts` texts of `tokens` tokens in one pass.
pub fn embed(texts: u64, tokens: u64) -> String {
    format!("{texts} x {tokens} tokens")
}

/// An answer to a question: what is cached, and the tokens of query and document.
pub fn answer(cache: &str, query: u64, document: u64) -> String {
    format!("{cache}, {query} + {document}")
}

/// A shape of the suite `model` with the model's name, to distinguish it from other models':
/// `batch 1, context 0 of gritlm-7b`.
pub fn of(shape: &str, model: &str) -> String {
    format!("{shape} of {model}")
}
