// matvec: a product for up to R rows, a (rows, inner) · w (outputs, inner)ᵀ, sums in f32.
//
// A warp has two rows of the weights: two outputs, or the two sums of a PAIR. Its lanes read them 16
// bytes at a time, past the caches, UNROLL times before any is used, so that a multiprocessor has
// some 64 KiB under way; `a` comes from L1, where all warps find it.
// Bound by memory: each weight is read once, 2 · outputs · inner bytes.
#pragma once

#include "product.cuh"

constexpr u32 MATVEC_WARPS = 8;
constexpr u32 UNROLL = 4;

// sums += the products of 8 columns.
__device__ __forceinline__ void dot8(float &sum, const Vec16 &a, const Vec16 &w) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        sum += widen_low(a.word[i]) * widen_low(w.word[i]);
        sum += widen_high(a.word[i]) * widen_high(w.word[i]);
    }
}

// 8 columns of `a` from k on, 0 beyond `inner`, where its padding may hold anything.
__device__ __forceinline__ Vec16 columns(const Product &p, u64 row, u32 k) {
    Vec16 v = p.a.load<Vec16>(row + k);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 left = p.inner - k;
        if (left < 8) {
            v.word[i] &= left > 2 * i + 1 ? ALL : left > 2 * i ? 0xffffu : 0u;
        }
    }
    return v;
}

template <class Op, u32 R> __device__ void matvec(const Product &p) {
    Rows rows = rows_of<Op>(p, blockIdx.y, R);
    u32 first = blockIdx.x * MATVEC_WARPS + warp();
    u32 j = Op::PAIR ? first : 2 * first;
    if (rows.first >= rows.end || j >= p.outputs) {
        return;
    }
    bool second = Op::PAIR || j + 1 < p.outputs;
    u64 w0 = u64(Op::w_row(p, rows.expert, 0, j)) * p.w_stride;
    u64 w1 = second ? u64(Op::w_row(p, rows.expert, Op::PAIR, Op::PAIR ? j : j + 1)) * p.w_stride : w0;
    u64 a_at[R];
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        // Rows that are not there are the last one again, and are not stored.
        a_at[r] = u64(Op::a_row(p, min(rows.first + r, rows.end - 1))) * p.a_stride;
    }
    float sums[R][2] = {};
    // Whole strides first: their columns are all there, and the loop does not ask.
    u32 k = lane() * 8;
    for (u32 n = p.inner / (WARP * 8 * UNROLL); n > 0; n--, k += WARP * 8 * UNROLL) {
        Vec16 w[UNROLL][2];
#pragma unroll
        for (u32 u = 0; u < UNROLL; u++) {
            w[u][0] = load_once(p.w, w0 + k + u * WARP * 8);
            w[u][1] = load_once(p.w, w1 + k + u * WARP * 8);
        }
#pragma unroll
        for (u32 u = 0; u < UNROLL; u++) {
#pragma unroll
            for (u32 r = 0; r < R; r++) {
                Vec16 a = p.a.load<Vec16>(a_at[r] + k + u * WARP * 8);
                dot8(sums[r][0], a, w[u][0]);
                dot8(sums[r][1], a, w[u][1]);
            }
        }
    }
    for (; k < p.inner; k += WARP * 8) {
        Vec16 w[2] = {load_once(p.w, w0 + k), load_once(p.w, w1 + k)};
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            Vec16 a = columns(p, a_at[r], k);
            dot8(sums[r][0], a, w[0]);
            dot8(sums[r][1], a, w[1]);
        }
    }
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        float v0 = warp_sum(sums[r][0]);
        float v1 = warp_sum(sums[r][1]);
        if (rows.first + r >= rows.end) {
            continue;
        }
        auto store = [&](u32 j, float v0, float v1) {
            float v[1] = {v0}, w[1] = {v1};
            u32 m = rows.first + r;
            Op::template store<1>(p, m, j, Op::template keep<1>(p, m, j), v, w);
        };
        if (Op::PAIR && lane() == r) {
            store(j, v0, v1);
        }
        if (!Op::PAIR && lane() == 2 * r) {
            store(j, v0, 0.0f);
        }
        if (!Op::PAIR && lane() == 2 * r + 1 && second) {
            store(j + 1, v1, 0.0f);
        }
    }
}

#define MATVECS(name, Op)                                                                          \
    KERNEL(name##_1, Product, WARP * MATVEC_WARPS, 3, matvec<Op, 1>)                               \
    KERNEL(name##_2, Product, WARP * MATVEC_WARPS, 2, matvec<Op, 2>)
