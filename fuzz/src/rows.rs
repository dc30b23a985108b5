//! The rows of a bulk run's input.
//!
//! An input is a line with the format, a template and a column for ids, between tabs, each of
//! which may be empty; the rest is the file.

use std::cell::RefCell;
use std::io::{Seek, Write};

use llmq_engine::bulk::{
    BATCH_URLS, InputError, InputKind, InputSource, Item, ReadOptions, RowCall, RowReader,
    Template, count_rows,
};
use tempfile::NamedTempFile;

use crate::first_line;

/// Small enough that inputs reach it.
const SMALL_ROW: usize = 40;

thread_local! {
    static FILE: RefCell<NamedTempFile> =
        RefCell::new(NamedTempFile::new().expect("a temporary file can be made"));
}

/// Any file is read to its end or to an error: rows in their order, no id twice, bodies that are
/// one line of JSON, as many rows as are counted, and short rows the same beside long ones that
/// are refused.
pub fn check(data: &[u8]) {
    let (settings, file) = first_line(data);
    let mut settings = settings.splitn(3, '\t');
    let mut next = || settings.next().filter(|text| !text.is_empty());
    let Some(Ok(kind)) = next().map(str::parse::<InputKind>) else {
        return;
    };
    let options = ReadOptions {
        template: next().and_then(|text| Template::parse(text).ok()),
        id: next().map(str::to_owned),
        max_row_bytes: 1 << 20,
        ..ReadOptions::default()
    };
    let source = written(file);
    let Ok(rows) = read(&source, kind, &options) else {
        return;
    };
    assert_eq!(
        count_rows(&source, kind, None).ok(),
        Some(rows.len() as u64)
    );
    for pair in rows.windows(2) {
        assert!(pair[0].line() < pair[1].line());
    }
    rows.iter().for_each(sound);
    no_id_twice(&rows, &options);

    let small = ReadOptions {
        max_row_bytes: SMALL_ROW,
        ..options
    };
    let Ok(short) = read(&source, kind, &small) else {
        return;
    };
    // A long row may change what the first rows tell of their kind, and ids used by it are free.
    if small.id.is_none() && small.template.is_some() && short.len() == rows.len() {
        for (short, row) in short.iter().zip(&rows) {
            if let (Item::Row(short), Item::Row(row)) = (short, row) {
                assert_eq!(prompt(&short.call), prompt(&row.call));
            }
        }
    }
}

fn written(bytes: &[u8]) -> InputSource {
    FILE.with_borrow_mut(|file| {
        file.as_file_mut()
            .set_len(0)
            .expect("a temporary file can be cut");
        file.rewind().expect("a file has a beginning");
        file.write_all(bytes).expect("there is room for it");
        InputSource::File(file.path().to_owned())
    })
}

fn read(
    source: &InputSource,
    kind: InputKind,
    options: &ReadOptions,
) -> Result<Vec<Item>, InputError> {
    RowReader::open(source, kind, options.clone())?.collect()
}

fn sound(item: &Item) {
    match item {
        Item::Bad(bad) => assert!(!bad.message.is_empty() && !bad.custom_id.is_empty()),
        Item::Row(row) => {
            assert!(!row.custom_id.is_empty());
            if let RowCall::Batch { url, body } = &row.call {
                assert!(BATCH_URLS.contains(&url.as_str()));
                assert!(!body.get().contains(['\n', '\r']) && body.get().starts_with('{'));
            }
        }
    }
}

fn no_id_twice(rows: &[Item], options: &ReadOptions) {
    let good = rows.iter().filter_map(|item| match item {
        Item::Row(row) => Some(row),
        Item::Bad(_) => None,
    });
    let mut ids: Vec<&str> = good
        // A row may have chosen the name that another one without a name is given.
        .filter(|row| options.id.is_some() || matches!(row.call, RowCall::Batch { .. }))
        .map(|row| row.custom_id.as_str())
        .collect();
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]));
}

fn prompt(call: &RowCall) -> Option<&str> {
    match call {
        RowCall::Prompt(prompt) => Some(prompt),
        RowCall::Batch { .. } => None,
    }
}
