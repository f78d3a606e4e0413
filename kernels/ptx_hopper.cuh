// ptx_hopper: the instructions of Hopper (sm_90a) that CUDA C++ has no word for, one function each, as
// ptx.cuh has those of every GPU: barriers in shared memory that count bytes (mbarriers), copies of
// boxes of a tensor by one thread (TMA), products of a warpgroup (wgmma), clusters. The emulator has a
// host body for each (emulator/ptx_hopper.h).
#pragma once

#include "ptx.cuh"

// Threads of a warpgroup, which multiplies together.
constexpr u32 WARPGROUP = 128;
// Columns of bf16 in a row of a swizzled tile: 128 bytes, the widest that TMA and wgmma swizzle.
constexpr u32 TILE_COLUMNS = 64;

#ifdef GRITLM_EMULATOR
#include "emulator/ptx_hopper.h"
#else

// An mbarrier: a phase ends when so many threads have arrived and all announced bytes have landed. It
// begins in phase 0; waiting for the phase before it (parity 1) returns at once.
__device__ __forceinline__ void barrier_init(Shared<u64> b, u32 i, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b, i)), "r"(arrivals)
                 : "memory");
}

// Shows the barriers that this thread has made to the cluster and to TMA; others see them behind the
// next barrier of their block or cluster.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives, and announces bytes that will land before the phase ends.
__device__ __forceinline__ void barrier_expect(Shared<u64> b, u32 i, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b, i)),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(Shared<u64> b, u32 i) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b, i)) : "memory");
}

// Arrives at the barrier in the same place of another block of the cluster, or of this one.
__device__ __forceinline__ void barrier_arrive_at(Shared<u64> b, u32 i, u32 rank) {
    asm volatile("{\n.reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(
                     shared_address(b, i)),
                 "r"(rank)
                 : "memory");
}

// Waits until the phase with this parity has ended. What was written before the arrivals, and the bytes
// that have landed, can be read then.
__device__ __forceinline__ void barrier_wait(Shared<u64> b, u32 i, u32 parity) {
    asm volatile("{\n.reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" ::"r"(shared_address(b, i)),
                 "r"(parity)
                 : "memory");
}

// As barrier_wait, where threads of other blocks of the cluster arrive too.
__device__ __forceinline__ void barrier_wait_cluster(Shared<u64> b, u32 i, u32 parity) {
    asm volatile("{\n.reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" ::"r"(shared_address(b, i)),
                 "r"(parity)
                 : "memory");
}

// Starts a copy of the box at `at` (column first) to element i of `to`, aligned to 128 bytes, and to
// 1024 where the map swizzles. Elements outside the tensor become 0. All bytes of the box are counted at
// the barrier when they have landed, also those outside.
template <u32 RANK>
__device__ __forceinline__ void tma_load(
    Shared<bf16> to, u32 i, const TensorMap &map, const u32 (&at)[RANK], Shared<u64> b, u32 bi) {
    static_assert(2 <= RANK && RANK <= 5, "");
    u32 into = shared_address(to, i), barrier = shared_address(b, bi);
#define TMA(RANK, PLACE, ...)                                                                      \
    asm volatile("cp.async.bulk.tensor." RANK "d.shared::cluster.global.tile.mbarrier::"           \
                 "complete_tx::bytes [%0], [%1, {" PLACE "}], [%2];" ::"r"(into),                  \
                 "l"(&map), "r"(barrier), __VA_ARGS__                                              \
                 : "memory")
    if constexpr (RANK == 2) {
        TMA("2", "%3, %4", "r"(at[0]), "r"(at[1]));
    } else if constexpr (RANK == 3) {
        TMA("3", "%3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
    } else if constexpr (RANK == 4) {
        TMA("4", "%3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
    } else {
        TMA("5", "%3, %4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
    }
#undef TMA
}

// As tma_load, into the same place of each block of the cluster whose bit is in `blocks`, where the
// barrier in the same place counts the bytes.
template <u32 RANK>
__device__ __forceinline__ void tma_multicast(
    Shared<bf16> to, u32 i, const TensorMap &map, const u32 (&at)[RANK], Shared<u64> b, u32 bi,
    u16 blocks) {
    static_assert(2 <= RANK && RANK <= 5, "");
    u32 into = shared_address(to, i), barrier = shared_address(b, bi);
#define TMA(RANK, PLACE, ...)                                                                      \
    asm volatile("cp.async.bulk.tensor." RANK "d.shared::cluster.global.tile.mbarrier::"           \
                 "complete_tx::bytes.multicast::cluster [%0], [%1, {" PLACE "}], [%2], %3;" ::"r"( \
                     into),                                                                        \
                 "l"(&map), "r"(barrier), "h"(blocks), __VA_ARGS__                                 \
                 : "memory")
    if constexpr (RANK == 2) {
        TMA("2", "%4, %5", "r"(at[0]), "r"(at[1]));
    } else if constexpr (RANK == 3) {
        TMA("3", "%4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]));
    } else if constexpr (RANK == 4) {
        TMA("4", "%4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
    } else {
        TMA("5", "%4, %5, %6, %7, %8", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
    }
#undef TMA
}

// Brings a map to where TMA keeps them, so that the first copy does not wait for it.
__device__ __forceinline__ void tma_prefetch(const TensorMap &map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Lets the async proxy (TMA, wgmma) see what this thread has written to shared memory by stores.
__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The number of this block in its cluster.
__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// A barrier of all threads of a cluster.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A barrier of some of the block's warps, by number, 1 to 15: waits until so many threads are there.
__device__ __forceinline__ void named_sync(u32 number, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
// Counts as being there, and goes on.
__device__ __forceinline__ void named_arrive(u32 number, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// A warpgroup gives registers back, down to N a thread, or waits for more, up to N.
template <u32 N> __device__ __forceinline__ void release_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <u32 N> __device__ __forceinline__ void claim_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Orders what this warpgroup's threads have written to registers before the wgmma that use them. The
// sums of a wgmma under way need none.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Closes the group of wgmma since the last commit.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most N groups are under way. Before, the sums must not be touched, and what the
// operands are read from must not be written.
template <u32 N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Keeps the compiler from moving what touches these registers across: it does not know that a wgmma
// writes them later. No instruction.
template <u32 N> __device__ __forceinline__ void hold(float (&v)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) {
        asm volatile("" : "+f"(v[i])::"memory");
    }
}
template <u32 N> __device__ __forceinline__ void hold(u32 (&v)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) {
        asm volatile("" : "+r"(v[i])::"memory");
    }
}

// The operands of a wgmma by number: D the sums, in groups of eight.
#define D0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define D1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define D2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define D3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define D4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define D5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define D6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define D7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define D8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define D9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define D10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define D11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define D12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define D13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define D14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define D15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define D_0_3 D0 ", " D1 ", " D2 ", " D3
#define D_4_7 D4 ", " D5 ", " D6 ", " D7
#define D_8_11 D8 ", " D9 ", " D10 ", " D11
#define D_12_15 D12 ", " D13 ", " D14 ", " D15
#define F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F8(i) F4(i), F4(i + 4)
#define F16(i) F8(i), F8(i + 8)
#define F32(i) F16(i), F16(i + 16)
#define F64(i) F32(i), F32(i + 32)
#define F96(i) F64(i), F32(i + 64)
#define F128(i) F64(i), F64(i + 64)
#define WGMMA(N, D, A, B, SCALE, TAIL, OUT, ...)                                                   \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " SCALE ", 0;\n"                           \
                 "wgmma.mma_async.sync.aligned.m64n" N "k16.f32.bf16.bf16 {" D "}, " A ", " B      \
                 ", add, 1, 1, " TAIL ";\n}"                                                       \
                 : OUT(0)                                                                           \
                 : __VA_ARGS__)

// d (64×N, f32) = a (64×16) · b (16×N), + d where `add`; a and b bf16 in shared memory, by descriptors,
// both with their 16 columns side by side. Warp w of the warpgroup has rows 16 w to 16 w + 15 of d: lane
// l has in d[4c + 2h + i] row l / 4 + 8h, column 8c + 2 (l % 4) + i.
template <u32 N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], u64 a, u64 b, bool add) {
#define BOTH(N, D, A, B, SCALE, OUT)                                                               \
    WGMMA(N, D, A, B, SCALE, "0, 0", OUT, "l"(a), "l"(b), "r"(int(add)))
    if constexpr (N == 8) {
        BOTH("8", "%0, %1, %2, %3", "%4", "%5", "%6", F4);
    } else if constexpr (N == 16) {
        BOTH("16", D0, "%8", "%9", "%10", F8);
    } else if constexpr (N == 32) {
        BOTH("32", D0 ", " D1, "%16", "%17", "%18", F16);
    } else if constexpr (N == 64) {
        BOTH("64", D_0_3, "%32", "%33", "%34", F32);
    } else if constexpr (N == 128) {
        BOTH("128", D_0_3 ", " D_4_7, "%64", "%65", "%66", F64);
    } else if constexpr (N == 192) {
        BOTH("192", D_0_3 ", " D_4_7 ", " D_8_11, "%96", "%97", "%98", F96);
    } else {
        static_assert(N == 256, "");
        BOTH("256", D_0_3 ", " D_4_7 ", " D_8_11 ", " D_12_15, "%128", "%129", "%130", F128);
    }
#undef BOTH
}

// As wgmma, with a in registers: of its warp's 16 rows lane l has what it has in mma16x8x16 (ptx.cuh). b
// lies the other way round: its N columns side by side, as values (tokens, head_dim) do.
template <u32 N>
__device__ __forceinline__ void wgmma_held(
    float (&d)[N / 2], const u32 (&a)[4], u64 b, bool add) {
#define HELD(N, D, A, B, SCALE, OUT)                                                               \
    WGMMA(N, D, A, B, SCALE, "1", OUT, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),         \
          "r"(int(add)))
    if constexpr (N == 64) {
        HELD("64", D_0_3, "{%32, %33, %34, %35}", "%36", "%37", F32);
    } else {
        static_assert(N == 128, "");
        HELD("128", D_0_3 ", " D_4_7, "{%64, %65, %66, %67}", "%68", "%69", F64);
    }
#undef HELD
}

#undef WGMMA
#undef D0
#undef D1
#undef D2
#undef D3
#undef D4
#undef D5
#undef D6
#undef D7
#undef D8
#undef D9
#undef D10
#undef D11
#undef D12
#undef D13
#undef D14
#undef D15
#undef D_0_3
#undef D_4_7
#undef D_8_11
#undef D_12_15
#undef F4
#undef F8
#undef F16
#undef F32
#undef F64
#undef F96
#undef F128
#endif

// What wgmma reads in shared memory: tiles of rows of 128 bytes, swizzled by 128 bytes, as TMA writes
// them; element i begins one, or is 16 columns on in it. Bits 0-13 the address, 16-29 and 32-45 the
// leading and the stride offset, all in 16 bytes, 62-63 the swizzle. Source: PTX ISA, "Matrix descriptor
// format", and CUTLASS's include/cute/arch/mma_sm90_desc.hpp.
__device__ __forceinline__ u64 tile_descriptor(Shared<bf16> tile, u32 i, u32 lead, u32 stride) {
    return u64(shared_address(tile, i) >> 4 & 0x3fff) | u64(lead >> 4) << 16 |
           u64(stride >> 4) << 32 | 1ull << 62;
}

// Rows with the columns that are summed side by side: 8 rows are 1024 bytes, and 16 columns on are 32
// bytes on. The leading offset is not used.
__device__ __forceinline__ u64 rows_descriptor(Shared<bf16> tile, u32 i) {
    return tile_descriptor(tile, i, 16, 1024);
}

// Rows that are summed over, with N columns side by side, 64 of them a tile and `apart` bytes from tile
// to tile; 16 rows on are 2048 bytes on.
__device__ __forceinline__ u64 columns_descriptor(Shared<bf16> tile, u32 i, u32 apart) {
    return tile_descriptor(tile, i, apart, 1024);
}
