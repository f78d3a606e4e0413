//! Byte-level BPE. The merges are in the file; how a text is cut into words is known by name
//! (`tokenizer.ggml.pre`).

use super::{Merges, Steps, Vocabulary, split};
use crate::Result;
use serde_json::{Value, json};

/// GPT-2's words.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's words: numbers of up to three digits, line breaks with what is in front of them.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Qwen 2's words: as Llama 3's, but each digit by itself.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Mistral's words since Nemo: cut where lower case is followed by upper case.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Letters with case, as DeepSeek LLM's tokenizer lists them. Those that Unicode's composed form
/// spells otherwise are escaped, so that no editor changes them.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ",
    r"Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ",
    r"\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎ",
    r"ↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
);
/// What a file without a name means: punctuation, GPT-2's words, then numbers by three digits.
const NAMELESS: [&str; 4] = [r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// How a text is cut into words, and what follows from the name besides.
struct Words {
    /// Patterns, each applied to the parts that the one before has left.
    cuts: &'static [&'static str],
    /// Whether a word that is a token stays whole, and `<s>` goes in front by default: the files
    /// of Llama 3 and Mistral Nemo do not say so.
    whole: bool,
    /// Whether a text is brought into Unicode's composed form first.
    composed: bool,
}

/// The known names of pre-tokenizers, by what they do. The patterns are those of the models' own
/// `tokenizer.json`; the names are llama.cpp's.
const KNOWN: [(&[&str], Words); 10] = {
    const fn words(cuts: &'static [&'static str]) -> Words {
        Words { cuts, whole: false, composed: false }
    }
    [
        (&["default"], words(&NAMELESS)),
        (&["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"], words(&[GPT2])),
        (
            &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
            words(&[r"\p{N}", GPT2]),
        ),
        (
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"],
            Words { whole: true, ..words(&[LLAMA3]) },
        ),
        (&["smaug-bpe", "dbrx", "chatglm-bpe", "glm4"], words(&[LLAMA3])),
        (&["qwen2"], Words { composed: true, ..words(&[QWEN2]) }),
        (&["deepseek-r1-qwen", "stablelm2", "megrez", "grok-2"], words(&[QWEN2])),
        (&["tekken"], Words { whole: true, ..words(&[TEKKEN]) }),
        (
            &["deepseek-llm"],
            words(&[
                "[\r\n]",
                DEEPSEEK_LETTERS,
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                r"\s+$",
                "[一-龥ࠀ-一가-퟿]+",
                r"\p{N}",
            ]),
        ),
        (
            &["deepseek-coder"],
            words(&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
        ),
    ]
};

/// Returns a name for each way to cut a text.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|(names, _)| names[0])
}

/// Returns the steps, the merges, and whether `<s>` goes in front by default.
pub(super) fn steps<'a>(vocabulary: &Vocabulary<'a>) -> Result<(Steps<'a>, Merges<'a>, bool)> {
    let metadata = vocabulary.metadata;
    let key = "tokenizer.ggml.pre";
    let name = if metadata.has(key) { metadata.string(key)? } else { "default" };
    let Some((_, words)) = KNOWN.iter().find(|(names, _)| names.contains(&name)) else {
        let names: Vec<&str> = KNOWN.iter().flat_map(|(names, _)| *names).copied().collect();
        let expected = format!("one of {}", names.join(", "));
        return metadata.fail(key, &expected, metadata.get(key));
    };
    let Some(merges) = vocabulary.merges()? else {
        return metadata.fail("tokenizer.ggml.merges", "an array of strings", None);
    };
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
    });
    let cuts = words.cuts.iter().map(|pattern| split(pattern)).chain([bytes.clone()]);
    let pre_tokenizers: Vec<Value> = cuts.collect();
    let steps = Steps {
        normalizer: if words.composed { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": pre_tokenizers }),
        decoder: bytes,
        unknown: None,
        byte_fallback: false,
        ignores_merges: words.whole,
    };
    Ok((steps, merges, words.whole))
}
