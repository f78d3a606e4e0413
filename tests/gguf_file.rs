//! A writer of GGUF files, right ones and wrong ones, and the reference models as llama.cpp's
//! converter writes them.

use crate::support::data;
use safetensors::SafeTensors;
use serde_json::Value as Json;
use std::fs;

/// A value, by its type in the file.
#[derive(Clone)]
pub(crate) enum V {
    U8(u8),
    U16(u16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    /// Type and bytes as they are.
    Raw(u32, Vec<u8>),
}

pub(crate) fn text(text: &str) -> V {
    V::Text(text.into())
}

/// A tensor in the order of the file: innermost size first.
#[derive(Clone)]
pub(crate) struct T {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
    /// Offset to write in place of the right one.
    pub(crate) offset: Option<u64>,
}

/// A file to be written. What is `None` gets the right value.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) pair_count: Option<u64>,
    pub(crate) pairs: Vec<(String, V)>,
    pub(crate) tensors: Vec<T>,
    pub(crate) alignment: u64,
}

impl Default for Gguf {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            pair_count: None,
            pairs: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

fn put_array<T>(out: &mut Vec<u8>, kind: u32, all: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend(9_u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((all.len() as u64).to_le_bytes());
    all.iter().for_each(|one| put(out, one));
}

fn put(out: &mut Vec<u8>, value: &V) {
    let mut plain = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        V::U8(n) => plain(0, &n.to_le_bytes()),
        V::U16(n) => plain(2, &n.to_le_bytes()),
        V::U32(n) => plain(4, &n.to_le_bytes()),
        V::I32(n) => plain(5, &n.to_le_bytes()),
        V::F32(n) => plain(6, &n.to_le_bytes()),
        V::Bool(b) => plain(7, &[(*b).into()]),
        V::Raw(kind, bytes) => plain(*kind, bytes),
        V::Text(text) => {
            plain(8, &[]);
            put_text(out, text.as_bytes());
        }
        V::Texts(all) => put_array(out, 8, all, |out, text| put_text(out, text.as_bytes())),
        V::F32s(all) => put_array(out, 6, all, |out, n| out.extend(n.to_le_bytes())),
        V::I32s(all) => put_array(out, 5, all, |out, n| out.extend(n.to_le_bytes())),
    }
}

impl Gguf {
    /// Sets the value of a key; `None` takes the key out.
    pub(crate) fn set(&mut self, key: &str, value: Option<V>) -> &mut Self {
        let at = self.pairs.iter().position(|(known, _)| known == key);
        match (at, value) {
            (Some(at), Some(value)) => self.pairs[at].1 = value,
            (Some(at), None) => _ = self.pairs.remove(at),
            (None, Some(value)) => self.pairs.push((key.into(), value)),
            (None, None) => {}
        }
        self
    }

    /// The tensor of this name.
    pub(crate) fn tensor(&mut self, name: &str) -> &mut T {
        let found = self.tensors.iter_mut().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("{name}: no such tensor"))
    }

    pub(crate) fn add(&mut self, name: &str, dims: &[u64], kind: u32, bytes: Vec<u8>) -> &mut Self {
        let (name, dims) = (name.into(), dims.to_vec());
        self.tensors.push(T { name, dims, kind, bytes, offset: None });
        self
    }

    /// Everything before the elements, without the padding.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            put_text(&mut out, key.as_bytes());
            put(&mut out, value);
        }
        let mut at = 0;
        for tensor in &self.tensors {
            put_text(&mut out, tensor.name.as_bytes());
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(at).to_le_bytes());
            at += (tensor.bytes.len() as u64).next_multiple_of(self.alignment);
        }
        out
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        let pad = |out: &mut Vec<u8>| {
            out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        };
        pad(&mut out);
        for tensor in &self.tensors {
            out.extend(&tensor.bytes);
            pad(&mut out);
        }
        out
    }

    /// Writes it in `parts` files of about as many tensors each; the first has the metadata.
    pub(crate) fn parts(&self, parts: usize) -> Vec<Self> {
        let each = self.tensors.len().div_ceil(parts);
        let mut all: Vec<Self> = (self.tensors.chunks(each))
            .map(|tensors| Self { tensors: tensors.to_vec(), ..Self::default() })
            .collect();
        all[0].pairs.clone_from(&self.pairs);
        for (number, part) in all.iter_mut().enumerate() {
            part.set("split.no", Some(V::U16(number as u16)));
            part.set("split.count", Some(V::U16(parts as u16)));
            part.set("split.tensors.count", Some(V::I32(self.tensors.len() as i32)));
        }
        all
    }
}

/// How a mixture's experts are written.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Experts {
    /// One tensor for all, as today.
    Stacked,
    /// One tensor each, as until April 2024.
    Apart,
}

/// A reference model as llama.cpp's converter writes it: rows of q and k permuted, vectors in f32.
pub(crate) fn converted(model: &str, experts: Experts) -> Gguf {
    let read = |file: &str| fs::read(data(model).join(file)).unwrap();
    let config: Json = serde_json::from_slice(&read("config.json")).unwrap();
    let number = |field: &str| config[field].as_u64().unwrap() as u32;
    let mut file = Gguf::default();
    let mut set = |key: &str, value: V| _ = file.set(key, Some(value));
    set("general.architecture", text("llama"));
    set("general.name", text(model));
    for (key, field) in [
        ("llama.vocab_size", "vocab_size"),
        ("llama.context_length", "max_position_embeddings"),
        ("llama.embedding_length", "hidden_size"),
        ("llama.block_count", "num_hidden_layers"),
        ("llama.feed_forward_length", "intermediate_size"),
        ("llama.attention.head_count", "num_attention_heads"),
        ("llama.attention.head_count_kv", "num_key_value_heads"),
        ("llama.attention.key_length", "head_dim"),
        ("llama.attention.value_length", "head_dim"),
        ("llama.rope.dimension_count", "head_dim"),
        ("llama.expert_count", "num_local_experts"),
        ("llama.expert_used_count", "num_experts_per_tok"),
        ("llama.attention.sliding_window", "sliding_window"),
        ("tokenizer.ggml.bos_token_id", "bos_token_id"),
        ("tokenizer.ggml.eos_token_id", "eos_token_id"),
    ] {
        if config[field].is_u64() {
            set(key, V::U32(number(field)));
        }
    }
    for (key, field) in [
        ("llama.rope.freq_base", "rope_theta"),
        ("llama.attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ] {
        set(key, V::F32(config[field].as_f64().unwrap() as f32));
    }
    for (key, value) in tokens(&serde_json::from_slice(&read("tokenizer.json")).unwrap()) {
        set(key, value);
    }

    let stored = read("model.safetensors");
    let stored = SafeTensors::deserialize(&stored).unwrap();
    let mut stacks: Vec<(String, usize, T)> = Vec::new();
    for (name, tensor) in stored.iter() {
        let kind = match tensor.dtype() {
            safetensors::Dtype::F32 => 0,
            safetensors::Dtype::F16 => 1,
            safetensors::Dtype::BF16 => 30,
            other => panic!("{other:?}"),
        };
        let dims: Vec<u64> = tensor.shape().iter().rev().map(|&n| n as u64).collect();
        let name = converted_name(name);
        let bytes = match &name {
            name if name.ends_with("attn_q.weight") => permuted(&tensor, number("head_dim")),
            name if name.ends_with("attn_k.weight") => permuted(&tensor, number("head_dim")),
            _ => tensor.data().to_vec(),
        };
        if dims.len() == 1 && kind == 30 {
            let wide = bytes.as_chunks::<2>().0.iter();
            let wide = wide.flat_map(|b| (u32::from(u16::from_le_bytes(*b)) << 16).to_le_bytes());
            file.add(&name, &dims, 0, wide.collect());
            continue;
        }
        // blk.0.ffn_gate.3.weight
        let parts: Vec<&str> = name.split('.').collect();
        match parts[..] {
            [_, layer, matrix, expert, _] if experts == Experts::Stacked => {
                let stack = format!("blk.{layer}.{matrix}_exps.weight");
                let tensor = T { name: stack.clone(), dims, kind, bytes, offset: None };
                stacks.push((stack, expert.parse().unwrap(), tensor));
            }
            _ => _ = file.add(&name, &dims, kind, bytes),
        }
    }
    stacks.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    for (stack, expert, tensor) in stacks {
        match expert {
            0 => {
                let dims = [tensor.dims[0], tensor.dims[1], number("num_local_experts").into()];
                file.add(&stack, &dims, tensor.kind, tensor.bytes);
            }
            _ => file.tensor(&stack).bytes.extend(tensor.bytes),
        }
    }
    file.tensors.sort_by(|a, b| a.name.cmp(&b.name));
    file
}

/// The rows as `weights.reshape(heads, 2, head_dim // 2, cols).swapaxes(1, 2)` has them.
fn permuted(tensor: &safetensors::tensor::TensorView<'_>, head_dim: u32) -> Vec<u8> {
    let (rows, head_dim) = (tensor.shape()[0], head_dim as usize);
    let row_bytes = tensor.data().len() / rows;
    let mut out = Vec::new();
    for head in 0..rows / head_dim {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                let row = head * head_dim + half * head_dim / 2 + pair;
                out.extend(&tensor.data()[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    out
}

fn converted_name(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (published, file) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("block_sparse_moe.gate", "ffn_gate_inp"),
    ] {
        name = name.replace(published, file);
    }
    if let Some((layer, expert)) = name.split_once(".block_sparse_moe.experts.") {
        let (expert, matrix) = expert.split_once('.').unwrap();
        let matrix = match matrix {
            "w1.weight" => "ffn_gate",
            "w2.weight" => "ffn_down",
            _ => "ffn_up",
        };
        name = format!("{layer}.{matrix}.{expert}.weight");
    }
    name
}

/// The vocabulary of a `tokenizer.json` without merges, as a SentencePiece one.
fn tokens(tokenizer: &Json) -> Vec<(&'static str, V)> {
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(u64, &str)> =
        vocab.iter().map(|(token, id)| (id.as_u64().unwrap(), token.as_str())).collect();
    tokens.sort_unstable();
    let kind = |token: &str| match token {
        "<unk>" => 2,
        "<s>" | "</s>" => 3,
        _ if token.len() == 6 && token.starts_with("<0x") => 6,
        _ => 1,
    };
    vec![
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.tokens", V::Texts(tokens.iter().map(|t| t.1.to_string()).collect())),
        ("tokenizer.ggml.scores", V::F32s(tokens.iter().map(|t| -(t.0 as f32)).collect())),
        ("tokenizer.ggml.token_type", V::I32s(tokens.iter().map(|t| kind(t.1)).collect())),
        ("tokenizer.ggml.add_bos_token", V::Bool(true)),
    ]
}
