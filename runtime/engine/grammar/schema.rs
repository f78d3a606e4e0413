//! Checks on a schema before it is compiled. The compiler lacks them: it would take minutes for
//! some schemas of a few thousand bytes, and would never finish others.

use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

type Result<T> = std::result::Result<T, String>;

/// Maximum nesting of values, the limit of serde_json.
const MAX_DEPTH: usize = 128;
/// Maximum number of values of a schema after merging; this many take about 0.2 s to compile.
const MAX_SIZE: usize = 50_000;
/// Maximum divisor. The compiler tracks a number's remainder digit by digit with one state per
/// remainder; this many take 40 ms.
const MAX_DIVISOR: u64 = 10_000;
/// Keywords that do not cause merging: a keyword with only these beside it stands alone.
const BESIDE: [&str; 11] = [
    "$schema",
    "$id",
    "$defs",
    "definitions",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "discriminator",
];

/// Keywords whose schemas are merged with the keywords beside them.
const PARTS: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];

/// Returns an error if values are nested too deeply for recursive functions.
pub(super) fn check_depth(root: &Value) -> Result<()> {
    depth(root, MAX_DEPTH)
}

/// Returns an error if compiling would take too long, or if no answer would ever end.
pub(super) fn check(root: &Value) -> Result<()> {
    divisors(root, 1)?;
    let size = Sizes { root, known: HashMap::new() }.of(root, false, false);
    if size > MAX_SIZE {
        return Err(format!(
            "expected at most {MAX_SIZE} values once allOf, anyOf and $ref have been put together, \
             found more"
        ));
    }
    match ends(root) {
        true => Ok(()),
        false => Err("no answer ever ends: what it requires requires itself".into()),
    }
}

fn depth(value: &Value, left: usize) -> Result<()> {
    let left = left.checked_sub(1);
    let inner = |value: &Value| match left {
        Some(left) => depth(value, left),
        None => Err(format!("its values lie more than {MAX_DEPTH} deep in each other")),
    };
    match value {
        Value::Array(values) => values.iter().try_for_each(inner),
        Value::Object(values) => values.values().try_for_each(inner),
        _ => Ok(()),
    }
}

/// Returns the least common multiple of all `multipleOf`, with their decimal points removed, or
/// an error if it exceeds [`MAX_DIVISOR`]. It bounds the divisor of any merged schema.
fn divisors(value: &Value, so_far: u64) -> Result<u64> {
    let gcd = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    match value {
        Value::Array(values) => values.iter().try_fold(so_far, |all, v| divisors(v, all)),
        Value::Object(values) => values.iter().try_fold(so_far, |all, (key, value)| match value {
            Value::Number(number) if key == "multipleOf" => {
                let text = number.to_string().replace('.', "");
                let divisor = text.parse().ok().filter(|n| (1..=MAX_DIVISOR).contains(n));
                let multiple = divisor.map(|n: u64| all / gcd(all, n) * n);
                multiple.filter(|&n| n <= MAX_DIVISOR).ok_or_else(|| {
                    format!(
                        "multipleOf: expected numbers of a few digits, with a common multiple of \
                         at most {MAX_DIVISOR}, found {number}"
                    )
                })
            }
            value => divisors(value, all),
        }),
        _ => Ok(so_far),
    }
}

/// Returns the value that a reference within the schema points to.
fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let mut path = reference.strip_prefix('#')?.split('/').filter(|part| !part.is_empty());
    path.try_fold(root, |value, part| match value {
        Value::Array(values) => values.get(part.parse::<usize>().ok()?),
        value => value.get(part),
    })
}

fn reference(schema: &Map<String, Value>) -> Option<&str> {
    schema.get("$ref")?.as_str()
}

/// Counts the values of a schema after merging. The compiler keeps a reference as one value,
/// unless it stands beside another keyword.
struct Sizes<'a> {
    root: &'a Value,
    known: HashMap<(&'a str, bool), usize>,
}

impl<'a> Sizes<'a> {
    /// Counts the values of `value`. `placed`: the schema is merged with another; `merged`: so is
    /// everything inside it.
    fn of(&mut self, value: &'a Value, placed: bool, merged: bool) -> usize {
        let schema = match value {
            Value::Array(values) => {
                let sizes = values.iter().map(|value| self.of(value, placed, merged));
                return sizes.fold(1, usize::saturating_add);
            }
            Value::Object(schema) => schema,
            _ => return 1,
        };
        let list = |key: &str| schema.get(key).and_then(Value::as_array).into_iter().flatten();
        let others = schema.keys().filter(|key| !BESIDE.contains(&key.as_str())).count();
        let beside = others > 1 || list("allOf").count() > 1;
        // Counts the parts that contain schemas; with two or more, these schemas are merged.
        let own = |(key, value): (&String, _)| {
            !PARTS.contains(&&**key) && !BESIDE.contains(&&**key) && nests(value)
        };
        let parts = [
            list("allOf").filter(|part| rich(part)).count(),
            usize::from(list("anyOf").any(rich)),
            usize::from(list("oneOf").any(rich)),
            usize::from(schema.contains_key("$ref")),
            usize::from(schema.iter().any(own)),
        ];
        let (placed, merged) = (placed || beside, merged || parts.iter().sum::<usize>() > 1);
        let mut size = 1_usize;
        for (key, value) in schema {
            let (placed, merged) = match &**key {
                "$defs" | "definitions" => (false, false),
                key if PARTS.contains(&key) => (placed, merged),
                _ => (merged, merged),
            };
            size = size.saturating_add(self.of(value, placed, merged));
        }
        if placed && let Some(to) = reference(schema) {
            size = size.saturating_add(self.referred(to, merged));
        }
        match beside {
            true => {
                size.saturating_mul(list("anyOf").count().max(1) * list("oneOf").count().max(1))
            }
            false => size,
        }
    }

    fn referred(&mut self, to: &'a str, merged: bool) -> usize {
        if let Some(&size) = self.known.get(&(to, merged)) {
            return size;
        }
        // A recursive reference is not expanded again.
        self.known.insert((to, merged), 1);
        let size = target(self.root, to).map_or(1, |schema| self.of(schema, true, merged));
        self.known.insert((to, merged), size);
        size
    }
}

/// Returns whether a schema contains other schemas.
fn rich(schema: &Value) -> bool {
    schema.as_object().is_some_and(|s| s.contains_key("$ref") || s.values().any(nests))
}

fn nests(value: &Value) -> bool {
    value.is_object() || value.as_array().is_some_and(|values| values.iter().any(nests))
}

/// Returns whether some finite value follows the schema, as far as references matter. References
/// that need no others are known to end; then those that need only these, and so on.
fn ends(root: &Value) -> bool {
    let (mut waiting, mut ending) = (Vec::new(), HashSet::new());
    find(root, &mut HashSet::new(), &mut waiting);
    loop {
        let left = waiting.len();
        // In the right order, one pass resolves a whole chain. The right order is unknown, so
        // passes alternate between both.
        waiting.reverse();
        waiting.retain(|&to| {
            let ends = target(root, to).is_none_or(|schema| can_end(schema, &ending));
            !(ends && ending.insert(to))
        });
        if waiting.len() == left {
            return can_end(root, &ending);
        }
    }
}

/// Collects the references of a schema, each once.
fn find<'a>(value: &'a Value, seen: &mut HashSet<&'a str>, found: &mut Vec<&'a str>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| find(value, seen, found)),
        Value::Object(schema) => {
            found.extend(reference(schema).filter(|to| seen.insert(to)));
            schema.values().for_each(|value| find(value, seen, found));
        }
        _ => {}
    }
}

fn can_end(schema: &Value, ending: &HashSet<&str>) -> bool {
    let Value::Object(schema) = schema else { return true };
    let all = |key: &str| schema.get(key).and_then(Value::as_array).into_iter().flatten();
    let some =
        |key: &str| !schema.contains_key(key) || all(key).any(|schema| can_end(schema, ending));
    let required = |name: &Value| {
        let property = schema.get("properties").zip(name.as_str()).and_then(|(p, n)| p.get(n));
        property.is_none_or(|schema| can_end(schema, ending))
    };
    let item = |index: u64| {
        let first = all("prefixItems").nth(index as usize).or(schema.get("items"));
        first.is_none_or(|schema| can_end(schema, ending))
    };
    let items = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
    // After the `prefixItems`, all items are alike.
    let items = items.min(all("prefixItems").count() as u64 + 1);
    let own = match schema.get("type").and_then(Value::as_str) {
        Some("object") => all("required").all(required),
        Some("array") => (0..items).all(item),
        _ => true,
    };
    own && reference(schema).is_none_or(|to| ending.contains(to))
        && all("allOf").all(|schema| can_end(schema, ending))
        && some("anyOf")
        && some("oneOf")
}
