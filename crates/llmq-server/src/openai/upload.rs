//! A file that comes in, chunk by chunk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::Multipart;
use axum::extract::multipart::{Field, MultipartError};
use bytes::BytesMut;
use http::StatusCode;
use llmq_core::{Clock, WallTime};
use llmq_store::{FileId, Store, StoredFile};

use super::guard::Refused;
use crate::Gateway;
use crate::dialect::Refusal;

/// So much is handed to the store at once: it stands between other work.
const CHUNK: usize = 512 << 10;
/// A field beside the file holds a word.
const WORD_MAX: usize = 1_024;
const NAME_MAX: usize = 255;
/// So many files are read from the store at once.
const PAGE: usize = 500;
/// What OpenAI's API keeps files for (`purpose`, API reference, 2026).
const PURPOSES: [&str; 6] = [
    "batch",
    "assistants",
    "fine-tune",
    "vision",
    "user_data",
    "evals",
];
/// How long a batch's input is kept where nothing is said.
pub(super) const KEPT: Duration = Duration::from_secs(30 * 86_400);
/// For how long a file may be kept, in seconds.
const EXPIRES_S: std::ops::RangeInclusive<u64> = 3_600..=2_592_000;

/// The room that is left for files: all together may be as large as what waits may be
/// (`[store] max_bytes`). Else whoever may call could fill the disk, and shut the store.
struct Room<'a> {
    gateway: &'a Gateway,
    /// In files that are whole.
    kept: u64,
    /// In this one.
    mine: u64,
}

impl<'a> Room<'a> {
    async fn new(gateway: &'a Gateway, store: &dyn Store) -> Result<Self, Refused> {
        let (mut kept, mut after) = (0, None);
        loop {
            let page = store.files(None, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            kept += page.iter().map(|file| file.bytes).sum::<u64>();
        }
        let mut room = Self {
            gateway,
            kept,
            mine: 0,
        };
        room.take(0)?;
        Ok(room)
    }

    fn take(&mut self, bytes: u64) -> Result<(), Refused> {
        let max = self.gateway.live.load().store.capacity.bytes;
        self.mine += bytes;
        let coming = &self.gateway.file_bytes_coming;
        let coming = coming.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.kept.saturating_add(coming) < max {
            return Ok(());
        }
        let message =
            format!("the files here fill {max} bytes already (store.max_bytes): remove some");
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Err(Refusal::new(status, "queue_full", message).into())
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let coming = &self.gateway.file_bytes_coming;
        coming.fetch_sub(self.mine, Ordering::Relaxed);
    }
}

/// What was said of a file so far, in whatever order.
struct Draft {
    id: FileId,
    tenant: String,
    now: WallTime,
    filename: Option<String>,
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<u64>,
}

/// Takes a file in: its content goes to the store as it comes, and is seen by nobody before all of
/// it is there.
///
/// # Errors
///
/// What is wrong with it; nothing of it is kept then.
pub(super) async fn take(
    gateway: Arc<Gateway>,
    tenant: String,
    mut form: Multipart,
) -> Result<StoredFile, Refused> {
    let store = Arc::clone(gateway.desk.store());
    let mut draft = Draft {
        id: FileId::new(),
        tenant,
        now: gateway.clock.now().wall,
        filename: None,
        purpose: None,
        anchor: None,
        seconds: None,
    };
    let max = gateway.live.load().server.max_file_bytes;
    let mut room = Room::new(&gateway, store.as_ref()).await?;
    let taken = draft.read(store.as_ref(), &mut form, max, &mut room).await;
    if taken.is_err() && draft.filename.is_some() {
        // What cannot be removed now is removed when the store is next opened.
        let _ = store.delete_file(draft.id).await;
    }
    taken
}

impl Draft {
    async fn read(
        &mut self,
        store: &dyn Store,
        form: &mut Multipart,
        max: u64,
        room: &mut Room<'_>,
    ) -> Result<StoredFile, Refused> {
        while let Some(field) = form.next_field().await.map_err(|error| broken(&error))? {
            match field.name() {
                Some("file") => self.content(store, field, max, room).await?,
                Some("purpose") => self.purpose = Some(word(field, "purpose").await?),
                Some("expires_after[anchor]") => {
                    self.anchor = Some(word(field, "expires_after").await?);
                }
                Some("expires_after[seconds]") => {
                    let seconds = word(field, "expires_after").await?;
                    let seconds = seconds.trim().parse();
                    self.seconds = Some(seconds.map_err(|_| bad_expiry())?);
                }
                other => {
                    let shown: String = other.unwrap_or_default().chars().take(60).collect();
                    let message = format!(
                        "unknown field `{shown}`: there are `file`, `purpose` and `expires_after`"
                    );
                    return Err(Refusal::invalid(message).into());
                }
            }
        }
        let file = self.finished()?;
        if !store.describe_file(file.clone()).await? {
            return Err(lost());
        }
        store.publish_file(file.id).await?.ok_or_else(lost)
    }

    async fn content(
        &mut self,
        store: &dyn Store,
        mut field: Field<'_>,
        max: u64,
        room: &mut Room<'_>,
    ) -> Result<(), Refused> {
        if self.filename.is_some() {
            return Err(Refusal::invalid("one `file` at once").about("file").into());
        }
        let name = field.file_name().unwrap_or("file");
        let name: String = name.chars().take(NAME_MAX).collect();
        self.filename = Some(name);
        store.create_file(self.described("")).await?;
        let (mut gathered, mut bytes) = (BytesMut::with_capacity(CHUNK), 0_u64);
        loop {
            let piece = field.chunk().await.map_err(|error| broken(&error))?;
            let at_end = piece.is_none();
            if let Some(piece) = piece {
                bytes += piece.len() as u64;
                room.take(piece.len() as u64)?;
                if bytes > max {
                    let message = format!("the file is larger than {max} bytes (server.max_file)");
                    let too_large = StatusCode::PAYLOAD_TOO_LARGE;
                    return Err(Refusal::new(too_large, "too_large", message)
                        .about("file")
                        .into());
                }
                gathered.extend_from_slice(&piece);
            }
            while gathered.len() >= CHUNK || at_end && !gathered.is_empty() {
                let chunk = gathered.split_to(gathered.len().min(CHUNK)).freeze();
                store.append_file(self.id, chunk).await?.ok_or_else(lost)?;
            }
            if at_end {
                return Ok(());
            }
        }
    }

    /// The file, once all was said.
    fn finished(&self) -> Result<StoredFile, Refused> {
        if self.filename.is_none() {
            return Err(Refusal::invalid("no `file` was sent").about("file").into());
        }
        let Some(purpose) = &self.purpose else {
            let message = format!("`purpose` is missing: one of {}", PURPOSES.join(", "));
            return Err(Refusal::invalid(message).about("purpose").into());
        };
        if !PURPOSES.contains(&purpose.as_str()) {
            let message = format!("`purpose` must be one of {}", PURPOSES.join(", "));
            return Err(Refusal::invalid(message).about("purpose").into());
        }
        let kept = match (self.anchor.as_deref(), self.seconds) {
            (None, None) => (purpose == "batch").then_some(KEPT),
            (None | Some("created_at"), Some(seconds)) => Some(expiry(seconds)?),
            _ => return Err(bad_expiry()),
        };
        Ok(StoredFile {
            expires_at: kept.map(|kept| self.now + kept),
            ..self.described(purpose)
        })
    }

    fn described(&self, purpose: &str) -> StoredFile {
        StoredFile {
            id: self.id,
            tenant: self.tenant.clone(),
            filename: self.filename.clone().unwrap_or_default(),
            purpose: purpose.to_owned(),
            bytes: 0,
            created_at: self.now,
            expires_at: None,
        }
    }
}

/// For how long something is kept whose caller said so.
///
/// # Errors
///
/// It is too short or too long.
pub(super) fn expiry(seconds: u64) -> Result<Duration, Refused> {
    match EXPIRES_S.contains(&seconds) {
        true => Ok(Duration::from_secs(seconds)),
        false => Err(bad_expiry()),
    }
}

pub(super) fn bad_expiry() -> Refused {
    let message = format!(
        "`expires_after` takes `anchor`, which is \"created_at\", and `seconds`, {} to {}",
        EXPIRES_S.start(),
        EXPIRES_S.end()
    );
    Refusal::invalid(message).about("expires_after").into()
}

async fn word(mut field: Field<'_>, name: &str) -> Result<String, Refused> {
    let mut word = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(|error| broken(&error))? {
        if word.len() + piece.len() > WORD_MAX {
            let message = format!("`{name}` is longer than {WORD_MAX} bytes");
            return Err(Refusal::invalid(message).about(name).into());
        }
        word.extend_from_slice(&piece);
    }
    String::from_utf8(word).map_err(|_| {
        Refusal::invalid(format!("`{name}` is no text"))
            .about(name)
            .into()
    })
}

fn broken(error: &MultipartError) -> Refused {
    Refusal::invalid(format!("the form cannot be read: {}", error.body_text())).into()
}

/// Something else removed the file while it was written.
fn lost() -> Refused {
    Refusal::new(
        StatusCode::CONFLICT,
        "conflict",
        "the file was removed while it was written",
    )
    .into()
}
