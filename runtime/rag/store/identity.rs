//! The identity of a store: what it was made with.

use crate::{Error, Result};
use gritlm::{Attn, Engine};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Defines an enum whose variants have names on the command line and in the store.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident, $option:literal, $expected:literal,
     $($(#[$about:meta])* $variant:ident = $text:literal),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$about])* $variant),+ }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text),+ })
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    found => Err(gritlm::Error::Option {
                        option: $option,
                        expected: $expected.into(),
                        found: found.into(),
                    }.into()),
                }
            }
        }
    };
}

choice! {
    /// Which keys and values a store keeps.
    CacheKind, "cache", "none or doc",
    /// No keys and values: only vectors and texts.
    None = "none",
    /// Those computed by embedding each chunk.
    Doc = "doc"
}

choice! {
    /// The format of a store's vectors. The query and the sum stay in f32 in every format. A
    /// graph ([`Writer::set_approximate`](super::Writer::set_approximate)) keeps its own copy
    /// with one byte per number, and its candidates are scored again with these vectors: with f32
    /// or bf16 this is int8 search with rescoring.
    VectorFormat, "vectors", "f32, bf16 or int8",
    /// Unrounded, as computed.
    F32 = "f32",
    /// Rounded to bfloat16: a relative error of at most 2⁻⁸.
    Bf16 = "bf16",
    /// One byte per number and one scale per vector: an error of at most 1/254 of the vector's
    /// largest number.
    Int8 = "int8"
}

choice! {
    /// The format of a store's keys and values.
    KvFormat, "kv_format", "f32, bf16 or int8",
    /// Unrounded, as the CPU computes them.
    F32 = "f32",
    /// Rounded to bfloat16: a relative error of at most 2⁻⁸.
    Bf16 = "bf16",
    /// One byte per number and one scale per layer, head and token: an error of at most 1/254 of
    /// the largest of the scale's `head_dim` numbers.
    Int8 = "int8"
}

/// What a store was made with. Opening it with another model or another `attn` is an error that
/// names the difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The model's name, as given to the engine.
    pub model: String,
    /// The model's [`Engine::fingerprint`].
    #[serde(with = "hex")]
    pub fingerprint: u128,
    /// The attention that chunks were embedded with.
    #[serde(with = "letters")]
    pub attn: Attn,
    /// Width of a vector.
    pub dim: usize,
    /// `layers`, `kv_heads` and `head_dim` of the model.
    pub kv_shape: [usize; 3],
    /// The most tokens of a chunk.
    pub chunk: usize,
    /// Tokens that two neighbouring chunks share.
    pub overlap: usize,
    /// Which keys and values are kept beside text and vector.
    pub cache: CacheKind,
    /// The format of the vectors.
    pub vectors: VectorFormat,
    /// The format of keys and values.
    pub kv: KvFormat,
}

impl Identity {
    /// Returns the defaults of a new store for `engine`, with the engine's `attn`: chunks of 512
    /// tokens without overlap, no caches, vectors in f32, keys and values in bf16. Change the
    /// fields as needed.
    pub fn of(engine: &Engine) -> Self {
        let c = engine.config();
        Self {
            model: engine.name().into(),
            fingerprint: engine.fingerprint(),
            attn: engine.options().attn,
            dim: c.dim,
            kv_shape: [c.layers, c.kv_heads, c.head_dim],
            chunk: 512,
            overlap: 0,
            cache: CacheKind::None,
            vectors: VectorFormat::F32,
            kv: KvFormat::Bf16,
        }
    }

    /// Returns the bytes that the keys and values of one token take on disk: 128 KiB for
    /// GritLM-7B in bf16, 0 if none are kept. Each chunk adds 64 bytes.
    pub fn kv_bytes_per_token(&self) -> u64 {
        let [layers, kv_heads, head_dim] = self.kv_shape.map(|n| n as u64);
        let row = match self.kv {
            KvFormat::F32 => 4 * head_dim,
            KvFormat::Bf16 => 2 * head_dim,
            KvFormat::Int8 => head_dim + 4,
        };
        if self.cache == CacheKind::None { 0 } else { layers * 2 * kv_heads * row }
    }

    /// Returns the bytes that one vector takes on disk.
    pub fn vector_bytes(&self) -> usize {
        match self.vectors {
            VectorFormat::F32 => 4 * self.dim,
            VectorFormat::Bf16 => 2 * self.dim,
            VectorFormat::Int8 => self.dim + 4,
        }
    }

    /// Checks that the store's contents can be used with `engine` and `attn`.
    ///
    /// # Errors
    /// When the model or `attn` differs; the message names both. Models are compared by
    /// fingerprint, whatever their names and places.
    pub fn check(&self, engine: &Engine, attn: Attn) -> Result<()> {
        let asked = Self { attn, ..Self::of(engine) };
        self.differs(&asked).map_or(Ok(()), |problem| {
            Err(gritlm::Error::Input { what: "the store".into(), problem }.into())
        })
    }

    /// Returns why `asked` cannot use the store's contents, or None if it can.
    pub(super) fn differs(&self, asked: &Self) -> Option<String> {
        if self.fingerprint != asked.fingerprint {
            return Some(format!(
                "made by model {} (fingerprint {:032x}), and this is {} ({:032x})",
                self.model, self.fingerprint, asked.model, asked.fingerprint
            ));
        }
        let pairs = [
            ("attn", letters::name(self.attn).to_string(), letters::name(asked.attn).to_string()),
            ("dim", self.dim.to_string(), asked.dim.to_string()),
            ("KV shape", format!("{:?}", self.kv_shape), format!("{:?}", asked.kv_shape)),
        ];
        let other = pairs.into_iter().find(|(_, mine, other)| mine != other);
        other.map(|(what, mine, other)| format!("made with {what} {mine}, not {other}"))
    }

    /// Like [`Identity::differs`], for a writer: what it adds must be made with the same
    /// settings.
    pub(super) fn differs_for_writing(&self, asked: &Self) -> Option<String> {
        let pairs = [
            ("chunk", self.chunk.to_string(), asked.chunk.to_string()),
            ("overlap", self.overlap.to_string(), asked.overlap.to_string()),
            ("cache", self.cache.to_string(), asked.cache.to_string()),
            ("vectors", self.vectors.to_string(), asked.vectors.to_string()),
            ("kv_format", self.kv.to_string(), asked.kv.to_string()),
        ];
        self.differs(asked).or_else(|| {
            let other = pairs.into_iter().find(|(_, mine, other)| mine != other);
            other.map(|(what, mine, other)| format!("made with {what} {mine}, not {other}"))
        })
    }
}

/// Serialises a fingerprint as 32 hexadecimal digits, because JSON numbers do not hold 128 bits.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{value:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        let text = String::deserialize(from)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

/// Serialises `attn` in the letters of the original implementation.
mod letters {
    use gritlm::Attn;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn name(attn: Attn) -> &'static str {
        match attn {
            Attn::Bbcc => "bbcc",
            Attn::Cccc => "cccc",
        }
    }

    pub(super) fn serialize<S: Serializer>(value: &Attn, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(name(*value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Attn, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
