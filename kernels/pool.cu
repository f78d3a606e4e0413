// pool: one vector per span of hidden states: the mean, the mean with weights 1, 2, 3, …, or one
// row (a mean over one); then, where wanted, divided by its length. Sums in f32.
// h (rows, dim) f32 or bf16   spans (spans, 4)   out (spans, dim) f32.
//
// Sums: a block of 512 threads has 64 columns of a span (128 bytes of bf16): 8 threads side by side
// with 8 columns each, 64 rows at a time, so that one long span of dim 4096 still has 64 blocks.
// Lengths: a block of 256 per span. Bound by memory: h once.
// Twin: model/cpu/pool.rs. Params: pool.rs.
#include "common.cuh"

constexpr u32 THREADS = 512;
constexpr u32 COLUMNS = 64;
constexpr u32 ACROSS = COLUMNS / 8;

struct Pool {
    Global<bf16> h;  // or f32
    Global<u32> spans;  // first row, rows, weighted, normalize
    Global<float> out;
    u32 dim;
    u32 h_stride;
    u32 out_stride;
    u32 unused;
};

template <class T> __device__ void pool_sums(const Pool &p) {
    Shared<float> parts{0};  // (warps, COLUMNS)
    Vec16 span = p.spans.load<Vec16>(4 * blockIdx.x);
    u32 first = span.word[0], rows = span.word[1];
    bool weighted = span.word[2] != 0;
    u32 own = 8 * (threadIdx.x % ACROSS), c = blockIdx.y * COLUMNS + own;
    Global<T> h = as<T>(p.h).from(u64(first) * p.h_stride + c);
    float sums[8] = {};
    if (c < p.dim) {
#pragma unroll 4
        for (u32 r = threadIdx.x / ACROSS; r < rows; r += THREADS / ACROSS) {
            float v[8];
            load8(v, h, u64(r) * p.h_stride);
            for (u32 j = 0; j < 8; j++) {
                sums[j] += (weighted ? float(r + 1) : 1.0f) * v[j];
            }
        }
    }
    for (u32 j = 0; j < 8; j++) {
        for (u32 step = ACROSS; step < WARP; step *= 2) {
            sums[j] += __shfl_xor_sync(ALL, sums[j], step);
        }
        if (lane() < ACROSS) {
            parts.set(warp() * COLUMNS + own + j, sums[j]);
        }
    }
    __syncthreads();
    c = blockIdx.y * COLUMNS + threadIdx.x;
    if (threadIdx.x < COLUMNS && c < p.dim) {
        float sum = 0.0f, n = float(rows);
        for (u32 w = 0; w < THREADS / WARP; w++) {
            sum += parts[w * COLUMNS + threadIdx.x];
        }
        p.out.set(u64(blockIdx.x) * p.out_stride + c, sum / (weighted ? n * (n + 1) / 2 : n));
    }
}

__device__ void pool_lengths(const Pool &p) {
    Shared<float> scratch{0};
    if (p.spans[4 * blockIdx.x + 3] == 0) {
        return;
    }
    Global<float> out = p.out.from(u64(blockIdx.x) * p.out_stride);
    float squares = 0.0f;
    for (u32 c = threadIdx.x; c < p.dim; c += blockDim.x) {
        squares += out[c] * out[c];
    }
    // As torch's normalize, which keeps a zero vector zero.
    float length = fmaxf(sqrtf(block_sum<256>(squares, scratch)), 1e-12f);
    for (u32 c = threadIdx.x; c < p.dim; c += blockDim.x) {
        out.set(c, out[c] / length);
    }
}

KERNEL(pool_sums_f32, Pool, THREADS, 1, pool_sums<float>)
KERNEL(pool_sums_bf16, Pool, THREADS, 1, pool_sums<bf16>)
KERNEL(pool_lengths_all, Pool, 256, 1, pool_lengths)
