// common: conversions, sums over warps and blocks, and how a kernel is declared.
#pragma once

#include "ptx.cuh"

// Hopper's own instructions, which no other GPU has, are there.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define GRITLM_HOPPER
#endif

constexpr u32 WARP = 32;
constexpr u32 ALL = 0xffffffffu;  // every lane of a warp
__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// KERNEL(name, Params, threads, blocks, body): an entry point `name` that calls `body(p)`, with so
// many threads a block and at least so many blocks an SM (which bounds the registers). `body` may
// have template arguments with commas. It runs once the launches before have ended; that of a
// KERNEL_AHEAD at once, and waits itself, as that of a KERNEL_CLUSTER, whose blocks are in clusters of
// so many, neighbours in x. The emulator declares them its own way (emulator/cuda.h).
#ifndef GRITLM_EMULATOR
#define KERNEL_CLUSTER(name, Params, threads, blocks, cluster, ...)                                \
    extern "C" __global__ void __cluster_dims__(cluster, 1, 1) __launch_bounds__(threads, blocks)  \
        name(const __grid_constant__ Params p) {                                                   \
        let_next_come();                                                                           \
        __VA_ARGS__(p);                                                                            \
    }
#define KERNEL_AHEAD(name, Params, threads, blocks, ...)                                           \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                  \
        name(const __grid_constant__ Params p) {                                                   \
        let_next_come();                                                                           \
        __VA_ARGS__(p);                                                                            \
    }
#define KERNEL(name, Params, threads, blocks, ...)                                                 \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                  \
        name(const __grid_constant__ Params p) {                                                   \
        let_next_come();                                                                           \
        wait_for_previous();                                                                       \
        __VA_ARGS__(p);                                                                            \
    }
#endif

__device__ __forceinline__ float widen(bf16 v) { return __uint_as_float(u32(v.bits) << 16); }
__device__ __forceinline__ float widen(float v) { return v; }
// The two halves of a pair of bf16.
__device__ __forceinline__ float widen_low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float widen_high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ bf16 narrow(float v) { return {u16(narrow2(v, 0.0f))}; }

__device__ __forceinline__ u32 lane() { return threadIdx.x % WARP; }
__device__ __forceinline__ u32 warp() { return threadIdx.x / WARP; }
__device__ __forceinline__ u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// The sum over a warp; every lane gets it. Always in the same order.
__device__ __forceinline__ float warp_sum(float v) {
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        v += __shfl_xor_sync(ALL, v, step);
    }
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        v = fmaxf(v, __shfl_xor_sync(ALL, v, step));
    }
    return v;
}

// The sum over a block of so many threads; every thread gets it. `scratch` has a float for each warp; a
// barrier before and after lets it be used again at once.
template <u32 THREADS> __device__ __forceinline__ float block_sum(float v, Shared<float> scratch) {
    v = warp_sum(v);
    __syncthreads();
    if (lane() == 0) {
        scratch.set(warp(), v);
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (u32 w = 0; w < THREADS / WARP; w++) {
        sum += scratch[w];
    }
    return sum;
}

// x / (1 + e⁻ˣ), good to 2 ulp; e⁻ˣ may overflow, which gives −0.
__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// C elements from i on, a multiple of C, as one access: one, two or four.
template <u32 C> __device__ __forceinline__ void get(float (&out)[C], Global<float> from, u64 i) {
    if constexpr (C == 4) {
        Vec16 v = from.load<Vec16>(i);
#pragma unroll
        for (u32 c = 0; c < C; c++) {
            out[c] = __uint_as_float(v.word[c]);
        }
    } else if constexpr (C == 2) {
        Vec8 v = from.load<Vec8>(i);
        out[0] = __uint_as_float(v.word[0]);
        out[1] = __uint_as_float(v.word[1]);
    } else {
        out[0] = from[i];
    }
}
template <u32 C> __device__ __forceinline__ void put(Global<float> to, u64 i, float (&v)[C]) {
    if constexpr (C == 4) {
        to.store(i, Vec16{__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                          __float_as_uint(v[3])});
    } else if constexpr (C == 2) {
        to.store(i, Vec8{__float_as_uint(v[0]), __float_as_uint(v[1])});
    } else {
        to.set(i, v[0]);
    }
}
template <u32 C> __device__ __forceinline__ void put(Global<bf16> to, u64 i, float (&v)[C]) {
    if constexpr (C == 2) {
        to.store(i, narrow2(v[0], v[1]));
    } else {
        to.set(i, narrow(v[0]));
    }
}

// Adds to a counter and returns what it was. Integers only: their sum has no order.
__device__ __forceinline__ u32 atomic_add(Global<u32> to, u64 i, u32 v) {
    return atomicAdd(global_write<u32>(to.first + i, sizeof(u32)), v);
}
__device__ __forceinline__ u32 atomic_add(Shared<u32> to, u32 i, u32 v) {
    return atomicAdd(shared_write<u32>(to.at(i), sizeof(u32)), v);
}

// The same elements as another type.
template <class T, class From> __device__ __forceinline__ Global<T> as(Global<From> from) {
    return {reinterpret_cast<T *>(from.first)};
}

// Eight values from element i on, a multiple of 8, as floats.
__device__ __forceinline__ void load8(float (&out)[8], Global<bf16> from, u64 i) {
    Vec16 v = from.load<Vec16>(i);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        out[2 * j] = widen_low(v.word[j]);
        out[2 * j + 1] = widen_high(v.word[j]);
    }
}
__device__ __forceinline__ void load8(float (&out)[8], Global<float> from, u64 i) {
    Vec16 low = from.load<Vec16>(i), high = from.load<Vec16>(i + 4);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        out[j] = __uint_as_float(low.word[j]);
        out[j + 4] = __uint_as_float(high.word[j]);
    }
}
