//! Small kernels for Hopper, right and wrong: barriers in shared memory, boxes of tensors, products
//! of warpgroups, clusters. Every mistake is a fault or a wrong result, in every order of the
//! threads.

use super::raw::{Raw, call, said};
use super::{H200, SMALL, cubin, headers};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;

const KERNELS: &str = concat!(include_str!("hopper.cu"), include_str!("hopper_memory.cu"));

/// A tensor map, as the driver writes it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Map([u64; 16]);

/// Parameters of the kernels.
#[repr(C, align(64))]
struct Maps {
    a: Map,
    b: Map,
    values: Map,
    out: u64,
    input: u64,
    steps: u32,
}

/// What cuTensorMapEncodeTiled is given: the sizes of the tensor and of a box in elements, strides
/// in bytes, and numbers of the driver's enumerations.
#[derive(Clone, Copy)]
struct Tensor {
    rank: usize,
    sizes: [u64; 5],
    strides: [u64; 4],
    sides: [u32; 5],
    steps: [u32; 5],
    kind: c_int,
    swizzle: c_int,
}

const BFLOAT16: c_int = 9;
const SWIZZLE_128: c_int = 3;

impl Tensor {
    /// Rows of so many columns, in boxes of 64 columns and so many rows.
    fn rows(columns: u64, count: u64, side: u32) -> Self {
        Self {
            rank: 2,
            sizes: [columns, count, 0, 0, 0],
            strides: [2 * columns, 0, 0, 0],
            sides: [64, side, 0, 0, 0],
            steps: [1; 5],
            kind: BFLOAT16,
            swizzle: SWIZZLE_128,
        }
    }

    fn encode(self, raw: &Raw, address: u64) -> Result<Map, c_int> {
        let mut map = Map([0; 16]);
        call!(raw.emulator, cuTensorMapEncodeTiled(&mut map => *mut Map, self.kind => c_int,
            self.rank as c_uint => c_uint, address => u64, self.sizes.as_ptr() => *const u64,
            self.strides.as_ptr() => *const u64, self.sides.as_ptr() => *const u32,
            self.steps.as_ptr() => *const u32, 0 => c_int, self.swizzle => c_int, 0 => c_int,
            0 => c_int))?;
        Ok(map)
    }
}

fn open(test: &str) -> Option<Raw> {
    static CUBIN: OnceLock<Vec<u8>> = OnceLock::new();
    let build = || cubin(H200.arch(), "hopper", KERNELS, &headers());
    let raw = Raw::open(test, CUBIN.get_or_init(build))?;
    raw.emulator.be(H200);
    Some(raw)
}

/// Small integers: every sum is exact.
fn value(i: usize) -> f32 {
    (i * 29 % 31) as f32 - 15.0
}

fn half(i: usize) -> u16 {
    (value(i).to_bits() >> 16) as u16
}

/// A launch, and what it should write.
struct Case {
    blocks: u32,
    threads: u32,
    params: Maps,
    input: u64,
    expected: Vec<u32>,
}

const STEPS: usize = 5;
const SHARED: u32 = 64 << 10;
const ROOM: usize = 1 << 17;

impl Case {
    /// With one buffer of [`value`]s, of which the tensors are parts.
    fn new(raw: &Raw, blocks: u32, threads: u32, tensors: [Tensor; 3], expected: Vec<u32>) -> Self {
        let input = raw.buffer(&(0..1 << 18).map(half).collect::<Vec<_>>());
        let out = raw.buffer(&vec![u32::MAX; ROOM]);
        let [a, b, values] = tensors.map(|tensor| tensor.encode(raw, input).unwrap());
        let params = Maps { a, b, values, out, input, steps: 0 };
        Self { blocks, threads, params, input, expected }
    }

    fn steps(mut self, steps: u32) -> Self {
        self.params.steps = steps;
        self
    }

    /// Whether the entry's result is right, or its fault.
    fn run(self, raw: &Raw, entry: &str) -> Result<bool, String> {
        let function = raw.function(entry).unwrap();
        call!(raw.emulator, cuFuncSetAttribute(function => *mut c_void, 8 => c_int,
            SHARED as c_int => c_int))
        .unwrap();
        let shared = if entry == "box_beyond" { 17_000 } else { SHARED };
        raw.start(entry, self.blocks, self.threads, shared, &self.params).unwrap();
        let code = raw.wait();
        let fault = raw.emulator.fault();
        assert_eq!(code.is_ok(), fault.is_empty(), "{entry}: {fault}");
        let mut out = vec![0u32; self.expected.len()];
        raw.read(self.params.out, &mut out);
        raw.free(self.params.out);
        raw.free(self.input);
        if fault.is_empty() { Ok(out == self.expected) } else { Err(fault) }
    }
}

/// a · bᵀ, of which the rows' first `inner` columns of `columns` are summed.
fn product(m: usize, n: usize, columns: usize, inner: usize) -> Vec<u32> {
    let sum = |i: usize| -> f32 {
        let (a, b) = (i / n * columns, i % n * columns);
        (0..inner).map(|k| value(a + k) * value(b + k)).sum()
    };
    (0..m * n).map(|i| sum(i).to_bits()).collect()
}

/// The loop of a product, in clusters of so many blocks.
fn ring<const CLUSTER: u32>(raw: &Raw) -> Case {
    let columns = 64 * STEPS as u64;
    let b = Tensor::rows(columns, 64, 64 / CLUSTER);
    let tensors = [Tensor::rows(columns, 512, 128), b, b];
    Case::new(raw, 4, 384, tensors, product(512, 64, 64 * STEPS, 64 * STEPS)).steps(STEPS as u32)
}

/// One block of a product, which uses one stage again, once: a mistake shows there or nowhere.
fn alone(raw: &Raw) -> Case {
    let mut case = ring::<1>(raw).steps(3);
    case.blocks = 1;
    case.expected = product(128, 64, 64 * STEPS, 3 * 64);
    case
}

fn once<const N: usize>(raw: &Raw) -> Case {
    let b = Tensor::rows(64, N as u64, N as u32);
    Case::new(raw, 1, 128, [Tensor::rows(64, 64, 64), b, b], product(64, N, 64, 64))
}

/// in · values, the last rows of values replaced by zeros.
fn held<const N: usize>(raw: &Raw) -> Case {
    let sum =
        |i: usize| -> f32 { (0..48).map(|k| value(i / N * 64 + k) * value(k * N + i % N)).sum() };
    let expected = (0..64 * N).map(|i| sum(i).to_bits()).collect();
    Case::new(raw, 1, 128, [Tensor::rows(N as u64, 64, 64); 3], expected)
}

fn memory(raw: &Raw, blocks: u32, threads: u32, expected: impl Iterator<Item = f32>) -> Case {
    let expected = expected.map(f32::to_bits).collect();
    Case::new(raw, blocks, threads, [Tensor::rows(64, 64, 64); 3], expected)
}

/// What the first warp hands over to the second in its last turn.
fn handed<const LAST: u32>(raw: &Raw) -> Case {
    memory(raw, 1, 64, (0..32).map(|i| (7 * (i ^ 1) + LAST) as f32))
}

fn named(raw: &Raw) -> Case {
    memory(raw, 1, 96, (0..32).map(|i| (7 * (i ^ 1) + 2) as f32))
}

fn registers(raw: &Raw) -> Case {
    memory(raw, 1, 384, (0..384).map(|_| 7.0))
}

fn clusters(raw: &Raw) -> Case {
    memory(raw, 4, 32, (0..256).map(|i| ((i / 32 + 1 + i / 128) % 4) as f32))
}

/// A box as it lies in shared memory, with its corner at a row and a column: swizzled by bits 7 to
/// 9 of the address, and with zeros outside of the tensor.
fn boxed<const ROW: usize, const COLUMN: usize>(raw: &Raw) -> Case {
    let mut bytes = [0u8; 8192];
    for (row, column) in (0..64).flat_map(|row| (0..64).map(move |column| (row, column))) {
        let (y, x) = (row + ROW, column + COLUMN);
        let place = row * 128 + column * 2;
        let place = place ^ (place >> 7 & 7) << 4;
        let inside = y < 64 && x < 64;
        let found = if inside { half(y * 64 + x) } else { 0 };
        bytes[place..place + 2].copy_from_slice(&found.to_le_bytes());
    }
    let words = bytes.as_chunks().0.iter().map(|&word| f32::from_bits(u32::from_le_bytes(word)));
    memory(raw, 1, 128, words).steps((COLUMN * 256 + ROW) as u32)
}

/// A box of rank 4 that begins before and ends behind its tensor, as in hopper_memory.cu.
fn box_of_four(raw: &Raw) -> Case {
    let a = Tensor {
        rank: 4,
        sizes: [12, 3, 4, 4, 0],
        strides: [32, 96, 400, 0],
        sides: [8, 2, 3, 2, 0],
        swizzle: 0,
        ..Tensor::rows(64, 64, 64)
    };
    let element = |i: usize| {
        let (x, y, z, w) = (i % 8, i / 8 % 2 + 1, i / 16 % 3, i / 48 + 2);
        let inside = (2..14).contains(&x) && y < 3 && (1..5).contains(&z) && w < 4;
        if inside { half(x - 2 + y * 16 + (z - 1) * 48 + w * 200) } else { 0 }
    };
    let words = (0..48).map(|i| u32::from(element(2 * i)) | u32::from(element(2 * i + 1)) << 16);
    let other = Tensor::rows(64, 64, 64);
    Case::new(raw, 1, 32, [a, other, other], words.collect())
}

type Make = fn(&Raw) -> Case;

/// Kernels without a mistake.
const RIGHT: [(&str, Make); 25] = [
    ("ring", ring::<1>),
    ("released_late", ring::<1>),
    ("waits_apart", ring::<1>),
    ("ring_of_two", ring::<2>),
    ("ring_of_four", ring::<4>),
    ("once_8", once::<8>),
    ("once_16", once::<16>),
    ("once_32", once::<32>),
    ("once_64", once::<64>),
    ("once_128", once::<128>),
    ("once_192", once::<192>),
    ("once_256", once::<256>),
    ("held_64", held::<64>),
    ("held_128", held::<128>),
    ("handed_over", handed::<0>),
    ("handed_over_by_one", handed::<0>),
    ("handed_over_to_one", handed::<0>),
    ("handed_back", handed::<2>),
    ("named_barriers", named),
    ("a_box", boxed::<20, 8>),
    ("box_over_fenced_writes", boxed::<0, 0>),
    ("box_ahead", boxed::<0, 0>),
    ("box_of_four", box_of_four),
    ("registers_shared", registers),
    ("clusters_meet", clusters),
];

/// In place of the words of a fault.
const A_WRONG_RESULT: &str = "a wrong result";

/// Kernels with a mistake, and words of the fault.
const WRONG: [(&str, Make, &str); 57] = [
    ("no_init_fence", ring::<1>, "which thread 0 has made without barrier_init_fence"),
    ("no_init_barrier", ring::<1>, "mbarrier at 49152 of shared memory"),
    ("wrong_parity", ring::<1>, "deadlock: waits for phase 0 of the mbarrier at"),
    ("released_early", ring::<1>, "of shared memory, which a wgmma"),
    ("released_at_once", ring::<1>, "of shared memory, which a wgmma"),
    ("released_for_another", alone, "of shared memory, which a wgmma"),
    ("expects_less", ring::<1>, " bytes"),
    ("expects_more", ring::<1>, "which lacks 0 of 1 arrivals and 16 bytes"),
    ("never_released", ring::<1>, "arrivals and 0 bytes"),
    ("never_waited_for", ring::<1>, "which a wgmma under way reads"),
    ("read_early", ring::<1>, A_WRONG_RESULT),
    ("no_fence", ring::<1>, "wgmma without wgmma_fence since the kernel's start"),
    ("offsets_exchanged", ring::<1>, A_WRONG_RESULT),
    ("full_not_waited_for", ring::<1>, "of shared memory"),
    ("two_arrivals", ring::<1>, "whose 1 arrivals of phase 0 are there"),
    ("other_depth", ring::<1>, "where another thread of its warpgroup has n 64"),
    ("misaligned_box", ring::<1>, "asks for a box to 128 of shared memory, misaligned"),
    ("written_sums", ring::<1>, "has written to sums of a wgmma under way"),
    ("ends_early", ring::<2>, "of its cluster"),
    ("local_wait", ring::<2>, "of shared memory, "),
    ("lead_and_stride", held::<128>, A_WRONG_RESULT),
    ("no_lead", held::<128>, A_WRONG_RESULT),
    ("depth_step", held::<64>, A_WRONG_RESULT),
    ("no_zeros_fence", held::<64>, "wrote without fence_async behind it"),
    ("no_zeros_barrier", held::<64>, "which a wgmma under way reads"),
    ("fence_behind", held::<64>, "wrote without fence_async behind it"),
    ("zeros_too_late", held::<64>, "which a wgmma under way reads"),
    ("written_behind_fence", held::<64>, "written behind the last wgmma_fence"),
    ("one_arrives_for_all", handed::<0>, "wrote it and no barrier lies between"),
    ("not_waited_for", handed::<0>, "of shared memory"),
    ("one_waits_for_all", handed::<0>, "of shared memory"),
    ("writes_after_arrival", handed::<0>, "and no barrier lies between"),
    ("not_handed_back", handed::<0>, "and no barrier lies between"),
    ("barrier_made_late", handed::<0>, "no barrier lies behind its barrier_init_fence by thread 0"),
    ("named_too_many", named, "deadlock: waits at named barrier 1, where 64 of 96 threads are"),
    ("named_another", named, "deadlock: waits at named barrier"),
    ("named_other_count", named, "at which others are of"),
    ("box_read_under_way", boxed::<0, 0>, "of shared memory, "),
    ("box_written_under_way", boxed::<0, 0>, "where a box of a tensor is under way"),
    ("box_over_reads", boxed::<0, 0>, "has read, and no barrier lies between"),
    ("box_over_writes", boxed::<0, 0>, "which thread 0 wrote without fence_async"),
    ("box_written_by_launch", boxed::<0, 0>, "thread 0 of block 0 has written in this launch"),
    ("box_beyond", boxed::<0, 0>, "to 9216 of shared memory, outside its 17000 bytes"),
    ("box_over_barrier", boxed::<0, 0>, "to 8192 of shared memory, where an mbarrier is"),
    ("map_copied", boxed::<0, 0>, "by a tensor map that is not in its parameters"),
    ("map_of_other_rank", boxed::<0, 0>, "of rank 3 by a tensor map of another rank"),
    ("barrier_made_twice", boxed::<0, 0>, "where an mbarrier is"),
    ("barrier_stored_over", boxed::<0, 0>, "writes 4 bytes at 8192 of shared memory, where an"),
    ("barrier_not_shown", boxed::<0, 0>, "has made without barrier_init_fence"),
    ("boxes_at_one_place", boxed::<0, 0>, "where another copy is under way"),
    ("ends_under_way", boxed::<0, 0>, "the block ends while a box of 8192 bytes"),
    ("registers_too_many", registers, "deadlock: claims registers beyond its 168"),
    ("registers_released_up", registers, "release_registers to 176, of 168"),
    ("registers_claimed_down", registers, "claim_registers up to 160, of 168"),
    ("cluster_without_arrival", clusters, "deadlock: waits for phase 0 of the mbarrier at 0"),
    ("cluster_not_met", clusters, "mbarrier at 0 of shared memory"),
    ("cluster_read_early", clusters, "in this launch and no barrier lies between"),
];

#[test]
fn what_is_right_passes() {
    let Some(raw) = open("emulator::hopper::what_is_right_passes") else { return };
    for (seed, (entry, make)) in (1..4).flat_map(|seed| RIGHT.map(|right| (seed, right))) {
        raw.emulator.seed(seed);
        assert_eq!(make(&raw).run(&raw, entry), Ok(true), "{entry}");
    }
}

/// A block's clock is set back many times while barriers hand over.
#[test]
fn clocks_begin_anew() {
    let Some(raw) = open("emulator::hopper::clocks_begin_anew") else { return };
    assert_eq!(handed::<9999>(&raw).run(&raw, "handed_back_often"), Ok(true));
}

#[test]
fn mistakes_are_found() {
    let Some(raw) = open("emulator::hopper::mistakes_are_found") else { return };
    for (seed, (entry, make, words)) in (1..4).flat_map(|seed| WRONG.map(|wrong| (seed, wrong))) {
        raw.emulator.seed(seed);
        match make(&raw).run(&raw, entry) {
            Ok(right) => assert!(!right && words == A_WRONG_RESULT, "{entry}"),
            Err(fault) => assert!(
                fault.starts_with(&format!("{entry} block ")) && fault.contains(words),
                "{fault}"
            ),
        }
    }
    for (entry, words) in [
        ("cluster_without_wait", "mbarrier at 0 of shared memory"),
        ("cluster_arrives_twice", "comes to cluster_arrive twice"),
        ("cluster_waits_alone", "comes to cluster_wait without cluster_arrive"),
    ] {
        let fault = clusters(&raw).run(&raw, entry).unwrap_err();
        assert!(fault.contains(words), "{fault}");
    }
}

/// What a kernel has written, a box of the next must not ask for ahead of wait_for_previous.
#[test]
fn boxes_come_behind_what_was_written() {
    let Some(raw) = open("emulator::hopper::boxes_come_behind_what_was_written") else { return };
    let mut first = boxed::<0, 0>(&raw);
    let written = raw.buffer(&vec![0u32; ROOM]);
    first.params.out = written;
    let mut second = boxed::<0, 0>(&raw);
    second.params.values = Tensor::rows(64, 64, 64).encode(&raw, written).unwrap();
    raw.start("a_box", 1, 128, 48 << 10, &first.params).unwrap();
    assert_eq!(raw.wait(), Ok(()));
    let fault = second.run(&raw, "box_ahead").unwrap_err();
    assert!(fault.contains("ahead of wait_for_previous"), "{fault}");
}

/// Tensor maps and launches that a driver refuses.
#[test]
fn launches_have_limits() {
    let Some(raw) = open("emulator::hopper::launches_have_limits") else { return };
    let case = ring::<2>(&raw);
    call!(raw.emulator, cuFuncSetAttribute(raw.function("ring_of_two").unwrap() => *mut c_void,
        8 => c_int, SHARED as c_int => c_int))
    .unwrap();
    assert_eq!(raw.start("ring_of_two", 3, 384, SHARED, &case.params), Err(912));
    assert_eq!(raw.start("ring_of_two", 4, 384, SHARED, &case.params), Ok(()));
    raw.wait().unwrap();

    let rows = Tensor::rows(64, 64, 64);
    let encode = |tensor: Tensor| tensor.encode(&raw, case.input).map(drop);
    assert_eq!(encode(rows), Ok(()));
    let refused = [
        Tensor { rank: 0, ..rows },
        Tensor { rank: 6, ..rows },
        Tensor { kind: 99, ..rows },
        Tensor { sizes: [64, 0, 0, 0, 0], ..rows },
        Tensor { sizes: [64, (1 << 32) + 1, 0, 0, 0], ..rows },
        Tensor { strides: [136, 0, 0, 0], ..rows },
        Tensor { strides: [1 << 40, 0, 0, 0], ..rows },
        Tensor { sides: [64, 0, 0, 0, 0], ..rows },
        Tensor { sides: [64, 257, 0, 0, 0], ..rows },
        Tensor { sides: [72, 64, 0, 0, 0], ..rows },
        Tensor { sides: [60, 64, 0, 0, 0], ..rows },
        Tensor { steps: [1, 2, 1, 1, 1], ..rows },
    ];
    for tensor in refused {
        assert_eq!(encode(tensor), Err(1));
    }
    assert_eq!(rows.encode(&raw, case.input + 8).map(drop), Err(1));
    assert_eq!(encode(Tensor { sides: [72, 64, 0, 0, 0], swizzle: 0, ..rows }), Ok(()));

    raw.emulator.be(SMALL);
    assert_eq!(raw.function("ring"), Err(500));
}
