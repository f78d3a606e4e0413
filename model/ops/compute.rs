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
    /// Activations rounded to 8 bits, with a scale for each 32, and the codes of quantised weights.
    Int8,
}

impl Compute {
    /// All of them, with their names.
    pub const ALL: [(Self, &str); 4] =
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

/// In which numbers matrices are multiplied by few rows of activations, as in decoding, and by many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Products {
    /// By a few rows, where reading the weights takes the time.
    pub few: Compute,
    /// By more rows.
    pub many: Compute,
}

impl Products {
    /// Returns the same numbers for all products.
    pub const fn all(compute: Compute) -> Self {
        Self { few: compute, many: compute }
    }
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.few == self.many {
            true => self.many.fmt(f),
            false => write!(f, "{} for few rows and {} for many", self.few, self.many),
        }
    }
}
