// qkv: [q; k; v] = a · [wq; wk; wv]ᵀ, q and k turned by their row's rotary angles, k and v into the
// pages; a (rows, inner) bf16, w (heads + 2 · kv_heads, head_dim, inner) bf16, q (rows, heads,
// head_dim) bf16, keys and values (pages, kv_heads, 128, width) bf16 of one layer.
//
// Output j is a pair of columns d and d + head_dim / 2 of one head, the two that turn together.
// Twin: model/cpu/qkv.rs. Params: product.rs. Tiles and threads: matmul.cuh, matmul_hopper.cuh.
#include "matmul_hopper_few.cuh"

constexpr u32 PAGE = 128;

struct Qkv {
    static constexpr bool PAIR = true;
    static constexpr bool GROUPED = false;

    __device__ __forceinline__ static u32 a_row(const Product &, u32 m) { return m; }
    __device__ __forceinline__ static u32 w_row(const Product &p, u32, u32 member, u32 j) {
        u32 half = p.head_dim / 2;
        return j / half * p.head_dim + member * half + j % half;
    }
    // Both are of one head, in `out` and in the pages.
    __device__ __forceinline__ static bool pairs(const Product &p) {
        return even(p) && (p.head_dim / 2 | p.width) % 2 == 0;
    }
    static constexpr u32 RANK = 5;
    __device__ __forceinline__ static void box(
        const Product &p, u32 (&at)[RANK], u32 k, u32 row, u32) {
        at[0] = k;
        at[1] = at[2] = 0;
        at[3] = row % p.head_dim / 16;
        at[4] = row / p.head_dim;
    }
    template <u32 C> struct Kept {
        float turn[C][2];  // cosine and sine
        u32 slot;
    };
    template <u32 C> __device__ __forceinline__ static Kept<C> keep(const Product &p, u32 m, u32 j) {
        Kept<C> kept;
        u32 half = p.head_dim / 2;
#pragma unroll
        for (u32 c = 0; c < C; c++) {
            u64 angle = p.angles + 2 * (u64(m) * half + j % half + c);
            get(kept.turn[c], as<float>(p.words), angle);
        }
        kept.slot = p.words[p.slots + m];
        return kept;
    }
    template <u32 C>
    __device__ __forceinline__ static void store(
        const Product &p, u32 m, u32 j, const Kept<C> &kept, float (&v)[C], float (&w)[C]) {
        u32 half = p.head_dim / 2;
        u32 head = j / half;
        u32 d = j % half;
        if (head < p.heads + p.kv_heads) {
#pragma unroll
            for (u32 c = 0; c < C; c++) {
                float turned = v[c] * kept.turn[c][0] - w[c] * kept.turn[c][1];
                w[c] = w[c] * kept.turn[c][0] + v[c] * kept.turn[c][1];
                v[c] = turned;
            }
        }
        auto both = [&](Global<bf16> to, u64 at) {
            put(to, at + d, v);
            put(to, at + d + half, w);
        };
        auto cached = [&](u32 head) {
            u64 page = u64(kept.slot / PAGE) * p.kv_heads + head;
            return (page * PAGE + kept.slot % PAGE) * p.width;
        };
        // A choice of pointers would hide from the compiler that they are of global memory.
        if (head < p.heads) {
            both(p.out, u64(m) * p.out_stride + head * p.head_dim);
        } else if (head < p.heads + p.kv_heads) {
            both(p.keys, cached(head - p.heads));
        } else {
            both(p.values, cached(head - p.heads - p.kv_heads));
        }
    }
};

MATMULS(qkv, Qkv)
#ifdef GRITLM_HOPPER
MATMULS_HOPPER(qkv, Qkv)
#endif
SUM_PARTS(qkv, Qkv)
