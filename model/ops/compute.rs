//! The numbers in which matrix products are computed.

use std::fmt;
use std::str::FromStr;

/// In which numbers a backend multiplies matrices. Sums are in f32 whatever they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Activations and weights in f32: exact but for the rounding of sums.
    F32,
    /// Both rounded to IEEE half precision, 11 bits.
    F16,
    /// Both rounded to bfloat16, 8 bits.
    Bf16,
    /// Where few rows, as in decoding, are multiplied by quantised weights: activations rounded to
    /// 8 bits, with a scale for each block. All else in f32.
    Int8,
}

impl Compute {
    const ALL: [(Self, &str); 4] =
        [(Self::F32, "f32"), (Self::F16, "f16"), (Self::Bf16, "bf16"), (Self::Int8, "int8")];
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(one, _)| one == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Compute {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|&(one, _)| one).ok_or(())
    }
}
