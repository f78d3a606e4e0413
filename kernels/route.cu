// route: logits[r, e] = Σ_c h[r, c] · w[e, c]; softmax over the experts; the top_k largest of a row
// (the lower index where equal) with their weights divided by their sum. Sums in f32.
// h (rows, dim) f32 or bf16   w (experts, dim) bf16   logits (rows, experts) f32
// routing: a row's experts in ascending order and their weights; regions in expert_sort.cu.
//
// A block of 256 threads per row: each has groups of 8 columns and adds up 8 experts at a time, so
// that 8 experts read h once; w (64 KiB of Mixtral's) stays in L1. The first warp chooses: a lane
// has every 32nd expert. Bound by latency: two rounds of loads, one sum over the block.
// Twin: model/cpu/route.rs. Params: `RouteParams` in route.rs.
#include "order.cuh"

constexpr u32 THREADS = 256;
constexpr u32 EXPERTS = 8;

struct RouteParams {
    Global<bf16> h;  // or f32
    Global<bf16> w;
    Global<float> logits;
    Global<u32> routing;
    u32 dim;
    u32 experts;
    u32 top_k;
    u32 assigned;  // rows · top_k that the routing has room for
    u32 h_stride;
    u32 w_stride;
    u32 logits_stride;
    u32 unused;
};

// By one warp.
__device__ void choose(const RouteParams &p, u32 row, Shared<float> logits) {
    // The last of the top_k; all places before it are chosen, too.
    u64 last = ~0ull;
    float largest = 0.0f;
    for (u32 k = 0; k < p.top_k; k++) {
        u64 best = 0;
        for (u32 e = lane(); e < p.experts; e += WARP) {
            u64 place = place_of(logits[e], e);
            best = place < last ? max(place, best) : best;
        }
        last = warp_join(best, Earlier{});
        largest = k == 0 ? value_of(last) : largest;
    }
    float kept = 0.0f;
    for (u32 e = lane(); e < p.experts; e += WARP) {
        kept += place_of(logits[e], e) >= last ? expf(logits[e] - largest) : 0.0f;
    }
    kept = warp_sum(kept);
    u32 to = row * p.top_k;
    for (u32 first = 0; first < p.experts; first += WARP) {
        u32 e = first + lane();
        bool chosen = e < p.experts && place_of(logits[e], e) >= last;
        u32 all = __ballot_sync(ALL, chosen);
        if (chosen) {
            u32 at = to + __popc(all & ((1u << lane()) - 1));
            p.routing.set(at, e);
            p.routing.set(p.assigned + at, __float_as_uint(expf(logits[e] - largest) / kept));
        }
        to += __popc(all);
    }
}

template <class T> __device__ void route(const RouteParams &p) {
    Shared<float> parts{0};  // (warps, EXPERTS)
    Shared<float> logits = parts.from(THREADS / WARP * EXPERTS);
    u32 row = blockIdx.x;
    Global<T> h = as<T>(p.h).from(u64(row) * p.h_stride);
    for (u32 first = 0; first < p.experts; first += EXPERTS) {
        float sums[EXPERTS] = {};
        for (u32 c = 8 * threadIdx.x; c < p.dim; c += 8 * THREADS) {
            float x[8];
            load8(x, h, c);
            for (u32 j = 0; j < 8; j++) {
                x[j] = c + j < p.dim ? x[j] : 0.0f;  // padding may be anything
            }
#pragma unroll
            for (u32 e = 0; e < EXPERTS; e++) {
                float w[8];
                load8(w, p.w, u64(min(first + e, p.experts - 1)) * p.w_stride + c);
                for (u32 j = 0; j < 8; j++) {
                    sums[e] += x[j] * w[j];
                }
            }
        }
#pragma unroll
        for (u32 e = 0; e < EXPERTS; e++) {
            float sum = warp_sum(sums[e]);
            if (lane() == e) {
                parts.set(warp() * EXPERTS + e, sum);
            }
        }
        __syncthreads();
        u32 e = first + threadIdx.x;
        if (threadIdx.x < EXPERTS && e < p.experts) {
            float sum = 0.0f;
            for (u32 w = 0; w < THREADS / WARP; w++) {
                sum += parts[w * EXPERTS + threadIdx.x];
            }
            logits.set(e, sum);
            p.logits.set(u64(row) * p.logits_stride + e, sum);
        }
        __syncthreads();
    }
    if (warp() == 0) {
        choose(p, row, logits);
    }
}

KERNEL(route_f32, RouteParams, THREADS, 1, route<float>)
KERNEL(route_bf16, RouteParams, THREADS, 1, route<bf16>)
