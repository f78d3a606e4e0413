// expert_add: x[r, :] += Σ_k weight(r, k) · y[place(r, k), :], experts in ascending order; the
// second half of `expert_down_add`. x (rows, dim) f32   y (rows · top_k, dim) f32, by expert.
//
// A thread per 4 columns (16 bytes), grid (rows, columns / 1024): no two add to the same element,
// and the order is fixed. Bound by memory: 4 (2 + top_k) · rows · dim bytes.
// Twin: model/cpu/expert.rs. Params: `Add` in route.rs; regions of the routing in expert_sort.cu.
#include "common.cuh"

struct Add {
    Global<float> y;
    Global<u32> routing;
    Global<float> x;
    u32 dim;
    u32 top_k;
    u32 assigned;  // rows · top_k that the routing has room for
    u32 x_stride;
    u32 y_stride;
    u32 unused;
};

__device__ void expert_add(const Add &p) {
    u32 row = blockIdx.x, c = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (c >= p.dim) {
        return;
    }
    u64 at = u64(row) * p.x_stride + c;
    Vec16 sum = p.x.load<Vec16>(at);
    for (u32 i = row * p.top_k; i < (row + 1) * p.top_k; i++) {
        float weight = __uint_as_float(p.routing[p.assigned + i]);
        Vec16 y = p.y.load<Vec16>(u64(p.routing[2ull * p.assigned + i]) * p.y_stride + c);
        for (u32 j = 0; j < 4; j++) {
            float v = __uint_as_float(sum.word[j]) + weight * __uint_as_float(y.word[j]);
            sum.word[j] = __float_as_uint(v);
        }
    }
    p.x.store<Vec16>(at, sum);
}

KERNEL(expert_add_rows, Add, 256, 1, expert_add)
