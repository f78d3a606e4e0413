// linear_add: x += a · wᵀ; a (rows, inner) bf16, w (outputs, inner) bf16, x (rows, outputs) f32.
// Twin: model/cpu/linear_add.rs. Params: product.rs. Tiles and threads: matmul.cuh, matmul_hopper.cuh.
#include "matmul_hopper_few.cuh"

struct LinearAdd {
    static constexpr bool PAIR = false;
    static constexpr bool GROUPED = false;

    __device__ __forceinline__ static u32 a_row(const Product &, u32 m) { return m; }
    __device__ __forceinline__ static u32 w_row(const Product &, u32, u32, u32 j) { return j; }
    __device__ __forceinline__ static bool pairs(const Product &p) { return even(p); }
    static constexpr u32 RANK = 2;
    __device__ __forceinline__ static void box(
        const Product &, u32 (&at)[RANK], u32 k, u32 row, u32) {
        at[0] = k;
        at[1] = row;
    }
    template <u32 C> struct Kept {
        float x[C];
    };
    template <u32 C> __device__ __forceinline__ static Kept<C> keep(const Product &p, u32 m, u32 j) {
        Kept<C> kept;
        get(kept.x, p.sum, u64(m) * p.out_stride + j);
        return kept;
    }
    template <u32 C>
    __device__ __forceinline__ static void store(
        const Product &p, u32 m, u32 j, const Kept<C> &kept, float (&v)[C], float (&)[C]) {
#pragma unroll
        for (u32 c = 0; c < C; c++) {
            v[c] += kept.x[c];
        }
        put(p.sum, u64(m) * p.out_stride + j, v);
    }
};

MATMULS(linear_add, LinearAdd)
#ifdef GRITLM_HOPPER
MATMULS_HOPPER(linear_add, LinearAdd)
#endif
SUM_PARTS(linear_add, LinearAdd)
