// pages: how cached keys and values are stored. DTYPE is their type, and the parameters p have the
// head_dim, and of a cached head the vectors of 4 columns, and the vectors and columns of a part
// (`Stored` in pages.rs).
//
// A page of 128 tokens has for each key/value head the vectors of its tokens, in chunks of 4 words:
//
//   f32        chunk c: columns 4 c and on
//   f16, bf16  chunk c: columns 4 c and on of a head's first half in the words' low halves, those of
//              its second half in the high ones: a word is a rotary pair, so that who has made a pair
//              writes it alone
//   q8_0       word j of chunk c: columns 16 c + j, + 4, + 8, + 12, lowest first; behind the vectors
//              the scales, in f16, of each 32 columns, those of a token in whole words
//
// So a chunk is 1, 2 or 4 vectors of 4 columns.

const PAGE = 128u;

fn packed() -> bool {
    return DTYPE == BF16 || DTYPE == F16;
}

// Vectors of 4 columns in a chunk.
fn per_chunk() -> u32 {
    return select(select(1u, 4u, DTYPE == CODES), 2u, packed());
}

fn chunks() -> u32 {
    return p.vectors / per_chunk();
}

// Words with the scales of a vector.
fn scale_words() -> u32 {
    return select(0u, (p.head_dim + 63u) / 64u, DTYPE == CODES);
}

// The number, among those of a head, of vector i of chunk c.
fn vector_of(c: u32, i: u32) -> u32 {
    return select(c + i * p.side, 4u * c + i, DTYPE == CODES);
}

// The column of element e of vector v; head_dim where there is none. There are two parts at most.
fn column_of(v: u32, e: u32) -> u32 {
    let second = v >= p.side;
    let c = 4u * (v - select(0u, p.side, second)) + e;
    return select(p.head_dim, select(0u, p.width, second) + c, v < p.vectors && c < p.width);
}

// Where the chunks of a head begin in a page.
fn head_at(page: u32, head: u32) -> u32 {
    return (page * p.kv_heads + head) * (PAGE * chunks() + PAGE / 4u * scale_words());
}

// The chunks, and the words of scales, of tokens of a page.
struct Places { chunk: vec4<u32>, scale: vec4<u32> }

fn places_of(head: u32, slots: vec4<u32>) -> Places {
    return Places(
        vec4(head) + slots * chunks(),
        vec4(4u * (head + PAGE * chunks())) + slots * scale_words(),
    );
}

// Vector i of a chunk.
fn widened(chunk: vec4<u32>, i: u32) -> vec4<f32> {
    if DTYPE == F32 {
        return bitcast<vec4<f32>>(chunk);
    }
    if DTYPE == CODES {
        return vec4<f32>(bitcast<vec4<i32>>(chunk << vec4(24u - 8u * i)) >> vec4(24u));
    }
    let halves = unpack(chunk);
    if i == 0u {
        return halves.even;
    }
    return halves.odd;
}

// The scale of chunk c, from the word with it.
fn scale_in(word: u32, c: u32) -> f32 {
    return unpack2x16float(word >> (c / 2u % 2u * 16u)).x;
}
