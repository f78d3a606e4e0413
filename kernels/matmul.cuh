// matmul: tiles of a product, a (rows, inner) · w (outputs, inner)ᵀ, on the tensor
// cores: bf16 in, f32 sums.
//
// A block has BM rows and BN rows of the weights (BN / 2 outputs of a PAIR), its warps WM × WN each,
// in steps of DEPTH = 64 columns. In a small tile SLICES warps share WM × WN, each with 16 of a step's
// columns, and their sums are added in order at the end. Where there are fewer tiles than
// multiprocessors, each has several blocks (gridDim.y), one for each p.split steps; `sum_parts` adds
// their sums, in order, and stores. STAGES of both operands are in shared memory: while one is
// multiplied, cp.async brings the next ones, a quarter with each 16 columns, and the fragments of the
// next 16 columns come from shared memory; one barrier a step. A row of a stage is 128 bytes, its
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
constexpr u32 PARTS = 8;  // of a tile's columns, at most; tune.rs knows it

__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) {
    return row * DEPTH + (chunk ^ row % CHUNKS) * 8;
}

// Bytes of a row's 8 columns from k on that are inside `inner`.
__device__ __forceinline__ u32 bytes_inside(u32 k, u32 inner) {
    return k < inner ? 2 * min(inner - k, 8u) : 0;
}

// Stores a warp's sums, of rows from m0 and outputs from j0 on, C neighbours at a time. What a row
// needs is read for BATCH of its outputs before the first is stored, so that the reads are under way
// together: one after the other, o_proj's took 20 to 32 % of the time (predicted).
template <class Op, u32 C, u32 BATCH, u32 M, u32 N>
__device__ __forceinline__ void store_sums(
    const Product &p, u32 m0, u32 end, u32 j0, float (&acc)[M][N][4]) {
    constexpr u32 EACH = Op::PAIR ? 2 : 1;
    static_assert(N / EACH % BATCH == 0, "");
#pragma unroll
    for (u32 half = 0; half < 2 * M; half++) {
        u32 m = m0 + half * 8 + lane() / 4;
        if (m >= end) {
            continue;
        }
#pragma unroll
        for (u32 batch = 0; batch < 2 / C * (N / EACH); batch += BATCH) {
            u32 c = batch / (N / EACH);
            u32 n0 = batch % (N / EACH);
            u32 first = j0 + lane() % 4 * 2 + c + 8 * n0;
            auto is_there = [&](u32 n) { return first + 8 * n < p.outputs; };
            typename Op::template Kept<C> kept[BATCH];
#pragma unroll
            for (u32 n = 0; n < BATCH; n++) {
                if (is_there(n)) {
                    kept[n] = Op::template keep<C>(p, m, first + 8 * n);
                }
            }
#pragma unroll
            for (u32 n = 0; n < BATCH; n++) {
                if (is_there(n)) {
                    float v[C], w[C];
#pragma unroll
                    for (u32 i = 0; i < C; i++) {
                        float (&sums)[4] = acc[half / 2][(n0 + n) * EACH];
                        float (&others)[4] = acc[half / 2][(n0 + n) * EACH + EACH - 1];
                        v[i] = sums[half % 2 * 2 + c + i];
                        w[i] = others[half % 2 * 2 + c + i];
                    }
                    Op::template store<C>(p, m, first + 8 * n, kept[n], v, w);
                }
            }
        }
    }
}

// What a block with a part of the columns stores: its sums, of a PAIR side by side.
template <class Op> struct Part : KeepsNothing {
    static constexpr bool PAIR = Op::PAIR;

    template <u32 C>
    __device__ __forceinline__ static void store(
        const Product &p, u32 m, u32 j, Nothing, float (&v)[C], float (&w)[C]) {
        u64 at = (u64(blockIdx.y) * p.rows + m) * p.outputs + j;
        if constexpr (!PAIR) {
            put(p.parts, at, v);
        } else {
            float both[2 * C];
#pragma unroll
            for (u32 c = 0; c < C; c++) {
                both[2 * c] = v[c];
                both[2 * c + 1] = w[c];
            }
            put(p.parts, 2 * at, both);
        }
    }
};

// Adds the parts of C outputs from j on, in the order of their columns; all are read before the first
// is added.
template <class Op, u32 C> __device__ __forceinline__ void sum_parts_of(const Product &p, u32 m, u32 j) {
    constexpr u32 EACH = Op::PAIR ? 2 : 1;
    float parts[PARTS][C * EACH];
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
        if (part < p.parts_count) {
            get(parts[part], p.parts, EACH * ((u64(part) * p.rows + m) * p.outputs + j));
        }
    }
    typename Op::template Kept<C> kept = Op::template keep<C>(p, m, j);
    float v[C] = {}, w[C] = {};
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
#pragma unroll
        for (u32 c = 0; c < C && part < p.parts_count; c++) {
            v[c] += parts[part][c * EACH];
            w[c] += parts[part][c * EACH + EACH - 1];
        }
    }
    Op::template store<C>(p, m, j, kept, v, w);
}

// A thread has two neighbouring outputs of a row; both are one access where the op can have it so.
template <class Op> __device__ void sum_parts(const Product &p) {
    u32 across = ceil_div(p.outputs, 2);
    u64 place = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (place >= u64(p.rows) * across) {
        return;
    }
    u32 m = u32(place / across);
    u32 j = u32(place % across) * 2;
    if (Op::pairs(p)) {
        sum_parts_of<Op, 2>(p, m, j);
        return;
    }
    sum_parts_of<Op, 1>(p, m, j);
    if (j + 1 < p.outputs) {
        sum_parts_of<Op, 1>(p, m, j + 1);
    }
}

template <class Op, u32 BM, u32 BN, u32 WM, u32 WN, u32 STAGES, u32 SLICES, bool AHEAD>
__device__ void matmul(const Product &p) {
    constexpr u32 WARPS = (BM / WM) * (BN / WN);  // of a slice
    constexpr u32 THREADS = WARP * WARPS * SLICES;
    constexpr u32 LOADS_A = BM * CHUNKS / THREADS;
    constexpr u32 LOADS_W = BN * CHUNKS / THREADS;
    constexpr u32 ACROSS = Op::PAIR ? BN / 2 : BN;
    static_assert(LOADS_A * THREADS == BM * CHUNKS && LOADS_W * THREADS == BN * CHUNKS, "");
    static_assert(WM % 16 == 0 && WN % 16 == 0 && STAGES >= 2, "");
    static_assert(SLICES == 1 || (SLICES == DEPTH / 16 && !AHEAD), "");
    // No kernel writes weights: where reading them is the work, the first come while the launch before
    // ends.
    constexpr bool EARLY = SLICES > 1 && !Op::GROUPED;
    if (!EARLY) {
        wait_for_previous();
    }

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

    // What this thread loads: chunk `chunk` of these rows. Those beyond the last are the last again, or in
    // a tile of 16 rows, most of which may be beyond, zeros, for which L2 is not asked; their sums are not
    // stored.
    u32 chunk = threadIdx.x % CHUNKS;
    u32 row = threadIdx.x / CHUNKS;
    u32 a_rows[LOADS_A];
    u32 w_rows[LOADS_W];
    u32 there[LOADS_A];  // no bits for a row beyond
#pragma unroll
    for (u32 i = 0; i < LOADS_A; i++) {
        u32 m = rows.first + row + i * (THREADS / CHUNKS);
        a_rows[i] = Op::a_row(p, min(m, rows.end - 1));
        there[i] = BM == 16 && m >= rows.end ? 0 : ALL;
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
    u32 begin = Op::GROUPED ? 0 : blockIdx.y * p.split;
    // Starts a quarter of the copies of a step, of both operands or one.
    auto load = [&](u32 step, u32 place, u32 quarter, bool rows_too = true, bool weights_too = true) {
        Shared<bf16> a = shared.from(place * STAGE);
        Shared<bf16> w = a.from(BM * DEPTH);
        u32 k = (begin + step) * DEPTH + chunk * 8;
        u32 bytes = bytes_inside(k, p.inner);
#pragma unroll
        for (u32 i = 0; i < LOADS_A + LOADS_W; i++) {
            bool wanted = i < LOADS_A ? rows_too : weights_too;
            if (!wanted || i * (DEPTH / 16) / (LOADS_A + LOADS_W) != quarter) {
                continue;
            }
            u32 n = i < LOADS_A ? i : i - LOADS_A;
            u32 to = swizzled(row + n * (THREADS / CHUNKS), chunk);
            if (i < LOADS_A) {
                cp_async16(a, to, p.a, u64(a_rows[n]) * p.a_stride + k, bytes & there[n]);
            } else {
                cp_async16(w, to, p.w, u64(w_rows[n]) * p.w_stride + k, bytes);
            }
        }
    };

    auto load_all = [&](u32 step, u32 place, bool rows_too = true, bool weights_too = true) {
#pragma unroll
        for (u32 quarter = 0; quarter < DEPTH / 16; quarter++) {
            load(step, place, quarter, rows_too, weights_too);
        }
    };

    float acc[WM / 16][WN / 8][4] = {};
    u32 slice = warp() / WARPS;
    u32 warp_m = warp() % WARPS / (BN / WN) * WM;
    u32 warp_n = warp() % (BN / WN) * WN;
    u32 steps = ceil_div(p.inner, DEPTH);
    if (!Op::GROUPED) {
        steps = min(steps - begin, p.split);
    }
#pragma unroll
    for (u32 s = 0; EARLY && s < STAGES - 1; s++) {
        if (s < steps) {
            load_all(s, s, false, true);
        }
    }
    if (EARLY) {
        wait_for_previous();
    }
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            load_all(s, s, true, !EARLY);
        }
        cp_async_commit();
    }
    // AHEAD, those of one k are multiplied while the next ones come from shared memory.
    constexpr u32 HELD = AHEAD ? 2 : 1;
    u32 fa[HELD][WM / 16][4];
    u32 fw[HELD][WN / 16][4];
    auto fragments = [&](u32 place, u32 k) {
        Shared<bf16> a = shared.from(place * STAGE);
        Shared<bf16> w = a.from(BM * DEPTH);
#pragma unroll
        for (u32 i = 0; i < WM / 16; i++) {
            u32 r = warp_m + i * 16 + lane() % 16;
            ldmatrix4(fa[k % HELD][i], a, swizzled(r, 2 * k + lane() / 16));
        }
#pragma unroll
        for (u32 i = 0; i < WN / 16; i++) {
            u32 r = warp_n + i * 16 + lane() / 16 * 8 + lane() % 8;
            ldmatrix4(fw[k % HELD][i], w, swizzled(r, 2 * k + lane() / 8 % 2));
        }
    };
    auto multiply = [&](u32 k) {
#pragma unroll
        for (u32 i = 0; i < WM / 16; i++) {
#pragma unroll
            for (u32 n = 0; n < WN / 8; n++) {
                u32 (&w)[4] = fw[k % HELD][n / 2];
                mma16x8x16(acc[i][n], fa[k % HELD][i], w[n % 2 * 2], w[n % 2 * 2 + 1]);
            }
        }
    };
    u32 here = 0;
    u32 next = STAGES - 1;
    // A warp of a slice has one k of each step.
    for (u32 step = 0; SLICES > 1 && step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        fragments(here, slice);
        if (step + STAGES - 1 < steps) {
            load_all(step + STAGES - 1, next);
        }
        cp_async_commit();
        next = here;
        here = here + 1 == STAGES ? 0 : here + 1;
        multiply(0);
    }
    if (SLICES == 1) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
    }
    if (AHEAD) {
        fragments(here, 0);
    }
    for (u32 step = 0; SLICES == 1 && step < steps; step++) {
        bool more = step + STAGES - 1 < steps;
#pragma unroll
        for (u32 k = 0; k < DEPTH / 16; k++) {
            if (!AHEAD) {
                fragments(here, k);
            }
            if (more && AHEAD) {
                load(step + STAGES - 1, next, k);
            }
            if (AHEAD && k + 1 < DEPTH / 16) {
                fragments(here, k + 1);
            }
            if (k + 1 == DEPTH / 16) {
                cp_async_commit();
                next = here;
                here = here + 1 == STAGES ? 0 : here + 1;
                // The next step is there for all, and all have the last fragments of this one, whose
                // place is filled from now on.
                cp_async_wait<STAGES - 2>();
                __syncthreads();
                if (AHEAD && step + 1 < steps) {
                    fragments(here, 0);
                }
            }
            multiply(k);
            // Reads of shared memory wait behind copies: the first fragments do not.
            if (more && !AHEAD && k == 0) {
                load_all(step + STAGES - 1, next);
            }
        }
    }

    if (SLICES > 1) {
        // The first slice adds the sums of the others, which lie where the stages were.
        constexpr u32 SUMS = WM / 16 * (WN / 8) * 4;
        Shared<float> others{0};
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < SUMS && slice > 0; i++) {
            float (&sums)[4] = acc[i / 4 / (WN / 8)][i / 4 % (WN / 8)];
            others.set(((warp() - WARPS) * SUMS + i) * WARP + lane(), sums[i % 4]);
        }
        __syncthreads();
        if (slice > 0) {
            return;
        }
#pragma unroll
        for (u32 i = 0; i < SUMS; i++) {
            float (&sums)[4] = acc[i / 4 / (WN / 8)][i / 4 % (WN / 8)];
#pragma unroll
            for (u32 s = 0; s < SLICES - 1; s++) {
                sums[i % 4] += others[((s * WARPS + warp()) * SUMS + i) * WARP + lane()];
            }
        }
    }
    constexpr u32 EACH = Op::PAIR ? 2 : 1;
    u32 j = j0 + warp_n / EACH;
    if (!Op::GROUPED && gridDim.y > 1) {
        using Parts = Part<Op>;
        if (Parts::pairs(p)) {
            store_sums<Parts, 2, WN / 8 / EACH>(p, rows.first + warp_m, rows.end, j, acc);
        } else {
            store_sums<Parts, 1, WN / 8 / EACH>(p, rows.first + warp_m, rows.end, j, acc);
        }
        return;
    }
    if (Op::pairs(p)) {
        store_sums<Op, 2, WN / 8 / EACH>(p, rows.first + warp_m, rows.end, j, acc);
    } else {
        store_sums<Op, 1, WN / 8 / EACH>(p, rows.first + warp_m, rows.end, j, acc);
    }
}

// The tiles that every product comes in, by the rows it has; tune.rs chooses, and knows the numbers.
// Two blocks of 128x128 have 128 registers a thread each, in which there is no room for fragments
// ahead, and where a list of tiles has two sums an output not even for two blocks.
#define MATMULS(name, Op)                                                                          \
    KERNEL_AHEAD(name##_16x32, Product, 128, 3, matmul<Op, 16, 32, 16, 32, 8, 4, false>)                 \
    KERNEL_AHEAD(name##_16x48, Product, 128, 3, matmul<Op, 16, 48, 16, 48, 8, 4, false>)                 \
    KERNEL_AHEAD(name##_32x32, Product, 128, 3, matmul<Op, 32, 32, 32, 32, 8, 4, false>)                 \
    KERNEL_AHEAD(name##_32x48, Product, 128, 2, matmul<Op, 32, 48, 32, 48, 8, 4, false>)                 \
    KERNEL_AHEAD(name##_64x128, Product, 128, 2, matmul<Op, 64, 128, 32, 64, 3, 1, true>)                \
    KERNEL_AHEAD(name##_128x128, Product, 256, Op::GROUPED && Op::PAIR ? 1 : 2,                          \
           matmul<Op, 128, 128, 64, 32, 3, 1, false>)                                              \
    KERNEL_AHEAD(name##_128x256, Product, 256, 1, matmul<Op, 128, 256, 64, 64, 3, 1, true>)

// The sums of several blocks a tile.
#define SUM_PARTS(name, Op) KERNEL(name##_sum, Product, 256, 4, sum_parts<Op>)
