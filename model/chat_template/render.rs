//! Renders a template as transformers does: Jinja with Python's methods on strings and
//! dictionaries, `raise_exception`, `strftime_now` and `tojson`.
//!
//! A template is a program that came with a checkpoint. It can read nothing but the messages, and
//! has bounds on its steps, its depth and its output.

use super::Message;
use crate::{Error, Result};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// Maximum bytes of a template; published ones have up to 20,000.
const SOURCE: usize = 1 << 18;
/// Maximum instructions, and how many more for each message. Published templates take up to 200
/// for a message.
const STEPS: usize = 200_000;
const STEPS_PER_MESSAGE: usize = 10_000;
/// Maximum depth of loops, conditions and macros within each other; a macro counts as several.
const DEPTH: usize = 100;
/// Maximum bytes of the output besides four times the messages' own.
const OUTPUT: usize = 1 << 20;

/// Renders `source`. `tokens` are the names of special tokens with their spellings.
///
/// # Errors
/// When the template does not parse, fails, or exceeds a bound.
pub(super) fn render(
    source: &str,
    tokens: &BTreeMap<String, String>,
    messages: &[Message<'_>],
    add_generation_prompt: bool,
) -> Result<String> {
    if source.len() > SOURCE {
        let found = source.len();
        return Err(Error::Template(format!("expected at most {SOURCE} bytes, found {found}")));
    }
    let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
    let limit = OUTPUT + 4 * bytes;
    let mut env = environment(limit);
    env.set_fuel(Some((STEPS + STEPS_PER_MESSAGE * messages.len()) as u64));
    let input = Input { messages, add_generation_prompt, tools: (), documents: (), tokens };
    let mut output = Bounded { text: Vec::new(), limit, over: false };
    let template = env.template_from_str(source).map_err(|e| one_line(&e))?;
    let rendered = template.render_captured_to(Value::from_serialize(&input), &mut output);
    if output.over {
        return Err(Error::Template(format!(
            "expected at most {limit} bytes of output, found more"
        )));
    }
    rendered.map_err(|e| one_line(&e))?;
    String::from_utf8(output.text).map_err(|e| Error::Template(e.to_string()))
}

/// What a template sees.
#[derive(Serialize)]
struct Input<'a> {
    messages: &'a [Message<'a>],
    add_generation_prompt: bool,
    /// Nothing, as where there are none; templates ask.
    tools: (),
    documents: (),
    #[serde(flatten)]
    tokens: &'a BTreeMap<String, String>,
}

/// A text that fails to grow beyond a limit.
struct Bounded {
    text: Vec<u8>,
    limit: usize,
    over: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        self.over |= self.text.len() + more.len() > self.limit;
        if self.over {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns an environment like that of transformers, in which no filter or method makes more than
/// `limit` bytes of a few.
fn environment(limit: usize) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_recursion_limit(DEPTH);
    env.set_formatter(print);
    for filter in ["format", "indent", "pprint", "urlencode"] {
        env.remove_filter(filter);
    }
    env.remove_global("debug");
    env.add_function("raise_exception", |problem: String| -> Result<Value, minijinja::Error> {
        Err(failed(problem))
    });
    env.add_function("strftime_now", |format: &str| strftime(format, SystemTime::now()));
    env.add_filter("tojson", to_json);
    env.add_filter("replace", move |text: &str, old: &str, new: &str| {
        replace(text, old, new, None, limit)
    });
    env.add_filter("join", move |values: &Value, between: Option<&str>| {
        join(values, between.unwrap_or_default(), limit)
    });
    env.set_unknown_method_callback(move |state, value, method, args| {
        let text = value.as_str().unwrap_or_default();
        let argument = |index: usize| args.get(index).and_then(Value::as_str);
        match (method, argument(0), argument(1)) {
            ("replace", Some(old), Some(new)) => {
                let times = args.get(2).and_then(|times| usize::try_from(times.clone()).ok());
                replace(text, old, new, times, limit).map(Value::from)
            }
            ("join", ..) if value.as_str().is_some() && args.len() == 1 => {
                join(&args[0], text, limit).map(Value::from)
            }
            // The crate would count empty strings forever, and format to any width.
            ("count", Some(""), _) => Ok(Value::from(text.chars().count() + 1)),
            ("format", ..) => Err(ErrorKind::UnknownMethod.into()),
            _ => unknown_method_callback(state, value, method, args),
        }
    });
    env
}

/// Prints a value as Python does.
fn print(out: &mut Output<'_>, _: &State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::None => out.write_str("None")?,
        ValueKind::Bool if value.is_true() => out.write_str("True")?,
        ValueKind::Bool => out.write_str("False")?,
        _ => write!(out, "{value}")?,
    }
    Ok(())
}

/// Replaces the first `times` matches of `old`, or all.
fn replace(
    text: &str,
    old: &str,
    new: &str,
    times: Option<usize>,
    limit: usize,
) -> Result<String, minijinja::Error> {
    let times = text.matches(old).count().min(times.unwrap_or(usize::MAX));
    if text.len().saturating_add(times.saturating_mul(new.len())) > limit {
        return Err(failed(format!("replace: expected at most {limit} bytes, found more")));
    }
    Ok(text.replacen(old, new, times))
}

/// Joins values with a string between them.
fn join(values: &Value, between: &str, limit: usize) -> Result<String, minijinja::Error> {
    let mut joined = String::new();
    for (index, value) in values.try_iter()?.enumerate() {
        if index > 0 {
            joined += between;
        }
        match value.as_str() {
            Some(text) => joined += text,
            None => joined += &value.to_string(),
        }
        if joined.len() > limit {
            return Err(failed(format!("join: expected at most {limit} bytes, found more")));
        }
    }
    Ok(joined)
}

/// Returns JSON as Python's `json.dumps` with `ensure_ascii=False` writes it: with spaces after
/// commas and colons, or with `indent` spaces a level.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut text = Vec::new();
    let written = match indent {
        Some(spaces) => {
            let spaces = " ".repeat(spaces.min(16));
            let form = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, form))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced)),
    };
    written.map_err(|e| failed(e.to_string()))?;
    String::from_utf8(text).map(Value::from).map_err(|e| failed(e.to_string()))
}

/// JSON on one line with a space after each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Returns a time in UTC in the form that C's `strftime` describes; of its letters, those of
/// dates and times of the day.
fn strftime(format: &str, time: SystemTime) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86400, seconds % 86400);
    // The civil date, counted in eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = (month + 2) % 12;
    let year = year + era * 400 + u64::from(month < 2);
    let (month_name, day_name) = (MONTHS[month as usize], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        text += &match letters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{:02}", month + 1),
            Some('B') => month_name.into(),
            Some('b') => month_name[..3].into(),
            Some('d') => format!("{day:02}"),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('%') => "%".into(),
            other => {
                let found = other.map_or("%".into(), |other| format!("%{other}"));
                return Err(failed(format!(
                    "strftime_now: expected a part of a date, found {found}"
                )));
            }
        };
    }
    Ok(text)
}

/// Returns an error of the template's own.
fn failed(problem: String) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, problem)
}

/// Returns a template's error on one line.
fn one_line(error: &minijinja::Error) -> Error {
    let mut text = match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.into(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    if error.kind() == ErrorKind::OutOfFuel {
        text = "expected fewer steps: it may never end".into();
    }
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.truncate(line.floor_char_boundary(300));
    match error.line() {
        Some(number) => Error::Template(format!("line {number}: {line}")),
        None => Error::Template(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thu Jan"),
            (951_782_399, "2000-02-28 23:59:59 Mon Feb"),
            (951_782_400, "2000-02-29 00:00:00 Tue Feb"),
            (1_735_689_599, "2024-12-31 23:59:59 Tue Dec"),
            (1_772_323_200, "2026-03-01 00:00:00 Sun Mar"),
        ] {
            let found = strftime("%Y-%m-%d %H:%M:%S %a %b", at(seconds)).unwrap();
            assert_eq!(found, expected);
        }
        assert!(strftime("%Q", at(0)).is_err());
    }
}
