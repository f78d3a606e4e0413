// matmul_hopper: the tiles of matmul.cuh on Hopper's own instructions, with the same ops and the same
// sums: a (rows, inner) · w (outputs, inner)ᵀ, bf16 in, f32 sums.
//
// A block of three warpgroups has 128 rows and BN rows of the weights. One thread of the first warpgroup
// copies by TMA, in steps of 64 columns, into STAGES places; the other two multiply 64 rows each,
// by wgmma, whose sums are in registers (BN / 2 a thread). Blocks are persistent: while the sums of
// one tile are stored, the copies of the next are under way. Two blocks of a CLUSTER have two tiles of
// rows of the same weights; each copies half of those, for both.
//
//   producer                     full[s]                    consumers, 2 a block
//   waits for empty[s]   ───►    1 arrival, all bytes  ───►  wait for full[s], start step k
//   starts copies to s           of the stage                wait for step k - 1
//   next s               ◄───    empty[s]              ◄───  arrive, in each block of the cluster
//                                2 · CLUSTER arrivals
//
// Of a PAIR the map of the weights (tensor.rs) makes 8 rows of either kind alternate, so that a thread
// has both sums of an output, as in matmul.cuh. Beyond the matrices TMA writes zeros. Where there are
// fewer tiles than multiprocessors, gridDim.y blocks share a tile's columns, as in matmul.cuh.
// Bound by the tensor cores: m64n256k16 takes 128 cycles of a multiprocessor, a step of 128×256 1024,
// for which a block copies 48 KB, in a cluster 32 KB. Twins and parameters: the ops' own.
#pragma once

#include "matmul.cuh"

#ifdef GRITLM_HOPPER
#include "ptx_hopper.cuh"

// A tile: its rows, and its first output.
struct Place {
    Rows rows;
    u32 j0;
};

constexpr u32 BOX = 64;  // rows of the weights that one copy brings

// Rows of the product that a list or their number makes, in tiles.
template <class Op> __device__ __forceinline__ u32 row_tiles(const Product &p) {
    return Op::GROUPED ? p.words[4 * p.assigned + p.experts + 1 + p.experts] : p.tiles;
}

// Starts the copies of a step of the weights that fall to this block: boxes `rank`, rank + CLUSTER, …
template <class Op, u32 ROWS, u32 CLUSTER>
__device__ __forceinline__ void load_weights(
    const ProductMaps &maps, Shared<bf16> to, u32 k, u32 row, u32 expert, Shared<u64> full, u32 stage,
    u32 rank) {
#pragma unroll
    for (u32 box = 0; box < ROWS / BOX; box++) {
        u32 at[Op::RANK];
        Op::box(maps.p, at, k, row + box * BOX, expert);
        if constexpr (CLUSTER == 1) {
            tma_load(to, box * BOX * DEPTH, maps.w, at, full, stage);
        } else if (box % CLUSTER == rank) {
            constexpr u16 EVERY = (1 << CLUSTER) - 1;
            tma_multicast(to, box * BOX * DEPTH, maps.w, at, full, stage, EVERY);
        }
    }
}

template <class Op, u32 BN, u32 STAGES, u32 CLUSTER>
__device__ void matmul_hopper(const ProductMaps &maps) {
    constexpr u32 BM = 128;
    constexpr u32 EACH = Op::PAIR ? 2 : 1;
    constexpr u32 ACROSS = BN / EACH;
    constexpr u32 STAGE = (BM + BN) * DEPTH;
    static_assert(BN % BOX == 0 && (CLUSTER == 1 || !Op::GROUPED), "");
    const Product &p = maps.p;
    Shared<bf16> shared{0};
    Shared<u64> full{STAGES * STAGE * u32(sizeof(bf16))};
    Shared<u64> empty = full.from(STAGES);
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; s++) {
            barrier_init(full, s, 1);
            barrier_init(empty, s, 2 * CLUSTER);
        }
        barrier_init_fence();
        tma_prefetch(maps.a);
        tma_prefetch(maps.w);
    }
    __syncthreads();
    u32 rank = 0;
    if (CLUSTER > 1) {
        // No block may be written to before its barriers are there.
        rank = cluster_rank();
        cluster_arrive();
        cluster_wait();
    }
    wait_for_previous();

    // The tiles, in the order of matmul.cuh; those of a cluster are a unit.
    u32 across = ceil_div(p.outputs, ACROSS);
    u32 units = ceil_div(row_tiles<Op>(p), CLUSTER);
    u32 tiles = units * across;
    u32 first = blockIdx.x / CLUSTER;
    u32 apart = gridDim.x / CLUSTER;
    u32 begin = Op::GROUPED ? 0 : blockIdx.y * p.split;
    u32 steps = ceil_div(p.inner, DEPTH);
    if (!Op::GROUPED) {
        steps = min(steps - begin, p.split);
    }
    u32 stage = 0;
    u32 parity = 0;
    auto next = [&]() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    };
    auto tile_at = [&](u32 n) {
        u32 in_group = n % (GROUP * across);
        u32 unit = n / (GROUP * across) * GROUP;
        u32 height = min(units - unit, GROUP);
        unit += in_group % height;
        // The last of a cluster's rows may be none; its block multiplies zeros, for the weights that it
        // copies are the other's too.
        return Place{rows_of<Op>(p, unit * CLUSTER + rank, BM), in_group / height * ACROSS};
    };
    // All lanes of a warp have the same, which the compiler cannot know.
    u32 group = __shfl_sync(ALL, threadIdx.x / WARPGROUP, 0);
    if (group == 0) {
        release_registers<40>();
        if (threadIdx.x == 0) {
            for (u32 n = first; n < tiles; n += apart) {
                auto [rows, j0] = tile_at(n);
                for (u32 k = begin; k < begin + steps; k++) {
                    // The first time around, the phase before the first is waited for.
                    barrier_wait_cluster(empty, stage, parity ^ 1);
                    barrier_expect(full, stage, STAGE * u32(sizeof(bf16)));
                    Shared<bf16> a = shared.from(stage * STAGE);
                    tma_load(a, 0, maps.a, {k * DEPTH, rows.first}, full, stage);
                    load_weights<Op, BN, CLUSTER>(
                        maps, a.from(BM * DEPTH), k * DEPTH, j0 * EACH, rows.expert, full, stage, rank);
                    next();
                }
            }
        }
        __syncwarp();
    } else {
        claim_registers<232>();
        u32 mine = (group - 1) * 64;
        auto give_back = [&](u32 s) {
            if (threadIdx.x % WARPGROUP < CLUSTER) {
                if constexpr (CLUSTER == 1) {
                    barrier_arrive(empty, s);
                } else {
                    barrier_arrive_at(empty, s, threadIdx.x % WARPGROUP);
                }
            }
        };
        for (u32 n = first; n < tiles; n += apart) {
            auto [rows, j0] = tile_at(n);
            float acc[1][BN / 8][4];
            auto &sums = reinterpret_cast<float (&)[BN / 2]>(acc);
            u32 before = 0;
            for (u32 k = 0; k < steps; k++) {
                barrier_wait(full, stage, parity);
                Shared<bf16> a = shared.from(stage * STAGE);
                u64 rows_at = rows_descriptor(a, mine * DEPTH);
                u64 weights_at = rows_descriptor(a, BM * DEPTH);
                hold(sums);
                wgmma_fence();
#pragma unroll
                for (u32 i = 0; i < DEPTH / 16; i++) {
                    wgmma<BN>(sums, rows_at + 2 * i, weights_at + 2 * i, k + i > 0);
                }
                wgmma_commit();
                hold(sums);
                // The step before is over, and its place free.
                wgmma_wait<1>();
                if (k > 0) {
                    give_back(before);
                }
                before = stage;
                next();
            }
            wgmma_wait<0>();
            hold(sums);
            give_back(before);
            u32 m0 = rows.first + mine + warp() % 4 * 16;
            constexpr u32 BATCH = ACROSS % 64 == 0 ? 8 : 4;
            if (!Op::GROUPED && gridDim.y > 1) {
                store_sums<Part<Op>, 2, BATCH>(p, m0, rows.end, j0, acc);
            } else {
                store_sums<Op, 2, BATCH>(p, m0, rows.end, j0, acc);
            }
        }
    }
    if (CLUSTER > 1) {
        // A block stays until no other writes to it.
        cluster_arrive();
        cluster_wait();
    }
}
#endif
