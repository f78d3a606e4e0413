// memory: views of global and shared memory. A view is a pointer (or an offset) with named accesses,
// so that the emulator sees every one of them: bounds, alignment, and for shared memory whether it
// was written, by whom, and whether a barrier lies between. On a GPU each is one instruction.
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// bfloat16 as stored: the upper half of a float. Converted by `widen` and `narrow` (ptx.cuh).
struct bf16 {
    u16 bits;
};

struct __align__(16) Vec16 {  // 16 bytes, one 128-bit access
    u32 word[4];
};
struct __align__(8) Vec8 {  // 8 bytes, one 64-bit access
    u32 word[2];
};

// A tensor in global memory and the box of it that TMA copies, on Hopper; the host makes it (tensor.rs).
// The driver's CUtensorMap: 128 bytes, aligned to 64, among a kernel's parameters.
struct __align__(64) TensorMap {
    u64 word[16];
};

#ifdef GRITLM_EMULATOR
// global_read, global_write (pointer, bytes) and shared_read, shared_write (offset, bytes) → pointer.
#include "emulator/memory.h"
#else
// Tiles that TMA swizzles begin at multiples of 1024 bytes.
extern __shared__ __align__(1024) unsigned char shared_memory[];

template <class T> __device__ __forceinline__ const T *global_read(const void *at, u32) {
    return static_cast<const T *>(at);
}
template <class T> __device__ __forceinline__ T *global_write(void *at, u32) {
    return static_cast<T *>(at);
}
template <class T> __device__ __forceinline__ const T *shared_read(u32 offset, u32) {
    return reinterpret_cast<const T *>(shared_memory + offset);
}
template <class T> __device__ __forceinline__ T *shared_write(u32 offset, u32) {
    return reinterpret_cast<T *>(shared_memory + offset);
}
#endif

// Elements in global memory; 8 bytes in a parameter struct. Indices count elements of T; `load` and
// `store` move a V (Vec16, Vec8, float, …) that begins at element i and is aligned to its size.
template <class T> struct Global {
    T *first;

    template <class V> __device__ __forceinline__ V load(u64 i) const {
        return *global_read<V>(first + i, sizeof(V));
    }
    template <class V> __device__ __forceinline__ void store(u64 i, V value) const {
        *global_write<V>(first + i, sizeof(V)) = value;
    }
    __device__ __forceinline__ T operator[](u64 i) const { return load<T>(i); }
    __device__ __forceinline__ void set(u64 i, T value) const { store<T>(i, value); }
    // The view that begins at element i.
    __device__ __forceinline__ Global<T> from(u64 i) const { return {first + i}; }
};

// Elements in the block's dynamic shared memory, from byte `offset` on. Same accesses as Global.
template <class T> struct Shared {
    u32 offset;

    __device__ __forceinline__ u32 at(u32 i) const { return offset + i * u32(sizeof(T)); }
    template <class V> __device__ __forceinline__ V load(u32 i) const {
        return *shared_read<V>(at(i), sizeof(V));
    }
    template <class V> __device__ __forceinline__ void store(u32 i, V value) const {
        *shared_write<V>(at(i), sizeof(V)) = value;
    }
    __device__ __forceinline__ T operator[](u32 i) const { return load<T>(i); }
    __device__ __forceinline__ void set(u32 i, T value) const { store<T>(i, value); }
    // The view that begins at element i.
    __device__ __forceinline__ Shared<T> from(u32 i) const { return {at(i)}; }
};
