// order: a value and its id as one number, a place: the larger, the earlier. Larger values come
// first, the lower id where they are equal; NaN is beyond infinity. Also what a block agrees on.
#pragma once

#include "common.cuh"

// Sorts as the floats do; 0 is no number's.
__device__ __forceinline__ u32 order_of(float value) {
    u32 bits = __float_as_uint(value + 0.0f);  // which makes −0 equal to 0
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ u64 place_at(u32 order, u32 id) { return u64(order) << 32 | ~id; }
__device__ __forceinline__ u64 place_of(float value, u32 id) {
    return place_at(order_of(value), id);
}
__device__ __forceinline__ u32 id_of(u64 place) { return ~u32(place); }
__device__ __forceinline__ float value_of(u64 place) {
    u32 order = u32(place >> 32);
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

struct Earlier {
    __device__ u64 operator()(u64 a, u64 b) const { return max(a, b); }
};
struct Later {
    __device__ u64 operator()(u64 a, u64 b) const { return min(a, b); }
};
struct Plus {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};

// What the lane whose number differs in bit `step` has.
template <class T> __device__ __forceinline__ T exchange(T v, u32 step) {
    return __shfl_xor_sync(ALL, v, step);
}
template <> __device__ __forceinline__ u64 exchange(u64 v, u32 step) {
    return u64(exchange(u32(v >> 32), step)) << 32 | exchange(u32(v), step);
}

// All lanes' values joined; every lane gets it.
template <class T, class Join> __device__ __forceinline__ T warp_join(T v, Join join) {
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        v = join(v, exchange(v, step));
    }
    return v;
}

// All threads' values joined, by a block of 1024; every thread gets it, always in the same order.
// `scratch` has a T for each warp; it may be used again at once.
template <class T, class Join>
__device__ __forceinline__ T block_join(T v, Shared<T> scratch, Join join) {
    v = warp_join(v, join);
    __syncthreads();
    if (lane() == 0) {
        scratch.set(warp(), v);
    }
    __syncthreads();
    return warp_join(scratch[lane()], join);
}
