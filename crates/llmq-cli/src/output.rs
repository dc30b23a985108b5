//! Data to stdout, in the form that was asked for.

use std::ffi::OsString;
use std::io::{self, Write};

use clap::ColorChoice;
use serde::Serialize;

use crate::cli::Format;
use crate::exit::{FAILED, Failure};

/// Writes `text` to stdout. A reader that left is no failure; a full disk is.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes()).map(drop)
}

/// Writes `bytes` to stdout as they are. Whether there is still a reader.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure {
            code: FAILED,
            message: format!("cannot write to standard output: {error}"),
        }),
    }
}

/// `value` as one JSON document, or on one line.
pub(crate) fn json(value: &impl Serialize, format: Format) -> Result<String, Failure> {
    let text = match format {
        Format::Jsonl => serde_json::to_string(value),
        Format::Json | Format::Table => serde_json::to_string_pretty(value),
    };
    let mut text = text.map_err(|error| Failure::wrong(&error))?;
    text.push('\n');
    Ok(text)
}

/// Several values: one JSON document, or a line each.
pub(crate) fn json_list<T: Serialize>(all: &[T], format: Format) -> Result<String, Failure> {
    match format {
        Format::Jsonl => all.iter().map(|one| json(one, format)).collect(),
        Format::Json | Format::Table => json(&all, format),
    }
}

/// What `--color` says, found without parsing the rest.
pub(crate) fn color_choice(arguments: &[OsString]) -> ColorChoice {
    let mut words = arguments.iter().filter_map(|word| word.to_str());
    let mut choice = ColorChoice::Auto;
    while let Some(word) = words.next() {
        let value = match word.strip_prefix("--color") {
            Some("") => words.next(),
            Some(value) => value.strip_prefix('='),
            None if word == "--" => break,
            None => continue,
        };
        choice = match value {
            Some("always") => ColorChoice::Always,
            Some("never") => ColorChoice::Never,
            _ => ColorChoice::Auto,
        };
    }
    choice
}

/// Applies it to everything that is not written by the parser.
pub(crate) fn set_color(choice: ColorChoice) {
    match choice {
        // The console library looks at the terminal and at NO_COLOR itself.
        ColorChoice::Auto => {}
        ColorChoice::Always => console::set_colors_enabled_stderr(true),
        ColorChoice::Never => console::set_colors_enabled_stderr(false),
    }
}

/// One line a row under a head, each column as wide as its widest entry.
pub(crate) fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let head = head.map(str::to_owned);
    let rows: Vec<[String; N]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).filter_map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Lines of two columns, the second one aligned.
pub(crate) fn columns(rows: &[(String, String)]) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    rows.iter()
        .map(|(name, value)| format!("{name:<width$}  {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_color_is_found_before_parsing() {
        let choice = |words: &[&str]| {
            let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
            color_choice(&arguments)
        };
        assert_eq!(choice(&["llmq", "run"]), ColorChoice::Auto);
        assert_eq!(
            choice(&["llmq", "--color=never", "run"]),
            ColorChoice::Never
        );
        assert_eq!(
            choice(&["llmq", "run", "--color", "always"]),
            ColorChoice::Always
        );
        assert_eq!(
            choice(&["llmq", "--", "--color", "always"]),
            ColorChoice::Auto
        );
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [("a", "1"), ("long", "2")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(columns(&rows), "a     1\nlong  2\n");
    }
}
