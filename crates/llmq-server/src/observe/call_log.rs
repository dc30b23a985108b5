use std::fmt::Write as _;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use llmq_core::{Clock, Priority, WallTime};
use llmq_engine::SystemClock;
use serde::Serialize;
use uuid::Uuid;

use super::record::{CallRecord, ErrorType};
use crate::shown;

/// Lines that wait to be written take this much room at most; what comes then is left out and
/// counted. A slow disk must not slow calls down, nor fill the memory.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// Lines are written together that come within this time.
const GATHER: Duration = Duration::from_millis(10);
/// A line is about this long.
const LINE_BYTES: usize = 384;

/// Says one line for each call that is over: never its prompt or its answer.
///
/// A line costs its caller the formatting and a short lock; a thread of the log's own writes.
/// Dropped, the log writes what it was told and ends.
#[derive(Debug, Default)]
pub struct CallLog {
    lines: Option<Lines>,
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CallLogForm {
    /// For people: `key=value` pairs.
    #[default]
    Text,
    /// A JSON object.
    Json,
}

#[derive(Debug)]
struct Lines {
    form: CallLogForm,
    clock: SystemClock,
    backlog: Arc<Backlog>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Backlog {
    waiting: Mutex<Waiting>,
    /// There is something to write, or it is over.
    news: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    over: bool,
}

impl CallLog {
    /// No log: nothing is formatted.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    /// A log that `target` holds: a file opened for appending, or standard error.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn to(
        target: impl Write + Send + 'static,
        form: CallLogForm,
        clock: SystemClock,
    ) -> std::io::Result<Self> {
        let backlog = Arc::new(Backlog::default());
        let from = Arc::clone(&backlog);
        let writer = std::thread::Builder::new()
            .name("llmq-call-log".to_owned())
            .spawn(move || from.write_all(target))?;
        let lines = Lines {
            form,
            clock,
            backlog,
            writer: Some(writer),
        };
        Ok(Self { lines: Some(lines) })
    }

    /// Says what became of a call; false where its line is left out, since lines cannot be
    /// written as fast as calls end.
    #[must_use]
    pub fn call(&self, call: &CallRecord<'_>) -> bool {
        self.lines.as_ref().is_none_or(|lines| {
            let at = lines.clock.now().wall;
            lines.backlog.push(line(call, at, lines.form).as_bytes())
        })
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.backlog.lock().over = true;
        self.backlog.news.notify_one();
        if let Some(writer) = self.writer.take() {
            // A panic there has been told, and lost lines at worst.
            let _ = writer.join();
        }
    }
}

impl Backlog {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room for it.
    fn push(&self, line: &[u8]) -> bool {
        let mut waiting = self.lock();
        if waiting.bytes.len() + line.len() > WAITING_BYTES_MAX {
            return false;
        }
        let first = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        // The writer looks again by itself while there is something.
        if first {
            self.news.notify_one();
        }
        true
    }

    /// Writes until the log is dropped and all is written.
    fn write_all(&self, mut target: impl Write) {
        let mut batch = Vec::new();
        let mut failing = false;
        while self.next(&mut batch) {
            let written = target.write_all(&batch).and_then(|()| target.flush());
            // A full disk is said once, not for each batch.
            if let Err(error) = &written
                && !failing
            {
                tracing::error!(%error, "the call log cannot be written");
            }
            failing = written.is_err();
            batch.clear();
        }
    }

    /// Waits for lines and takes them all; false: it is over.
    fn next(&self, batch: &mut Vec<u8>) -> bool {
        let nothing = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.over;
        let waiting = self.news.wait_while(self.lock(), nothing);
        let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        let gathered = self
            .news
            .wait_timeout_while(waiting, GATHER, |waiting| !waiting.over);
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut waiting.bytes, batch);
        !batch.is_empty() || !waiting.over
    }
}

fn line(call: &CallRecord<'_>, at: WallTime, form: CallLogForm) -> String {
    match form {
        CallLogForm::Text => text_line(call, at),
        CallLogForm::Json => json_line(call, at),
    }
}

fn text_line(call: &CallRecord<'_>, at: WallTime) -> String {
    let mut line = String::with_capacity(LINE_BYTES);
    // Writing to a string cannot fail.
    let _ = write!(
        line,
        "{} {} {} upstream={} status={} attempts={} queued_ms={} took_ms={} stream={} \
         priority={} tenant={}",
        shown::instant(at),
        call.id,
        Word(call.model),
        Word(call.upstream.unwrap_or("-")),
        call.status,
        call.attempts,
        call.queued.as_millis(),
        call.took.as_millis(),
        call.stream,
        call.priority,
        Word(call.tenant),
    );
    if let Some(first) = call.first_token {
        let _ = write!(line, " first_token_ms={}", first.as_millis());
    }
    if let Some(usage) = call.usage {
        let (input, output) = (usage.input_tokens, usage.output_tokens);
        let _ = write!(line, " input_tokens={input} output_tokens={output}");
    }
    let error = ErrorType::of(call).as_str();
    if !error.is_empty() {
        let _ = write!(line, " error={error}");
    }
    line.push('\n');
    line
}

fn json_line(call: &CallRecord<'_>, at: WallTime) -> String {
    let error = ErrorType::of(call).as_str();
    let line = JsonLine {
        time: shown::instant(at),
        id: call.id,
        tenant: call.tenant,
        model: call.model,
        upstream: call.upstream,
        operation: call.operation.path(),
        priority: call.priority,
        stream: call.stream,
        status: call.status,
        attempts: call.attempts,
        queued_ms: millis(call.queued),
        took_ms: millis(call.took),
        first_token_ms: call.first_token.map(millis),
        input_tokens: call.usage.map(|usage| usage.input_tokens),
        output_tokens: call.usage.map(|usage| usage.output_tokens),
        error: Some(error).filter(|error| !error.is_empty()),
    };
    // Strings and numbers have a JSON form.
    let mut line = serde_json::to_string(&line).unwrap_or_default();
    line.push('\n');
    line
}

/// What a line in JSON says; the names are a promise to those who read them.
#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    id: Uuid,
    tenant: &'a str,
    model: &'a str,
    upstream: Option<&'a str>,
    operation: &'static str,
    priority: Priority,
    stream: bool,
    status: u16,
    attempts: u32,
    queued_ms: u64,
    took_ms: u64,
    first_token_ms: Option<u64>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    error: Option<&'static str>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A name as one word: callers choose model names, and none may look like another line.
struct Word<'a>(&'a str);

impl std::fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"';
        if !self.0.is_empty() && self.0.bytes().all(plain) {
            f.write_str(self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use llmq_core::{FailureClass, Usage};
    use serde_json::Value;

    use super::*;
    use crate::observe::record::tests::record;

    /// Hands on what is written.
    struct Told(mpsc::Sender<Vec<u8>>);

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(calls: &[CallRecord<'_>], form: CallLogForm) -> String {
        let (sender, written) = mpsc::channel();
        let log = CallLog::to(Told(sender), form, SystemClock::new()).unwrap();
        for call in calls {
            assert!(log.call(call));
        }
        drop(log);
        String::from_utf8(written.iter().flatten().collect()).unwrap()
    }

    #[test]
    fn the_end_of_the_log_loses_no_line() {
        let calls = [record(); 1_000];
        assert_eq!(logged(&calls, CallLogForm::Text).lines().count(), 1_000);
    }

    #[test]
    fn a_line_is_written_without_another_one_coming() {
        let (sender, written) = mpsc::channel();
        let log = CallLog::to(Told(sender), CallLogForm::Text, SystemClock::new()).unwrap();
        assert!(log.call(&record()));
        let line = String::from_utf8(written.recv().unwrap()).unwrap();
        assert!(
            line.ends_with(
                " 00000000-0000-0000-0000-000000000007 gpt upstream=openai status=200 \
                 attempts=1 queued_ms=0 took_ms=150 stream=false priority=high tenant=default\n"
            ),
            "{line}"
        );
        drop(log);
    }

    #[test]
    fn json_is_one_object_a_line() {
        let call = CallRecord {
            outcome: Some(FailureClass::Overload),
            status: 503,
            usage: Some(Usage {
                input_tokens: 3,
                ..Usage::default()
            }),
            ..record()
        };
        let text = logged(&[call, record()], CallLogForm::Json);
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["error"], "overload");
        assert_eq!(lines[0]["input_tokens"], 3);
        assert_eq!(lines[0]["status"], 503);
        assert_eq!(lines[1]["error"], Value::Null);
        assert_eq!(lines[1]["priority"], 70);
    }

    /// A model's name is whatever a caller wrote.
    #[test]
    fn a_name_cannot_forge_a_line() {
        let call = CallRecord {
            model: "x\n2026-01-01T00:00:00Z forged",
            tenant: "a b",
            ..record()
        };
        for form in [CallLogForm::Text, CallLogForm::Json] {
            assert_eq!(logged(&[call], form).lines().count(), 1);
        }
        assert!(logged(&[call], CallLogForm::Text).contains("tenant=\"a b\"\n"));
    }

    #[test]
    fn what_cannot_be_written_in_time_is_left_out_and_told() {
        let backlog = Backlog::default();
        let line = vec![b'x'; WAITING_BYTES_MAX / 2];
        let taken: Vec<bool> = (0..3).map(|_| backlog.push(&line)).collect();
        assert_eq!(taken, [true, true, false]);
        assert_eq!(backlog.lock().bytes.len(), WAITING_BYTES_MAX);
    }
}
