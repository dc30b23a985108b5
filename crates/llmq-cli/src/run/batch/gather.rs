//! Rows become parts: each the input of one batch.

use std::borrow::Cow;

use llmq_engine::bulk::{BadRow, BadRowCode, Prepared};
use serde::Deserialize;

/// A batch has at most so many rows: its results come when all of them have ended, so smaller
/// ones let OUTPUT grow sooner.
pub(super) const ROWS_MAX: u64 = 1_000;
/// And at most so many bytes, unless one row alone has more.
const BYTES_MAX: usize = 8 << 20;
/// Parts of so many models and endpoints are gathered side by side.
const SIDE_BY_SIDE: usize = 16;
/// The longest id of a row: a batch's `custom_id` has at most 512 bytes, with the row's number.
const ID_MAX: usize = 490;

/// The lines of a batch to be.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) endpoint: String,
    pub(super) model: String,
    /// The model is the rows' own.
    pub(super) names_model: bool,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) rows: u64,
    /// In OpenAI's batch form.
    pub(super) lines: Vec<u8>,
}

/// Parts that are being filled.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    parts: Vec<Part>,
}

impl Gathering {
    /// Adds a row; gives the part that this leaves full, or that must make room.
    pub(super) fn add(
        &mut self,
        row: &Prepared,
        endpoint: String,
        model: String,
        rows_max: u64,
    ) -> Option<Part> {
        let line = line(row, &endpoint);
        let mut out = None;
        let mut found = self
            .parts
            .iter()
            .position(|part| part.endpoint == endpoint && part.model == model);
        if let Some(index) = found
            && self.parts[index].lines.len() + line.len() > BYTES_MAX
        {
            out = Some(self.parts.remove(index));
            found = None;
        } else if found.is_none() && self.parts.len() == SIDE_BY_SIDE {
            out = Some(self.parts.remove(0));
        }
        let index = found.unwrap_or_else(|| {
            self.parts.push(Part {
                endpoint,
                model,
                names_model: row.names_model,
                first: row.line,
                last: row.line,
                rows: 0,
                lines: Vec::new(),
            });
            self.parts.len() - 1
        });
        let part = &mut self.parts[index];
        part.lines.extend_from_slice(&line);
        part.last = row.line;
        part.rows += 1;
        // Where one leaves to make room, a part of a single row waits for the next.
        match out {
            None if part.rows >= rows_max => Some(self.parts.remove(index)),
            out => out,
        }
    }

    /// What is left at the end.
    pub(super) fn rest(self) -> Vec<Part> {
        self.parts
    }
}

/// Under which name a row stands in its batch, or why it cannot stand in one.
pub(super) fn check(row: &Prepared) -> Result<(), Box<BadRow>> {
    if row.custom_id.len() <= ID_MAX {
        return Ok(());
    }
    Err(Box::new(BadRow {
        line: row.line,
        physical_line: row.line,
        custom_id: row.custom_id.clone(),
        code: BadRowCode::InvalidField,
        message: format!("its id is longer than {ID_MAX} bytes, which a batch cannot have"),
    }))
}

/// A row's number and own id, as [`line()`] wrote them.
pub(super) fn row_of(custom_id: &str) -> Option<(u64, &str)> {
    let (line, id) = custom_id.split_once(' ')?;
    Some((line.parse().ok()?, id))
}

fn line(row: &Prepared, endpoint: &str) -> Vec<u8> {
    let custom_id = format!("{} {}", row.line, row.custom_id);
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let mut line = format!(
        "{{\"custom_id\":{},\"method\":\"POST\",\"url\":{},\"body\":",
        text(&custom_id),
        text(endpoint)
    )
    .into_bytes();
    // Between JSON's parts a line's end is a space like any other; inside there is none.
    line.extend(row.body.iter().map(|byte| match byte {
        b'\n' | b'\r' => b' ',
        other => *other,
    }));
    line.extend_from_slice(b"}\n");
    line
}

/// The model that a body names; empty where it names none.
pub(super) fn model_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        model: Option<Cow<'a, str>>,
    }
    let named = serde_json::from_slice::<Named<'_>>(body).ok();
    let model = named.and_then(|named| named.model);
    model.map(Cow::into_owned).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use llmq_core::CallSize;
    use llmq_provider::Operation;
    use serde_json::{Value, json};

    use super::*;

    fn row(line: u64, body: impl Into<Vec<u8>>) -> Prepared {
        Prepared {
            line,
            custom_id: format!("row-{line}"),
            operation: Operation::ChatCompletions,
            body: body.into().into(),
            size: CallSize::default(),
            names_model: true,
        }
    }

    fn add(gathering: &mut Gathering, line: u64, model: &str, body: &str) -> Option<Part> {
        gathering.add(&row(line, body), "/v1/x".into(), model.into(), 3)
    }

    #[test]
    fn a_part_has_rows_of_one_model_and_is_full_at_its_bound() {
        let mut gathering = Gathering::default();
        let mut full = Vec::new();
        for line in 1..=6 {
            let model = ["a", "b"][usize::from(line % 2 == 0)];
            full.extend(add(&mut gathering, line, model, "{\n}"));
        }
        let full: Vec<_> = full
            .iter()
            .map(|part| (part.model.as_str(), part.first, part.last, part.rows))
            .collect();
        assert_eq!(full, [("a", 1, 5, 3), ("b", 2, 6, 3)]);
        assert!(gathering.rest().is_empty());
    }

    #[test]
    fn a_part_that_would_be_too_large_leaves_before_the_row() {
        let mut gathering = Gathering::default();
        let large = "x".repeat(BYTES_MAX - 100);
        assert!(add(&mut gathering, 1, "a", &large).is_none());
        let left = add(&mut gathering, 2, "a", &large).unwrap();
        assert_eq!((left.first, left.last, left.rows), (1, 1, 1));
        assert_eq!(gathering.rest()[0].first, 2);
    }

    #[test]
    fn parts_side_by_side_have_a_bound() {
        let mut gathering = Gathering::default();
        for number in 0..SIDE_BY_SIDE {
            let line = u64::try_from(number).unwrap();
            assert!(add(&mut gathering, line, &number.to_string(), "{}").is_none());
        }
        let left = add(&mut gathering, 99, "another", "{}").unwrap();
        assert_eq!(left.model, "0");
        assert_eq!(gathering.rest().len(), SIDE_BY_SIDE);
    }

    #[test]
    fn a_line_is_one_line_and_names_its_row() {
        let body = "{\"model\":\"m\",\n \"input\":\"a\\nb\"}";
        let line = line(&row(7, body), "/v1/responses");
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(read["body"], json!({"model": "m", "input": "a\nb"}));
        assert_eq!(
            row_of(read["custom_id"].as_str().unwrap()),
            Some((7, "row-7"))
        );
        assert_eq!(model_of(body.as_bytes()), "m");
        assert_eq!(model_of(b"{}"), "");
    }
}
