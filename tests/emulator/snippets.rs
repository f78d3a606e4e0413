//! Small kernels, right and wrong: the emulator reports every mistake as a fault and nothing else,
//! and refuses the launches that a driver would refuse.

use super::raw::{Raw, Result, call, said};
use super::{ARCH, cubin, headers};
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

/// Parameters of the snippets below.
#[repr(C)]
struct Snippet {
    /// 64 words, all 7.
    from: u64,
    /// 256 words, unwritten.
    to: u64,
}

/// Small kernels, right and wrong.
const SNIPPETS: &str = include_str!("snippets.cu");

fn snippets() -> &'static [u8] {
    static SNIPPET: OnceLock<Vec<u8>> = OnceLock::new();
    SNIPPET.get_or_init(|| cubin(ARCH, "snippets", SNIPPETS, &headers()))
}

/// Snippets with a mistake, and the words of the fault.
const WRONG: [(&str, &str); 37] = [
    ("write_beyond", "writes 4 bytes of global memory outside every allocation"),
    ("read_before", "reads 4 bytes of global memory outside every allocation"),
    ("read_misaligned", "reads 16 bytes at 8 of a global allocation of 256 bytes, misaligned"),
    ("read_null", "which is null"),
    ("global_without_barrier", "wrote it in this launch and no barrier lies between"),
    ("global_written_twice", "wrote it in this launch and no barrier lies between"),
    ("global_between_blocks", "wrote it in this launch and no barrier lies between"),
    ("blocks_hand_over_unordered", "wrote it in this launch and no barrier lies between"),
    ("blocks_hand_over_early", "wrote it in this launch and no barrier lies between"),
    ("writes_ahead", "of global memory ahead of wait_for_previous"),
    ("never_waits", "ends without wait_for_previous"),
    ("shared_beyond", "thread 127: writes 4 bytes at 512 of shared memory, outside its 512 bytes"),
    ("shared_misaligned", "of shared memory, misaligned"),
    ("shared_unwritten", "thread 127: reads 4 bytes at 800 of shared memory, never written"),
    ("reads_without_barrier", "of shared memory"),
    ("writes_over_reads", "race, thread"),
    ("writes_over_writes", "wrote it and no barrier lies between"),
    ("lanes_without_syncwarp", "of shared memory"),
    ("lanes_with_shuffle", "wrote it and no barrier lies between"),
    ("warps_with_syncwarp", "of shared memory"),
    ("reads_while_adding", "added to it and no barrier lies between"),
    ("copy_read_before_wait", "where a cp.async is under way"),
    ("copy_waits_for_another", "where a cp.async is under way"),
    ("copy_written_before_wait", "where a cp.async is under way"),
    ("copy_without_barrier", "of shared memory"),
    ("copy_not_committed", "ends with 1 cp.async not waited for"),
    ("copy_not_waited_for", "ends with 1 cp.async not waited for"),
    ("copy_from_beyond", "reads 2 bytes of global memory outside every allocation"),
    ("copy_misaligned", "starts a cp.async to 16 bytes at"),
    ("copy_from_misaligned", "misaligned"),
    ("copy_over_a_read", "race"),
    ("barrier_by_some", "__syncthreads is reached by 96 of 128 threads; 32 have ended"),
    ("shuffle_by_some", "a shuffle is reached by 31 of 32 lanes of warp"),
    ("shuffle_with_mask", "a shuffle with mask 0000ffff"),
    ("shuffle_meets_vote", "while other lanes of its warp are at"),
    ("misaligned_matrix", "misaligned"),
    ("matrix_without_barrier", "of shared memory"),
];

/// A snippet, and what thread i writes.
type Right = (&'static str, fn(u32) -> u32);

/// Snippets without a mistake.
const RIGHT: [Right; 12] = [
    ("unwritten_global", |_| u32::MAX),
    ("global_with_barrier", |i| (i + 64) % 128),
    ("blocks_hand_over", |i| 3 * (i % 32)),
    ("reads_ahead", |_| 7),
    ("reads_with_barrier", |i| (i + 64) % 128),
    ("writes_over_reads_in_order", |i| i),
    ("half_words_side_by_side", |i| i),
    ("lanes_with_syncwarp", |i| i ^ 31),
    ("adds", |_| 0),
    ("copies", |_| 7),
    ("copies_part_of_nothing", |i| if i == 0 { 7 } else { 0 }),
    ("shuffles", |_| 7),
];

const ILLEGAL_ADDRESS: Result = Err(700);
const INVALID_VALUE: Result = Err(1);
const NOT_FOUND: Result = Err(500);

/// Parameters with an unwritten second buffer.
fn fresh(raw: &Raw) -> Snippet {
    let mut to = 0;
    call!(raw.emulator, cuMemAlloc_v2(&mut to => *mut u64, 1024 => usize)).unwrap();
    Snippet { from: raw.buffer(&[7u32; 64]), to }
}

/// Elsewhere several blocks, run side by side, would race in what they write, a fault that could come
/// before the one that is meant.
fn blocks(entry: &str) -> u32 {
    let several = ["global_between_blocks", "shared_beyond"].contains(&entry);
    if several || entry.starts_with("blocks_") { 3 } else { 1 }
}

/// Every mistake is a fault, told once, in every order of the threads; then all goes on as before.
#[test]
fn mistakes_are_found() {
    let Some(raw) = Raw::open("emulator::snippets::mistakes_are_found", snippets()) else { return };
    for (seed, (entry, words)) in (1..6).flat_map(|seed| WRONG.map(|wrong| (seed, wrong))) {
        raw.emulator.seed(seed);
        let params = fresh(&raw);
        let shared = if entry == "shared_beyond" { 512 } else { 4096 };
        raw.start(entry, blocks(entry), 128, shared, &params).unwrap();
        assert_eq!(raw.wait(), ILLEGAL_ADDRESS, "{entry}");
        let fault = raw.emulator.fault();
        assert!(fault.starts_with(&format!("{entry} block ")) && fault.contains(words), "{fault}");
        assert_eq!(raw.wait(), Ok(()));
        raw.start("reads_with_barrier", 1, 128, shared, &params).unwrap();
        assert_eq!((raw.wait(), raw.emulator.fault().as_str()), (Ok(()), ""));
        raw.free(params.to);
        raw.start("reads_with_barrier", 1, 128, shared, &params).unwrap();
        assert_eq!(raw.wait(), ILLEGAL_ADDRESS);
        raw.emulator.fault();
    }
}

#[test]
fn what_is_right_passes() {
    let Some(raw) = Raw::open("emulator::snippets::what_is_right_passes", snippets()) else {
        return;
    };
    for (seed, (entry, expected)) in (1..6).flat_map(|seed| RIGHT.map(|right| (seed, right))) {
        raw.emulator.seed(seed);
        let params = fresh(&raw);
        raw.start(entry, blocks(entry), 128, 4096, &params).unwrap();
        assert_eq!(raw.wait(), Ok(()), "{entry}: {}", raw.emulator.fault());
        let mut values = [0u32; 128];
        raw.read(params.to, &mut values);
        assert_eq!(values.to_vec(), (0..128).map(expected).collect::<Vec<_>>(), "{entry}");
    }
}

/// What cannot be launched is refused, as the driver does.
#[test]
fn launches_have_limits() {
    let Some(raw) = Raw::open("emulator::snippets::launches_have_limits", snippets()) else {
        return;
    };
    let params = fresh(&raw);
    let start = |entry, blocks, threads, shared| {
        raw.start(entry, blocks, threads, shared, &params).and_then(|()| raw.wait())
    };
    assert_eq!(start("no_such_kernel", 1, 128, 0), NOT_FOUND);
    assert_eq!(start("counts", 0, 128, 0), INVALID_VALUE);
    assert_eq!(start("counts", 1, 0, 0), INVALID_VALUE);
    assert_eq!(start("counts", 1, 129, 0), INVALID_VALUE);
    assert_eq!(start("counts", 1, 128, 49_153), INVALID_VALUE);
    let allow = |bytes| {
        call!(raw.emulator, cuFuncSetAttribute(raw.function("counts").unwrap() => *mut c_void,
            8 => c_int, bytes => c_int))
    };
    assert_eq!((allow(166_913), allow(49_160)), (INVALID_VALUE, Ok(())));
    assert_eq!(start("counts", 1, 128, 49_153), Ok(()));
    assert_eq!(start("counts", 1, 128, 49_161), INVALID_VALUE);
    let image = [0u8; 64];
    let mut module = null_mut();
    let loaded = call!(raw.emulator, cuModuleLoadData(&mut module => *mut *mut c_void,
        image.as_ptr() => *const u8));
    assert_eq!(loaded, Err(200));
}

/// A copy from pinned memory reads it as late as it may: once the stream, or an event behind it, is
/// waited for, or something else is to run. Memory that it still reads cannot be freed.
#[test]
fn copies_arrive_late() {
    let Some(raw) = Raw::open("emulator::snippets::copies_arrive_late", snippets()) else {
        return;
    };
    let (stream, to) = (raw.stream, raw.buffer(&[0u32; 4]));
    let pinned = || {
        let mut at = null_mut();
        call!(raw.emulator, cuMemHostAlloc(&mut at => *mut *mut u32, 16 => usize,
            0 => std::ffi::c_uint))
        .unwrap();
        at
    };
    let set = |at: *mut u32, value: u32| {
        // SAFETY: it has room for four.
        unsafe { std::slice::from_raw_parts_mut(at, 4) }.fill(value);
    };
    let start = |from: *mut u32| {
        call!(raw.emulator, cuMemcpyHtoDAsync_v2(to => u64, from => *const u32, 16 => usize,
            stream => *mut c_void))
        .unwrap();
    };
    let found = || {
        let mut values = [0; 4];
        raw.read(to, &mut values);
        values
    };
    let (from, mut event) = (pinned(), null_mut());
    set(from, 1);
    start(from);
    call!(raw.emulator, cuEventCreate(&mut event => *mut *mut c_void, 0 => std::ffi::c_uint))
        .unwrap();
    call!(raw.emulator, cuEventRecord(event => *mut c_void, stream => *mut c_void)).unwrap();
    set(from, 2);
    // The other stream does not wait for it.
    assert_eq!(found(), [0; 4]);
    call!(raw.emulator, cuEventSynchronize(event => *mut c_void)).unwrap();
    assert_eq!(found(), [2; 4]);
    set(from, 3);
    assert_eq!(found(), [2; 4]);
    start(from);
    raw.wait().unwrap();
    assert_eq!(found(), [3; 4]);
    assert_eq!(raw.emulator.fault(), "");

    start(from);
    call!(raw.emulator, cuMemFreeHost(from => *mut u32)).unwrap();
    assert!(raw.emulator.fault().contains("while a copy from it is under way"));
    assert_eq!(raw.wait(), Err(700));
    call!(raw.emulator, cuEventDestroy_v2(event => *mut c_void)).unwrap();
    raw.free(to);
}

/// A graph does later, and again, what was asked for while it was captured.
#[test]
fn graphs_are_replayed() {
    let Some(raw) = Raw::open("emulator::snippets::graphs_are_replayed", snippets()) else {
        return;
    };
    let params = Snippet { from: 0, to: raw.buffer(&[5u32; 128]) };
    let (stream, mut graph, mut replay) = (raw.stream, null_mut(), null_mut());
    let count = |expected: u32| {
        let mut values = [0u32; 128];
        raw.read(params.to, &mut values);
        assert_eq!(values, [expected; 128]);
    };
    call!(raw.emulator, cuStreamBeginCapture_v2(stream => *mut c_void, 1 => c_int)).unwrap();
    for _ in 0..3 {
        raw.start("counts", 1, 128, 0, &params).unwrap();
    }
    assert_eq!(raw.wait(), Err(900));
    call!(raw.emulator, cuStreamEndCapture(stream => *mut c_void,
        &mut graph => *mut *mut c_void))
    .unwrap();
    call!(raw.emulator, cuGraphInstantiateWithFlags(&mut replay => *mut *mut c_void,
        graph => *mut c_void, 0 => u64))
    .unwrap();
    call!(raw.emulator, cuGraphDestroy(graph => *mut c_void)).unwrap();
    count(5);
    for times in 1..3 {
        call!(raw.emulator, cuGraphLaunch(replay => *mut c_void, stream => *mut c_void)).unwrap();
        assert_eq!(raw.wait(), Ok(()));
        count(5 + 3 * times);
    }
    raw.free(params.to);
    call!(raw.emulator, cuGraphLaunch(replay => *mut c_void, stream => *mut c_void)).unwrap();
    assert_eq!(raw.wait(), ILLEGAL_ADDRESS);
    call!(raw.emulator, cuGraphExecDestroy(replay => *mut c_void)).unwrap();
    raw.emulator.fault();
}

/// ldmatrix (also transposed) and mma, by the layouts of their fragments, are a matrix product.
#[test]
fn fragments_are_matrices() {
    let Some(raw) = Raw::open("emulator::snippets::fragments_are_matrices", snippets()) else {
        return;
    };
    // Small integers: every sum is exact.
    let value = |i: usize| (i * 29 % 31) as f32 - 15.0;
    let halves: Vec<u16> = (0..512).map(|i| (value(i).to_bits() >> 16) as u16).collect();
    let params = Snippet { from: 0, to: raw.buffer(&halves) };
    raw.start("fragments", 1, 128, 1024, &params).unwrap();
    assert_eq!(raw.wait(), Ok(()), "{}", raw.emulator.fault());
    let mut out = [0f32; 256];
    raw.read(params.to, &mut out);
    for (at, &got) in out.iter().enumerate() {
        let (m, n) = (at / 16, at % 16);
        let product: f32 = (0..16).map(|k| value(m * 16 + k) * value(256 + k * 16 + n)).sum();
        // What d was before, by the lane's place.
        let before = (1 + n % 2 + m / 8 * 2) as f32;
        assert_eq!(got, before + product, "row {m}, column {n}");
    }
}
