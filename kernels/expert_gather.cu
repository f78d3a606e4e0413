// expert_gather: out[place] = a[row of the place], rows sorted by expert, because TMA copies rows that
// lie one below the other; a (rows, dim), out (rows · top_k, dim) bf16, both `stride` elements a row.
//
// A block of 128 threads per place, 8 elements a thread at a time. Bound by memory: 4 · rows · top_k ·
// dim bytes. Params: `Gather` in expert.rs; the routing's regions: expert_sort.cu.
#include "common.cuh"

struct Gather {
    Global<bf16> a;
    Global<bf16> out;
    Global<u32> routing;
    u32 rows;  // rows · top_k of this pass
    u32 stride;
    u32 assigned;  // and of the routing's capacity
    u32 unused;
};

__device__ void expert_gather(const Gather &p) {
    u32 row = p.routing[3 * p.assigned + blockIdx.x];
    for (u32 c = 8 * threadIdx.x; c < p.stride; c += 8 * blockDim.x) {
        Vec16 v = p.a.load<Vec16>(u64(row) * p.stride + c);
        p.out.store(u64(blockIdx.x) * p.stride + c, v);
    }
}

KERNEL(expert_gather_rows, Gather, 128, 8, expert_gather)
