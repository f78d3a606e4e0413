// expert_sort: rows sorted by expert, then row, and the list of tiles of the grouped products, so
// that the host never waits for the routing: it launches as many tiles as there may be, and blocks
// beyond the last return.
//
// One block of 32 warps, each with a stretch of the assignments, 32 at a time: votes tell a lane
// which others have its expert. Counted once, then a scan over the warps and over the experts gives
// each warp its first place for each expert, and the second walk writes: stable and the same every
// time. A tile has `tile_rows` rows of one expert, its last fewer. Bound by latency: five barriers.
// Twin: the sort in model/cpu/route.rs. Params: `Sort` in route.rs.
//
// Regions of the routing, with n = rows · top_k of its capacity and E experts:
//   n  expert of (row, k), ascending in k       n  its weight
//   n  place of (row, k) in the sorted order    n  row at that place
//   E + 1  first place of each expert           E + 1  first tile of each expert
//   3 (n + E)  tiles: first place, end, expert
#include "common.cuh"

constexpr u32 WARPS = 32;

struct Sort {
    Global<u32> routing;
    u32 count;     // rows · top_k of this pass
    u32 assigned;  // and of the routing's capacity
    u32 experts;
    u32 top_k;
    u32 tile_rows;
    u32 unused;
};

// The lanes whose expert is this lane's; `experts` itself stands for none.
__device__ __forceinline__ u32 mates(u32 expert, u32 experts) {
    u32 same = ALL;
    for (u32 bit = 1; bit <= experts; bit *= 2) {
        u32 set = __ballot_sync(ALL, expert & bit);
        same &= expert & bit ? set : ~set;
    }
    return same;
}

// The sum over this lane and those before it.
__device__ __forceinline__ u32 warp_scan(u32 v) {
    for (u32 step = 1; step < WARP; step *= 2) {
        u32 before = __shfl_up_sync(ALL, v, step);
        v += lane() >= step ? before : 0;
    }
    return v;
}

__device__ void expert_sort(const Sort &p) {
    u32 experts = p.experts;
    Shared<u32> counts{0};  // (warps, experts): first counts, then places
    Shared<u32> starts = counts.from(WARPS * experts);
    Shared<u32> tile_starts = starts.from(experts + 1);
    Shared<u32> own = counts.from(warp() * experts);
    Global<u32> places = p.routing.from(2ull * p.assigned), rows = places.from(p.assigned);
    Global<u32> starts_out = rows.from(p.assigned), tile_starts_out = starts_out.from(experts + 1);
    Global<u32> tiles = tile_starts_out.from(experts + 1);
    u32 stretch = ceil_div(p.count, WARPS * WARP) * WARP, below = (1u << lane()) - 1;
    u32 first = warp() * stretch, end = min(first + stretch, p.count);

    for (u32 e = lane(); e < experts; e += WARP) {
        own.set(e, 0);
    }
    __syncwarp();
    for (u32 i = first + lane(); i - lane() < end; i += WARP) {
        u32 e = i < end ? p.routing[i] : experts;
        u32 same = mates(e, experts);
        if (i < end && (same & below) == 0) {
            own.set(e, own[e] + __popc(same));
        }
        __syncwarp();
    }
    __syncthreads();
    for (u32 e = warp(); e < experts; e += WARPS) {
        u32 count = counts[lane() * experts + e], sum = warp_scan(count);
        counts.set(lane() * experts + e, sum - count);
        if (lane() == WARP - 1) {
            starts.set(e, sum);  // for now: how many
        }
    }
    __syncthreads();
    if (warp() == 0) {
        u32 start = 0, tile = 0;
        // One more than there are experts: the ends.
        for (u32 e = lane(); e - lane() <= experts; e += WARP) {
            u32 count = e < experts ? starts[e] : 0, tiles_here = ceil_div(count, p.tile_rows);
            u32 counts_to = warp_scan(count), tiles_to = warp_scan(tiles_here);
            if (e <= experts) {
                starts.set(e, start + counts_to - count);
                tile_starts.set(e, tile + tiles_to - tiles_here);
                starts_out.set(e, start + counts_to - count);
                tile_starts_out.set(e, tile + tiles_to - tiles_here);
            }
            start += __shfl_sync(ALL, counts_to, WARP - 1);
            tile += __shfl_sync(ALL, tiles_to, WARP - 1);
        }
    }
    __syncthreads();
    for (u32 i = first + lane(); i - lane() < end; i += WARP) {
        u32 e = i < end ? p.routing[i] : experts;
        u32 same = mates(e, experts);
        u32 before = i < end ? own[e] : 0;
        if (i < end) {
            u32 place = starts[e] + before + __popc(same & below);
            places.set(i, place);
            rows.set(place, i / p.top_k);
        }
        __syncwarp();
        if (i < end && (same & below) == 0) {
            own.set(e, before + __popc(same));
        }
        __syncwarp();
    }
    for (u32 e = warp(); e < experts; e += WARPS) {
        u32 tile = tile_starts[e], place = starts[e];
        for (u32 t = lane(); t < tile_starts[e + 1] - tile; t += WARP) {
            u64 at = 3ull * (tile + t);
            tiles.set(at, place + t * p.tile_rows);
            tiles.set(at + 1, min(place + (t + 1) * p.tile_rows, starts[e + 1]));
            tiles.set(at + 2, e);
        }
    }
}

KERNEL(expert_sort_rows, Sort, WARPS * WARP, 1, expert_sort)
