//! Which instruction an opcode is.

use crate::hopper::Hopper;

/// An instruction without its operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    /// Also packs and unpacks lists.
    Move,
    Unary(Unary, Type),
    Binary(Binary, Type),
    /// `mul` and `mad` with a result of twice the bits.
    MultiplyWide(Type),
    MultiplyAdd(Type),
    MultiplyAddWide(Type),
    /// `fma`; whether rounded down instead of to nearest.
    Fused(bool),
    /// Three-input logic by a table.
    Logic3,
    /// Bytes of two registers by a selector.
    Permute,
    /// Bits of `a` put into `b`.
    InsertBits(Type),
    ExtractBits(Type),
    Compare(Compare, Type),
    Select,
    /// `cvt`, with what it does to numbers that are no whole ones, and whether into [0, 1].
    Convert {
        to: Type,
        from: Type,
        round: Round,
        saturate: bool,
    },
    /// Two f32 to a pair of bf16, the first in the upper half.
    Narrow2,
    /// The address itself: windows are not modelled, but for that of the parameters.
    Address,
    AddressOfParam,
    Load(Space, Type, usize),
    Store(Space, Type, usize),
    Atomic(Space, Binary, Type),
    AtomicSwapIf(Space, Type),
    /// Bytes are an operand.
    CopyAsync,
    CopyCommit,
    CopyWait,
    CopyWaitAll,
    /// Number of 8×8 matrices, and whether each is transposed.
    LoadMatrix(usize, bool),
    /// m16n8k16, bf16 × bf16 + f32.
    Multiply16x8x16,
    Shuffle(Shuffle),
    Vote(Vote),
    /// Of threads of the block; whether it waits.
    Barrier {
        waits: bool,
    },
    WarpBarrier,
    Hopper(Hopper),
    /// Orders memory, which is in order here.
    Fence,
    Jump,
    Return,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Signed(u32),
    /// Numbers without sign, and bits.
    Bits(u32),
    F32,
    Bf16,
    Predicate,
}

impl Type {
    fn parse(word: &str) -> Option<Self> {
        let bits = crate::parse::bits(word)?;
        Some(match word {
            "f32" => Self::F32,
            "bf16" => Self::Bf16,
            "pred" => Self::Predicate,
            _ if ![8, 16, 32, 64].contains(&bits) => return None,
            _ if word.starts_with('s') => Self::Signed(bits),
            _ if word.starts_with(['b', 'u']) => Self::Bits(bits),
            _ => return None,
        })
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Signed(bits) | Self::Bits(bits) => bits,
            Self::F32 => 32,
            Self::Bf16 => 16,
            Self::Predicate => 1,
        }
    }

    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.bits() / 8)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Not,
    Negative,
    Absolute,
    Ones,
    LeadingZeros,
    Reverse,
    /// 2ˣ; whether small results become 0.
    Exp2(bool),
    Log2,
    Inverse,
    Root,
    InverseRoot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Subtract,
    Multiply,
    MultiplyHigh,
    Divide,
    Remainder,
    Min,
    Max,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
    Exchange,
}

/// A comparison, and whether it holds where one of two floats is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compare(pub(crate) Order, pub(crate) bool);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Param,
    Global,
    Shared,
    Local,
}

impl Space {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "param" => Self::Param,
            "global" => Self::Global,
            "shared" | "shared::cta" => Self::Shared,
            "local" => Self::Local,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Butterfly,
    Up,
    Down,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    Ballot,
    All,
    Any,
}

/// Words of an opcode that change neither result nor place: caches, scopes, orders of memory.
const HINTS: [&str; 15] = [
    "nc", "ca", "cg", "cs", "lu", "cv", "wb", "volatile", "relaxed", "acquire", "release",
    "acq_rel", "gpu", "cta", "uni",
];

impl Op {
    /// Returns `None` for what is not known here.
    pub(crate) fn parse(opcode: &str) -> Option<Self> {
        if let Some(op) = Hopper::parse(opcode) {
            return Some(Self::Hopper(op));
        }
        let (name, rest) = opcode.split_once('.').unwrap_or((opcode, ""));
        let words: Vec<&str> = rest.split('.').filter(|word| !word.is_empty()).collect();
        let kind = words.last().and_then(|word| Type::parse(word));
        let has = |word: &str| words.contains(&word);
        let binary = |op: Binary| Some(Self::Binary(op, kind?));
        let unary = |op: Unary| Some(Self::Unary(op, kind?));
        match name {
            "mov" => Some(Self::Move),
            "cvta" if has("param") && !has("to") => Some(Self::AddressOfParam),
            "cvta" => Some(Self::Address),
            "add" => binary(Binary::Add),
            "sub" => binary(Binary::Subtract),
            "mul" if has("wide") => Some(Self::MultiplyWide(kind?)),
            "mul" if has("hi") => binary(Binary::MultiplyHigh),
            "mul" => binary(Binary::Multiply),
            "mad" if has("wide") => Some(Self::MultiplyAddWide(kind?)),
            "mad" if has("lo") => Some(Self::MultiplyAdd(kind?)),
            "div" => binary(Binary::Divide),
            "rem" => binary(Binary::Remainder),
            "min" => binary(Binary::Min),
            "max" => binary(Binary::Max),
            "and" => binary(Binary::And),
            "or" => binary(Binary::Or),
            "xor" => binary(Binary::Xor),
            "shl" => binary(Binary::ShiftLeft),
            "shr" => binary(Binary::ShiftRight),
            "not" => unary(Unary::Not),
            "neg" => unary(Unary::Negative),
            "abs" => unary(Unary::Absolute),
            "popc" => unary(Unary::Ones),
            "clz" => unary(Unary::LeadingZeros),
            "brev" => unary(Unary::Reverse),
            "ex2" => unary(Unary::Exp2(has("ftz"))),
            "lg2" => unary(Unary::Log2),
            "rcp" => unary(Unary::Inverse),
            "sqrt" => unary(Unary::Root),
            "rsqrt" => unary(Unary::InverseRoot),
            "fma" if kind == Some(Type::F32) => match words[0] {
                "rn" => Some(Self::Fused(false)),
                "rm" => Some(Self::Fused(true)),
                _ => None,
            },
            "lop3" => Some(Self::Logic3),
            "prmt" if words == ["b32"] => Some(Self::Permute),
            "bfi" => Some(Self::InsertBits(kind?)),
            "bfe" => Some(Self::ExtractBits(kind?)),
            "setp" => match words[..] {
                [compare, _] => Some(Self::Compare(Compare::parse(compare)?, kind?)),
                _ => None,
            },
            "selp" => Some(Self::Select),
            "cvt" => Self::convert(&words),
            "ld" | "st" => {
                let space = Space::parse(words.iter().find(|word| !HINTS.contains(word))?)?;
                let count = [("v2", 2), ("v4", 4)].into_iter().find(|(word, _)| has(word));
                let count = count.map_or(1, |(_, count)| count);
                if !(1..=16).contains(&(kind?.bytes() as usize * count)) {
                    return None;
                }
                Some(match name {
                    "ld" => Self::Load(space, kind?, count),
                    _ => Self::Store(space, kind?, count),
                })
            }
            "atom" | "red" => {
                let mut words = words.iter().filter(|word| !HINTS.contains(word));
                let space = Space::parse(words.next()?)?;
                let op = match *words.next()? {
                    "add" => Binary::Add,
                    "min" => Binary::Min,
                    "max" => Binary::Max,
                    "and" => Binary::And,
                    "or" => Binary::Or,
                    "xor" => Binary::Xor,
                    "exch" => Binary::Exchange,
                    "cas" => return Some(Self::AtomicSwapIf(space, kind?)),
                    _ => return None,
                };
                (name == "atom").then_some(Self::Atomic(space, op, kind?))
            }
            "cp" => match words[..] {
                ["async", "cg" | "ca", "shared" | "shared::cta", "global"] => Some(Self::CopyAsync),
                ["async", "commit_group"] => Some(Self::CopyCommit),
                ["async", "wait_group"] => Some(Self::CopyWait),
                ["async", "wait_all"] => Some(Self::CopyWaitAll),
                _ => None,
            },
            "ldmatrix" => {
                let counts = [("x1", 1), ("x2", 2), ("x4", 4)];
                let (_, count) = counts.into_iter().find(|(word, _)| has(word))?;
                (has("m8n8") && has("b16")).then_some(Self::LoadMatrix(count, has("trans")))
            }
            "mma" => {
                let wanted = "sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
                (rest == wanted).then_some(Self::Multiply16x8x16)
            }
            "shfl" if has("sync") && has("b32") => Some(Self::Shuffle(match words[1] {
                "bfly" => Shuffle::Butterfly,
                "up" => Shuffle::Up,
                "down" => Shuffle::Down,
                "idx" => Shuffle::Index,
                _ => return None,
            })),
            "vote" if has("sync") => Some(Self::Vote(match words[1] {
                "ballot" => Vote::Ballot,
                "all" => Vote::All,
                "any" => Vote::Any,
                _ => return None,
            })),
            "bar" | "barrier" if has("warp") => Some(Self::WarpBarrier),
            "bar" | "barrier" if has("cluster") => None,
            "bar" | "barrier" if has("sync") => Some(Self::Barrier { waits: true }),
            "bar" | "barrier" if has("arrive") => Some(Self::Barrier { waits: false }),
            "fence" if has("proxy") => None,
            // Launches run one after the other.
            "membar" | "fence" | "griddepcontrol" => Some(Self::Fence),
            "bra" => Some(Self::Jump),
            "ret" | "exit" => Some(Self::Return),
            _ => None,
        }
    }

    fn convert(words: &[&str]) -> Option<Self> {
        if let ["rn", "bf16x2", "f32"] = words {
            return Some(Self::Narrow2);
        }
        let types: Vec<Type> = words.iter().filter_map(|word| Type::parse(word)).collect();
        let [to, from] = types[..] else { return None };
        let mut round =
            if to == Type::F32 || to == Type::Bf16 { Round::Nearest } else { Round::Zero };
        let mut saturate = false;
        for word in &words[..words.len() - 2] {
            match *word {
                "rn" | "rni" => round = Round::Nearest,
                "rz" | "rzi" => round = Round::Zero,
                "rm" | "rmi" => round = Round::Down,
                "rp" | "rpi" => round = Round::Up,
                "sat" => saturate = true,
                "ftz" => {}
                _ => return None,
            }
        }
        Some(Self::Convert { to, from, round, saturate })
    }

    /// Returns whether all lanes of a warp do it together.
    pub(crate) fn is_of_warp(self) -> bool {
        matches!(
            self,
            Self::LoadMatrix(..)
                | Self::Multiply16x8x16
                | Self::Shuffle(_)
                | Self::Vote(_)
                | Self::WarpBarrier
        ) || matches!(self, Self::Hopper(op) if op.is_of_warp())
    }
}

impl Compare {
    fn parse(word: &str) -> Option<Self> {
        let (order, unordered) = match word {
            "lo" => ("lt", false),
            "ls" => ("le", false),
            "hi" => ("gt", false),
            "hs" => ("ge", false),
            word => (word.get(..2)?, word.get(2..)? == "u"),
        };
        let order = match order {
            "eq" => Order::Equal,
            "ne" => Order::NotEqual,
            "lt" => Order::Less,
            "le" => Order::LessOrEqual,
            "gt" => Order::Greater,
            "ge" => Order::GreaterOrEqual,
            _ => return None,
        };
        (word.len() == 2 || unordered).then_some(Self(order, unordered))
    }
}
