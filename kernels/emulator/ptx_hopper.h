// ptx_hopper: the instructions of ptx_hopper.cuh on the CPU. An address in shared memory is an
// offset: the memory begins at a multiple of 1024, as a kernel's does.
#pragma once

#include "engine.h"

namespace emulator {

void barrier_init(u32 at, u32 arrivals);
void barrier_init_fence();
void barrier_arrive(u32 at, u32 bytes);
void barrier_arrive_at(u32 at, u32 rank);
void barrier_wait(u32 at, u32 parity, bool cluster);
void tma(u32 into, const u64 *map, const u32 *at, u32 rank, u32 barrier, u32 blocks);
void tma_prefetch(const u64 *map);
void fence_async();
u32 cluster_rank();
void cluster_arrive();
void cluster_wait();
void named_sync(u32 number, u32 threads);
void named_arrive(u32 number, u32 threads);
void release_registers(u32 n);
void claim_registers(u32 n);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(u32 groups);
void wgmma(float *registers, u32 n, u64 a, u64 b, bool add);
void wgmma_held(float *registers, u32 n, const u32 *a, u64 b, bool add);

}  // namespace emulator

template <class T> inline u32 shared_address(Shared<T> to, u32 i) { return to.at(i); }

inline void barrier_init(Shared<u64> b, u32 i, u32 arrivals) {
    emulator::barrier_init(b.at(i), arrivals);
}
inline void barrier_init_fence() { emulator::barrier_init_fence(); }
inline void barrier_expect(Shared<u64> b, u32 i, u32 bytes) {
    emulator::barrier_arrive(b.at(i), bytes);
}
inline void barrier_arrive(Shared<u64> b, u32 i) { emulator::barrier_arrive(b.at(i), 0); }
inline void barrier_arrive_at(Shared<u64> b, u32 i, u32 rank) {
    emulator::barrier_arrive_at(b.at(i), rank);
}
inline void barrier_wait(Shared<u64> b, u32 i, u32 parity) {
    emulator::barrier_wait(b.at(i), parity, false);
}
inline void barrier_wait_cluster(Shared<u64> b, u32 i, u32 parity) {
    emulator::barrier_wait(b.at(i), parity, true);
}

template <u32 RANK>
inline void tma_load(Shared<bf16> to, u32 i, const TensorMap &map, const u32 (&at)[RANK],
                     Shared<u64> b, u32 bi) {
    static_assert(2 <= RANK && RANK <= 5, "");
    emulator::tma(to.at(i), map.word, at, RANK, b.at(bi), 0);
}
template <u32 RANK>
inline void tma_multicast(Shared<bf16> to, u32 i, const TensorMap &map, const u32 (&at)[RANK],
                          Shared<u64> b, u32 bi, u16 blocks) {
    static_assert(2 <= RANK && RANK <= 5, "");
    emulator::tma(to.at(i), map.word, at, RANK, b.at(bi), blocks);
}
inline void tma_prefetch(const TensorMap &map) { emulator::tma_prefetch(map.word); }
inline void fence_async() { emulator::fence_async(); }

inline u32 cluster_rank() { return emulator::cluster_rank(); }
inline void cluster_arrive() { emulator::cluster_arrive(); }
inline void cluster_wait() { emulator::cluster_wait(); }
inline void named_sync(u32 number, u32 threads) { emulator::named_sync(number, threads); }
inline void named_arrive(u32 number, u32 threads) { emulator::named_arrive(number, threads); }
template <u32 N> inline void release_registers() { emulator::release_registers(N); }
template <u32 N> inline void claim_registers() { emulator::claim_registers(N); }

inline void wgmma_fence() { emulator::wgmma_fence(); }
inline void wgmma_commit() { emulator::wgmma_commit(); }
template <u32 N> inline void wgmma_wait() { emulator::wgmma_wait(N); }
template <u32 N> inline void hold(float (&)[N]) {}
template <u32 N> inline void hold(u32 (&)[N]) {}
template <u32 N> inline void wgmma(float (&d)[N / 2], u64 a, u64 b, bool add) {
    static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 128 || N == 192 || N == 256, "");
    emulator::wgmma(d, N, a, b, add);
}
template <u32 N>
inline void wgmma_held(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool add) {
    static_assert(N == 64 || N == 128, "");
    emulator::wgmma_held(d, N, a, b, add);
}
