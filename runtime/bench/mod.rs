//! Speed, beside its limits and beside others: what `gritlm bench` measures and reports.

pub mod case;
pub mod cases;
pub mod limits;
pub mod ops;
pub mod record;
pub mod shape;
pub mod time;
