// expert_down: sum[place] = a[place] · w2ᵀ with the expert's w2; a (rows · top_k, inner) bf16 sorted
// by expert, w (experts, dim, inner) bf16, sum (rows · top_k, dim) f32, which expert_add.cu weighs
// and adds to x: in a fixed order, where atomic additions would have none.
// Twin: model/cpu/expert.rs. Params: product.rs. Tiles and threads: matmul.cuh, matmul_hopper.cuh.
#include "matmul_hopper_few.cuh"

struct ExpertDown : KeepsNothing {
    static constexpr bool PAIR = false;
    static constexpr bool GROUPED = true;

    __device__ __forceinline__ static u32 a_row(const Product &, u32 m) { return m; }
    __device__ __forceinline__ static u32 w_row(const Product &p, u32 expert, u32, u32 j) {
        return expert * p.outputs + j;
    }
    static constexpr u32 RANK = 3;
    __device__ __forceinline__ static void box(
        const Product &, u32 (&at)[RANK], u32 k, u32 row, u32 expert) {
        at[0] = k;
        at[1] = row;
        at[2] = expert;
    }
    template <u32 C>
    __device__ __forceinline__ static void store(
        const Product &p, u32 m, u32 j, Nothing, float (&v)[C], float (&)[C]) {
        put(p.sum, u64(m) * p.out_stride + j, v);
    }
};

MATMULS(expert_down, ExpertDown)
#ifdef GRITLM_HOPPER
MATMULS_HOPPER(expert_down, ExpertDown)
#endif
