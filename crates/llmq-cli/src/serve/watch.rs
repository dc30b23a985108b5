//! Settings that change while the gateway runs.

use std::collections::BTreeMap;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use llmq_engine::Tasks;
use llmq_server::Gateway;

use super::source::{Found, Source};
use crate::exit::with_causes;
use crate::signals::HangUp;

/// How often the files are looked at. Looking is cheap, and works on every file system.
const LOOK: Duration = Duration::from_secs(1);

/// Takes other settings over when their file changes, or when it is told to (SIGHUP).
pub(super) struct Watch {
    pub(super) source: Source,
    /// Those of the settings that were last read, whether they are in force or not.
    pub(super) files: Vec<PathBuf>,
    /// As they were before they were last read.
    pub(super) seen: Stamps,
    pub(super) gateway: Arc<Gateway>,
    pub(super) hang_up: HangUp,
    /// Whether it says on the terminal what it does.
    pub(super) speaks: bool,
}

impl Watch {
    /// Works until `tasks` are cancelled.
    pub(super) async fn run(mut self, tasks: Tasks) {
        // What has changed is taken over when it stays the same for one look: it may still be
        // being written.
        let mut changing = None;
        loop {
            let told = tokio::select! {
                () = self.hang_up.next() => true,
                () = tokio::time::sleep(LOOK) => false,
                () = tasks.cancelled() => return,
            };
            let now = stamps(&self.files);
            let settled = now != self.seen && changing.as_ref() == Some(&now);
            if !told && !settled {
                changing = (now != self.seen).then_some(now);
                continue;
            }
            self.seen = now;
            self.reload();
            changing = None;
        }
    }

    fn reload(&mut self) {
        let reloaded = self.source.read().map_err(|failure| failure.message);
        let reloaded = reloaded.and_then(
            |Found {
                 settings,
                 any_model,
                 ..
             }| {
                // What they name may be missing yet, and is taken over when it is there.
                self.files = self.source.files(&settings);
                self.seen = as_read(mem::take(&mut self.seen), stamps(&self.files));
                let reloaded = self.gateway.reload(&settings, any_model);
                reloaded.map_err(|error| with_causes(&error))
            },
        );
        match reloaded {
            Ok(now) => {
                tracing::info!(
                    models = now.models,
                    upstreams = now.upstreams,
                    "settings_changed"
                );
                if self.speaks {
                    say!("the settings have changed and are in force");
                }
            }
            // Said however quiet: somebody believes that it is otherwise.
            Err(why) => {
                tracing::error!(%why, "settings_refused");
                say!("the changed settings are refused, and those of before stay: {why}");
            }
        }
    }
}

/// Each file, as far as it is there.
pub(super) type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// Files as they are now.
pub(super) fn stamps<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Stamps {
    let stamp = |file: &PathBuf| (file.clone(), Stamp::of(file));
    files.into_iter().map(stamp).collect()
}

/// What was read between `before` and `after`: a file that was changed meanwhile has perhaps been
/// read as it was, and is to be read again. Those that nobody looked at before are taken as read.
pub(super) fn as_read(before: Stamps, after: Stamps) -> Stamps {
    let stamp = |(file, after)| {
        let stamp = before.get(&file).cloned().unwrap_or(after);
        (file, stamp)
    };
    after.into_iter().map(stamp).collect()
}

/// What changes when a file does; a file that is put in another's place has another number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    #[cfg(unix)]
    number: u64,
}

impl Stamp {
    fn of(path: &PathBuf) -> Option<Self> {
        let data = std::fs::metadata(path).ok()?;
        Some(Self {
            modified: data.modified().ok(),
            length: data.len(),
            #[cfg(unix)]
            number: std::os::unix::fs::MetadataExt::ino(&data),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(files: &[(&str, u64)]) -> Stamps {
        let stamp = |(file, length): &(&str, u64)| {
            let stamp = Stamp {
                modified: None,
                length: *length,
                #[cfg(unix)]
                number: 1,
            };
            (PathBuf::from(file), Some(stamp))
        };
        files.iter().map(stamp).collect()
    }

    /// A second change while the first was taken over was taken for seen, and never came into force.
    #[test]
    fn a_file_that_changes_while_it_is_read_has_not_been_seen_yet() {
        let before = some(&[("llmq.toml", 1), ("old.pem", 1)]);
        let after = some(&[("llmq.toml", 2), ("new.pem", 3)]);
        let seen = as_read(before, after.clone());
        assert_ne!(seen, after);
        assert_eq!(seen, some(&[("llmq.toml", 1), ("new.pem", 3)]));
    }
}
