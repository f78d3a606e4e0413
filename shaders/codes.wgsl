// codes: how quantised weights are stored and read, for the products and `embed`.
//
//   value = scale · code + offset       scale = unit · number, offset = offset unit · offset number
//
// All formats have one layout, made of the file's blocks when they are uploaded (codes.rs). A row
// has four regions, each padded to whole vectors of 4 words:
//
//   low      LOW bits of each code: 4; 2 where codes have 2 or 3 bits; 8 where they have 8
//   high     the HIGH bits above them: 0, 1 or 2; from word p.high of the row on
//   units    a word for each block of 32 or 256 columns: f16 unit, f16 offset unit; from p.units on
//   numbers  16 bits for each run of 16 or 32 columns: i8 number, i8 offset number; from p.numbers
//            on, or 0 where a block is one run, whose numbers are 1
//
// In a region with B < 8 bits of each code, a word has 4 / B groups of 8 columns. Its byte i has
// columns 2 i and 2 i + 1 of each group, B bits each, the first group lowest. So one shift and one
// mask make the four even or the four odd codes of a group, each in a byte of its own. With 8 bits a
// group has a word of even codes and one of odd codes. Adjacent invocations, whose groups are
// adjacent, read adjacent words.
//
// Codes are unsigned; p.zero is the one that stands for 0. Where LEVELS, they are indices of IQ4_XS's
// levels. Numbers and signed codes are so short that scale · code is exact in f32.
//
// The shader's parameters p have the six fields of `Codes` in codes.rs, and its own file has
// fn word(member, i), word i of the weights that `member` selects.

override LOW: u32 = 4u;
override HIGH: u32 = 0u;
override LEVELS: bool = false;

// A byte of 1 in each.
const ONES = 0x01010101u;

// The even and the odd codes of group k, one in each byte, from a word with B bits of each.
fn bits_of(word: u32, b: u32, k: u32) -> vec2<u32> {
    let first = 2u * ((k * b) % 4u);
    return (vec2(word) >> vec2(first, first + b)) & vec2((ONES << b) - ONES);
}

// The bytes as numbers, each times 256 for every byte below its own (the last with two below it, so
// that none is negative): a mask and a conversion, without a shift of each. `places` undoes it; in
// `matvec` the activations are multiplied by it, once for eight rows of W.
fn numbers_of(bytes: u32) -> vec4<f32> {
    if LEVELS {
        return levels((vec4(bytes) >> vec4(0u, 8u, 16u, 24u)) & vec4(15u));
    }
    let parts = vec4(bytes, bytes, bytes, bytes >> 8u);
    return vec4<f32>(vec4<i32>(parts & vec4(0xffu, 0xff00u, 0xff0000u, 0xff0000u)));
}

fn places() -> vec4<f32> {
    return select(vec4(1.0, 0x1p-8, 0x1p-16, 0x1p-16), vec4(1.0), LEVELS);
}

// IQ4_XS's levels −127 −104 −83 −65, −49 −35 −22 −10, 1 13 25 38, 53 69 89 113, plus 128.
fn levels(index: vec4<u32>) -> vec4<f32> {
    let second = (index & vec4(4u)) != vec4(0u);
    let lower = select(vec4(0x3f2d1801u), vec4(0x766a5d4fu), second);
    let upper = select(vec4(0xa6998d81u), vec4(0xf1d9c5b5u), second);
    let four = select(lower, upper, (index & vec4(8u)) != vec4(0u));
    return vec4<f32>(vec4<i32>((four >> ((index & vec4(3u)) * 8u)) & vec4(255u)));
}

// The words with group k's codes, of the row that begins at word `at`.
struct Stored { low: vec2<u32>, high: u32 }

fn stored(member: u32, at: u32, k: u32) -> Stored {
    var group: Stored;
    if LOW == 8u {
        group.low = vec2(word(member, at + 2u * k), word(member, at + 2u * k + 1u));
    } else {
        group.low.x = word(member, at + k * LOW / 4u);
    }
    if HIGH > 0u {
        group.high = word(member, at + p.high + k * HIGH / 4u);
    }
    return group;
}

// Group k's codes, each over its place.
fn codes(group: Stored, k: u32) -> Eight {
    var bytes = group.low;
    if LOW < 8u {
        bytes = bits_of(group.low.x, LOW, k);
    }
    if HIGH > 0u {
        bytes |= bits_of(group.high, HIGH, k) << vec2(LOW);
    }
    return Eight(numbers_of(bytes.x), numbers_of(bytes.y));
}

// The scale and the offset of group k.
fn scale_of(member: u32, at: u32, k: u32) -> vec2<f32> {
    let units = unpack2x16float(word(member, at + p.units + (k >> p.block)));
    if p.numbers == 0u {
        return units;
    }
    let run = k >> p.run;
    let pair = bitcast<i32>(word(member, at + p.numbers + run / 2u) << (16u - 16u * (run % 2u)));
    return units * vec2<f32>(vec2<i32>(pair << 8u, pair) >> vec2(24u));
}

// Group k's values.
fn quantized(member: u32, at: u32, k: u32) -> Eight {
    let code = codes(stored(member, at, k), k);
    let scale = scale_of(member, at, k);
    let even = code.even * places() - vec4(p.zero);
    let odd = code.odd * places() - vec4(p.zero);
    return Eight(scale.x * even + vec4(scale.y), scale.x * odd + vec4(scale.y));
}
