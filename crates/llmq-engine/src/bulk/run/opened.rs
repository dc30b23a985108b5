use llmq_core::Now;

use super::error::RunError;
use super::options::RunOptions;
use crate::bulk::{
    Holder, InputError, InputPrint, Output, OutputLock, PromptSettings, Resumed, RowReader, Side,
    compare, forget_failed, refuse_bad_rows, set_aside,
};

/// Kept free on the disk for the results of calls in flight.
const RESERVE_BYTES: u64 = 4 << 20;

/// The files of a run, held and read.
pub struct Opened {
    /// To be dropped last, so that nobody else writes before everything here is closed.
    pub locks: Vec<OutputLock>,
    /// Where results go.
    pub output: Output,
    /// What has a result.
    pub resumed: Resumed,
    /// What is known beside the results, as it is to be written from here on.
    pub side: Side,
    /// The same as it was found.
    pub earlier: Option<Side>,
    /// The rows.
    pub reader: RowReader,
}

impl Opened {
    /// Opens the input and the output, and repairs, sets aside or takes out of the output what the
    /// options say. Blocks.
    ///
    /// # Errors
    ///
    /// [`RunError`]: a file cannot be used, somebody else holds the output, it belongs to another
    /// run, or a server finishes rows of it. Nothing was changed then, unless a file failed.
    pub fn open(options: &RunOptions, now: Now) -> Result<Self, RunError> {
        Self::open_where(options, now, |side| match side.handed_in.is_empty() {
            true => Ok(()),
            false => Err(RunError::AtServer {
                output: options.paths.output.display().to_string(),
            }),
        })
    }

    /// The same for who goes on with what is at a server.
    ///
    /// # Errors
    ///
    /// [`RunError`], as [`open`](Self::open).
    pub fn open_to_hand_in(options: &RunOptions, now: Now) -> Result<Self, RunError> {
        Self::open_where(options, now, |_| Ok(()))
    }

    fn open_where(
        options: &RunOptions,
        now: Now,
        may_go_on: impl Fn(&Side) -> Result<(), RunError>,
    ) -> Result<Self, RunError> {
        let paths = &options.paths;
        if options.strict && options.source.is_stream() {
            // What a second reader takes, the first one never sees.
            return Err(RunError::Input(InputError::FlagNotUsable {
                input: options.source.clone(),
                flag: "--strict",
                reason: "all rows are looked through before the first is sent, so INPUT must be a \
                         file",
            }));
        }
        // The input is looked at first: a mistyped name must not leave an empty output behind.
        let reader = RowReader::open(&options.source, options.kind, options.read.clone())?;
        options.calls.check(&options.source, &reader)?;
        if options.strict {
            refuse_bad_rows(&options.source, options.kind, options.read.clone())?;
        }
        paths.check()?;
        let holder = Holder::this_process(now.wall);
        let mut locks = vec![OutputLock::acquire(&paths.output, &holder)?];
        if let Some(errors) = &paths.errors {
            locks.push(OutputLock::acquire(errors, &holder)?);
        }
        let earlier = Side::load(&paths.output)?;
        let before = earlier.as_ref().and_then(|side| side.input);
        let print = InputPrint::of(&options.source, before.as_ref())?;
        let settings = settings(options);
        if options.restart {
            set_aside(&paths.output)?;
            if let Some(errors) = &paths.errors {
                set_aside(errors)?;
            }
        } else if let Some(earlier) = &earlier {
            let changes = compare(earlier, print.as_ref(), &settings);
            if !changes.is_empty() && !options.resume_anyway {
                return Err(RunError::Changed {
                    output: paths.output.display().to_string(),
                    changes: changes.to_string(),
                });
            }
            may_go_on(earlier)?;
        }
        if options.retry_failed {
            forget_failed(paths)?;
        }
        let (mut output, resumed) = Output::open(paths)?;
        output.set_reserve(&paths.output, RESERVE_BYTES)?;
        let mut side = match &earlier {
            Some(earlier) => earlier.clone().restarted(print, settings),
            None => Side::new(print, settings),
        };
        if options.restart {
            side.handed_in.clear();
        }
        Ok(Self {
            locks,
            output,
            resumed,
            side,
            earlier,
            reader,
        })
    }
}

/// What prompts and answers depend on, beside the input.
fn settings(options: &RunOptions) -> PromptSettings {
    let mut settings = PromptSettings::default();
    let calls = &options.calls;
    if let Some(template) = &options.read.template {
        settings.set("template", &template.to_string());
    }
    settings.set("operation", calls.operation.path());
    settings.set("model", calls.model.as_deref().unwrap_or(""));
    settings.set("system", calls.system.as_deref().unwrap_or(""));
    settings.set(
        "params",
        &serde_json::Value::from(calls.params.clone()).to_string(),
    );
    settings.set("id", options.read.id.as_deref().unwrap_or(""));
    settings.set(
        "format",
        &format!("{:?}", options.kind.format).to_lowercase(),
    );
    settings
}
