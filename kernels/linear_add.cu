// linear_add: x += a · wᵀ; a (rows, inner) bf16, w (outputs, inner) bf16, x (rows, outputs) f32.
// Twin: model/cpu/linear_add.rs. Params: product.rs. Tiles and threads: matmul.cuh, matvec.cuh.
#include "matmul.cuh"
#include "matvec.cuh"

struct LinearAdd {
    static constexpr bool PAIR = false;
    static constexpr bool GROUPED = false;

    __device__ __forceinline__ static u32 a_row(const Product &, u32 m) { return m; }
    __device__ __forceinline__ static u32 w_row(const Product &, u32, u32, u32 j) { return j; }
    __device__ __forceinline__ static void store(const Product &p, u32 m, u32 j, float v, float) {
        u64 at = u64(m) * p.out_stride + j;
        p.sum.set(at, p.sum[at] + v);
    }
};

MATMULS(linear_add, LinearAdd)
MATVECS(linear_add, LinearAdd)
