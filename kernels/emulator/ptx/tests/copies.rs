//! Copies by TMA and the barriers that they report to.

use super::harness::{Memory, Run, bf16, kernel, map, numbers};

/// A box of 64 × 8 numbers at column 40, row 3 of a tensor of 100 × 10: to shared memory, and as it
/// lies there to global memory, four bytes a thread.
const COPY: &str = "
    mov.u32 %r0, %tid.x;
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra MADE;
    mbarrier.init.shared::cta.b64 [s+1024], 1;
    fence.mbarrier_init.release.cluster;
MADE:
    bar.sync 0;
    mov.b64 %rd0, p;
    cvta.param.u64 %rd0, %rd0;
    @%p0 bra STARTED;
    prefetch.tensormap [%rd0];
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [s+1024], 1024;
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
        [s], [%rd0, {40, 3}], [s+1024];
STARTED:
AGAIN:
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [s+1024], 0;
    @!%p1 bra AGAIN;
    mul.lo.u32 %r1, %r0, 4;
    add.u32 %r2, %r1, s;
    ld.shared.u32 %r3, [%r2];
    ld.param.u64 %rd1, [p+128];
    cvt.u64.u32 %rd2, %r1;
    add.u64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r3;";

struct Copy {
    memory: Memory,
    params: Vec<u8>,
    text: String,
    numbers: Vec<f32>,
    out: u64,
}

impl Copy {
    fn new(swizzle: u64) -> Self {
        let mut memory = Memory::new();
        let numbers = numbers(100 * 10, 3);
        // Rows of 104 numbers, of which the last four are not the tensor's.
        let rows: Vec<f32> =
            numbers.chunks(100).flat_map(|row| [row, &[9.0; 4]].concat()).collect();
        let from = memory.put(&bf16(&rows));
        let out = memory.put(&[0; 1024]);
        let mut params = map(from, &[100, 10], &[208], &[64, 8], swizzle);
        params.extend(out.to_le_bytes());
        Self { memory, params, text: kernel(136, "", COPY), numbers, out }
    }

    fn run(&self) -> Run<'_> {
        let Self { memory, params, text, .. } = self;
        Run { text, memory, params, blocks: 1, threads: 256, shared: 1280 }
    }
}

/// Columns 100 to 103 and rows 10 are zeros; 16 bytes are swizzled by the row.
#[test]
fn boxes_lie_as_the_map_says() {
    for swizzle in [0, 1] {
        let copy = Copy::new(swizzle);
        copy.run().is_right();
        let found = copy.memory.get_f32(copy.out, 256);
        for row in 0..8 {
            for pair in 0..32 {
                let at = |x: usize| match 40 + x < 100 && 3 + row < 10 {
                    true => copy.numbers[(3 + row) * 100 + 40 + x].to_bits() >> 16,
                    false => 0,
                };
                let chunk = if swizzle == 1 { (pair / 4) ^ row } else { pair / 4 };
                let found = found[row * 32 + chunk * 4 + pair % 4].to_bits();
                assert_eq!(found, at(2 * pair) | at(2 * pair + 1) << 16, "{row}, {pair}");
            }
        }
    }
}

#[test]
fn mistakes_of_copies_are_found() {
    let copy = Copy::new(1);
    let run = copy.run();
    let mistakes = [
        ("bar.sync 0;", "", "mbarrier at 1024"),
        ("fence.mbarrier_init.release.cluster;", "", "no fence.mbarrier_init"),
        ("mbarrier.init.shared::cta.b64 [s+1024], 1;", "", "no mbarrier at 1024"),
        ("[s+1024], 1;", "[s+1024], 0;", "of 0 arrivals"),
        ("[s+1024], 1;", "[s+1024], 2;", "never ends: 1 arrivals and 0 bytes"),
        ("[s+1024], 1024;", "[s+1024], 1040;", "never ends: 0 arrivals and 16 bytes"),
        ("[s+1024], 1024;", "[s+1024], 1000;", "never ends: 0 arrivals and -24 bytes"),
        ("[s+1024], 1024;", "[s+1024], 2000000;", "expects 2000000 bytes"),
        ("%p1, [s+1024], 0;", "%p1, [s+1024], 1;", "of shared memory"),
        ("@!%p1 bra AGAIN;", "", "of shared memory"),
        ("mbarrier.try_wait.parity.shared::cta.b64 %p1, [s+1024], 0;", "", "of shared memory"),
        ("[s], [%rd0", "[s+16], [%rd0", "not aligned to 128"),
        ("[s], [%rd0", "[s+128], [%rd0", "an mbarrier is"),
        ("[s], [%rd0", "[s+2048], [%rd0", "outside its 1280 bytes"),
        ("{40, 3}", "{40, 3, 0}", "expected a place of 2"),
        (".2d.", ".3d.", "expected a place of 3"),
        ("cvta.param.u64 %rd0, %rd0;", "ld.param.u64 %rd0, [p+128];", "tensor map"),
        ("mov.b64 %rd0, p;", "mov.b64 %rd0, 32;", "aligned to 64"),
        // A store before the copy, without the fence that shows it to the async proxy.
        (
            "mbarrier.arrive.expect",
            "st.shared.u32 [s], 0; mbarrier.arrive.expect",
            "fence.proxy.async",
        ),
        // What the copy writes is not what a store writes at the same time.
        ("STARTED:", "STARTED: st.shared.u32 [s], 0;", "race"),
        // Twice to the same place.
        (
            "STARTED:",
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [s], \
             [%rd0, {40, 3}], [s+1024]; STARTED:",
            "race",
        ),
        (
            "fence.mbarrier",
            "mbarrier.init.shared::cta.b64 [s+1024], 1; fence.mbarrier",
            "where one",
        ),
        (
            "[s+1024], 1024;",
            "[s+1024], 1024; mbarrier.arrive.shared::cta.b64 _, [s+1024];",
            "misses 0 of 1 arrivals",
        ),
        ("st.global.u32 [%rd1], %r3;", "st.shared.u32 [s+1024], 0;", "where an mbarrier is"),
        ("AGAIN:", "bra END; AGAIN:", "a copy by TMA"),
    ];
    for (from, to, words) in mistakes {
        let ends = run.text.replace("ret;", "END: ret;");
        Run { text: &ends, ..run }.is_wrong(from, to, words);
    }
    let fenced = "st.shared.u32 [s], 0; fence.proxy.async.shared::cta; mbarrier.arrive.expect";
    let text = run.text.replace("mbarrier.arrive.expect", fenced);
    Run { text: &text, ..run }.is_right();
}

/// The first half lands, and the phase ends, though the second half is under way.
#[test]
fn a_phase_that_ends_too_early() {
    let mut copy = Copy::new(1);
    let halves = "mbarrier::complete_tx::bytes [s], [%rd0, {40, 3}], [s+1024]; \
        cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
        [s+512], [%rd0, {40, 7}], [s+1024];";
    let at = copy.text.find("mbarrier::complete_tx").unwrap();
    let end = at + copy.text[at..].find(';').unwrap() + 1;
    copy.text.replace_range(at..end, halves);
    copy.params[92] = 4;
    copy.run().is_right();
    copy.run().is_wrong("[s+1024], 1024;", "[s+1024], 512;", "too few bytes were expected");
}

#[test]
fn sources_outside_of_allocations() {
    let copy = Copy::new(1);
    // A tensor of 11 rows, of which memory has 10.
    let mut params = copy.params.clone();
    params[24] = 11;
    let error = Run { params: &params, ..copy.run() }.run(0).unwrap_err();
    assert!(error.0.contains("outside every allocation"), "{error}");
    // Rows of 107 numbers, the last of which ends behind the memory.
    let (mut params, mut text) = (copy.params.clone(), copy.text.clone());
    params[16] = 107;
    text = text.replace("{40, 3}", "{64, 9}");
    let error = Run { params: &params, text: &text, ..copy.run() }.run(0).unwrap_err();
    assert!(error.0.contains("beyond the end"), "{error}");
    // A box larger than all shared memory.
    let mut params = copy.params.clone();
    params[92] = 200;
    let error = Run { params: &params, ..copy.run() }.run(0).unwrap_err();
    assert!(error.0.contains("for 1280 bytes"), "{error}");
}
