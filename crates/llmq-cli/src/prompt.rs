//! The flags that say what is in the input and what is asked.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use llmq_engine::bulk::{CallMaker, InputFormat, InputKind, InputSource, ReadOptions, Template};
use llmq_provider::{Dialect, Operation, TokenCounter, check_params};
use serde_json::{Map, Value};

use crate::exit::Failure;

/// The input.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct InputArgs {
    /// The rows: .jsonl (OpenAI's batch form, or objects for --template), .csv or .tsv with a
    /// header, .txt (a prompt a line), each also as .gz or .zst; - is standard input
    #[arg(help_heading = "Arguments")]
    pub(crate) input: PathBuf,
    /// What INPUT holds, if its ending does not say: jsonl, batch, csv, tsv, txt
    #[arg(long, value_name = "FORMAT")]
    pub(crate) input_format: Option<String>,
    /// The column or key that becomes custom_id; without it, row-N
    #[arg(long, value_name = "COLUMN")]
    pub(crate) id: Option<String>,
    /// Only the first N rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit_rows: Option<u64>,
}

/// What is asked.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Prompts")]
pub(crate) struct PromptArgs {
    /// The model; rows in batch form may name their own
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Makes a prompt of each row, such as 'Introduce {{name}}, {{country}}.'
    #[arg(long, value_name = "TEXT", conflicts_with = "template_file")]
    pub(crate) template: Option<String>,
    /// The same from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) template_file: Option<PathBuf>,
    /// What the model is told before each prompt
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// A member of each request's body, its value in JSON, such as max_tokens=200; may be repeated
    #[arg(long = "param", value_name = "KEY=JSON", value_parser = parse_param)]
    pub(crate) params: Vec<(String, Value)>,
    /// How input tokens are counted before a call is sent
    #[arg(long, value_enum, default_value_t)]
    pub(crate) count_tokens: CountTokens,
}

/// How input tokens are counted.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum CountTokens {
    /// A quarter of the characters, corrected by the first answers
    #[default]
    Estimate,
    /// With OpenAI's tokenizer: closer, and slower
    Exact,
}

impl From<CountTokens> for TokenCounter {
    fn from(counting: CountTokens) -> Self {
        match counting {
            CountTokens::Estimate => Self::Chars,
            CountTokens::Exact => Self::Tiktoken,
        }
    }
}

/// The input as the engine takes it.
pub(crate) struct Input {
    pub(crate) source: InputSource,
    pub(crate) kind: InputKind,
    pub(crate) read: ReadOptions,
}

impl Input {
    /// Whether rows hold whole calls, or may do so.
    fn may_hold_calls(&self) -> bool {
        match self.kind.format {
            InputFormat::Batch => true,
            InputFormat::Jsonl => self.read.template.is_none(),
            InputFormat::Csv | InputFormat::Tsv | InputFormat::Txt => false,
        }
    }
}

/// Reads what the flags say about the input. The file itself is not opened.
pub(crate) fn input(args: &InputArgs, prompt: &PromptArgs) -> Result<Input, Failure> {
    let source = InputSource::from_argument(&args.input);
    let kind = match &args.input_format {
        Some(word) => InputKind::named(word, &source)
            .map_err(|error| Failure::usage(format!("--input-format: {error}")))?,
        None => InputKind::of(&source).map_err(|error| Failure::wrong(&error))?,
    };
    let read = ReadOptions {
        template: template(prompt)?,
        id: args.id.clone(),
        limit_rows: args.limit_rows,
        ..ReadOptions::default()
    };
    Ok(Input { source, kind, read })
}

fn template(args: &PromptArgs) -> Result<Option<Template>, Failure> {
    let (flag, text) = match (&args.template, &args.template_file) {
        (Some(text), _) => ("--template", text.clone()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::usage(format!(
                    "--template-file: cannot read {}: {error}",
                    path.display()
                ))
            })?;
            // An editor's byte-order mark and last line break are no part of the prompt.
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            let text = text.strip_suffix('\n').unwrap_or(text);
            (
                "--template-file",
                text.strip_suffix('\r').unwrap_or(text).to_owned(),
            )
        }
        (None, None) => return Ok(None),
    };
    match Template::parse(&text) {
        Ok(template) => Ok(Some(template)),
        Err(error) => Err(Failure::usage(format!("{flag}: {error}"))),
    }
}

/// How rows become calls in `dialect`; `default_model` is what the provider is asked for when
/// nobody names a model.
pub(crate) fn calls(
    args: &PromptArgs,
    input: &Input,
    dialect: Dialect,
    default_model: Option<&str>,
) -> Result<CallMaker, Failure> {
    let operation = match dialect {
        Dialect::OpenAi => Operation::ChatCompletions,
        Dialect::Anthropic => Operation::Messages,
    };
    let params: Map<String, Value> = args.params.iter().cloned().collect();
    check_params(operation, args.system.is_some(), &params)
        .map_err(|error| Failure::usage(format!("--param: {error}")))?;
    let may_hold_calls = input.may_hold_calls();
    let model = match &args.model {
        Some(model) => Some(model.clone()),
        None if may_hold_calls => None,
        None => default_model.map(str::to_owned),
    };
    if model.is_none() && !may_hold_calls {
        return Err(Failure::usage(
            "no model is named: say --model, such as --model gpt-4o-mini",
        ));
    }
    Ok(CallMaker {
        operation,
        model,
        system: args.system.clone(),
        params,
        counter: args.count_tokens.into(),
    })
}

fn parse_param(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.trim().is_empty())
        .ok_or("write key=value, such as max_tokens=200")?;
    match serde_json::from_str(value) {
        Ok(value) => Ok((key.trim().to_owned(), value)),
        Err(_) => Err(format!(
            "`{value}` is not JSON; text needs quotes: --param '{key}=\"{value}\"'"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_a_name_and_json() {
        let read = parse_param("response_format={\"type\":\"json_object\"}").unwrap();
        assert_eq!(read.1["type"], "json_object");
        assert_eq!(parse_param("stop=\"a=b\"").unwrap().1, "a=b");
        assert!(
            parse_param("temperature")
                .unwrap_err()
                .contains("key=value")
        );
        assert!(
            parse_param("stop=END")
                .unwrap_err()
                .contains("'stop=\"END\"'")
        );
    }
}
