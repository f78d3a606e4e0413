//! Names of tensors: where a GGUF file has what the published layout has.

/// Place of a published tensor in a GGUF file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A tensor of its own.
    Own(String),
    /// The matrix of one expert: a part of the tensor `stacked` of all experts, or in older files
    /// the tensor `own`.
    Expert {
        /// Name of the tensor of all experts.
        stacked: String,
        /// Name of the expert's own tensor.
        own: String,
        /// The expert.
        index: usize,
    },
}

/// Returns the place of a tensor of the published layout.
pub(super) fn place(published: &str) -> Option<Place> {
    let own = |name: String| Some(Place::Own(format!("{name}.weight")));
    let name = published.strip_suffix(".weight")?;
    let Some((layer, part)) = name.strip_prefix("model.layers.").and_then(|n| n.split_once('.'))
    else {
        return own(match name {
            "model.embed_tokens" => "token_embd".into(),
            "model.norm" => "output_norm".into(),
            "lm_head" => "output".into(),
            _ => return None,
        });
    };
    if let Some(expert) = part.strip_prefix("block_sparse_moe.experts.") {
        let (expert, matrix) = expert.split_once('.')?;
        let index: usize = expert.parse().ok()?;
        let matrix = match matrix {
            "w1" => "ffn_gate",
            "w2" => "ffn_down",
            "w3" => "ffn_up",
            _ => return None,
        };
        return Some(Place::Expert {
            stacked: format!("blk.{layer}.{matrix}_exps.weight"),
            own: format!("blk.{layer}.{matrix}.{index}.weight"),
            index,
        });
    }
    let part = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "block_sparse_moe.gate" => "ffn_gate_inp",
        _ => return None,
    };
    own(format!("blk.{layer}.{part}"))
}

/// Factors of the rotary frequencies, which belong to the config.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The matrix of the logits.
pub(super) const HEAD: &str = "output.weight";
