use bytes::Bytes;
use llmq_core::CallSize;
use llmq_provider::{
    Dialect, Operation, Prompt, RequestScan, TokenCounter, prompt_body, scan_request, with_model,
};
use serde_json::{Map, Value};

use crate::bulk::{BadRow, BadRowCode, InputError, InputSource, Row, RowCall, RowReader};

/// How rows become calls.
#[derive(Debug, Clone)]
pub struct CallMaker {
    /// What prompts ask for. Rows in batch form say it themselves.
    pub operation: Operation,
    /// The model; needed for prompts, and instead of their own for rows in batch form.
    pub model: Option<String>,
    /// What the model is told before each prompt.
    pub system: Option<String>,
    /// Further members of each prompt's body.
    pub params: Map<String, Value>,
    /// How input is counted before it is sent.
    pub counter: TokenCounter,
}

/// A row that is ready to be sent.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The row's number in the input, from 1.
    pub line: u64,
    /// Its own id, or `row-N`.
    pub custom_id: String,
    /// What it asks for.
    pub operation: Operation,
    /// The call's body: a JSON object.
    pub body: Bytes,
    /// How large it is, as it is estimated.
    pub size: CallSize,
    /// The model is the row's own: no other row need have it.
    pub names_model: bool,
}

impl CallMaker {
    /// Finds out before anything is sent whether all that is asked for can be put into the calls.
    ///
    /// # Errors
    ///
    /// [`InputError::FlagNotUsable`] for rows that bring their own bodies.
    pub fn check(&self, input: &InputSource, rows: &RowReader) -> Result<(), InputError> {
        let flag = if !rows.holds_calls() {
            return Ok(());
        } else if self.system.is_some() {
            "--system"
        } else if !self.params.is_empty() {
            "--param"
        } else {
            return Ok(());
        };
        Err(InputError::FlagNotUsable {
            input: input.clone(),
            flag,
            reason: "its rows bring their own bodies",
        })
    }

    /// Makes a call of a row, for a provider that speaks `dialect`. Prompts ask for `model` where
    /// the maker names none.
    ///
    /// # Errors
    ///
    /// The row as one that can never be sent, with the reason.
    pub fn prepare(
        &self,
        row: Row,
        model: &str,
        dialect: Dialect,
    ) -> Result<Prepared, Box<BadRow>> {
        let names_model = matches!(row.call, RowCall::Batch { .. }) && self.model.is_none();
        let (operation, body) = match &row.call {
            RowCall::Prompt(text) => (self.operation, self.of_prompt(text, model)),
            RowCall::Batch { url, body } => self.of_batch(&row, url, body.get(), dialect)?,
        };
        let scan = self.scan(&row, &body)?;
        Ok(Prepared {
            line: row.line,
            custom_id: row.custom_id,
            operation,
            body,
            size: scan.size,
            names_model,
        })
    }

    fn of_prompt(&self, text: &str, model: &str) -> Bytes {
        let prompt = Prompt {
            model: self.model.as_deref().unwrap_or(model),
            system: self.system.as_deref(),
            text,
            params: &self.params,
        };
        prompt_body(self.operation, prompt)
    }

    fn of_batch(
        &self,
        row: &Row,
        url: &str,
        body: &str,
        dialect: Dialect,
    ) -> Result<(Operation, Bytes), Box<BadRow>> {
        let speaks = |operation: &Operation| {
            (*operation == Operation::Messages) == (dialect == Dialect::Anthropic)
        };
        let operation = Operation::from_path(url).filter(speaks).ok_or_else(|| {
            let message = format!("the provider of this run has no {url}");
            bad(row, BadRowCode::InvalidField, message)
        })?;
        let body = match &self.model {
            Some(model) => with_model(body.as_bytes(), model)
                .map_err(|error| bad(row, BadRowCode::InvalidJson, error.to_string()))?,
            None => Bytes::copy_from_slice(body.as_bytes()),
        };
        Ok((operation, body))
    }

    fn scan(&self, row: &Row, body: &[u8]) -> Result<RequestScan, Box<BadRow>> {
        let scan = scan_request(body, self.counter)
            .map_err(|error| bad(row, BadRowCode::InvalidJson, error.to_string()))?;
        if scan.stream {
            let message =
                "`stream` cannot be asked for in a file: results are whole answers".to_owned();
            return Err(bad(row, BadRowCode::InvalidField, message));
        }
        Ok(scan)
    }
}

fn bad(row: &Row, code: BadRowCode, message: String) -> Box<BadRow> {
    Box::new(BadRow {
        line: row.line,
        physical_line: row.physical_line,
        custom_id: row.custom_id.clone(),
        code,
        message,
    })
}
