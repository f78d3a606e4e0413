//! `gritlm train`.

use super::args::{Global, Train};
use super::output::{Out, printable};
use super::{check_interrupt, note};
use crate::error::{Error, Result};
use gritlm::Checkpoint;
use gritlm::backend::{VisitTraining, open_training};
use gritlm_model::ops::Backward;
use gritlm_train::{Ended, Evaluation, Event, Next, Options, StepMetrics};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

pub(super) fn run(args: &Train, global: &Global, out: &mut Out) -> Result<()> {
    let options = args.options()?;
    let (model, checkpoint) = match &args.config {
        None => (global.model.clone(), Checkpoint::open(&global.model, true)?),
        Some(config) => {
            let seed = options.batching.seed;
            (config.display().to_string(), gritlm_train::scratch(config, &args.data, seed)?)
        }
    };
    let checkpoint = checkpoint.with_adapter(global.adapter.as_deref())?;
    super::handle_interrupt();
    let run = Run { model: &model, checkpoint: &checkpoint, args, options: &options };
    let ended = open_training(&global.options(), run)?;
    let output = args.output.display().to_string();
    match ended {
        Ended::Stopped(step) => {
            note(format_args!("stopped after step {step}; the same command goes on from there"));
            Err(Error::Interrupted)
        }
        Ended::Done { evaluation } if out.json() => {
            out.object(&json!({ "output": output, "evaluation": evaluation }))
        }
        Ended::Done { evaluation } => {
            let found = evaluation.map_or(String::new(), |e| format!("; {}", describe(&e)));
            out.line(format!("{output}: trained{found}"))
        }
    }
}

/// A run on the device that is opened for it.
struct Run<'a> {
    model: &'a str,
    checkpoint: &'a Checkpoint,
    args: &'a Train,
    options: &'a Options,
}

impl VisitTraining for Run<'_> {
    type Out = Ended;
    type Error = Error;

    fn visit<O: Backward>(self, ops: O) -> Result<Ended> {
        note(format_args!("{} on {}", self.model, ops.device()));
        let mut shown = Shown { bar: None, steps: 0 };
        let paths = [self.args.data.as_path(), self.args.output.as_path()];
        let Self { model, checkpoint, options, .. } = self;
        Ok(gritlm_train::train(ops, model, checkpoint, paths, options, &mut |event| {
            shown.event(&event);
            if check_interrupt().is_ok() { Next::Go } else { Next::Stop }
        })?)
    }
}

/// What is shown of a run on stderr: a bar on a terminal, lines elsewhere.
struct Shown {
    bar: Option<ProgressBar>,
    steps: usize,
}

impl Shown {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Note(text) => note(format_args!("note: {text}")),
            Event::Plan(plan) => note(plan),
            Event::Begin { step, steps } => {
                self.steps = *steps;
                if *step > 0 {
                    note(format_args!("going on after step {step} of {steps}"));
                }
                let template = "{msg} [{wide_bar}] {pos}/{len} ({eta} left)";
                // The template is fixed and valid; a plain bar would do, too.
                let style = ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = ProgressBar::new(*steps as u64).with_style(style);
                bar.set_position(*step as u64);
                bar.reset_eta();
                self.bar = Some(bar);
            }
            Event::Step(step) => self.step(step),
            _ => {}
        }
    }

    fn step(&self, step: &StepMetrics) {
        let line = losses(step);
        if let Some(bar) = &self.bar {
            bar.set_message(line.clone());
            bar.set_position(step.step as u64);
            // Some twenty lines tell the course of a run where there is no terminal.
            let every = self.steps.div_ceil(20);
            if bar.is_hidden() && (step.step.is_multiple_of(every) || step.step == self.steps) {
                note(format_args!("step {}/{}: {line}", step.step, self.steps));
            }
            if let Some(found) = &step.evaluation {
                let line = format!("step {}: {}", step.step, describe(found));
                bar.suspend(|| note(line));
            }
        }
    }
}

/// Returns both losses and the speed of a step.
fn losses(step: &StepMetrics) -> String {
    let one = |name: &str, loss: Option<f64>| loss.map(|loss| format!("{name} {loss:.3}"));
    let speed = Some(format!("{:.0} tokens/s", step.tokens_per_second));
    let all = [one("loss_rep", step.loss_rep), one("loss_gen", step.loss_gen), speed];
    let text = all.into_iter().flatten().collect::<Vec<_>>().join(", ");
    printable(&text).into_owned()
}

/// Returns what an evaluation has found.
fn describe(of: &Evaluation) -> String {
    let share = |name: &str, value: Option<f64>| {
        value.map(|value| format!("{name} {:.1} %", 100.0 * value))
    };
    let all = [
        share("recall@1", of.recall_at_1),
        share("recall@10", of.recall_at_10),
        share("nDCG@10", of.ndcg_at_10),
        of.loss.map(|loss| format!("loss {loss:.4}")),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
