//! What a run resumes from: `OUTPUT/state-STEP/` has weights and both moments in f32, each as a
//! checkpoint or an adapter, and `OUTPUT/training.json` the options that all steps have in common.

use crate::adapters::{Adapt, Adapters};
use crate::parameters::Parameters;
use crate::save::{Part, partial, replace, write_weights};
use crate::{Error, Result};
use gritlm::Checkpoint;
use gritlm_model::adapter::Adapter;
use gritlm_model::format::Dtype;
use gritlm_model::ops::Backward;
use gritlm_model::weights::Weights;
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Parts of a saved state, by the names of their folders.
const PARTS: [(&str, Part); 3] =
    [("weights", Part::Weights), ("first", Part::Moment(0)), ("second", Part::Moment(1))];

/// File that says after how many steps a run has ended.
const FINISHED: &str = "finished";

/// Folder of a run's output.
pub(crate) struct Output {
    path: PathBuf,
}

impl Output {
    /// Creates the folder, or takes the one that a run with the same options began, and returns
    /// the step that it was saved at: 0 for a new one.
    ///
    /// # Errors
    /// When the folder cannot be created, belongs to a run with other options, or holds files of
    /// anything else.
    pub(crate) fn open(path: &Path, options: &Map<String, Value>) -> Result<(Self, usize)> {
        fs::create_dir_all(path).map_err(Error::io(path))?;
        let output = Self { path: path.into() };
        let about = output.about();
        match fs::read(&about) {
            Ok(text) => {
                let problem = || Error::Output {
                    path: about.clone(),
                    problem: "expected the options of a run as JSON, found something else".into(),
                };
                let before: Map<String, Value> =
                    serde_json::from_slice(&text).map_err(|_| problem())?;
                let keys = options.keys().chain(before.keys());
                for key in keys {
                    if before.get(key) != options.get(key) {
                        let show = |of: &Map<String, Value>| {
                            of.get(key).map_or_else(|| "nothing".into(), Value::to_string)
                        };
                        return Err(Error::Output {
                            path: about,
                            problem: format!(
                                "the run that began here has {key} {}, and this one {}; use its \
                                 options, or another output",
                                show(&before),
                                show(options)
                            ),
                        });
                    }
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let mut entries = fs::read_dir(path).map_err(Error::io(path))?;
                if let Some(entry) = entries.find_map(std::result::Result::ok) {
                    // A run that was killed before its first file was whole may begin again.
                    if entry.path() != partial(&about) {
                        let problem = format!(
                            "expected an empty folder or one that a run began, found {}",
                            entry.file_name().display()
                        );
                        return Err(Error::Output { path: path.into(), problem });
                    }
                }
                let text = serde_json::to_string_pretty(options).unwrap_or_default();
                replace(&about, (text + "\n").as_bytes())?;
            }
            Err(e) => return Err(Error::io(about)(e)),
        }
        let step = output.steps()?.into_iter().max().unwrap_or(0);
        Ok((output, step))
    }

    /// Returns the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn about(&self) -> PathBuf {
        self.path.join("training.json")
    }

    fn state(&self, step: usize) -> PathBuf {
        self.path.join(format!("state-{step}"))
    }

    /// Returns the steps of all whole states.
    fn steps(&self) -> Result<Vec<usize>> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let name = entry.map_err(Error::io(&self.path))?.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix("state-"));
            steps.extend(step.and_then(|step| step.parse::<usize>().ok()));
        }
        Ok(steps)
    }

    /// Saves the state after a step, and removes older ones once it is whole.
    ///
    /// # Errors
    /// When it cannot be written, for example because the disk is full; older states then stay.
    pub(crate) fn save<O: Backward>(
        &self,
        ops: &O,
        parameters: &Parameters<O>,
        step: usize,
    ) -> Result<()> {
        let path = self.state(step);
        let partial = partial(&path);
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(Error::io(&partial))?;
        }
        let written = self.write(ops, parameters, &partial, &path);
        if written.is_err() {
            // The room is worth more than what could be written; the error is the first one.
            let _ = fs::remove_dir_all(&partial);
        }
        written?;
        self.keep_only(Some(step))
    }

    fn write<O: Backward>(
        &self,
        ops: &O,
        parameters: &Parameters<O>,
        partial: &Path,
        path: &Path,
    ) -> Result<()> {
        for (name, part) in PARTS {
            let folder = partial.join(name);
            fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
            write_weights(ops, parameters, part, Dtype::F32, &folder)?;
        }
        fs::rename(partial, path).map_err(Error::io(path))?;
        // The names are on the disk once their folder is.
        let folder = File::open(&self.path).map_err(Error::io(&self.path))?;
        folder.sync_all().map_err(Error::io(&self.path))
    }

    /// Loads the state of a step: weights, or an adapter beside those of the checkpoint.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the device is out of memory.
    pub(crate) fn load<O: Backward>(
        &self,
        ops: &O,
        checkpoint: &Checkpoint,
        adapt: Option<&Adapt<'_>>,
        step: usize,
    ) -> Result<Parameters<O>> {
        let config = &checkpoint.config;
        let [weights, first, second] = PARTS.map(|(name, _)| self.state(step).join(name));
        if let Some(adapt) = adapt {
            let open = |path: &Path| Adapter::open(path, config);
            let [weights, first, second] = [open(&weights)?, open(&first)?, open(&second)?];
            let state = [&weights, &first, &second];
            let adapters = Adapters::resume(ops, config, adapt, state, step)?;
            return Parameters::frozen(ops, config, &checkpoint.weights, adapters);
        }
        let open = |path: &Path| Weights::open(path, config);
        let [weights, first, second] = [open(&weights)?, open(&first)?, open(&second)?];
        Parameters::load(ops, config, &weights, Some([&first, &second]))
    }

    /// Returns whether a run of so many steps has ended here.
    pub(crate) fn is_finished(&self, steps: usize) -> bool {
        let text = fs::read_to_string(self.path.join(FINISHED)).ok();
        text.is_some_and(|text| text.trim() == steps.to_string())
    }

    /// Says that all steps are done, and removes what the run would resume from.
    pub(crate) fn finish(&self, steps: usize) -> Result<()> {
        replace(&self.path.join(FINISHED), format!("{steps}\n").as_bytes())?;
        self.keep_only(None)
    }

    /// Removes all states but one, and what unfinished ones have left.
    pub(crate) fn keep_only(&self, step: Option<usize>) -> Result<()> {
        for old in self.steps()?.into_iter().filter(|old| Some(*old) != step) {
            // Renamed first, so that no part of it looks like a state if the program is killed.
            let (path, gone) = (self.state(old), partial(&self.state(old)));
            fs::rename(&path, &gone).map_err(Error::io(&path))?;
        }
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let entry = entry.map_err(Error::io(&self.path))?;
            let name = entry.file_name();
            let unfinished = |name: &str| name.starts_with("state-") && name.ends_with(".partial");
            if name.to_str().is_some_and(unfinished) {
                fs::remove_dir_all(entry.path()).map_err(Error::io(entry.path()))?;
            }
        }
        Ok(())
    }
}
