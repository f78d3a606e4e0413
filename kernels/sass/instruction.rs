//! Instructions of SASS, as `nvdisasm -c -hex` prints them.
//!
//! Each has 128 bits, of which bits 105 to 125 are for the scheduler: how many cycles the warp
//! stalls after it, which scoreboards it waits for, and which it sets when its result has been
//! written or its operands have been read.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// What executes an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Tensor cores, a product of 16 by 8 by 16.
    Tensor,
    /// Tensor cores, a warp's quarter of a product of 64 by `columns` by 16 from shared memory, which
    /// goes on while the warp does; `ends` where it is the last one of a group.
    Warpgroup {
        /// Columns.
        columns: u32,
        /// Whether a wait counts what is before it as one.
        ends: bool,
    },
    /// A copy of a box of a tensor to shared memory.
    Box,
    /// A wait for a phase of a barrier in shared memory.
    Phase,
    /// An arrival at a barrier in shared memory.
    Arrival,
    /// f32 additions and multiplications.
    Float,
    /// Integer multiply-adds.
    Multiply,
    /// Other arithmetic.
    Integer,
    /// Transcendental functions and conversions.
    Special,
    /// Shared memory and shuffles; so many passes.
    Shared(u32),
    /// A load of so many bytes by the whole warp.
    Load(u32),
    /// A load that finds its bytes in L1.
    Cached,
    /// A store of so many bytes by the whole warp.
    Store(u32),
    /// An asynchronous copy of so many bytes from global to shared memory.
    Copy(u32),
    /// The end of a group of asynchronous copies.
    Commit,
    /// A wait until at most so many groups of copies, or of products of warpgroups, are under way.
    Wait(u32),
    /// A barrier of the block.
    Barrier,
    /// A wait until what the warp has stored is seen by all multiprocessors.
    Fence,
    /// Branches, uniform registers, constants: no pipe that could be full.
    None,
}

/// An instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Its name with all suffixes, `LDG.E.128`.
    pub op: String,
    /// Whether a predicate guards it.
    pub guarded: bool,
    /// Where a branch goes to, as an index.
    pub target: Option<usize>,
    /// What executes it.
    pub unit: Unit,
    /// Cycles from its issue until the warp may issue its next one.
    pub stall: u32,
    /// Scoreboards that it waits for, one bit each.
    pub waits: u8,
    /// Scoreboard that its result releases.
    pub writes: Option<u8>,
    /// Scoreboard that reading its operands releases.
    pub reads: Option<u8>,
}

impl Instruction {
    /// Its name without suffixes.
    pub fn base(&self) -> &str {
        self.op.split('.').next().unwrap_or_default()
    }
}

/// An entry point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its instructions, in the order of their addresses.
    pub code: Vec<Instruction>,
}

/// Runs `nvdisasm` on a compiled file and parses what it prints.
///
/// # Errors
/// When there is no `nvdisasm` on the path, it refuses the file, or prints what is not understood.
pub fn disassemble(cubin: &Path) -> Result<Vec<Kernel>, String> {
    let output = Command::new("nvdisasm").args(["-c", "-hex"]).arg(cubin).output().map_err(|e| {
        format!(
            "expected nvdisasm on the path, which disassembles the kernels (CUDA's toolkit has it, and \
             the Python package nvidia-cuda-nvdisasm): {e}"
        )
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().next().unwrap_or("it says nothing").to_string();
        return Err(format!("nvdisasm refuses {}: {line}", cubin.display()));
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// Parses what `nvdisasm -c -hex` prints.
///
/// # Errors
/// When an instruction lacks its second line, or a branch goes to a label that is not there.
pub fn parse(text: &str) -> Result<Vec<Kernel>, String> {
    let mut kernels = Vec::new();
    let mut lines = text.lines();
    let mut open: Option<Listing> = None;
    while let Some(line) = lines.next() {
        let line = line.trim();
        // Not `.sectioninfo`, which stands inside one.
        if let Some(rest) = line.strip_prefix(".section\t") {
            if let Some(listing) = open.take() {
                kernels.push(listing.kernel()?);
            }
            let name = rest.trim().strip_prefix(".text.").and_then(|rest| rest.split(',').next());
            open = name.map(Listing::new);
        } else if let Some(listing) = open.as_mut() {
            if let Some(label) = line.strip_suffix(':').filter(|label| label.starts_with(".L")) {
                listing.labels.insert(label.into(), listing.code.len());
            } else if let Some((text, low)) = split(line) {
                let high = lines.next().and_then(|next| hexadecimal(next.trim()));
                let high =
                    high.ok_or_else(|| format!("{}: {low:x} has no second word", listing.name))?;
                listing.add(text, high);
            }
        }
    }
    if let Some(listing) = open {
        kernels.push(listing.kernel()?);
    }
    Ok(kernels)
}

/// Splits `/*0010*/ @P0 EXIT ; /* 0x… */` into the text and the number.
fn split(line: &str) -> Option<(&str, u64)> {
    let rest = line.strip_prefix("/*")?.split_once("*/")?.1;
    let (text, number) = rest.split_once(';')?;
    Some((text.trim(), hexadecimal(number.trim())?))
}

/// Parses `/* 0x… */`.
fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("/* 0x")?.strip_suffix("*/")?.trim();
    u64::from_str_radix(digits, 16).ok()
}

/// A kernel whose labels are still names.
struct Listing {
    name: String,
    code: Vec<(Instruction, Option<String>)>,
    labels: HashMap<String, usize>,
}

impl Listing {
    fn new(name: &str) -> Self {
        Self { name: name.into(), code: Vec::new(), labels: HashMap::new() }
    }

    fn add(&mut self, text: &str, high: u64) {
        let mut words = text.split_whitespace().peekable();
        let guarded = words.next_if(|word| word.starts_with('@')).is_some();
        let op = words.next().unwrap_or_default().to_string();
        let rest: Vec<&str> = words.collect();
        let control = high >> 41;
        let board = |bits: u64| (bits & 7 != 7).then_some((bits & 7) as u8);
        let label = (op.starts_with("BRA") && !rest.is_empty()).then(|| {
            let last = rest[rest.len() - 1];
            last.trim_start_matches("`(").trim_end_matches(')').to_string()
        });
        let instruction = Instruction {
            unit: unit(&op, &rest),
            guarded,
            target: None,
            stall: (control & 15) as u32,
            writes: board(control >> 5),
            reads: board(control >> 8),
            waits: (control >> 11 & 63) as u8,
            op,
        };
        self.code.push((instruction, label));
    }

    fn kernel(self) -> Result<Kernel, String> {
        let Self { name, code, labels } = self;
        if code.is_empty() {
            return Err(format!("{name}: expected instructions, found none"));
        }
        let placed = |(mut instruction, label): (Instruction, Option<String>)| {
            if let Some(label) = label.filter(|label| label.starts_with(".L")) {
                let target = labels.get(&label);
                instruction.target =
                    Some(*target.ok_or_else(|| format!("{name}: there is no label {label}"))?);
            }
            Ok(instruction)
        };
        let mut code = code.into_iter().map(placed).collect::<Result<Vec<_>, String>>()?;
        // A kernel that reads some of its data past L1 does so in favour of the rest.
        let past = |i: &Instruction| i.base() == "LDG" && i.op.split('.').any(|part| part == "NA");
        if code.iter().any(past) {
            let cached = code.iter_mut().filter(|i| i.base() == "LDG" && !past(i));
            cached.for_each(|i| i.unit = Unit::Cached);
        }
        Ok(Kernel { name, code })
    }
}

/// Tells what executes an instruction.
fn unit(op: &str, arguments: &[&str]) -> Unit {
    let has = |suffix: &str| op.split('.').any(|part| part == suffix);
    // Bytes of a warp.
    let bytes = match () {
        () if has("128") => 512,
        () if has("64") => 256,
        () if has("U16") || has("S16") => 64,
        () if has("U8") || has("S8") => 32,
        () => 128,
    };
    match op.split('.').next().unwrap_or_default() {
        "HMMA" => Unit::Tensor,
        "HGMMA" => {
            let shape = op.split('.').find(|part| part.contains('x')).unwrap_or_default();
            let columns = shape.split('x').nth(1).and_then(|n| n.parse().ok()).unwrap_or(256);
            Unit::Warpgroup { columns, ends: arguments.contains(&"gsb0") }
        }
        "UTMALDG" => Unit::Box,
        "SYNCS" if has("PHASECHK") => Unit::Phase,
        "SYNCS" if has("ARRIVE") => Unit::Arrival,
        "SYNCS" => Unit::None,
        "MUFU" | "I2F" | "F2I" | "I2FP" | "F2F" => Unit::Special,
        "FFMA" | "FMUL" | "FADD" => Unit::Float,
        "IMAD" => Unit::Multiply,
        "LDSM" => Unit::Shared(4),
        "LDS" | "STS" => Unit::Shared((bytes / 128).max(1)),
        "SHFL" => Unit::Shared(1),
        "LDG" | "LD" | "LDL" => Unit::Load(bytes),
        "STG" | "ST" | "STL" => Unit::Store(bytes),
        // A sector's way to L2 and back.
        "ATOMG" => Unit::Load(32),
        // Within a block it costs next to nothing.
        "MEMBAR" if !has("CTA") => Unit::Fence,
        "LDGSTS" => Unit::Copy(bytes),
        "LDGDEPBAR" => Unit::Commit,
        "DEPBAR" | "WARPGROUP" if op.contains("DEPBAR") => {
            let count = arguments.iter().find_map(|a| a.strip_prefix("0x"));
            Unit::Wait(count.and_then(|n| u32::from_str_radix(n, 16).ok()).unwrap_or(0))
        }
        "BAR" => Unit::Barrier,
        "BRA" | "NOP" | "BSSY" | "BSYNC" | "S2R" | "S2UR" | "R2UR" | "LDC" | "ULDC" | "CS2R"
        | "EXIT" | "WARPSYNC" | "CALL" | "RET" | "VOTEU" | "WARPGROUP" | "MEMBAR" => Unit::None,
        other if other.starts_with('U') => Unit::None,
        _ => Unit::Integer,
    }
}

#[cfg(test)]
mod tests {
    use super::{Unit, parse};

    /// Two instructions and a branch, as nvdisasm prints them.
    const TEXT: &str = "
	.section	.text.sum,\"ax\",@progbits
	.sectioninfo	@\"SHI_REGISTERS=8\"
.text.sum:
        /*0000*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;  /* 0x0000000402048981 */
                                                                     /* 0x001eaa000c1e1d00 */
.L_x_1:
        /*0010*/                   DEPBAR.LE SB0, 0x2 ;              /* 0x000080800000791a */
                                                                     /* 0x004fe40000000000 */
        /*0020*/               @P1 BRA `(.L_x_1) ;                   /* 0xfffffffc00d41947 */
                                                                     /* 0x000fea000383ffff */
";

    #[test]
    fn instructions_are_read_with_their_scoreboards() {
        let [kernel] = &parse(TEXT).unwrap()[..] else { panic!() };
        assert_eq!(kernel.name, "sum");
        let [load, wait, branch] = &kernel.code[..] else { panic!() };
        assert_eq!((load.op.as_str(), load.guarded), ("LDG.E.128", true));
        assert_eq!((load.unit, load.stall), (Unit::Load(512), 5));
        assert_eq!((load.writes, load.reads, load.waits), (Some(2), None, 1));
        assert_eq!((wait.unit, wait.waits), (Unit::Wait(2), 4));
        assert_eq!((branch.target, branch.guarded, branch.stall), (Some(1), true, 5));
        let problem = parse(&TEXT.replace(".L_x_1:", "")).unwrap_err();
        assert_eq!(problem, "sum: there is no label .L_x_1");
    }
}
