// matmul: tiles of a product for many rows, a (rows, inner) · w (outputs, inner)ᵀ, on the tensor
// cores: bf16 in, f32 sums.
//
// A block has BM rows and BN rows of the weights (BN / 2 outputs of a PAIR), its warps WM × WN each,
// in steps of DEPTH = 64 columns. STAGES of both operands are in shared memory: while one is
// multiplied, cp.async brings the next ones; one barrier a step. A row of a stage is 128 bytes, its
// 16-byte chunks swizzled by the row (chunk xor row % 8), so that neither cp.async nor ldmatrix has
// bank conflicts. Of a PAIR, 8 rows of the weights of either kind alternate, so that one thread
// holds both sums of an output. Blocks go through groups of GROUP tiles of rows first: those that
// run together share weights and rows in the L2 cache.
// Bound by the tensor cores from some 128 rows on; below, by reading the weights.
#pragma once

#include "product.cuh"

constexpr u32 DEPTH = 64;
constexpr u32 CHUNKS = DEPTH / 8;
constexpr u32 GROUP = 8;

__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) {
    return row * DEPTH + (chunk ^ row % CHUNKS) * 8;
}

// Bytes of a row's 8 columns from k on that are inside `inner`.
__device__ __forceinline__ u32 bytes_inside(u32 k, u32 inner) {
    return k < inner ? 2 * min(inner - k, 8u) : 0;
}

template <class Op, u32 BM, u32 BN, u32 WM, u32 WN, u32 STAGES>
__device__ void matmul(const Product &p) {
    constexpr u32 THREADS = WARP * (BM / WM) * (BN / WN);
    constexpr u32 LOADS_A = BM * CHUNKS / THREADS;
    constexpr u32 LOADS_W = BN * CHUNKS / THREADS;
    constexpr u32 ACROSS = Op::PAIR ? BN / 2 : BN;
    static_assert(LOADS_A * THREADS == BM * CHUNKS && LOADS_W * THREADS == BN * CHUNKS, "");
    static_assert(WM % 16 == 0 && WN % 16 == 0 && STAGES >= 2, "");

    // Which tile: of the rows, and of the outputs.
    u32 in_group = blockIdx.x % (GROUP * ceil_div(p.outputs, ACROSS));
    u32 tile_m = blockIdx.x / (GROUP * ceil_div(p.outputs, ACROSS)) * GROUP;
    u32 height = min(p.tiles - tile_m, GROUP);
    tile_m += in_group % height;
    u32 j0 = in_group / height * ACROSS;
    Rows rows = rows_of<Op>(p, tile_m, BM);
    if (rows.first >= rows.end) {
        return;
    }

    // What this thread loads: chunk `chunk` of these rows. Those beyond the last are the last again,
    // and their sums are not stored.
    u32 chunk = threadIdx.x % CHUNKS;
    u32 row = threadIdx.x / CHUNKS;
    u32 a_rows[LOADS_A];
    u32 w_rows[LOADS_W];
#pragma unroll
    for (u32 i = 0; i < LOADS_A; i++) {
        u32 m = rows.first + row + i * (THREADS / CHUNKS);
        a_rows[i] = Op::a_row(p, min(m, rows.end - 1));
    }
#pragma unroll
    for (u32 i = 0; i < LOADS_W; i++) {
        u32 n = row + i * (THREADS / CHUNKS);
        u32 member = Op::PAIR ? n / 8 % 2 : 0;
        u32 j = j0 + (Op::PAIR ? n / 16 * 8 + n % 8 : n);
        w_rows[i] = Op::w_row(p, rows.expert, member, min(j, p.outputs - 1));
    }
    Shared<bf16> shared{0};
    constexpr u32 STAGE = (BM + BN) * DEPTH;
    auto load = [&](u32 step, u32 place) {
        Shared<bf16> a = shared.from(place * STAGE);
        Shared<bf16> w = a.from(BM * DEPTH);
        u32 k = step * DEPTH + chunk * 8;
        u32 bytes = bytes_inside(k, p.inner);
#pragma unroll
        for (u32 i = 0; i < LOADS_A; i++) {
            u32 to = swizzled(row + i * (THREADS / CHUNKS), chunk);
            cp_async16(a, to, p.a, u64(a_rows[i]) * p.a_stride + k, bytes);
        }
#pragma unroll
        for (u32 i = 0; i < LOADS_W; i++) {
            u32 to = swizzled(row + i * (THREADS / CHUNKS), chunk);
            cp_async16(w, to, p.w, u64(w_rows[i]) * p.w_stride + k, bytes);
        }
    };

    float acc[WM / 16][WN / 8][4] = {};
    u32 warp_m = warp() / (BN / WN) * WM;
    u32 warp_n = warp() % (BN / WN) * WN;
    u32 steps = ceil_div(p.inner, DEPTH);
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            load(s, s);
        }
        cp_async_commit();
    }
    u32 here = 0;
    u32 next = STAGES - 1;
    for (u32 step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        // The step is there for all, and all are done with the one before, whose place is next.
        __syncthreads();
        if (step + STAGES - 1 < steps) {
            load(step + STAGES - 1, next);
        }
        cp_async_commit();
        Shared<bf16> a = shared.from(here * STAGE);
        Shared<bf16> w = a.from(BM * DEPTH);
        next = here;
        here = here + 1 == STAGES ? 0 : here + 1;
#pragma unroll
        for (u32 k = 0; k < DEPTH / 16; k++) {
            u32 fa[WM / 16][4];
            u32 fw[WN / 16][4];
#pragma unroll
            for (u32 i = 0; i < WM / 16; i++) {
                u32 r = warp_m + i * 16 + lane() % 16;
                ldmatrix4(fa[i], a, swizzled(r, 2 * k + lane() / 16));
            }
#pragma unroll
            for (u32 i = 0; i < WN / 16; i++) {
                u32 r = warp_n + i * 16 + lane() / 16 * 8 + lane() % 8;
                ldmatrix4(fw[i], w, swizzled(r, 2 * k + lane() / 8 % 2));
            }
#pragma unroll
            for (u32 i = 0; i < WM / 16; i++) {
#pragma unroll
                for (u32 n = 0; n < WN / 8; n++) {
                    mma16x8x16(acc[i][n], fa[i], fw[n / 2][n % 2 * 2], fw[n / 2][n % 2 * 2 + 1]);
                }
            }
        }
    }

#pragma unroll
    for (u32 i = 0; i < WM / 16; i++) {
#pragma unroll
        for (u32 part = 0; part < 4; part++) {
            u32 m = rows.first + warp_m + i * 16 + lane() / 4 + part / 2 * 8;
            if (m >= rows.end) {
                continue;
            }
#pragma unroll
            for (u32 n = 0; n < WN / 8; n += Op::PAIR ? 2 : 1) {
                u32 column = (warp_n + n * 8) / (Op::PAIR ? 2 : 1);
                u32 j = j0 + column + lane() % 4 * 2 + part % 2;
                if (j < p.outputs) {
                    Op::store(p, m, j, acc[i][n][part], acc[i][n + (Op::PAIR ? 1 : 0)][part]);
                }
            }
        }
    }
}

// The tiles that every product comes in, by the rows it has; tune.rs chooses, and knows the numbers.
// Where two blocks of the third do not fit into the registers (a list of tiles and single outputs
// take a few more), one may have them.
#define MATMULS(name, Op)                                                                          \
    KERNEL(name##_16x64, Product, 128, 2, matmul<Op, 16, 64, 16, 16, 6>)                           \
    KERNEL(name##_64x128, Product, 128, 2, matmul<Op, 64, 128, 32, 64, 3>)                         \
    KERNEL(name##_128x128, Product, 256, Op::GROUPED && !Op::PAIR ? 1 : 2,                         \
           matmul<Op, 128, 128, 64, 32, 3>)                                                        \
    KERNEL(name##_128x256, Product, 256, 1, matmul<Op, 128, 256, 64, 64, 3>)
