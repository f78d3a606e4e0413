//! `gritlm chat`: holds a conversation on a terminal, with its history in the KV cache.

use super::args::{Global, SamplingArgs};
use super::generate::stream;
use super::output::{Out, STDIN};
use super::{INTERRUPTED, WAITING, note};
use crate::error::{Error, Result};
use gritlm_rag::text;
use std::io::{BufRead, IsTerminal, Write};
use std::sync::atomic::Ordering;

pub(super) fn run(args: &SamplingArgs, global: &Global, out: &mut Out) -> Result<()> {
    let how = args.sampling(0);
    how.check()?;
    let engine = super::open(global)?;
    let mut chat = engine.chat();
    let terminal = std::io::stdin().is_terminal();
    let stdin = std::io::stdin().lock();
    WAITING.store(true, Ordering::Relaxed);
    // Only files have byte-order marks, and looking for one waits for the first line.
    let mut stdin: Box<dyn BufRead> = match terminal {
        true => Box::new(stdin),
        false => text::utf8(stdin).map_err(Error::io(STDIN))?,
    };
    if terminal {
        note("Empty line or Ctrl-D ends; Ctrl-C ends an answer.");
    }
    loop {
        if terminal {
            eprint!("> ");
            // Nothing depends on the prompt being seen.
            let _ = std::io::stderr().flush();
        }
        let mut line = Vec::new();
        WAITING.store(true, Ordering::Relaxed);
        stdin.read_until(b'\n', &mut line).map_err(Error::io(STDIN))?;
        WAITING.store(false, Ordering::Relaxed);
        let line = String::from_utf8(line)
            .map_err(|_| Error::Input { what: STDIN.into(), problem: "not UTF-8".into() })?;
        let text = line.trim();
        if text.is_empty() {
            return Ok(());
        }
        match stream(chat.say(text, &how)?, out) {
            // Ctrl-C at a terminal ends the answer, not the conversation.
            Err(error) if error.is_interrupt() && terminal => {
                INTERRUPTED.store(false, Ordering::Relaxed)
            }
            other => _ = other?,
        }
        out.piece("\n")?;
    }
}
