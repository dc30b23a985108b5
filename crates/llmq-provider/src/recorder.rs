//! Calls and their answers as files that a person reads, while a program is being developed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use llmq_core::{Clock, Timestamp, WallTime};
use serde_json::{Value, json};

use crate::blot::without_key;
use crate::{CallError, Dialect, Operation, Secret};

/// So long a recording is kept …
const KEPT: Duration = Duration::from_secs(7 * 86_400);
/// … and so often old ones are looked for.
const LOOK: Duration = Duration::from_secs(3_600);
/// More of an answer is not recorded: a recording is for reading.
const ANSWER_MAX: usize = 16 << 20;
/// So many wait to be written. What comes then is left out and said: calls do not wait for it.
const WAITING_MAX: usize = 256;
/// What the name of a recording ends with; nothing else is ever removed.
const ENDING: &str = ".llmq.json";

/// Writes calls and their answers into a directory, each as a readable JSON file.
///
/// For development only: prompts and answers stand in these files in the clear. Request headers
/// do not, and where an answer repeats the account's key it is blotted out. A file is named by
/// the instant at which its call began; those older than 7 days are removed, when it is opened
/// and every hour.
///
/// A call costs its caller a copy of the answer; a thread of the recorder's own writes. Dropped,
/// it writes what it was given and ends.
pub struct Recorder {
    directory: PathBuf,
    clock: Arc<dyn Clock>,
    /// Taken when it ends.
    to_writer: Option<SyncSender<Entry>>,
    writer: Option<JoinHandle<()>>,
}

/// What one file holds.
#[derive(Debug)]
struct Entry {
    begun: WallTime,
    operation: Operation,
    content: Value,
    /// To be blotted out.
    key: Option<Secret>,
}

impl Recorder {
    /// Records into `directory`, which is made if it is not there, and has Git pass it over.
    ///
    /// # Errors
    ///
    /// It cannot be made, read or written, or no thread can be started.
    pub fn open(directory: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let directory = directory.into();
        std::fs::create_dir_all(&directory)?;
        let ignore = directory.join(".gitignore");
        if !ignore.exists() {
            std::fs::write(ignore, "*\n")?;
        }
        remove_old(&directory, clock.now().wall)?;
        let (to_writer, entries) = sync_channel(WAITING_MAX);
        let (place, time) = (directory.clone(), Arc::clone(&clock));
        let looked_at = clock.now().mono;
        let writer = std::thread::Builder::new()
            .name("llmq-recorder".to_owned())
            .spawn(move || write_all(&place, &*time, looked_at, &entries))?;
        Ok(Self {
            directory,
            clock,
            to_writer: Some(to_writer),
            writer: Some(writer),
        })
    }

    /// Where it records.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn take(&self, entry: Entry) {
        let Some(to_writer) = &self.to_writer else {
            return;
        };
        match to_writer.try_send(entry) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                tracing::warn!("a call was not recorded: the disk is slower than the calls are");
            }
            Err(TrySendError::Disconnected(_)) => {
                tracing::warn!("a call was not recorded: the recorder has ended");
            }
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        drop(self.to_writer.take());
        if let Some(writer) = self.writer.take() {
            // A panic there has been told, and lost recordings at worst.
            let _ = writer.join();
        }
    }
}

/// To whom a call goes.
#[derive(Debug, Clone)]
pub(crate) struct Recipient<'a> {
    pub(crate) dialect: Dialect,
    pub(crate) authority: &'a str,
    pub(crate) key: Option<&'a Secret>,
}

/// One call while it is on its way; recorded when it is dropped, however it ended.
pub(crate) struct Recording {
    recorder: Arc<Recorder>,
    begun: WallTime,
    dialect: Dialect,
    authority: String,
    key: Option<Secret>,
    operation: Operation,
    request: Bytes,
    status: Option<StatusCode>,
    answer: Vec<u8>,
    is_cut: bool,
    /// How it ended; none: whoever read it left.
    end: Option<Result<(), String>>,
}

impl Recording {
    pub(crate) fn begin(
        recorder: &Arc<Recorder>,
        recipient: Recipient<'_>,
        operation: Operation,
        request: Bytes,
    ) -> Self {
        Self {
            begun: recorder.clock.now().wall,
            recorder: Arc::clone(recorder),
            dialect: recipient.dialect,
            authority: recipient.authority.to_owned(),
            key: recipient.key.cloned(),
            operation,
            request,
            status: None,
            answer: Vec::new(),
            is_cut: false,
            end: None,
        }
    }

    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    pub(crate) fn piece(&mut self, piece: &[u8]) {
        self.is_cut |= self.answer.len() + piece.len() > ANSWER_MAX;
        if !self.is_cut {
            self.answer.extend_from_slice(piece);
        }
    }

    pub(crate) fn ended(&mut self) {
        self.end = Some(Ok(()));
    }

    pub(crate) fn failed(&mut self, error: &CallError) {
        self.end = Some(Err(error.to_string()));
    }

    fn content(&self) -> Value {
        let now = self.recorder.clock.now().wall;
        let request = readable(&self.request);
        let error = match (&self.end, self.status) {
            (Some(Ok(())), _) if self.is_cut => Some("the answer was too long to record"),
            (Some(Ok(())), _) => None,
            (Some(Err(error)), _) => Some(error.as_str()),
            (None, Some(_)) => Some("the rest of the answer was not read"),
            (None, None) => Some("the call was given up before an answer came"),
        };
        let provider = match self.dialect {
            Dialect::OpenAi => "openai",
            Dialect::Anthropic => "anthropic",
        };
        json!({
            "timestamp": instant(self.begun),
            "provider": provider,
            "server": self.authority,
            "operation": self.operation.path(),
            "model": request["model"],
            "request": request,
            "status": self.status.map(|status| status.as_u16()),
            "response": self.status.map(|_| readable(&self.answer)),
            "error": error,
            "took_ms": u64::try_from(now.since(self.begun).as_millis()).unwrap_or(u64::MAX),
            "versions": { "llmq": env!("CARGO_PKG_VERSION") },
        })
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").finish_non_exhaustive()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let entry = Entry {
            begun: self.begun,
            operation: self.operation,
            content: self.content(),
            key: self.key.take(),
        };
        self.recorder.take(entry);
    }
}

/// The writer's thread: until the recorder is dropped and all is written.
fn write_all(
    directory: &Path,
    clock: &dyn Clock,
    mut looked_at: Timestamp,
    entries: &Receiver<Entry>,
) {
    let mut number = 0_u64;
    loop {
        let entry = match entries.recv_timeout(LOOK) {
            Ok(entry) => Some(entry),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let now = clock.now();
        if entry.is_none() || now.mono - looked_at >= LOOK {
            looked_at = now.mono;
            if let Err(error) = remove_old(directory, now.wall) {
                tracing::warn!(%error, "old recordings could not be removed");
            }
        }
        if let Some(entry) = entry {
            if let Err(error) = write(directory, number, &entry) {
                tracing::warn!(%error, "a call could not be recorded");
            }
            number += 1;
        }
    }
}

fn write(directory: &Path, number: u64, entry: &Entry) -> std::io::Result<()> {
    let operation = entry.operation.path().trim_start_matches('/');
    let operation = operation.replace('/', "_");
    let begun = sortable(entry.begun);
    let name = format!("{begun}_{number:06}_{operation}{ENDING}");
    let mut text = serde_json::to_string_pretty(&entry.content)?;
    if let Some(key) = &entry.key {
        text = without_key(&text, key.expose());
    }
    text.push('\n');
    std::fs::write(directory.join(name), text)
}

/// JSON as JSON; anything else, such as a stream, as its lines.
fn readable(body: &[u8]) -> Value {
    if let Ok(json) = serde_json::from_slice(body) {
        return json;
    }
    let text = String::from_utf8_lossy(body);
    text.lines().map(Value::from).collect()
}

fn instant(at: WallTime) -> String {
    let at = jiff::Timestamp::from_microsecond(at.as_micros()).unwrap_or_default();
    format!("{at:.6}")
}

/// An instant in a file's name. No colons: not every file system takes them.
fn sortable(at: WallTime) -> String {
    instant(at).replace(':', "-")
}

fn remove_old(directory: &Path, now: WallTime) -> std::io::Result<()> {
    let oldest = sortable(now.before(KEPT));
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_old = |name: &str| name.ends_with(ENDING) && *name < *oldest;
        if name.to_str().is_some_and(is_old) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
