//! Sequences packed end to end, without padding.
//!
//! A [`Run`] is a text, or a document and what continues it: parts with a mask each, in which later
//! parts see the keys and values of earlier ones. A chunk of runs becomes a [`Layout`], one span a
//! part; a span's past is the rows before it, as [`Backward`](gritlm_model::ops::Backward) expects.

use gritlm_model::ops::{Layout, Mask, PAGE, Span};
use std::ops::Range;

/// Parts of a sequence, one after the other; none is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run<'a> {
    pub(crate) parts: Vec<(&'a [u32], Mask)>,
}

impl<'a> Run<'a> {
    /// Returns the run of two neighbouring parts. They are one where both have the same mask, or
    /// one of them is empty.
    pub(crate) fn new(tokens: &'a [u32], first: usize, masks: [Mask; 2]) -> Self {
        let (before, after) = tokens.split_at(first);
        let parts = if masks[0] == masks[1] || before.is_empty() || after.is_empty() {
            let mask = if after.is_empty() { masks[0] } else { masks[1] };
            vec![(tokens, mask)]
        } else {
            vec![(before, masks[0]), (after, masks[1])]
        };
        Self { parts }
    }

    /// Returns the tokens of all parts.
    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(|(tokens, _)| tokens.len()).sum()
    }
}

/// Packs runs. Their pages follow each other from page 0 on.
pub(crate) fn layout(runs: &[Run<'_>], frequencies: &[f32]) -> Layout {
    let mut layout = Layout {
        tokens: Vec::new(),
        positions: Vec::new(),
        slots: Vec::new(),
        spans: Vec::new(),
        tables: Vec::new(),
        frequencies: frequencies.to_vec(),
    };
    for run in runs {
        let (table, mut past) = (layout.tables.len() as u32, 0u32);
        for (tokens, mask) in &run.parts {
            let (row, rows) = (layout.tokens.len() as u32, tokens.len() as u32);
            layout.tokens.extend_from_slice(tokens);
            layout.positions.extend(past..past + rows);
            layout.spans.push(Span { row, rows, past, table, mask: *mask });
            past += rows;
        }
        layout.slots.extend((0..past).map(|position| table * PAGE as u32 + position));
        layout.tables.extend(table..table + past.div_ceil(PAGE as u32));
    }
    layout
}

/// Returns the pages of a packed chunk.
pub(crate) fn pages(runs: &[Run<'_>]) -> usize {
    runs.iter().map(|run| run.len().div_ceil(PAGE)).sum()
}

/// Cuts a list of runs into chunks of at most `tokens` tokens, in their order. A longer run has a
/// chunk of its own. No chunk has more runs than one for each 32 of `tokens`, since each has a page
/// of its own.
pub(crate) fn chunks(runs: &[Run<'_>], tokens: usize) -> Vec<Range<usize>> {
    let (mut chunks, mut start, mut held) = (Vec::new(), 0, 0);
    for (i, run) in runs.iter().enumerate() {
        let full = held + run.len() > tokens || i - start >= (tokens / 32).max(1);
        if i > start && full {
            chunks.push(start..i);
            (start, held) = (i, 0);
        }
        held += run.len();
    }
    if start < runs.len() {
        chunks.push(start..runs.len());
    }
    chunks
}
