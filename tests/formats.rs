//! Formats of quantised weights: what their blocks mean, what encoding loses, and products with
//! matrices of several formats.

use crate::support::data;
use gritlm::model::cpu::Cpu;
use gritlm::model::format::{Apart, Dtype, decode, encode};
use gritlm::model::ops::{GateUp, LinearAdd, Ops};
use gritlm::model::reference::{self, relative_error};
use gritlm::model::weights::Tensor;
use pollster::block_on;
use safetensors::SafeTensors;

pub(crate) fn quantized() -> impl Iterator<Item = Dtype> {
    Dtype::ALL.into_iter().filter(|dtype| dtype.is_quantized())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn decoded(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![f32::NAN; bytes.len() / dtype.block_bytes() * dtype.block()];
    decode(dtype, bytes, &mut values);
    values
}

fn encoded(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    // The bytes that were there before must not matter.
    let mut bytes = vec![0xa5; dtype.bytes(values.len())];
    encode(dtype, values, &mut bytes);
    bytes
}

/// Values of a bell-shaped distribution, as weights have it.
pub(crate) fn weights(len: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| (0..4).map(|_| random.f32() - 0.5).sum::<f32>() * 0.1).collect()
}

#[test]
fn blocks_mean_what_gguf_reads() {
    let file = std::fs::read(data("formats/blocks.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    for dtype in quantized() {
        let bytes = tensors.tensor(&format!("{dtype}.bytes")).unwrap();
        assert_eq!(bytes.shape()[1], dtype.block_bytes(), "{dtype}");
        let expected = tensors.tensor(&format!("{dtype}.values")).unwrap();
        assert_eq!(expected.shape()[1], dtype.block(), "{dtype}");
        let expected = bits(&decoded(Dtype::F32, expected.data()));
        assert_eq!(bits(&decoded(dtype, bytes.data())), expected, "{dtype}");
        let exact = reference::values(dtype, bytes.data());
        let rounded: Vec<f32> = exact.iter().map(|&value| value as f32).collect();
        assert_eq!(bits(&rounded), expected, "{dtype}, by the reference");
    }
}

/// The codes, units and numbers that backends with a layout of their own receive make the decoded
/// values, bit for bit.
#[test]
fn rows_taken_apart() {
    let file = std::fs::read(data("formats/blocks.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    for dtype in quantized() {
        let blocks = tensors.tensor(&format!("{dtype}.bytes")).unwrap();
        let expected = decoded(dtype, blocks.data());
        let coding = dtype.coding().unwrap();
        let mut row = Apart::new(dtype, expected.len());
        row.take(blocks.data());
        let half = |bits: u16| half::f16::from_bits(bits).to_f32();
        let first = if coding.signed { -1 << (coding.bits - 1) } else { 0 };
        let values = row.codes.iter().enumerate().map(|(i, &code)| {
            assert!(
                (first..first + (1 << coding.bits)).contains(&i32::from(code)),
                "{dtype}: {code}"
            );
            let code = coding.levels.map_or(code, |levels| levels[code as usize]);
            let [unit, offset_unit] = row.units[i / dtype.block()].map(half);
            assert_eq!(
                row.numbers[i / 16],
                row.numbers[i / coding.run * coding.run / 16],
                "{dtype}"
            );
            let [number, offset_number] = row.numbers[i / 16].map(f32::from);
            unit * number * f32::from(code) + offset_unit * offset_number
        });
        assert_eq!(bits(&values.collect::<Vec<_>>()), bits(&expected), "{dtype}");
    }
}

/// Every f16 number is what the `half` crate says, as an element and as a scale.
#[test]
fn every_half() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for (bytes, value) in all.chunks(2).zip(decoded(Dtype::F16, &all)) {
        let expected = half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        assert!(value == expected || (value.is_nan() && expected.is_nan()));
        let mut block = [0; 34];
        block[..2].copy_from_slice(bytes);
        block[2] = 1;
        let value = decoded(Dtype::Q8_0, &block)[0];
        assert!(value == expected || (value.is_nan() && expected.is_nan()), "{bytes:?}");
    }
}

/// Relative error of encoding weights, measured with these and 10 % above it.
#[test]
fn encoding_loses_as_little_as_the_format_must() {
    let values = weights(1 << 16, 1);
    for (dtype, bound) in [
        (Dtype::Q8_0, 0.0055),
        (Dtype::Q4_0, 0.09),
        (Dtype::Q4_1, 0.08),
        (Dtype::Q5_0, 0.045),
        (Dtype::Q5_1, 0.04),
        (Dtype::Q2K, 0.3),
        (Dtype::Q3K, 0.15),
        (Dtype::Q4K, 0.08),
        (Dtype::Q5K, 0.04),
        (Dtype::Q6K, 0.02),
        (Dtype::Iq4Xs, 0.08),
    ] {
        let error = relative_error(&decoded(dtype, &encoded(dtype, &values)), &values);
        println!("{dtype}: {error:.4}");
        assert!(error < bound, "{dtype}: {error}");
    }
}

#[test]
fn encoding_of_unusual_values() {
    let mut random = fastrand::Rng::with_seed(2);
    let mut large = weights(256, 3);
    large[77] = 1e30;
    large[78] = f32::INFINITY;
    let tiny: Vec<f32> = (0..256).map(|_| f32::from_bits(random.u32(..1 << 22))).collect();
    let mut with_nan = weights(256, 4);
    with_nan[5] = f32::NAN;
    for dtype in quantized() {
        let of = |values: &[f32]| decoded(dtype, &encoded(dtype, values));
        assert!(of(&[0.0; 256]).iter().all(|&value| value == 0.0), "{dtype}: zeros");
        assert!(of(&tiny).iter().all(|&value| value.abs() < 1e-6), "{dtype}: denormals");
        // Much smaller ones are lost: Q6_K's unit of scales is a 4096th of the values, in f16.
        for constant in [1.0, -0.37, 12345.6, -0.06] {
            let error = relative_error(&of(&[constant; 256]), &[constant; 256]);
            assert!(error < 0.02, "{dtype}: {constant} has error {error}");
        }
        let found = of(&large);
        assert!(found.iter().all(|value| value.is_finite()), "{dtype}: large values");
        assert!(found[77] > 1e5 && found[78] > 1e5, "{dtype}: {} {}", found[77], found[78]);
        assert!(of(&with_nan).iter().all(|value| value.is_finite()), "{dtype}: NaN");
        let negative: Vec<f32> = weights(256, 5).iter().map(|value| -value.abs() - 0.1).collect();
        let error = relative_error(&of(&negative), &negative);
        assert!(error < 0.12, "{dtype}: negative values have error {error}");
    }
}

/// The values do not depend on the pieces in which threads encode them.
#[test]
fn pieces_are_encoded_alike() {
    let values = weights(40 << 10, 6);
    for dtype in quantized() {
        let pieces = values.chunks(256).flat_map(|piece| encoded(dtype, piece));
        assert!(pieces.eq(encoded(dtype, &values)), "{dtype}");
    }
}

pub(crate) fn tensor(dtype: Dtype, rows: usize, cols: usize, seed: u64) -> Tensor {
    let values = weights(rows * cols, seed);
    Tensor::from_bytes(dtype, &[rows, cols], &encoded(dtype, &values))
}

fn product(rows: usize, w: &[Tensor], a: &[f32]) -> Vec<f32> {
    let (inner, outer) = (w[0].shape()[1], w.iter().map(|part| part.shape()[0]).sum::<usize>());
    let a = Cpu.upload(rows, inner, &a[..rows * inner]).unwrap();
    let mut x = Cpu.upload(rows, outer, &vec![0.0; rows * outer]).unwrap();
    let p = LinearAdd { rows: rows as u32, inner: inner as u32, outer: outer as u32 };
    Cpu.linear_add(p, &a, &Cpu.matrix(w).unwrap(), &mut x);
    block_on(Cpu.read(&x, rows * outer)).unwrap()
}

/// A row's product has the same bits alone, among few rows and among many, and those of a matrix
/// of the decoded values.
#[test]
fn same_bits_in_any_batch() {
    let (inner, outer, most) = (1280, 67, 9);
    let a = weights(most * inner, 7);
    for dtype in quantized() {
        let w = tensor(dtype, outer, inner, 8);
        let plain = Tensor::from_f32(&[outer, inner], &w.to_f32());
        let all = bits(&product(most, &[plain], &a));
        for rows in 1..=most {
            let found = bits(&product(rows, std::slice::from_ref(&w), &a));
            assert_eq!(found, all[..rows * outer], "{dtype}, {rows} rows");
        }
    }
}

/// Parts of a stacked matrix keep their formats.
#[test]
fn parts_of_several_formats() {
    let inner = 512;
    let a = weights(6 * inner, 9);
    let parts: Vec<Tensor> = Dtype::ALL
        .into_iter()
        .zip([5, 1, 64, 3, 30, 33, 2, 7, 4, 31, 1, 90, 6, 8])
        .map(|(dtype, rows)| tensor(dtype, rows, inner, rows as u64))
        .collect();
    let plain: Vec<Tensor> =
        parts.iter().map(|part| Tensor::from_f32(part.shape(), &part.to_f32())).collect();
    for rows in [1, 2, 6] {
        assert_eq!(bits(&product(rows, &parts, &a)), bits(&product(rows, &plain, &a)), "{rows}");
    }

    let hidden = 40;
    let gate_up = |parts: [&Tensor; 2], rows: usize| {
        let w = Cpu.matrix(&parts.map(Clone::clone)).unwrap();
        let h = Cpu.upload(rows, inner, &a[..rows * inner]).unwrap();
        let mut out = Cpu.buffer(rows, hidden).unwrap();
        let p = GateUp { rows: rows as u32, dim: inner as u32, hidden: hidden as u32 };
        Cpu.gate_up(p, &h, &w, &mut out);
        block_on(Cpu.read(&out, rows * hidden)).unwrap()
    };
    let (gate, up) = (tensor(Dtype::Q4K, hidden, inner, 1), tensor(Dtype::Q8_0, hidden, inner, 2));
    let [plain_gate, plain_up] =
        [&gate, &up].map(|part| Tensor::from_f32(part.shape(), &part.to_f32()));
    for rows in [1, 6] {
        let expected = gate_up([&plain_gate, &plain_up], rows);
        assert_eq!(bits(&gate_up([&gate, &up], rows)), bits(&expected), "{rows}");
    }
}
