//! Small texts of PTX on the interpreter, right and with one mistake each.

mod copies;
mod groups;
mod harness;
mod products;
mod rings;
