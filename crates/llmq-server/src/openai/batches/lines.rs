//! What a line of a batch's input is worth.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use llmq_core::Priority;
use llmq_provider::{Kept, Operation, TokenCounter, scan_request};
use llmq_store::{BatchId, Member, NewJob, StoreError};
use rustc_hash::FxHashSet;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::notes::{Fault, Notes};
use crate::call::{Naming, Place, Unplaced};
use crate::keys::Caller;
use crate::models::Model;
use crate::openai::background::asks_for_background;
use crate::{Gateway, call};

/// The most inputs of all lines of a batch for embeddings together (OpenAI's own limit).
const INPUTS_MAX: u64 = 50_000;
const ID_MAX: usize = 512;

/// Makes calls of lines.
pub(super) struct Checker<'a> {
    gateway: &'a Gateway,
    notes: &'a Notes,
    batch: BatchId,
    tenant: &'a str,
    operation: Operation,
    model: Option<Arc<Model>>,
    /// Hashes of the names that were used.
    names: FxHashSet<[u8; 16]>,
    inputs: u64,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    custom_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(
        gateway: &'a Gateway,
        notes: &'a Notes,
        batch: BatchId,
        tenant: &'a str,
    ) -> Self {
        Self {
            gateway,
            notes,
            batch,
            tenant,
            // Only what is known is taken in.
            operation: Operation::from_path(&notes.endpoint).unwrap_or(Operation::ChatCompletions),
            model: None,
            names: FxHashSet::default(),
            inputs: 0,
        }
    }

    /// The model of the lines so far.
    pub(super) fn model(&self) -> Option<String> {
        self.model.as_ref().map(|model| model.name.clone())
    }

    /// The call of a line and what it names, or what is wrong with it. To be asked once: a line
    /// that comes again repeats its own name.
    pub(super) fn job(&mut self, number: u32, line: &Bytes) -> Result<(NewJob, Kept), Fault> {
        let checked = self.check(number, line);
        checked.map_err(|fault| fault.at(number))
    }

    fn check(&mut self, number: u32, line: &Bytes) -> Result<(NewJob, Kept), Fault> {
        let read: Line<'_> =
            serde_json::from_slice(line).map_err(|error| match error.classify() {
                serde_json::error::Category::Data => Fault::new(
                    "invalid_request",
                    "this line is no object of a batch's form",
                ),
                _ => Fault::new("invalid_json_line", "this line cannot be read as JSON"),
            })?;
        let custom_id = self.name(read.custom_id)?;
        if read.method.as_deref() != Some("POST") {
            let message = "`method` must be POST";
            return Err(Fault::new("invalid_method", message).about("method"));
        }
        let endpoint = &self.notes.endpoint;
        if read.url.as_deref() != Some(endpoint) {
            let message = format!("`url` must be the batch's endpoint, {endpoint}");
            return Err(Fault::new("mismatched_url", message).about("url"));
        }
        let Some(body) = read.body else {
            let message = "`body` is missing";
            return Err(Fault::new("missing_required_parameter", message).about("body"));
        };
        let body = line.slice_ref(body.get().as_bytes());
        let scan = scan_request(&body, TokenCounter::Chars)
            .map_err(|_| Fault::new("invalid_request", "`body` is no object").about("body"))?;
        if let Some(name) = scan.doubtful {
            let message = format!("`body.{name}` stands there more than once, or with escapes");
            return Err(Fault::new("invalid_request", message).about("body"));
        }
        if scan.stream {
            let message = "`stream` cannot be true in a batch";
            return Err(Fault::new("invalid_request", message).about("body.stream"));
        }
        if asks_for_background(self.operation, &body) {
            let message = "`background` cannot be true in a batch";
            return Err(Fault::new("invalid_request", message).about("body.background"));
        }
        let model = self.model_of(scan.model)?;
        let models = &self.gateway.models;
        models
            .can_be_told(&model, self.operation, &body)
            .map_err(|why| {
                Fault::new("invalid_request", why.to_string()).about(why.path().unwrap_or("body"))
            })?;
        self.count_inputs(&body)?;
        let mut job = NewJob::new(model.name.clone(), self.tenant, body);
        job.size = scan.size;
        job.priority = Priority::LOW;
        job.ttl = Some(Duration::from_secs(self.notes.window_s));
        job.max_attempts = self.gateway.max_attempts();
        job.member = Some(Member {
            batch: self.batch,
            line: number,
            custom_id,
        });
        job.details.endpoint.clone_from(&self.notes.endpoint);
        job.details.key = self.notes.key;
        Ok((job, scan.kept))
    }

    /// Where a call has to go that names what one account keeps, or why it can go nowhere. May be
    /// asked again after the store could not say.
    pub(super) async fn place(
        &self,
        job: &NewJob,
        kept: &Kept,
    ) -> Result<Result<Option<Place>, Fault>, StoreError> {
        let Some(model) = self.model.as_ref().filter(|_| !kept.is_empty()) else {
            return Ok(Ok(None));
        };
        let caller = match self.notes.key {
            None => Some(Caller::anonymous()),
            Some(key) => self.gateway.keys.by_id(key),
        };
        // Without it nobody knows what may be seen.
        let Some(caller) = caller else {
            let message = "the key of this batch is not known any more";
            return Ok(Err(Fault::new("forbidden", message)));
        };
        let naming = Naming {
            caller: &caller,
            tenant: self.tenant,
            model,
            operation: self.operation,
            kept,
            body: &job.body,
        };
        Ok(match naming.place(self.gateway).await {
            Ok(place) => Ok(place),
            Err(Unplaced::Refused(refusal)) => {
                let fault = Fault::new(refusal.code, refusal.message);
                Err(match refusal.param {
                    Some(param) => fault.about(&format!("body.{param}")),
                    None => fault,
                })
            }
            Err(Unplaced::Unread(StoreError::Damaged { what })) => {
                Err(Fault::new("invalid_request", what).about("body"))
            }
            Err(Unplaced::Unread(error)) => return Err(error),
        })
    }

    fn name(&mut self, name: Option<Cow<'_, str>>) -> Result<String, Fault> {
        let name = name.unwrap_or_default();
        if name.is_empty() || name.len() > ID_MAX {
            let message = format!("`custom_id` must be a text of 1 to {ID_MAX} bytes");
            let code = match name.is_empty() {
                true => "missing_required_parameter",
                false => "invalid_custom_id",
            };
            return Err(Fault::new(code, message).about("custom_id"));
        }
        let hash: [u8; 32] = Sha256::digest(name.as_bytes()).into();
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        if !self.names.insert(half) {
            let message = "this `custom_id` stands in an earlier line";
            return Err(Fault::new("duplicate_custom_id", message).about("custom_id"));
        }
        Ok(name.into_owned())
    }

    /// The model of a line, which must be that of all others.
    fn model_of(&mut self, name: Option<String>) -> Result<Arc<Model>, Fault> {
        let Some(name) = name else {
            let message = "`body` names no model";
            return Err(Fault::new("missing_required_parameter", message).about("body.model"));
        };
        if let Some(model) = &self.model {
            if model.name == name {
                return Ok(Arc::clone(model));
            }
            let message = format!(
                "a batch is for one model, and an earlier line names `{}`",
                short(&model.name)
            );
            return Err(Fault::new("mismatched_model", message).about("body.model"));
        }
        let fault = |message: String| Fault::new("model_not_found", message).about("body.model");
        let allowed = self.notes.models.as_ref();
        if allowed.is_some_and(|allowed| !allowed.contains(&name)) {
            let message = format!("the key of this batch may not use `{}`", short(&name));
            return Err(fault(message));
        }
        let gateway = self.gateway;
        let made = || gateway.observed.refresh();
        let found = gateway.models.find(&name, &gateway.hub, made);
        let model = found.ok_or_else(|| {
            let mut names = gateway.models.names();
            names.retain(|name| allowed.is_none_or(|allowed| allowed.contains(name)));
            fault(call::unknown_among(&names, &name).message)
        })?;
        self.model = Some(Arc::clone(&model));
        Ok(model)
    }

    fn count_inputs(&mut self, body: &[u8]) -> Result<(), Fault> {
        #[derive(Deserialize)]
        struct Inputs<'a> {
            #[serde(borrow)]
            input: Option<&'a RawValue>,
        }
        if self.operation != Operation::Embeddings {
            return Ok(());
        }
        let input = serde_json::from_slice::<Inputs<'_>>(body).ok();
        let input = input.and_then(|inputs| inputs.input);
        let texts =
            input.and_then(|input| serde_json::from_str::<Vec<&RawValue>>(input.get()).ok());
        // A list of numbers is one text in tokens.
        let is_tokens = |texts: &Vec<&RawValue>| {
            let first = texts.first().map(|first| first.get());
            first.is_some_and(|first| !first.starts_with(['"', '[']))
        };
        self.inputs += texts
            .filter(|texts| !is_tokens(texts))
            .map_or(1, |texts| texts.len() as u64);
        if self.inputs > INPUTS_MAX {
            let message = format!("more than {INPUTS_MAX} inputs in all lines up to here");
            return Err(Fault::new("too_many_inputs", message).about("body.input"));
        }
        Ok(())
    }
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}
