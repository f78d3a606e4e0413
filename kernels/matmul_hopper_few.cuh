// matmul_hopper_few: the product of matmul_hopper.cuh for few rows, with the operands in each other's
// place: d = w · aᵀ. wgmma takes 64 rows of one operand at least and 8 of the other, so the weights are
// its rows and the tokens, 8 to 64 of them, its columns; nothing is padded to 64 tokens.
//
// A block has 128 rows of the weights and TOKENS rows of `a`: one warp copies by TMA, in steps of 64
// columns, and two warpgroups multiply 64 rows of the weights each. It has one tile, and gridDim.y
// blocks share its columns where there are fewer tiles than multiprocessors. Two blocks are on a
// multiprocessor, with 100 KB each under way. The weights' first copies start before the launches before
// have ended, for no kernel writes weights. Who waits for whom is as in matmul_hopper.cuh, with CLUSTER 1.
// Bound by reading the weights: 16 KB a step, which takes 900 cycles of a multiprocessor's share of the
// memory, and the four m64n64k16 of two warpgroups 256.
#pragma once

#include "matmul_hopper.cuh"

#ifdef GRITLM_HOPPER
// Stores a warpgroup's sums: lane l of a warp has in sums[4c + 2h + i] weight l / 4 + 8h of its 16 and
// token 8c + 2 (l % 4) + i; of a PAIR, h is the kind.
template <class Op, u32 TOKENS>
__device__ __forceinline__ void store_few(
    const Product &p, Rows rows, u32 j0, float (&sums)[TOKENS / 2]) {
    constexpr u32 EACH = Op::PAIR ? 2 : 1;
    constexpr u32 COUNT = TOKENS / 2 / EACH;
    constexpr u32 BATCH = COUNT < 8 ? COUNT : 8;
#pragma unroll
    for (u32 batch = 0; batch < COUNT; batch += BATCH) {
        typename Op::template Kept<1> kept[BATCH];
#pragma unroll
        for (u32 stored = 0; stored < 2; stored++) {
#pragma unroll
            for (u32 n = 0; n < BATCH; n++) {
                u32 i = (batch + n) % 2;
                u32 h = Op::PAIR ? 0 : (batch + n) / 2 % 2;
                u32 c = (batch + n) / (4 / EACH);
                u32 m = rows.first + 8 * c + lane() % 4 * 2 + i;
                u32 j = j0 + lane() / 4 + 8 * h;
                if (m >= rows.end || j >= p.outputs) {
                    continue;
                }
                if (stored == 0) {
                    kept[n] = Op::template keep<1>(p, m, j);
                } else {
                    float v[1] = {sums[4 * c + 2 * h + i]};
                    float w[1] = {sums[4 * c + 2 + i]};
                    Op::template store<1>(p, m, j, kept[n], v, w);
                }
            }
        }
    }
}

template <class Op, u32 TOKENS, u32 STAGES>
__device__ void matmul_hopper_few(const ProductMaps &maps) {
    constexpr u32 WEIGHTS = 128;
    constexpr u32 EACH = Op::PAIR ? 2 : 1;
    constexpr u32 ACROSS = WEIGHTS / EACH;
    constexpr u32 STAGE = (WEIGHTS + TOKENS) * DEPTH;
    const Product &p = maps.p;
    Shared<bf16> shared{0};
    Shared<u64> full{STAGES * STAGE * u32(sizeof(bf16))};
    Shared<u64> empty = full.from(STAGES);
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; s++) {
            barrier_init(full, s, 1);
            barrier_init(empty, s, 2);
        }
        barrier_init_fence();
    }
    __syncthreads();
    // Only a list of tiles says which weights these are.
    if (Op::GROUPED) {
        wait_for_previous();
    }
    Rows rows = rows_of<Op>(p, blockIdx.x % p.tiles, TOKENS);
    u32 j0 = blockIdx.x / p.tiles * ACROSS;
    u32 begin = Op::GROUPED ? 0 : blockIdx.y * p.split;
    u32 steps = ceil_div(p.inner, DEPTH);
    if (!Op::GROUPED) {
        steps = min(steps - begin, p.split);
    }
    if (rows.first >= rows.end) {
        return;
    }
    u32 stage = 0;
    u32 parity = 0;
    auto next = [&]() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    };
    u32 group = __shfl_sync(ALL, threadIdx.x / WARPGROUP, 0);
    if (group == 2) {
        auto weights = [&](u32 k, u32 s) {
            barrier_expect(full, s, STAGE * u32(sizeof(bf16)));
            load_weights<Op, WEIGHTS, 1>(
                maps, shared.from(s * STAGE), k * DEPTH, j0 * EACH, rows.expert, full, s, 0);
        };
        if (lane() == 0) {
            u32 early = min(steps, STAGES);
            for (u32 s = 0; s < early; s++) {
                weights(begin + s, s);
            }
            if (!Op::GROUPED) {
                wait_for_previous();
            }
            for (u32 k = 0; k < steps; k++) {
                if (k >= early) {
                    barrier_wait(empty, stage, parity ^ 1);
                    weights(begin + k, stage);
                }
                tma_load(shared, stage * STAGE + WEIGHTS * DEPTH, maps.a,
                         {(begin + k) * DEPTH, rows.first}, full, stage);
                next();
            }
        } else if (!Op::GROUPED) {
            wait_for_previous();
        }
        return;
    }
    if (!Op::GROUPED) {
        wait_for_previous();
    }
    float sums[TOKENS / 2];
    u32 before = 0;
    u32 mine = group * 64;
    for (u32 k = 0; k < steps; k++) {
        barrier_wait(full, stage, parity);
        Shared<bf16> w = shared.from(stage * STAGE);
        u64 weights_at = rows_descriptor(w, mine * DEPTH);
        u64 rows_at = rows_descriptor(w, WEIGHTS * DEPTH);
        hold(sums);
        wgmma_fence();
#pragma unroll
        for (u32 i = 0; i < DEPTH / 16; i++) {
            wgmma<TOKENS>(sums, weights_at + 2 * i, rows_at + 2 * i, k + i > 0);
        }
        wgmma_commit();
        hold(sums);
        wgmma_wait<1>();
        if (k > 0 && threadIdx.x % WARPGROUP == 0) {
            barrier_arrive(empty, before);
        }
        before = stage;
        next();
    }
    wgmma_wait<0>();
    hold(sums);
    u32 j = j0 + (mine + warp() % 4 * 16) / EACH;
    if (!Op::GROUPED && gridDim.y > 1) {
        store_few<Part<Op>, TOKENS>(p, rows, j, sums);
    } else {
        store_few<Op, TOKENS>(p, rows, j, sums);
    }
}

// The forms that every product has on Hopper, beside those of matmul.cuh; tune.rs knows the numbers. A
// list of tiles has no clusters: the tiles of a pair may be of two experts.
#define MATMULS_HOPPER(name, Op)                                                                   \
    KERNEL_CLUSTER(name##_hopper_8x128, ProductMaps, 288, 2, 1, matmul_hopper_few<Op, 8, 6>)       \
    KERNEL_CLUSTER(name##_hopper_32x128, ProductMaps, 288, 2, 1, matmul_hopper_few<Op, 32, 5>)     \
    KERNEL_CLUSTER(name##_hopper_64x128, ProductMaps, 288, 2, 1, matmul_hopper_few<Op, 64, 4>)     \
    KERNEL_CLUSTER(name##_hopper_128x128, ProductMaps, 384, 1, 1, matmul_hopper<Op, 128, 6, 1>)    \
    KERNEL_CLUSTER(name##_hopper_128x192, ProductMaps, 384, 1, 1, matmul_hopper<Op, 192, 5, 1>)    \
    KERNEL_CLUSTER(name##_hopper_128x256, ProductMaps, 384, 1, Op::GROUPED ? 1 : 2,                \
                   matmul_hopper<Op, 256, 4, Op::GROUPED ? 1 : 2>)
#endif
