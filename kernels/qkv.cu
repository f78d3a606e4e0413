// qkv: [q; k; v] = a · [wq; wk; wv]ᵀ, q and k turned by their row's rotary angles, k and v into the
// pages; a (rows, inner) bf16, w (heads + 2 · kv_heads, head_dim, inner) bf16, q (rows, heads,
// head_dim) bf16, keys and values (pages, kv_heads, 128, width) bf16 of one layer.
//
// Output j is a pair of columns d and d + head_dim / 2 of one head, the two that turn together.
// Twin: model/cpu/qkv.rs. Params: product.rs. Tiles and threads: matmul.cuh, matvec.cuh.
#include "matmul.cuh"
#include "matvec.cuh"

constexpr u32 PAGE = 128;

struct Qkv {
    static constexpr bool PAIR = true;
    static constexpr bool GROUPED = false;

    __device__ __forceinline__ static u32 a_row(const Product &, u32 m) { return m; }
    __device__ __forceinline__ static u32 w_row(const Product &p, u32, u32 member, u32 j) {
        u32 half = p.head_dim / 2;
        return j / half * p.head_dim + member * half + j % half;
    }
    __device__ __forceinline__ static void store(
        const Product &p, u32 m, u32 j, float v0, float v1) {
        u32 half = p.head_dim / 2;
        u32 head = j / half;
        u32 d = j % half;
        if (head < p.heads + p.kv_heads) {
            u64 angle = p.angles + 2 * (u64(m) * half + d);
            float cosine = __uint_as_float(p.words[angle]);
            float sine = __uint_as_float(p.words[angle + 1]);
            float turned = v0 * cosine - v1 * sine;
            v1 = v1 * cosine + v0 * sine;
            v0 = turned;
        }
        if (head < p.heads) {
            u64 at = u64(m) * p.out_stride + head * p.head_dim + d;
            p.out.set(at, narrow(v0));
            p.out.set(at + half, narrow(v1));
            return;
        }
        head -= p.heads;
        Global<bf16> to = head < p.kv_heads ? p.keys : p.values;
        head -= head < p.kv_heads ? 0 : p.kv_heads;
        u32 slot = p.words[p.slots + m];
        u64 vector = (u64(slot / PAGE) * p.kv_heads + head) * PAGE + slot % PAGE;
        to.set(vector * p.width + d, narrow(v0));
        to.set(vector * p.width + d + half, narrow(v1));
    }
};

MATMULS(qkv, Qkv)
MATVECS(qkv, Qkv)
