//! Parts go to the server: as a file, and as a batch of it.

use std::time::Duration;

use hyper::body::Bytes;
use llmq_engine::bulk::{HandedIn, Item, RowReader, RowResult};
use llmq_provider::Dialect;
use serde_json::{Value, json};

use super::gather::{self, Gathering, Part};
use super::{Halt, Handing, has, output_name};
use crate::batches;
use crate::exit::Failure;

/// A row of a run waits as long as it must.
const WINDOW: &str = "365d";

impl Handing {
    /// Hands in every row that has no result and is not at the server. Whether there was one.
    pub(super) fn hand_in_rows(&mut self) -> Result<bool, Halt> {
        let reader = RowReader::open(
            &self.options.source,
            self.options.kind,
            self.options.read.clone(),
        );
        let reader = reader.map_err(|error| Failure::wrong(&error))?;
        let dialect = self.dialect();
        let maker = self.options.calls.clone();
        let model = maker.model.clone().unwrap_or_default();
        let mut gathering = Gathering::default();
        let (mut count, mut found) = (0, false);
        for item in reader {
            let item = item.map_err(|error| Failure::wrong(&error))?;
            count += 1;
            if self.done.contains(item.line()) {
                continue;
            }
            let prepared = match item {
                Item::Row(row) => maker.prepare(row, &model, dialect),
                Item::Bad(bad) => Err(Box::new(bad)),
            };
            let prepared = prepared.and_then(|row| gather::check(&row).map(|()| row));
            let row = match prepared {
                Ok(row) => row,
                Err(bad) => {
                    self.write(&RowResult::from(&*bad))?;
                    continue;
                }
            };
            let endpoint = format!("/v1{}", row.operation.path());
            let model = gather::model_of(&row.body);
            let mut at_server = self.side.handed_in.iter();
            if at_server.any(|part| has(part, row.line, &endpoint, &model)) {
                continue;
            }
            found = true;
            if let Some(part) = gathering.add(&row, endpoint, model, self.rows_max) {
                self.hand_in(part)?;
            }
        }
        self.figures.rows = count;
        for part in gathering.rest() {
            self.hand_in(part)?;
        }
        Ok(found)
    }

    fn dialect(&self) -> Dialect {
        let route = self.options.routes.first();
        route.map_or(Dialect::OpenAi, |route| route.provider.dialect())
    }

    fn hand_in(&mut self, part: Part) -> Result<(), Halt> {
        // Whoever wants to leave leaves between two parts.
        self.pause(Duration::ZERO)?;
        let name = format!("rows-{}-{}.jsonl", part.first, part.last);
        let (before, behind, kind) = batches::form(&name);
        let form = [before.as_bytes(), &part.lines, behind.as_bytes()].concat();
        let form = Bytes::from(form);
        let file: Value =
            self.until_there(|server| server.post_if_there("/v1/files", &kind, form.clone()))?;
        self.side.handed_in.push(HandedIn {
            file: batches::text(&file, "id").to_owned(),
            batch: None,
            endpoint: part.endpoint,
            model: part.model,
            first: part.first,
            last: part.last,
            rows: part.rows,
        });
        self.save()?;
        self.make(self.side.handed_in.len() - 1)
    }

    /// Makes the batches that an earlier process did not live to make, or to hear of.
    pub(super) fn begin_again(&mut self) -> Result<(), Halt> {
        for index in 0..self.side.handed_in.len() {
            if self.side.handed_in[index].batch.is_none() {
                self.begin(index)?;
            }
        }
        Ok(())
    }

    /// Makes a batch of a file that may have one.
    pub(super) fn begin(&mut self, index: usize) -> Result<(), Halt> {
        let file = self.side.handed_in[index].file.clone();
        match self.batch_of(&file)? {
            Some(id) => self.is_batch(index, id),
            None => self.make(index),
        }
    }

    /// Makes a batch of a file that has none.
    fn make(&mut self, index: usize) -> Result<(), Halt> {
        let part = self.side.handed_in[index].clone();
        let body = json!({
            "input_file_id": part.file,
            "endpoint": part.endpoint,
            "completion_window": WINDOW,
            "metadata": {
                "output": output_name(&self.options.paths.output),
                "rows": format!("{}-{}", part.first, part.last),
            },
        });
        let body = Bytes::from(body.to_string());
        loop {
            let made = self.server.post_if_there::<Value>(
                "/v1/batches",
                "application/json",
                body.clone(),
            )?;
            match made {
                Ok(batch) => return self.is_batch(index, batches::text(&batch, "id").to_owned()),
                Err(why) => self.wait_for_server(&why)?,
            }
            // It may have been made before the server went away.
            if let Some(id) = self.batch_of(&part.file)? {
                return self.is_batch(index, id);
            }
        }
    }

    fn is_batch(&mut self, index: usize, id: String) -> Result<(), Halt> {
        self.side.handed_in[index].batch = Some(id);
        Ok(self.save()?)
    }

    /// The batch whose input a file is and that may still bring results.
    fn batch_of(&mut self, file: &str) -> Result<Option<String>, Halt> {
        let mut after = String::new();
        loop {
            let path = format!("/v1/batches?limit=100{after}");
            let page: Value = self.until_there(|server| server.get_if_there(&path))?;
            let batches = page["data"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            let is_its = |batch: &&Value| {
                batches::text(batch, "input_file_id") == file
                    && batches::text(batch, "status") != "failed"
            };
            if let Some(batch) = batches.iter().find(is_its) {
                return Ok(Some(batches::text(batch, "id").to_owned()));
            }
            match batches.last() {
                Some(last) if page["has_more"] == true => {
                    after = format!("&after={}", batches::text(last, "id"));
                }
                _ => return Ok(None),
            }
        }
    }
}
