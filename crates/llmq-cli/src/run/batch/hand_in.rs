//! Parts go to the server: as a file, and as a batch of it.

use std::time::Duration;

use hyper::body::Bytes;
use llmq_engine::bulk::{HandedIn, Item, RowReader, RowResult};
use serde_json::{Value, json};

use super::gather::{self, Gathering, Part};
use super::{ASK_EVERY, Halt, Handing, has, kind_of, output_name};
use crate::batches;
use crate::client::{Asked, Parcel};
use crate::exit::{FAILED, Failure};

/// A row of a run waits as long as it must.
const WINDOW: &str = "365d";
/// So many parts are at the server at once: enough that it always has rows to send, and few enough
/// that their files find room, that `OUTPUT.llmq` stays short, and that they are cancelled soon.
const AT_SERVER_MAX: usize = 64;
/// How soon it is first looked whether a batch was read.
const LOOK_FIRST: Duration = Duration::from_millis(20);

impl Handing {
    /// Hands in every row that has no result and is not at the server. Whether there was one.
    pub(super) fn hand_in_rows(&mut self) -> Result<bool, Halt> {
        let reader = RowReader::open(
            &self.options.source,
            self.options.kind,
            self.options.read.clone(),
        );
        let reader = reader.map_err(|error| Failure::wrong(&error))?;
        let maker = self.options.calls.clone();
        let model = maker.model.clone().unwrap_or_default();
        let mut gathering = Gathering::default();
        let mut found = false;
        for item in reader {
            let item = item.map_err(|error| Failure::wrong(&error))?;
            // Where rows were given back, no more are handed in.
            if self.done.contains(item.line()) || self.left_out.is_some() {
                continue;
            }
            let prepared = match item {
                Item::Row(row) => maker.prepare(row, &model, self.source.dialect),
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
        for part in gathering.rest() {
            self.hand_in(part)?;
        }
        Ok(found)
    }

    fn hand_in(&mut self, part: Part) -> Result<(), Halt> {
        // Whoever wants to leave leaves between two parts.
        self.pause(Duration::ZERO)?;
        while self.side.handed_in.len() >= AT_SERVER_MAX {
            self.collect_or_wait()?;
        }
        let name = format!("rows-{}-{}.jsonl", part.first, part.last);
        let (before, behind, kind) = batches::form(&name);
        let form = [before.as_bytes(), &part.lines, behind.as_bytes()].concat();
        let form = Bytes::from(form);
        let file: Value = loop {
            if self.left_out.is_some() {
                return Ok(());
            }
            let parcel = Parcel::new(kind.clone(), form.clone());
            match self.server.post("/v1/files", parcel)? {
                // What has ended may hold the room that is wanted.
                Asked::Away(away) if !self.collect_ended()? => {
                    self.wait_for_server(&away.message)?;
                }
                Asked::Away(_) => {}
                there => break there.found()?,
            }
        };
        self.side.handed_in.push(HandedIn {
            file: batches::text(&file, "id").to_owned(),
            batch: None,
            endpoint: part.endpoint,
            model: part.model,
            first: part.first,
            last: part.last,
            rows: part.rows,
            names_model: part.names_model,
        });
        self.save()?;
        let index = self.side.handed_in.len() - 1;
        self.make(index)?;
        self.prove(index)
    }

    /// Waits until the first batch of its kind is read: where its model may not be used, no other
    /// is to be handed in.
    fn prove(&mut self, index: usize) -> Result<(), Halt> {
        let part = self.side.handed_in[index].clone();
        let (Some(id), false) = (&part.batch, self.proven.contains(&kind_of(&part))) else {
            return Ok(());
        };
        let path = format!("/v1/batches/{id}");
        let mut wait = LOOK_FIRST;
        loop {
            match self.server.ask::<Value>(&path)? {
                Asked::Found(batch) if batches::text(&batch, "status") == "failed" => {
                    return self.collect(index, &part, &batch);
                }
                Asked::Found(batch) if batches::text(&batch, "status") == "validating" => {}
                Asked::Found(_) => break,
                Asked::Away(away) => self.wait_for_server(&away.message)?,
                // Whoever asks after it next deals with that.
                Asked::Unknown(_) => return Ok(()),
            }
            self.pause(wait)?;
            wait = (wait * 2).min(ASK_EVERY);
        }
        self.proven.insert(kind_of(&part));
        Ok(())
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

    /// Makes a batch of a file that has none yet, as far as is known here.
    pub(super) fn begin(&mut self, index: usize) -> Result<(), Halt> {
        let file = self.side.handed_in[index].file.clone();
        let path = format!("/v1/files/{file}");
        match self.until_there(|server| server.ask::<Value>(&path))? {
            Ok(_) => self.make(index),
            Err(_unknown) => {
                self.lost.insert(file);
                Ok(())
            }
        }
    }

    /// Makes a batch of a file. However often it is asked for, for this key there is one.
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
        let made = self.until_there(|server| {
            let parcel = Parcel::json(body.clone()).once(&part.file);
            server.post::<Value>("/v1/batches", parcel)
        })?;
        let batch = made.map_err(|message| Failure {
            code: FAILED,
            message,
        })?;
        self.side.handed_in[index].batch = Some(batches::text(&batch, "id").to_owned());
        Ok(self.save()?)
    }
}
