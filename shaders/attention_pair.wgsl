// attention_pair: what the shaders of attention's training share. A workgroup has 16 × 16
// invocations. For a block of 16 query vectors and 16 keys each invocation makes one score; then each
// adds up four vectors of 4 columns, every 16th, of one vector. A block of keys lies in one page.
// The query heads of one key/value head are packed with the query tokens into one list of vectors,
// m = token · group + head. One pipeline has all masks and widths of heads.
// Params: `AttentionTiles` in attention_backward.rs.

struct AttentionTiles {
    // Query heads per key/value head.
    group: u32,
    kv_heads: u32,
    head_dim: u32,
    // Vectors of 4 in a cached head.
    vectors: u32,
    // Row strides in elements: q; the output or its gradient; what is written; lse, or what
    // `attention_delta` makes of it.
    q_stride: u32,
    out_stride: u32,
    to_stride: u32,
    lse_stride: u32,
    // Where tiles, jobs and page tables begin in the lists.
    tiles: u32,
    jobs: u32,
    tables: u32,
    rows: u32,
    // 1 / √head_dim.
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: AttentionTiles;

const PAGE = 128u;
const SIDE = 16u;
// Words of a tile.
const TILE = 10u;
// Below every score; finite, so that the difference of two is a number.
const NONE = -3e38;

// `mask`: bit 0 causal; bit 1 with a window.
fn sees(position: u32, key: u32, mask: u32, window: u32) -> bool {
    let causal = (mask & 1u) != 0u;
    let near = position < key + window && (causal || key < position + window);
    return (!causal || key <= position) && ((mask & 2u) == 0u || near);
}

// Where vector m begins in a buffer with this row stride, of a sequence that begins at `row`.
fn vector_at(row: u32, m: u32, head: u32, stride: u32) -> u32 {
    return (row + m / p.group) * stride + (head * p.group + m % p.group) * p.head_dim;
}
