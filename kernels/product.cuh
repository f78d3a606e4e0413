// product: what the matrix products have in common: their parameters, and which rows of a and of the
// weights a tile multiplies. `matmul.cuh` computes; an op is a struct that says
//   PAIR      each output j has two sums, v0 and v1, from two rows of the weights,
//   GROUPED   rows are sorted by expert, and tiles come from a list that the device has made,
//   a_row     the row of `a` for row m of the product,
//   w_row     the row of the weights for output j,
//   RANK, box where in the map of the weights, which has so many dimensions, the 64 columns from k on
//             of the 64 rows from `row` on begin, counted in the order of the tiles (Hopper),
//   pairs     whether outputs j and j + 1, j even, may be stored as one,
//   keep      what is read of row m before C outputs from j on are stored; C is 1, or 2 of a pair,
//   store     what becomes of their sums v, and of a PAIR w.
#pragma once

#include "common.cuh"

// a (rows, inner) bf16, w (…, inner) bf16; the meaning of the rest is the op's.
struct Product {
    Global<bf16> a;
    Global<bf16> w;
    Global<bf16> out;
    Global<float> sum;
    Global<bf16> keys;
    Global<bf16> values;
    Global<u32> words;  // the batch's, or the routing's
    Global<float> parts;  // of blocks with a part of the columns each
    u32 rows;           // of the product; of a grouped one, at most
    u32 outputs;        // j < outputs
    u32 inner;
    u32 a_stride;
    u32 w_stride;
    u32 out_stride;
    u32 hidden;  // rows of one expert's or one part's matrix
    u32 head_dim;
    u32 heads;
    u32 kv_heads;
    u32 width;     // of a cached head
    u32 slots;     // where in `words` the rows' slots begin
    u32 angles;    // and their cosines and sines
    u32 assigned;  // rows · top_k that the routing has room for
    u32 experts;
    u32 tiles;  // of rows, at most
    u32 split;  // steps of a block
    u32 parts_count;
};

// The parameters on Hopper: the maps of `a`, in boxes of the form's rows and 64 columns, and of the
// weights, in boxes of 64 rows in the order of the tiles and 64 columns.
struct ProductMaps {
    TensorMap a;
    TensorMap w;
    Product p;
    u32 unused[14];
};

// Rows [first, end) of the product, all of one expert.
struct Rows {
    u32 first;
    u32 end;
    u32 expert;
};

// Whether two neighbours of a row of `out` or `sum` are one aligned access, and both there.
__device__ __forceinline__ bool even(const Product &p) {
    return (p.outputs | p.out_stride) % 2 == 0;
}

// An op that reads nothing before it stores.
struct Nothing {};
struct KeepsNothing {
    __device__ __forceinline__ static bool pairs(const Product &p) { return even(p); }
    template <u32 C> using Kept = Nothing;
    template <u32 C> __device__ __forceinline__ static Nothing keep(const Product &, u32, u32) {
        return {};
    }
};

// The tile of rows with this number, of `height` rows or fewer; empty beyond the last. A grouped
// product's are listed by expert_sort.cu, which also describes the regions of the routing.
template <class Op> __device__ __forceinline__ Rows rows_of(const Product &p, u32 n, u32 height) {
    if (!Op::GROUPED) {
        return {n * height, min((n + 1) * height, p.rows), 0};
    }
    u32 tile_starts = 4 * p.assigned + p.experts + 1;
    if (n >= p.words[tile_starts + p.experts]) {
        return {0, 0, 0};
    }
    u32 tile = tile_starts + p.experts + 1 + 3 * n;
    return {p.words[tile], p.words[tile + 1], p.words[tile + 2]};
}

// The row of `a` of place m in the order by expert.
__device__ __forceinline__ u32 sorted_row(const Product &p, u32 m) {
    return p.words[3 * p.assigned + m];
}
