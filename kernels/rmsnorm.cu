// rmsnorm: h[r, c] = x[r, c] · w[c] / √(mean_c x[r, c]² + eps), the sum in f32.
// x (rows, dim) f32   w (dim) bf16   h (rows, dim) bf16, zeros up to its stride.
//
// A block of 512 threads per row, each with 4 columns at a time (16 bytes of x, 8 of w and h). Two
// such parts a thread stay in registers: up to dim 4096 everything is asked for before the sum and
// read once; what is beyond is read again, from L1. `rows_of`, where given, names the row of x for
// each row of h. Bound by memory: (4 + 2) · rows · dim bytes; a single row by latency.
// Twin: model/cpu/rmsnorm.rs. Params: rmsnorm.rs.
#include "common.cuh"

constexpr u32 THREADS = 512;
constexpr u32 HELD = 2;

struct RmsNormParams {
    Global<float> x;
    Global<bf16> weight;
    Global<bf16> h;
    Global<u32> rows_of;  // of CHOSEN
    u32 dim;
    u32 x_stride;
    u32 h_stride;
    float eps;
};

// Four columns of a row, of which the first `columns` count.
struct Part {
    Vec16 x;
    Vec8 w;
    u32 columns;

    __device__ float at(u32 j) const { return j < columns ? __uint_as_float(x.word[j]) : 0.0f; }
    __device__ float squares() const {
        return at(0) * at(0) + at(1) * at(1) + at(2) * at(2) + at(3) * at(3);
    }
    __device__ Vec8 scaled(float by) const {
        return {narrow2(at(0) * by * widen_low(w.word[0]), at(1) * by * widen_high(w.word[0])),
                narrow2(at(2) * by * widen_low(w.word[1]), at(3) * by * widen_high(w.word[1]))};
    }
};

__device__ __forceinline__ Part part(const RmsNormParams &p, Global<float> x, u32 c) {
    if (c >= p.dim) {
        return {};
    }
    return {x.load<Vec16>(c), p.weight.load<Vec8>(c), p.dim - c};
}

template <bool CHOSEN, bool LONG> __device__ void rmsnorm(const RmsNormParams &p) {
    Shared<float> scratch{0};
    u32 row = blockIdx.x;
    u32 from = CHOSEN ? p.rows_of[row] : row;
    Global<float> x = p.x.from(u64(from) * p.x_stride);
    Global<bf16> h = p.h.from(u64(row) * p.h_stride);
    Part held[HELD];
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        held[i] = part(p, x, 4 * (threadIdx.x + i * THREADS));
        sum += held[i].squares();
    }
    u32 rest = 4 * (threadIdx.x + HELD * THREADS);
    for (u32 c = rest; LONG && c < p.dim; c += 4 * THREADS) {
        sum += part(p, x, c).squares();
    }
    float scale = rsqrtf(block_sum<THREADS>(sum, scratch) / float(p.dim) + p.eps);
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        u32 c = 4 * (threadIdx.x + i * THREADS);
        if (c < p.h_stride) {
            h.store<Vec8>(c, held[i].scaled(scale));
        }
    }
    for (u32 c = rest; LONG && c < p.h_stride; c += 4 * THREADS) {
        h.store<Vec8>(c, part(p, x, c).scaled(scale));
    }
}

KERNEL(rmsnorm_rows, RmsNormParams, THREADS, 1, rmsnorm<false, false>)
KERNEL(rmsnorm_rows_long, RmsNormParams, THREADS, 1, rmsnorm<false, true>)
KERNEL(rmsnorm_chosen, RmsNormParams, THREADS, 1, rmsnorm<true, false>)
KERNEL(rmsnorm_chosen_long, RmsNormParams, THREADS, 1, rmsnorm<true, true>)
