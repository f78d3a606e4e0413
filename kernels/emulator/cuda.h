// cuda: the words of CUDA C++ that the kernels use, for g++. Included before every .cu.
#pragma once

#include "engine.h"

#include <cmath>

#define __device__ __attribute__((visibility("hidden")))
#define __global__
#define __shared__ static_assert(false, "only dynamic shared memory, through Shared<T>")
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define EMULATOR_ENTRY(name, Params, threads, blocks, cluster, ...)                                \
    static void name##_call(const void *params) {                                                  \
        __VA_ARGS__(*static_cast<const Params *>(params));                                         \
    }                                                                                              \
    extern "C" __attribute__((visibility("default"))) const emulator::Entry name;                  \
    const emulator::Entry name = {name##_call, sizeof(Params), threads, blocks, cluster};
#define KERNEL_AHEAD(name, Params, threads, blocks, ...)                                           \
    EMULATOR_ENTRY(name, Params, threads, blocks, 0, __VA_ARGS__)
#define KERNEL(name, Params, threads, blocks, ...)                                                 \
    static void name##_waits(const Params &p) {                                                    \
        wait_for_previous();                                                                       \
        __VA_ARGS__(p);                                                                            \
    }                                                                                              \
    KERNEL_AHEAD(name, Params, threads, blocks, name##_waits)
#define KERNEL_CLUSTER(name, Params, threads, blocks, cluster, ...)                                \
    EMULATOR_ENTRY(name, Params, threads, blocks, cluster, __VA_ARGS__)

#define threadIdx (::emulator::self->index)
#define blockIdx (::emulator::self->block->at)
#define blockDim (::emulator::self->block->size)
#define gridDim (::emulator::self->block->grid)

inline void __syncthreads() { emulator::syncthreads(); }
inline void __syncwarp(u32 mask = ~0u) {
    emulator::meet(emulator::Meeting::Syncwarp, mask, emulator::nothing, emulator::nothing);
}

namespace emulator {

// The value of lane `from(lane, first of its group, width)`; of the lane itself where that lies
// outside the group.
template <class T, class From> inline T shuffle(u32 mask, T value, int width, From from) {
    static_assert(sizeof(T) <= 8);
    auto put = [&](Exchange &e) { memcpy(&e.word[self->lane], &value, sizeof value); };
    const Exchange &e = meet(Meeting::Shuffle, mask, put, nothing);
    int lane = int(self->lane), group = lane & -width, other = from(lane, group);
    memcpy(&value, &e.word[other >= group && other < group + width ? other : lane], sizeof value);
    return value;
}

inline u32 vote(u32 mask, bool yes) {
    return meet(
               Meeting::Vote, mask, [&](Exchange &e) { e.word[self->lane] = yes; },
               [](Exchange &e) {
                   e.votes = 0;
                   for (u32 i = 0; i < LANES; i++) {
                       e.votes |= u32(e.word[i]) << i;
                   }
               })
        .votes;
}

}  // namespace emulator

template <class T> inline T __shfl_sync(u32 mask, T v, int from, int width = 32) {
    return emulator::shuffle(mask, v, width, [=](int, int group) { return group + from % width; });
}
template <class T> inline T __shfl_xor_sync(u32 mask, T v, int bits, int width = 32) {
    return emulator::shuffle(mask, v, width, [=](int lane, int) { return lane ^ bits; });
}
template <class T> inline T __shfl_up_sync(u32 mask, T v, u32 by, int width = 32) {
    return emulator::shuffle(mask, v, width, [=](int lane, int) { return lane - int(by); });
}
template <class T> inline T __shfl_down_sync(u32 mask, T v, u32 by, int width = 32) {
    return emulator::shuffle(mask, v, width, [=](int lane, int) { return lane + int(by); });
}
inline u32 __ballot_sync(u32 mask, int yes) { return emulator::vote(mask, yes != 0); }
inline int __any_sync(u32 mask, int yes) { return emulator::vote(mask, yes != 0) != 0; }
inline int __all_sync(u32 mask, int yes) { return emulator::vote(mask, yes != 0) == ~0u; }

template <class To, class From> inline To emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline u32 __float_as_uint(float v) { return emulator_bits<u32>(v); }
inline int __float_as_int(float v) { return emulator_bits<int>(v); }
inline float __uint_as_float(u32 v) { return emulator_bits<float>(v); }
inline float __int_as_float(int v) { return emulator_bits<float>(v); }

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float a, float b) { return a / b; }

inline int __clz(int v) { return v ? __builtin_clz(u32(v)) : 32; }
inline int __popc(u32 v) { return __builtin_popcount(v); }
inline u32 __brev(u32 v) {
    v = __builtin_bswap32(v);
    v = (v >> 4 & 0x0f0f0f0fu) | (v & 0x0f0f0f0fu) << 4;
    v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
    return (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
}

// As CUDA has them: where the signs differ, unsigned.
#define MIN_MAX(A, B, T)                                                                           \
    inline T min(A a, B b) { return static_cast<T>(b) < static_cast<T>(a) ? b : a; }               \
    inline T max(A a, B b) { return static_cast<T>(a) < static_cast<T>(b) ? b : a; }
MIN_MAX(int, int, int)
MIN_MAX(u32, u32, u32)
MIN_MAX(int, u32, u32)
MIN_MAX(u32, int, u32)
MIN_MAX(long long, long long, long long)
MIN_MAX(u64, u64, u64)
MIN_MAX(u64, u32, u64)
MIN_MAX(u32, u64, u64)
#undef MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
