// logits: out = a · wᵀ; a (rows, inner) bf16 (normed rows), w (vocab, inner) bf16, out (rows, vocab)
// f32. Twin: model/cpu/logits.rs. Params: product.rs. Tiles and threads: matmul.cuh, matmul_hopper.cuh.
#include "matmul_hopper_few.cuh"

struct Logits : KeepsNothing {
    static constexpr bool PAIR = false;
    static constexpr bool GROUPED = false;

    __device__ __forceinline__ static u32 a_row(const Product &, u32 m) { return m; }
    __device__ __forceinline__ static u32 w_row(const Product &, u32, u32, u32 j) { return j; }
    static constexpr u32 RANK = 2;
    __device__ __forceinline__ static void box(
        const Product &, u32 (&at)[RANK], u32 k, u32 row, u32) {
        at[0] = k;
        at[1] = row;
    }
    template <u32 C>
    __device__ __forceinline__ static void store(
        const Product &p, u32 m, u32 j, Nothing, float (&v)[C], float (&)[C]) {
        put(p.sum, u64(m) * p.out_stride + j, v);
    }
};

MATMULS(logits, Logits)
#ifdef GRITLM_HOPPER
MATMULS_HOPPER(logits, Logits)
#endif
SUM_PARTS(logits, Logits)
