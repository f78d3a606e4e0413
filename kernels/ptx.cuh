// ptx: the instructions that CUDA C++ has no word for, one function each; the only inline PTX of
// this tier (sm_80 and newer). The emulator has a host body for each (emulator/ptx.h).
#pragma once

#include "memory.cuh"

#ifdef GRITLM_EMULATOR
#include "emulator/ptx.h"
#else

// The 32-bit address of element i in the shared window.
template <class T> __device__ __forceinline__ u32 shared_address(Shared<T> to, u32 i) {
    return u32(__cvta_generic_to_shared(shared_memory)) + to.at(i);
}

// Two floats rounded to nearest even, `low` in the lower half.
__device__ __forceinline__ u32 narrow2(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// 2ˣ, good to 2 ulp; −∞ gives 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// 16 bytes that are read once, so no cache should keep them: weights of a matrix-vector product.
template <class T> __device__ __forceinline__ Vec16 load_once(Global<T> from, u64 i) {
    Vec16 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(from.first + i));
    return v;
}

// Adds to a counter that blocks share, and returns what it was. Behind the next barrier, a block sees
// what those that added before it have written before the barrier ahead of that.
__device__ __forceinline__ u32 atomic_add_ordered(Global<u32> to, u64 i, u32 v) {
    u32 old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(to.first + i), "r"(v)
                 : "memory");
    return old;
}

// Programmatic dependent launch, from sm_90 on. Blocks of the next launch may come where there is room,
// once all of this one have.
__device__ __forceinline__ void let_next_come() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until the launches before have ended, and sees what they have written. Before, a kernel may only
// read what no kernel writes.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Starts a copy of 16 bytes to shared memory, past L1. Only the first `bytes` (0 to 16) are read;
// the rest becomes 0. With 0 bytes nothing is read, wherever `from` points.
template <class T>
__device__ __forceinline__ void cp_async16(Shared<T> to, u32 i, Global<T> from, u64 j, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to, i)),
                 "l"(from.first + j), "r"(bytes)
                 : "memory");
}

// Closes the group of copies that this thread has started since the last commit.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most N of this thread's groups are under way. Others see the data after a barrier.
template <int N> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8×8 matrices of bf16: lane l gives the place of row l % 8 of matrix l / 8 (element i, 16
// bytes, aligned); it gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each matrix.
__device__ __forceinline__ void ldmatrix4(u32 (&out)[4], Shared<bf16> from, u32 i) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(from, i))
                 : "memory");
}

// As ldmatrix4, each matrix transposed: lane l gets elements l / 4 of rows 2 (l % 4) and + 1.
__device__ __forceinline__ void ldmatrix4_trans(u32 (&out)[4], Shared<bf16> from, u32 i) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(from, i))
                 : "memory");
}

// d (16×8, f32) += a (16×16, bf16) · b (16×8, bf16), by a warp. Lane l has, with g = l / 4 and
// t = l % 4: of d rows g, g + 8 in columns 2t, 2t + 1: d[0], d[1], then d[2], d[3];
// of a: row g columns 2t.. (a[0]), row g + 8 (a[1]), both again 8 columns on (a[2], a[3]);
// of b: column g, rows 2t.. (b0) and 2t + 8.. (b1).
__device__ __forceinline__ void mma16x8x16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
