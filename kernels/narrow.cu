// narrow: h[r, c] = x[r, c] rounded to bf16: for a product whose rows are not bf16 yet.
// x (rows, dim) f32   h (rows, dim) bf16.
//
// A block of 256 threads per row. Bound by memory: 6 · rows · dim bytes. Params: narrow.rs.
#include "common.cuh"

struct Narrow {
    Global<float> x;
    Global<bf16> h;
    u32 dim;
    u32 x_stride;
    u32 h_stride;
    u32 unused;
};

__device__ void narrow_row(const Narrow &p) {
    Global<float> x = p.x.from(u64(blockIdx.x) * p.x_stride);
    Global<bf16> h = p.h.from(u64(blockIdx.x) * p.h_stride);
    for (u32 c = threadIdx.x; c < p.dim; c += blockDim.x) {
        h.set(c, narrow(x[c]));
    }
}

KERNEL(narrow_rows, Narrow, 256, 1, narrow_row)
