// expert_gate_up: gate_up of each row's experts, rows sorted by expert: out[place] =
// silu(a[row] · w1ᵀ) ⊙ (a[row] · w3ᵀ) with the expert's w1 and w3; a (rows, inner) bf16, w (experts,
// 2 · hidden, inner) bf16, out (rows · top_k, hidden) bf16. The row of a place and the tiles are in
// the routing (expert_sort.cu).
// Twin: model/cpu/expert.rs. Params: product.rs. Tiles and threads: matmul.cuh, matmul_hopper.cuh.
#include "matmul_hopper_few.cuh"

struct ExpertGateUp : KeepsNothing {
    static constexpr bool PAIR = true;
    static constexpr bool GROUPED = true;

    __device__ __forceinline__ static u32 a_row(const Product &p, u32 m) {
        return sorted_row(p, m);
    }
    __device__ __forceinline__ static u32 w_row(const Product &p, u32 expert, u32 member, u32 j) {
        return (2 * expert + member) * p.hidden + j;
    }
    static constexpr u32 RANK = 5;
    __device__ __forceinline__ static void box(
        const Product &, u32 (&at)[RANK], u32 k, u32 row, u32 expert) {
        at[0] = k;
        at[1] = at[2] = 0;
        at[3] = row / 16;
        at[4] = expert;
    }
    template <u32 C>
    __device__ __forceinline__ static void store(
        const Product &p, u32 m, u32 j, Nothing, float (&gate)[C], float (&up)[C]) {
#pragma unroll
        for (u32 c = 0; c < C; c++) {
            up[c] *= silu(gate[c]);
        }
        put(p.out, u64(m) * p.out_stride + j, up);
    }
};

MATMULS(expert_gate_up, ExpertGateUp)
#ifdef GRITLM_HOPPER
MATMULS_HOPPER(expert_gate_up, ExpertGateUp)
#endif
