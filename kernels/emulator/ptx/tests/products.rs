//! Products of a warpgroup.

use super::harness::{Memory, Run, bf16, kernel, map, numbers};

/// Both operands by TMA, in tiles of 64 columns swizzled by 128 bytes: a (64 × 64) at 0, b at 8192;
/// 64 more bytes behind b for what the mistakes need. Eight sums a thread to global memory.
const PRODUCT: &str = "
    mov.u32 %r0, %tid.x;
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra MADE;
    mbarrier.init.shared::cta.b64 [s+12288], 1;
    fence.mbarrier_init.release.cluster;
MADE:
    bar.sync 0;
    @%p0 bra STARTED;
    mov.b64 %rd0, p;
    cvta.param.u64 %rd0, %rd0;
    add.u64 %rd1, %rd0, 128;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [s+12288], BYTES;
    COPY [s], [%rd0, {0, 0}], [s+12288];
    COPY [s+8192], [%rd1, {0, 0}], [s+12288];
    SECOND
STARTED:
AGAIN:
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [s+12288], 0;
    @!%p1 bra AGAIN;
    READ
    setp.ne.u32 %p2, %r0, %r0;
    setp.eq.u32 %p3, %r0, %r0;
    wgmma.fence.sync.aligned;
    PRODUCTS
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    ld.param.u64 %rd4, [p+256];
    mul.wide.u32 %rd5, %r0, 32;
    add.u64 %rd4, %rd4, %rd5;
    st.global.v4.f32 [%rd4], {%f0, %f1, %f2, %f3};
    st.global.v4.f32 [%rd4+16], {%f4, %f5, %f6, %f7};";

const SUMS: &str = "{%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}";

struct Product {
    memory: Memory,
    params: Vec<u8>,
    text: String,
    out: u64,
}

/// A descriptor of rows of 128 bytes, swizzled.
fn rows(at: u64) -> u64 {
    at >> 4 | 1 << 16 | 64 << 32 | 1 << 62
}

/// An m64n16k16 product.
fn wgmma(a: &str, b: u64, adds: bool, tail: &str) -> String {
    let adds = if adds { "%p3" } else { "%p2" };
    let name = "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16";
    format!("{name} {SUMS}, {a}, {b:#x}, {adds}, 1, 1, {tail};\n")
}

impl Product {
    /// The tensors a (64 × 64) and b, of so many columns and rows, and the products.
    fn new(a: &[f32], b: &[f32], columns: u64, products: &str, read: &str) -> Self {
        let mut memory = Memory::new();
        let (pa, pb) = (memory.put(&bf16(a)), memory.put(&bf16(b)));
        let out = memory.put(&[0; 128 * 32]);
        let rows = b.len() as u64 / columns;
        let mut params = map(pa, &[64, 64], &[128], &[64, 64], 1);
        params.extend(map(pb, &[columns, rows], &[2 * columns], &[64, rows as u32], 1));
        params.extend(out.to_le_bytes());
        let second = match columns > 64 {
            true => format!("COPY [s+{}], [%rd1, {{64, 0}}], [s+12288];", 8192 + 128 * rows),
            false => String::new(),
        };
        let bytes = 64 * 128 + 2 * columns * rows;
        let copy =
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes";
        let body = PRODUCT.replace("SECOND", &second).replace("COPY", copy);
        let body = body.replace("BYTES", &bytes.to_string()).replace("READ", read);
        let text = kernel(264, ".maxntid 128, 1, 1", &body.replace("PRODUCTS", products));
        Self { memory, params, text, out }
    }

    fn run(&self) -> Run<'_> {
        let Self { memory, params, text, .. } = self;
        Run { text, memory, params, blocks: 1, threads: 128, shared: 12296 }
    }

    /// Returns the sums, 64 × 16.
    fn found(&self) -> Vec<f32> {
        let found = self.memory.get_f32(self.out, 1024);
        let mut rows = vec![0.0; 1024];
        for (i, x) in found.iter().enumerate() {
            let (thread, d) = (i / 8, i % 8);
            let (warp, lane, c, h) = (thread / 32, thread % 32, d / 4, d / 2 % 2);
            rows[(16 * warp + lane / 4 + 8 * h) * 16 + 8 * c + lane % 4 * 2 + d % 2] = *x;
        }
        rows
    }
}

/// a · bᵀ over 64 columns, four products deep, both from shared memory.
fn both_shared() -> (Product, Vec<f32>) {
    let (a, b) = (numbers(64 * 64, 1), numbers(16 * 64, 2));
    let deep = |k: u64| wgmma(&format!("{:#x}", rows(32 * k)), rows(8192 + 32 * k), k > 0, "0, 0");
    let product = Product::new(&a, &b, 64, &(0..4).map(deep).collect::<String>(), "");
    let sum = |i: usize| (0..64).map(|k| a[i / 16 * 64 + k] * b[i % 16 * 64 + k]).sum();
    (product, (0..1024).map(sum).collect())
}

#[test]
fn both_operands_in_shared_memory() {
    let (product, sums) = both_shared();
    product.run().is_right();
    assert_eq!(product.found(), sums);
}

/// Whether a text with a change finds a fault, or other sums.
fn is_noticed(product: &Product, sums: &[f32], from: &str, to: &str) {
    assert!(product.text.contains(from), "no {from}");
    let text = product.text.replace(from, to);
    let ran = Run { text: &text, ..product.run() }.run(0);
    assert!(ran.is_err() || product.found() != sums, "{from} to {to}");
}

#[test]
fn every_field_of_a_descriptor_is_read() {
    let (product, sums) = both_shared();
    let right = format!("{:#x}", rows(8192));
    for wrong in [
        // Address, stride offset, base offset, swizzle; the leading offset is not read.
        rows(8192 + 1024),
        rows(8192) & !(0xffff << 32) | 8 << 32,
        rows(8192) | 1 << 49,
        rows(8192) & !(3 << 62),
        rows(8192) ^ 3 << 62,
        // Leading and stride offset exchanged.
        rows(8192) & !(0xffff_ffff << 16) | 64 << 16 | 1 << 32,
    ] {
        is_noticed(&product, &sums, &right, &format!("{wrong:#x}"));
    }
    let same = format!("{:#x}", rows(8192) | 7 << 20);
    let text = product.text.replace(&right, &same);
    Run { text: &text, ..product.run() }.is_right();
    assert_eq!(product.found(), sums);
}

#[test]
fn mistakes_of_products_are_found() {
    let (product, _) = both_shared();
    let run = product.run();
    let (fence, wait) = ("wgmma.fence.sync.aligned;", "wgmma.wait_group.sync.aligned 0;");
    let commit = "wgmma.commit_group.sync.aligned;";
    for (from, to, words) in [
        (fence, "", "no wgmma.fence"),
        (fence, "wgmma.fence.sync.aligned; mov.f32 %f3, 0f00000000;", "no wgmma.fence"),
        (fence, "wgmma.fence.sync.aligned; mov.f32 %f9, %f3;", "no wgmma.fence"),
        (wait, "", "has not been waited for"),
        (wait, "wgmma.wait_group.sync.aligned 1;", "has not been waited for"),
        (commit, "", "has not been waited for"),
        (commit, "wgmma.commit_group.sync.aligned; mov.f32 %f9, %f3;", "has not been waited"),
        (commit, "wgmma.commit_group.sync.aligned; mov.f32 %f3, %f9;", "has not been waited"),
        (commit, "wgmma.commit_group.sync.aligned; bra END;", "ends with a wgmma"),
        // The sums are the numbers of a product with other registers.
        ("{%f0, %f1,", "{%f1, %f0,", "another one under way uses"),
        ("@!%p1 bra AGAIN;", "", "race, the async proxy"),
        ("%p1, [s+12288], 0;", "%p1, [s+12288], 1;", "race, the async proxy"),
        // A store that nobody has shown to the async proxy.
        (
            fence,
            "@!%p0 st.shared.u32 [s+8196], 0; bar.sync 0; wgmma.fence.sync.aligned;",
            "no fence",
        ),
        // A store to what the product reads.
        (commit, "wgmma.commit_group.sync.aligned; st.shared.u32 [s], 0;", "race, the async proxy"),
        // Not all four warps, or not all lanes.
        (fence, "setp.lt.u32 %p4, %r0, 96; @!%p4 bra END; wgmma.fence.sync.aligned;", "all four"),
        (fence, "setp.ne.u32 %p4, %r0, 9; @!%p4 bra END; wgmma.fence.sync.aligned;", "of lanes"),
        ("%p2, 1, 1, 0, 0;", "%p0, 1, 1, 0, 0;", "differ from lane to lane"),
        ("%p2, 1, 1, 0, 0;", "%p2, 1, 2, 0, 0;", "signs"),
        ("%p2, 1, 1, 0, 0;", "%p2, 1, 1, 0;", "with 7 operands"),
        ("%f6, %f7}, 0x", "%f6}, 0x", "expected 8 registers"),
    ] {
        let ends = run.text.replace("ret;", "END: ret;");
        Run { text: &ends, ..run }.is_wrong(from, to, words);
    }
    let store = "@!%p0 st.shared.u32 [s+8196], 0; fence.proxy.async; bar.sync 0; \
        wgmma.fence.sync.aligned;";
    let text = run.text.replace(fence, store);
    Run { text: &text, ..run }.is_right();
}

/// Columns 16 to 31 of the first 16 numbers: a from registers, b (16 × 128) with its columns side
/// by side, of which the product takes 16 that begin in the second tile of 64.
fn held() -> (Product, Vec<f32>) {
    let (a, b) = (numbers(64 * 64, 1), numbers(16 * 128, 2));
    // Lane l of warp w: rows 16 w + l / 4 and 8 on, columns 2 (l % 4) and 8 on, as they are
    // swizzled.
    let read = "
        and.b32 %r1, %r0, 31;
        shr.u32 %r2, %r1, 2;
        shr.u32 %r3, %r0, 5;
        mad.lo.u32 %r2, %r3, 16, %r2;
        and.b32 %r3, %r1, 3;
        mul.lo.u32 %r4, %r2, 128;
        and.b32 %r5, %r2, 7;
        shl.b32 %r5, %r5, 4;
        mad.lo.u32 %r4, %r3, 4, %r4;
        xor.b32 %r6, %r4, %r5;
        ld.shared.u32 %r20, [%r6];
        ld.shared.u32 %r21, [%r6+1024];
        xor.b32 %r6, %r6, 16;
        ld.shared.u32 %r22, [%r6];
        ld.shared.u32 %r23, [%r6+1024];";
    let values = 8192 >> 4 | 2048 >> 4 << 16 | 64 << 32 | 1 << 62;
    let product = wgmma("{%r20, %r21, %r22, %r23}", values, false, "1");
    let product = Product::new(&a, &b, 128, &product.replace("n16", "n80"), read);
    let all: Vec<String> = (0..40).map(|i| format!("%f{}", (i + 8) % 40)).collect();
    let text = product.text.replace(SUMS, &format!("{{{}}}", all.join(", ")));
    // The last 16 of 80 columns are columns 64 to 79.
    let sum =
        |i: usize| (0..16).map(|k| a[i / 16 * 64 + k] * b[k * 128 + 64 + i % 16]).sum::<f32>();
    (Product { text, ..product }, (0..1024).map(sum).collect())
}

#[test]
fn an_operand_in_registers_and_columns_side_by_side() {
    let (product, sums) = held();
    product.run().is_right();
    assert_eq!(product.found(), sums);
    let right = format!("{:#x}", 8192u64 >> 4 | 2048 >> 4 << 16 | 64 << 32 | 1 << 62);
    for wrong in [
        8192u64 >> 4 | 64 << 16 | 2048 >> 4 << 32 | 1 << 62,
        8192 >> 4 | 2048 >> 4 << 16 | 2048 >> 4 << 32 | 1 << 62,
        (8192 + 2048) >> 4 | 2048 >> 4 << 16 | 64 << 32 | 1 << 62,
    ] {
        is_noticed(&product, &sums, &right, &format!("{wrong:#x}"));
    }
    is_noticed(&product, &sums, "1, 1, 1;", "1, 1, 0;");
    is_noticed(&product, &sums, "{%r20, %r21, ", "{%r21, %r20, ");
    let commit = "wgmma.commit_group.sync.aligned;";
    let write = "wgmma.commit_group.sync.aligned; mov.u32 %r20, 0;";
    product.run().is_wrong(commit, write, "has not been waited for");
    product.run().is_wrong("wgmma.fence.sync.aligned;", "", "no wgmma.fence");
}
