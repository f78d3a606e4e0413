//! Barriers with numbers, registers, and clusters.

use super::harness::{Memory, Run, bf16, kernel, map, numbers};

fn run<'a>(text: &'a str, memory: &'a Memory, params: &'a [u8]) -> Run<'a> {
    Run { text, memory, params, blocks: 1, threads: 128, shared: 2048 }
}

/// Warps 0 and 1 write and arrive, and wait for nobody; warps 2 and 3 read.
#[test]
fn barriers_of_some_warps() {
    let text = kernel(
        8,
        "",
        "mov.u32 %r0, %tid.x;
        mul.lo.u32 %r1, %r0, 4;
        setp.ge.u32 %p0, %r0, 64;
        @%p0 bra READ;
        st.shared.u32 [%r1], %r0;
        bar.arrive 3, 128;
        bra END;
    READ:
        bar.sync 3, 128;
        ld.shared.u32 %r2, [%r1+-256];
    END:
        bar.sync 0;",
    );
    let memory = Memory::new();
    let run = run(&text, &memory, &[]);
    run.is_right();
    for (from, to, words) in [
        ("bar.arrive 3, 128;", "", "barrier 3 is reached by 64 of 128"),
        ("bar.arrive 3, 128;", "bar.arrive 4, 128;", "barrier 3 is reached by 64 of 128"),
        ("bar.arrive 3, 128;", "bar.arrive 3, 64;", "barrier of"),
        ("bar.sync 3, 128;", "bar.sync 3, 64;", ""),
        ("bar.sync 3, 128;", "bar.arrive 3, 128;", "never written"),
        ("bar.arrive 3, 128;", "bar.arrive 3;", "without its number"),
        ("bar.arrive 3, 128;", "bar.arrive 16, 128;", "there are 0 to 15"),
    ] {
        if words == "never written" {
            // In another order, the race is found.
            run.is_wrong(from, to, "4 bytes at");
        } else {
            run.is_wrong(from, to, words);
        }
    }
}

/// A warpgroup of two gives back what the other claims: 65536 registers are 256 a thread.
#[test]
fn registers_are_given_and_claimed() {
    let text = kernel(
        8,
        ".maxntid 256, 1, 1",
        "mov.u32 %r0, %tid.x;
        setp.ge.u32 %p0, %r0, 128;
        @%p0 bra MORE;
        setmaxnreg.dec.sync.aligned.u32 232;
        bra END;
    MORE:
        setmaxnreg.inc.sync.aligned.u32 256;
    END:",
    );
    let memory = Memory::new();
    let run = Run { threads: 256, ..run(&text, &memory, &[]) };
    run.is_right();
    for (from, to, words) in [
        (".u32 232;", ".u32 248;", "nobody gives 256 registers back"),
        (".u32 232;", ".u32 256;", "and has 248"),
        (".u32 256;", ".u32 240;", "and has 248"),
        (".u32 256;", ".u32 264;", "24 to 256"),
        (".u32 232;", ".u32 233;", "24 to 256"),
    ] {
        run.is_wrong(from, to, words);
    }
}

#[test]
fn one_lane_is_elected() {
    let text = kernel(
        8,
        "",
        "mov.u32 %r0, %laneid;
        elect.sync %r1|%p0, -1;
        ld.param.u64 %rd0, [p];
        @%p0 st.global.u32 [%rd0], %r1;
        elect.sync _|%p1, 0xffffffff;",
    );
    let mut memory = Memory::new();
    let out = memory.put(&[9; 4]);
    let params = out.to_le_bytes();
    let run = Run { threads: 32, ..run(&text, &memory, &params) };
    run.is_right();
    assert_eq!(memory.get_f32(out, 1)[0].to_bits(), 0);
    run.is_wrong("elect.sync %r1|%p0, -1;", "elect.sync %r1, -1;", "expected two results");
}

/// Block 0 of two brings a box to both; each block tells both when it has read it.
const CLUSTER: &str = "
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %cluster_ctarank;
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra MADE;
    mbarrier.init.shared::cta.b64 [s+1024], 1;
    mbarrier.init.shared::cta.b64 [s+1032], 2;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [s+1024], 1024;
MADE:
    barrier.cluster.arrive.release.aligned;
    barrier.cluster.wait.acquire.aligned;
    setp.ne.u32 %p1, %r1, 0;
    or.pred %p1, %p0, %p1;
    mov.b64 %rd0, p;
    cvta.param.u64 %rd0, %rd0;
    mov.u16 %h0, 3;
    @!%p1 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes\
        .multicast::cluster [s], [%rd0, {0, 0}], [s+1024], %h0;
AGAIN:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [s+1024], 0;
    @!%p2 bra AGAIN;
    mul.lo.u32 %r2, %r0, 4;
    ld.shared.u32 %r3, [%r2];
    bar.sync 0;
    @%p0 bra TOLD;
    mapa.shared::cluster.u32 %r4, s+1032, 0;
    mapa.shared::cluster.u32 %r5, s+1032, 1;
    mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r4];
    mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r5];
TOLD:
    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [s+1032], 0;
    @!%p2 bra TOLD;";

#[test]
fn two_blocks_of_a_cluster() {
    let mut memory = Memory::new();
    let from = memory.put(&bf16(&numbers(64 * 8, 1)));
    let params = map(from, &[64, 8], &[128], &[64, 8], 1);
    // An address with an offset is no operand of mapa.
    let body = CLUSTER.replace("s+1032, 0;", "%r6, 0;").replace("s+1032, 1;", "%r6, 1;");
    let body = body.replace("mov.u32 %r1,", "add.u32 %r6, s, 1032; mov.u32 %r1,");
    let head = ".maxntid 256, 1, 1 .explicitcluster .reqnctapercluster 2, 1, 1";
    let text = kernel(128, head, &format!(".reg .b16 %h<2>; {body}"));
    let run = Run { blocks: 4, threads: 256, ..run(&text, &memory, &params) };
    run.is_right();
    let wait = "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [s+1032], 0;
    @!%p2 bra TOLD;";
    for (from, to, words) in [
        // The other block may not have made its barriers, or may be at its end.
        (
            "barrier.cluster.arrive.release.aligned;
    barrier.cluster.wait.acquire.aligned;",
            "bar.sync 0;",
            "",
        ),
        (wait, "", ""),
        ("mov.u16 %h0, 3;", "mov.u16 %h0, 1;", "never ends: 0 arrivals and 1024 bytes"),
        ("mov.u16 %h0, 3;", "mov.u16 %h0, 7;", "to blocks 0x7 of 2"),
        ("%r6, 1;", "%r6, 2;", "block 2 of a cluster of 2"),
        ("%r6, 1;", "%r6, 0;", ""),
        ("barrier.cluster.wait.acquire.aligned;", "", ""),
        ("barrier.cluster.arrive.release.aligned;", "", "has not arrived"),
        (
            "barrier.cluster.wait.acquire.aligned;",
            "barrier.cluster.arrive.aligned;",
            "arrives twice",
        ),
        ("fence.mbarrier_init.release.cluster;", "", "fence.mbarrier_init"),
    ] {
        run.is_wrong(from, to, words);
    }
    let error = Run { blocks: 3, ..run }.run(0).unwrap_err();
    assert!(error.0.contains("a grid of 3 blocks for clusters of 2"), "{error}");
}
