//! Producers and consumers that hand stages of shared memory around.

use super::harness::{Memory, Run, bf16, kernel, map, numbers};

/// Thread 128 brings eight tiles of 16 × 64 numbers through two stages; 128 consumers multiply each
/// with itself and give the stage back once the next product has begun. Full barriers at 4096 and
/// 4104, empty ones at 4112 and 4120.
const RING: &str = "
    mov.u32 %r0, %tid.x;
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra MADE;
    mbarrier.init.shared::cta.b64 [s+4096], 1;
    mbarrier.init.shared::cta.b64 [s+4104], 1;
    mbarrier.init.shared::cta.b64 [s+4112], 1;
    mbarrier.init.shared::cta.b64 [s+4120], 1;
    fence.mbarrier_init.release.cluster;
MADE:
    bar.sync 0;
    mov.u32 %r1, 0;
    setp.lt.u32 %p1, %r0, 128;
    @%p1 bra CONSUME;
    setp.ne.u32 %p1, %r0, 128;
    @%p1 bra END;
    mov.b64 %rd0, p;
    cvta.param.u64 %rd0, %rd0;
PRODUCE:
    and.b32 %r2, %r1, 1;
    shr.u32 %r3, %r1, 1;
    and.b32 %r3, %r3, 1;
    xor.b32 %r4, %r3, 1;
    mul.lo.u32 %r5, %r2, 8;
    mul.lo.u32 %r6, %r2, 2048;
    { E: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r5+4112], %r4; @!%p2 bra E; }
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5+4096], 2048;
    add.u32 %r7, %r5, 4096;
    mul.lo.u32 %r8, %r1, 16;
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
        [%r6], [%rd0, {0, %r8}], [%r7];
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 8;
    @%p1 bra PRODUCE;
    bra END;
CONSUME:
    setp.ne.u32 %p3, %r0, %r0;
    and.b32 %r2, %r1, 1;
    shr.u32 %r3, %r1, 1;
    and.b32 %r3, %r3, 1;
    mul.lo.u32 %r5, %r2, 8;
    mul.lo.u32 %r6, %r2, 2048;
    { E: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p2, [%r5+4096], %r3; @!%p2 bra E; }
    shr.u32 %r7, %r6, 4;
    cvt.u64.u32 %rd1, %r7;
    or.b64 %rd1, %rd1, 0x4000004000010000;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, \
        {%r30, %r31, %r32, %r33}, %rd1, %p3, 1, 1, 0;
    wgmma.commit_group.sync.aligned;
    FIRST
    wgmma.wait_group.sync.aligned 0;
    LAST
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 8;
    @%p1 bra CONSUME;
END:";

#[test]
fn a_ring_of_two_stages() {
    let mut memory = Memory::new();
    let from = memory.put(&bf16(&numbers(128 * 64, 1)));
    let params = map(from, &[64, 128], &[128], &[64, 16], 1);
    let give = "and.b32 %r9, %r0, 127; setp.ne.u32 %p4, %r9, 0; \
        @!%p4 mbarrier.arrive.shared::cta.b64 _, [%r5+4112];";
    let text = |first: &str, last: &str| {
        let body = RING.replace("FIRST", first).replace("LAST", last);
        kernel(128, ".maxntid 160, 1, 1", &body)
    };
    let (right, early) = (text("", give), text(give, ""));
    let run = Run {
        text: &right,
        memory: &memory,
        params: &params,
        blocks: 1,
        threads: 160,
        shared: 4128,
    };
    run.is_right();
    // The stage is given back while the product reads it.
    Run { text: &early, ..run }.is_wrong("ret", "ret", "race, the async proxy");
    let produced = "mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r5+4112], %r4; @!%p2 bra E;";
    for (from, to, words) in [
        (produced, "", "arrives 1 times at the mbarrier at 4096"),
        ("xor.b32 %r4, %r3, 1;", "mov.u32 %r4, %r3;", "nobody can go on"),
        ("@!%p4 mbarrier", "@%p4 mbarrier", "nobody has waited for the one before"),
        ("@!%p4 mbarrier.arrive.shared::cta.b64 _, [%r5+4112];", "", "never ends: 1 arrivals"),
        ("[%r5+4096], 2048;", "[%r5+4096], 4096;", "never ends: 0 arrivals and 2048 bytes"),
        // The barrier of the other stage.
        ("_, [%r5+4112];", "_, [4112];", ""),
    ] {
        run.is_wrong(from, to, words);
    }
}
