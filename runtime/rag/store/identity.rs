//! What a store was made with.

use crate::{Attn, Engine, Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A choice with a name on the command line and in the store.
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
                    found => Err(Error::Option {
                        option: $option,
                        expected: $expected.into(),
                        found: found.into(),
                    }),
                }
            }
        }
    };
}

choice! {
    /// Which keys and values a store keeps of its documents.
    CacheKind, "--cache", "none or doc",
    /// None: vectors and texts only.
    None = "none",
    /// Those that embedding a chunk computed.
    Doc = "doc"
}

choice! {
    /// How a store keeps its vectors. Whatever it is, the query stays in f32, and so does the sum. A
    /// graph ([`Writer::set_approximate`](super::Writer::set_approximate)) has a byte a number of its
    /// own, and what it finds is scored again with these: over f32 or bf16 that is search by int8
    /// with rescoring.
    VectorFormat, "--vectors", "f32, bf16 or int8",
    /// As computed.
    F32 = "f32",
    /// Rounded to bfloat16: each number within 2⁻⁸ of itself.
    Bf16 = "bf16",
    /// Bytes with one scale a vector: each number within 1/254 of the vector's largest.
    Int8 = "int8"
}

choice! {
    /// How a store keeps keys and values.
    KvFormat, "--kv-format", "f32, bf16 or int8",
    /// As the CPU computes them.
    F32 = "f32",
    /// Rounded to bfloat16: each number within 2⁻⁸ of itself.
    Bf16 = "bf16",
    /// Bytes with one scale per layer, head and token: each number within 1/254 of the largest of
    /// its `head_dim`.
    Int8 = "int8"
}

/// What a store was made with. Opening it with another model or another `attn` is refused by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The model as it was asked for.
    pub model: String,
    /// [`Engine::fingerprint`].
    #[serde(with = "hex")]
    pub fingerprint: u128,
    /// Which attention embedded.
    #[serde(with = "letters")]
    pub attn: Attn,
    /// Numbers of a vector.
    pub dim: usize,
    /// Layers, kv_heads, head_dim.
    pub kv_shape: [usize; 3],
    /// Tokens of a chunk, at most.
    pub chunk: usize,
    /// Tokens that two neighbouring chunks share.
    pub overlap: usize,
    /// What is kept beside text and vector.
    pub cache: CacheKind,
    /// How vectors are kept.
    pub vectors: VectorFormat,
    /// How keys and values are kept.
    pub kv: KvFormat,
}

impl Identity {
    /// Of a new store for `engine` with the engine's `attn`: chunks of 512 tokens without overlap,
    /// no caches, vectors in f32, keys and values in bf16. Set the fields that are to be otherwise.
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

    /// Bytes that the keys and values of one token take on disk: 128 KiB for GritLM-7B in bf16, 0
    /// where none are kept. A chunk adds 64 bytes.
    pub fn kv_bytes_per_token(&self) -> u64 {
        let [layers, kv_heads, head_dim] = self.kv_shape.map(|n| n as u64);
        let row = match self.kv {
            KvFormat::F32 => 4 * head_dim,
            KvFormat::Bf16 => 2 * head_dim,
            KvFormat::Int8 => head_dim + 4,
        };
        if self.cache == CacheKind::None { 0 } else { layers * 2 * kv_heads * row }
    }

    /// Bytes that one vector takes on disk.
    pub fn vector_bytes(&self) -> usize {
        match self.vectors {
            VectorFormat::F32 => 4 * self.dim,
            VectorFormat::Bf16 => 2 * self.dim,
            VectorFormat::Int8 => self.dim + 4,
        }
    }

    /// Whether what this store holds may be used with `engine` and `attn`.
    ///
    /// # Errors
    /// When the model is another (by fingerprint: its name and place do not matter), or `attn` is;
    /// the message names both.
    pub fn check(&self, engine: &Engine, attn: Attn) -> Result<()> {
        let asked = Self { attn, ..Self::of(engine) };
        self.differs(&asked)
            .map_or(Ok(()), |problem| Err(Error::Input { what: "the store".into(), problem }))
    }

    /// Why `asked` may not use this store's contents, if so.
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

    /// As [`Identity::differs`], for a writer: what it adds must be made as the rest was.
    pub(super) fn differs_for_writing(&self, asked: &Self) -> Option<String> {
        let pairs = [
            ("--chunk", self.chunk.to_string(), asked.chunk.to_string()),
            ("--overlap", self.overlap.to_string(), asked.overlap.to_string()),
            ("--cache", self.cache.to_string(), asked.cache.to_string()),
            ("--vectors", self.vectors.to_string(), asked.vectors.to_string()),
            ("--kv-format", self.kv.to_string(), asked.kv.to_string()),
        ];
        self.differs(asked).or_else(|| {
            let other = pairs.into_iter().find(|(_, mine, other)| mine != other);
            other.map(|(what, mine, other)| format!("made with {what} {mine}, not {other}"))
        })
    }
}

/// A fingerprint as 32 hexadecimal digits: JSON numbers do not hold 128 bits.
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

/// `attn` in the original's letters.
mod letters {
    use crate::Attn;
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
