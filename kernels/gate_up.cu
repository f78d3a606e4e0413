// gate_up: out = silu(a · w1ᵀ) ⊙ (a · w3ᵀ); a (rows, inner) bf16, w = [w1; w3] (2 · hidden, inner)
// bf16, out (rows, hidden) bf16.
// Twin: model/cpu/gate_up.rs. Params: product.rs. Tiles and threads: matmul.cuh, matmul_hopper.cuh.
#include "matmul_hopper_few.cuh"

struct GateUp : KeepsNothing {
    static constexpr bool PAIR = true;
    static constexpr bool GROUPED = false;

    __device__ __forceinline__ static u32 a_row(const Product &, u32 m) { return m; }
    __device__ __forceinline__ static u32 w_row(const Product &p, u32, u32 member, u32 j) {
        return member * p.hidden + j;
    }
    static constexpr u32 RANK = 4;
    __device__ __forceinline__ static void box(
        const Product &, u32 (&at)[RANK], u32 k, u32 row, u32) {
        at[0] = k;
        at[1] = at[2] = 0;
        at[3] = row / 16;
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

MATMULS(gate_up, GateUp)
#ifdef GRITLM_HOPPER
MATMULS_HOPPER(gate_up, GateUp)
#endif
SUM_PARTS(gate_up, GateUp)
