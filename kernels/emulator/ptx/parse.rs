//! From text to instructions: entry points with their parameters, registers and shared variables.

use crate::hopper::Hopper;
use crate::op::Op;
use crate::slots;
use crate::token::{Token, tokens};
use crate::{Error, Result};
use std::collections::HashMap;

/// An entry point.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Most threads of a block (`.maxntid`).
    pub threads: u32,
    /// Bytes of its parameters.
    pub params: usize,
    /// Blocks of a cluster, side by side along x (`.reqnctapercluster`); 1 if there are none.
    pub cluster: u32,
    /// Blocks that a multiprocessor must have room for (`.minnctapersm`).
    pub(crate) at_once: u32,
    /// Whether it has a `wgmma`.
    pub(crate) multiplies: bool,
    /// Bytes of shared memory that it declares; what a launch asks for comes behind them.
    pub(crate) shared: usize,
    /// Bytes of each thread's own memory.
    pub(crate) local: usize,
    /// Bits of each register.
    pub(crate) registers: Vec<u32>,
    pub(crate) code: Vec<Instruction>,
}

/// An instruction.
#[derive(Debug)]
pub(crate) struct Instruction {
    pub(crate) op: Op,
    /// The predicate that a thread must have, and whether it must be false.
    pub(crate) guard: Option<(usize, bool)>,
    pub(crate) operands: Vec<Operand>,
    /// Where it stands in the text.
    pub(crate) line: u32,
}

/// What an instruction reads or writes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    Register(usize),
    /// A number, the bits of a float, or the place of a variable or a label.
    Number(u64),
    Special(Special),
    /// `[base + offset]`
    Address(Box<Operand>, i64),
    /// `{a, b, …}`, or `a|b`
    List(Vec<Operand>),
}

/// Registers that the hardware sets; `usize` is 0, 1 or 2 for x, y or z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
    Lane,
    Warp,
    /// Of the block in its cluster, and blocks of a cluster.
    Rank,
    Ranks,
    /// Of the cluster, along x, and clusters.
    Cluster,
    Clusters,
}

/// Returns the entry points of a module.
///
/// # Errors
/// When the text is not PTX, or needs what this interpreter does not know. The error names the line.
pub fn parse(text: &str) -> Result<Vec<Entry>> {
    let mut parser = Parser { tokens: tokens(text), next: 0, globals: HashMap::new(), shared: 0 };
    let mut entries = Vec::new();
    while let Some(word) = parser.take() {
        match word.text.as_str() {
            ".entry" => entries.push(parser.entry()?),
            ".func" => return Err(parser.unknown("a function that is called", word.line)),
            ".shared" => parser.variable(&mut None)?,
            _ => {}
        }
    }
    Ok(entries)
}

/// Most registers, bytes or threads that a text may speak of.
const MOST: usize = 1 << 24;

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    /// Places of the module's shared variables.
    globals: HashMap<String, u64>,
    /// Their bytes.
    shared: usize,
}

/// An entry point that is being read.
#[derive(Default)]
struct Body {
    registers: Vec<u32>,
    /// Names by scope, the innermost last.
    names: Vec<HashMap<String, Operand>>,
    /// The numbers of these scopes, and how many there have been.
    scopes: Vec<usize>,
    opened: usize,
    /// Labels by scope, and where they are.
    labels: HashMap<(usize, String), u64>,
    local: usize,
    code: Vec<Instruction>,
    /// Operands that are labels.
    jumps: Vec<Jump>,
}

/// A jump to a label that may come later.
struct Jump {
    /// Of the instruction.
    at: usize,
    label: String,
    scopes: Vec<usize>,
    line: u32,
}

impl Parser {
    fn peek(&self) -> &str {
        self.tokens.get(self.next).map_or("", |token| &token.text)
    }

    fn line(&self) -> u32 {
        let last = self.tokens.get(self.next).or(self.tokens.last());
        last.map_or(0, |token| token.line)
    }

    fn take(&mut self) -> Option<Token> {
        // Each is taken once, and only those that come are looked at.
        let token = self.tokens.get_mut(self.next).map(std::mem::take);
        self.next += 1;
        token
    }

    fn word(&mut self) -> Result<String> {
        let line = self.line();
        self.take().map(|token| token.text).ok_or_else(|| self.unknown("the end", line))
    }

    /// Takes a word if it is this one.
    fn is(&mut self, word: &str) -> bool {
        let is = self.peek() == word;
        self.next += usize::from(is);
        is
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let line = self.line();
        match self.is(word) {
            true => Ok(()),
            false => Err(Error(format!("line {line}: expected {word:?}, found {:?}", self.peek()))),
        }
    }

    fn unknown(&self, what: &str, line: u32) -> Error {
        Error(format!("line {line}: {what}: not known here"))
    }

    fn count(&mut self) -> Result<usize> {
        let (line, word) = (self.line(), self.word()?);
        // More than fit into any GPU would only fill this machine.
        let count = word.parse().ok().filter(|count| *count <= MOST);
        count.ok_or_else(|| self.unknown(&word, line))
    }

    /// Reads `.shared .align A .b8 name[bytes]` after its first word, or the same of `.local`,
    /// whose bytes are counted in `local`.
    fn variable(&mut self, local: &mut Option<&mut Body>) -> Result<()> {
        let mut align = 1;
        let mut element = 1;
        loop {
            let (line, word) = (self.line(), self.word()?);
            match word.as_str() {
                ".align" => align = self.count()?.max(1),
                word if word.starts_with('.') => {
                    element = bits(word).ok_or_else(|| self.unknown(word, line))? as usize / 8;
                }
                name => {
                    let mut bytes = element;
                    while self.is("[") {
                        bytes *= if self.peek() == "]" { 0 } else { self.count()? };
                        if bytes > MOST {
                            return Err(self.unknown("a variable of this size", line));
                        }
                        self.expect("]")?;
                    }
                    self.expect(";")?;
                    let all = match local {
                        Some(body) => &mut body.local,
                        None => &mut self.shared,
                    };
                    let at = all.next_multiple_of(align.max(element));
                    *all = at + bytes;
                    match local {
                        Some(body) => body.name(name, Operand::Number(at as u64)),
                        None => _ = self.globals.insert(name.into(), at as u64),
                    }
                    return Ok(());
                }
            }
        }
    }

    fn entry(&mut self) -> Result<Entry> {
        let name = self.word()?;
        let mut body = Body { names: vec![HashMap::new()], scopes: vec![0], ..Body::default() };
        let (mut params, mut threads, mut cluster, mut at_once) = (0usize, 1024, 1, 1);
        if self.is("(") {
            while !self.is(")") {
                let (mut align, mut element, mut bytes) = (1, 1, None);
                let mut found = String::new();
                while !matches!(self.peek(), "," | ")" | "") {
                    let (line, word) = (self.line(), self.word()?);
                    match word.as_str() {
                        ".param" => {}
                        ".align" => align = self.count()?.max(1),
                        "[" => {
                            bytes = Some(self.count()?);
                            self.expect("]")?;
                        }
                        word if word.starts_with('.') => {
                            let bits = bits(word).ok_or_else(|| self.unknown(word, line))?;
                            element = bits as usize / 8;
                        }
                        word => found = word.into(),
                    }
                }
                self.is(",");
                let at = params.next_multiple_of(align.max(element));
                params = at + element * bytes.unwrap_or(1);
                body.name(&found, Operand::Number(at as u64));
            }
        }
        while !self.is("{") {
            let line = self.line();
            match self.word()?.as_str() {
                ".maxntid" | ".reqntid" => {
                    threads = self.count()? as u32;
                    while self.is(",") {
                        threads = threads.saturating_mul(self.count()? as u32);
                    }
                }
                ".reqnctapercluster" => {
                    cluster = self.count()? as u32;
                    let mut others = 1;
                    while self.is(",") {
                        others = self.count()?.max(others);
                    }
                    if others != 1 || !(1..=8).contains(&cluster) {
                        return Err(self.unknown("a cluster of this form", line));
                    }
                }
                ".minnctapersm" => at_once = self.count()?.clamp(1, 32) as u32,
                ".maxnreg" => _ = self.count()?,
                ".explicitcluster" => {}
                word => return Err(self.unknown(word, line)),
            }
        }
        while !body.names.is_empty() {
            self.statement(&mut body)?;
        }
        for Jump { at, label, scopes, line } in std::mem::take(&mut body.jumps) {
            // The innermost scope has it first.
            let to = scopes.iter().rev().find_map(|s| body.labels.get(&(*s, label.clone())));
            let to = to.ok_or_else(|| self.unknown(&label, line))?;
            body.code[at].operands = vec![Operand::Number(*to)];
        }
        // The dynamic part comes behind, aligned as the kernels declare it.
        let shared = self.shared.next_multiple_of(16);
        let Body { registers, local, mut code, .. } = body;
        let registers = slots::share(&mut code, &registers);
        let is_product = |one: &Instruction| matches!(one.op, Op::Hopper(Hopper::Product(_)));
        let multiplies = code.iter().any(is_product);
        Ok(Entry {
            name,
            threads,
            params,
            cluster,
            at_once,
            multiplies,
            shared,
            local,
            registers,
            code,
        })
    }

    fn statement(&mut self, body: &mut Body) -> Result<()> {
        let (line, word) = (self.line(), self.word()?);
        match word.as_str() {
            "{" => {
                body.opened += 1;
                body.scopes.push(body.opened);
                body.names.push(HashMap::new());
            }
            "}" => {
                body.scopes.pop();
                body.names.pop();
            }
            ";" => {}
            ".pragma" => {
                self.word()?;
                self.expect(";")?;
            }
            ".reg" => self.registers(body)?,
            ".shared" => self.variable(&mut None)?,
            ".local" => self.variable(&mut Some(body))?,
            _ if self.is(":") => {
                let scope = body.scopes.last().copied().unwrap_or_default();
                body.labels.insert((scope, word), body.code.len() as u64);
            }
            _ => self.instruction(word, line, body)?,
        }
        Ok(())
    }

    /// Reads `.reg .b32 %r<7>, x;` after its first word.
    fn registers(&mut self, body: &mut Body) -> Result<()> {
        let (line, kind) = (self.line(), self.word()?);
        let bits = bits(&kind).ok_or_else(|| self.unknown(&kind, line))?;
        loop {
            let name = self.word()?;
            if self.is("<") {
                for i in 0..self.count()? {
                    body.register(&format!("{name}{i}"), bits);
                }
                self.expect(">")?;
            } else {
                body.register(&name, bits);
            }
            if !self.is(",") {
                return self.expect(";");
            }
        }
    }

    fn instruction(&mut self, mut word: String, line: u32, body: &mut Body) -> Result<()> {
        let mut guard = None;
        if word == "@" {
            let not = self.is("!");
            let name = self.word()?;
            let Some(Operand::Register(register)) = body.find(&name) else {
                return Err(self.unknown(&name, line));
            };
            guard = Some((register, not));
            word = self.word()?;
        }
        let op = Op::parse(&word).ok_or_else(|| self.unknown(&word, line))?;
        let mut operands = Vec::new();
        if op == Op::Jump {
            let (at, label, scopes) = (body.code.len(), self.word()?, body.scopes.clone());
            body.jumps.push(Jump { at, label, scopes, line });
            self.expect(";")?;
        } else {
            while !self.is(";") {
                operands.push(self.operand(body)?);
                self.is(",");
            }
        }
        body.code.push(Instruction { op, guard, operands, line });
        Ok(())
    }

    fn operand(&mut self, body: &Body) -> Result<Operand> {
        let (line, word) = (self.line(), self.word()?);
        let one = match word.as_str() {
            "{" => {
                let mut list = Vec::new();
                while !self.is("}") {
                    list.push(self.operand(body)?);
                    self.is(",");
                }
                return Ok(Operand::List(list));
            }
            "[" => {
                let base = self.operand(body)?;
                // The map and the place of a copy by TMA.
                if self.is(",") {
                    let place = self.operand(body)?;
                    self.expect("]")?;
                    return Ok(Operand::List(vec![base, place]));
                }
                let mut offset = 0;
                if self.is("+") {
                    let negative = self.is("-");
                    offset = self.count()? as i64 * if negative { -1 } else { 1 };
                }
                self.expect("]")?;
                return Ok(Operand::Address(Box::new(base), offset));
            }
            "-" => {
                let number = self.operand(body)?;
                let Operand::Number(number) = number else {
                    return Err(self.unknown("- before what is no number", line));
                };
                return Ok(Operand::Number(number.wrapping_neg()));
            }
            // What nobody wants to know.
            "_" => Some(Operand::Number(0)),
            word => number(word).or_else(|| body.find(word)).or_else(|| {
                special(word).or_else(|| {
                    // What is declared outside: shared variables; all others of size 0 begin the
                    // launch's own shared memory, behind them.
                    self.globals.get(word).map(|at| Operand::Number(*at))
                })
            }),
        };
        let one = one.ok_or_else(|| self.unknown(&word, line))?;
        Ok(match self.is("|") {
            true => Operand::List(vec![one, self.operand(body)?]),
            false => one,
        })
    }
}

impl Body {
    fn name(&mut self, name: &str, operand: Operand) {
        if let Some(scope) = self.names.last_mut() {
            scope.insert(name.into(), operand);
        }
    }

    fn register(&mut self, name: &str, bits: u32) {
        self.name(name, Operand::Register(self.registers.len()));
        self.registers.push(bits);
    }

    fn find(&self, name: &str) -> Option<Operand> {
        self.names.iter().rev().find_map(|scope| scope.get(name)).cloned()
    }
}

/// Returns the bits of a type; predicates have 1.
pub(crate) fn bits(word: &str) -> Option<u32> {
    match word.trim_start_matches('.') {
        "pred" => Some(1),
        "bf16" | "f16" => Some(16),
        "bf16x2" | "f16x2" => Some(32),
        word => match word.get(..1)? {
            "b" | "u" | "s" | "f" => word[1..].parse().ok(),
            _ => None,
        },
    }
}

/// Returns the number that a word is: `12`, `0xff`, or the bits of a float, `0f3F800000`.
fn number(word: &str) -> Option<Operand> {
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let prefix = |all: [&str; 6]| all.into_iter().find_map(|p| word.strip_prefix(p));
    let number = match prefix(["0f", "0F", "0d", "0D", "0x", "0X"]) {
        Some(digits) => hex(digits.trim_end_matches('U'))?,
        None => word.trim_end_matches('U').parse().ok()?,
    };
    Some(Operand::Number(number))
}

fn special(word: &str) -> Option<Operand> {
    let (name, axis) = word.rsplit_once('.').unwrap_or((word, "x"));
    let axis = ["x", "y", "z"].iter().position(|one| *one == axis)?;
    Some(match name {
        "WARP_SZ" => Operand::Number(32),
        "%tid" => Operand::Special(Special::Thread(axis)),
        "%ntid" => Operand::Special(Special::Threads(axis)),
        "%ctaid" => Operand::Special(Special::Block(axis)),
        "%nctaid" => Operand::Special(Special::Blocks(axis)),
        "%laneid" => Operand::Special(Special::Lane),
        "%warpid" => Operand::Special(Special::Warp),
        // Clusters lie along x.
        "%cluster_ctarank" => Operand::Special(Special::Rank),
        "%cluster_nctarank" => Operand::Special(Special::Ranks),
        "%cluster_ctaid" if axis == 0 => Operand::Special(Special::Rank),
        "%cluster_nctaid" if axis == 0 => Operand::Special(Special::Ranks),
        "%clusterid" if axis == 0 => Operand::Special(Special::Cluster),
        "%nclusterid" if axis == 0 => Operand::Special(Special::Clusters),
        _ => return None,
    })
}
