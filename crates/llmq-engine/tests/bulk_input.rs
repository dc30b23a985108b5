//! Laws of the reading half: every format, every mistake a person can make in a file.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use llmq_engine::bulk::{
    BadRow, BadRowCode, InputError, InputKind, InputSource, Item, ReadOptions, Row, RowCall,
    RowReader, StrictError, Template, count_rows, refuse_bad_rows,
};
use proptest::prelude::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> InputSource {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        InputSource::File(path)
    }
}

fn template(text: &str) -> ReadOptions {
    ReadOptions {
        template: Some(Template::parse(text).unwrap()),
        ..ReadOptions::default()
    }
}

fn with_id(options: ReadOptions, id: &str) -> ReadOptions {
    ReadOptions {
        id: Some(id.to_owned()),
        ..options
    }
}

fn open(input: &InputSource, options: ReadOptions) -> Result<RowReader, InputError> {
    RowReader::open(input, InputKind::of(input)?, options)
}

fn items(input: &InputSource, options: ReadOptions) -> Vec<Item> {
    let reader = open(input, options).unwrap();
    reader.map(Result::unwrap).collect()
}

fn message(input: &InputSource, options: ReadOptions) -> String {
    open(input, options).err().unwrap().to_string()
}

fn prompt(row: &Row) -> &str {
    match &row.call {
        RowCall::Prompt(prompt) => prompt,
        RowCall::Batch { .. } => panic!("a batch row"),
    }
}

/// Each row as `line id prompt`, each bad row as `line id !code`.
fn told(input: &InputSource, options: ReadOptions) -> Vec<String> {
    let tell = |item| match item {
        Item::Row(row) => format!("{} {} {}", row.line, row.custom_id, prompt(&row)),
        Item::Bad(bad) => format!("{} {} !{}", bad.line, bad.custom_id, bad.code),
    };
    items(input, options).into_iter().map(tell).collect()
}

fn only_bad(input: &InputSource, options: ReadOptions) -> BadRow {
    let bad = items(input, options)
        .into_iter()
        .find_map(|item| match item {
            Item::Row(_) => None,
            Item::Bad(bad) => Some(bad),
        });
    bad.unwrap()
}

#[test]
fn text_is_a_prompt_a_line_and_blank_lines_count() {
    let folder = Folder::new();
    let input = folder.file("in.txt", "one\r\n\r\n  two \n\t\nthree");
    let expected = ["1 row-1 one", "3 row-3   two ", "5 row-5 three"];
    assert_eq!(told(&input, ReadOptions::default()), expected);
    assert_eq!(told(&input, template("<{{line}}>"))[0], "1 row-1 <one>");
    assert_eq!(count_rows(&input, "txt".parse().unwrap(), None).unwrap(), 3);
}

#[test]
fn a_table_is_numbered_by_record_and_tells_the_line_of_each() {
    let folder = Folder::new();
    let text =
        "\u{FEFF}id,name\r\na,\"line\r\nbreak, \"\"q\"\"\"\r\n\r\nb,two\r\na,again\r\nc\r\n,x\r\n";
    let input = folder.file("in.csv", text);
    let options = with_id(template("{{name}}!"), "id");
    assert_eq!(
        told(&input, options.clone()),
        [
            "1 a line\r\nbreak, \"q\"!",
            "2 b two!",
            "3 a !duplicate_id",
            "4 row-4 !uneven_row",
            "5 row-5 !missing_column",
        ]
    );
    let bad = only_bad(&input, options);
    assert_eq!((bad.line, bad.physical_line), (3, 6));
    assert_eq!(
        bad.message,
        "line 6: the id \"a\" was used by an earlier row"
    );
}

#[test]
fn objects_become_prompts_and_broken_ones_bad_rows() {
    let folder = Folder::new();
    let mut text = b"{\"name\":\"A\",\"n\":1.0}\n{\"name\":\"B\"}\nnot json\n[1]\n\n".to_vec();
    text.extend(b"{\"name\":\"\xFF\"}\n{\"n\":7,\"name\":{\"x\": [1, 2]}}\n{\"n\":");
    let input = folder.file("in.jsonl", text);
    assert_eq!(
        told(&input, template("{{name}} {{n}}")),
        [
            "1 row-1 A 1.0",
            "2 row-2 !missing_column",
            "3 row-3 !invalid_json",
            "4 row-4 !invalid_json",
            "6 row-6 !invalid_utf8",
            "7 row-7 {\"x\":[1,2]} 7",
            "8 row-8 !invalid_json",
        ]
    );
    let bad = items(&input, template("{{name}} {{n}}")).swap_remove(2);
    let Item::Bad(bad) = bad else { panic!() };
    assert_eq!(
        bad.message,
        "line 3: not a JSON object: expected ident at column 2"
    );
}

#[test]
fn an_id_may_be_any_value_but_none() {
    let folder = Folder::new();
    let text = "{\"k\":7}\n{\"k\":null}\n{\"k\":\"\"}\n{}\n{\"k\":[1, 2]}\n{\"k\":\"7\"}\n";
    let input = folder.file("in.jsonl", text);
    assert_eq!(
        told(&input, with_id(template("x"), "k")),
        [
            "1 7 x",
            "2 row-2 !missing_column",
            "3 row-3 !missing_column",
            "4 row-4 !missing_column",
            "5 [1,2] x",
            "6 7 !duplicate_id",
        ]
    );
}

#[test]
fn batch_rows_bring_their_own_calls() {
    let folder = Folder::new();
    let row = |id: &str, method: &str, url: &str, body: &str| {
        format!(
            "{{\"custom_id\":{id},\"method\":\"{method}\",\"url\":\"{url}\",\"body\":{body}}}\n"
        )
    };
    let chat = "/v1/chat/completions";
    let text = [
        row("\"a\"", "POST", chat, "{\"model\" : \"m\", \"x\": 1.50}"),
        row("\"b\"", "GET", chat, "{}"),
        row("\"c\"", "POST", "/v1/nothing", "{}"),
        row("\"d\"", "POST", chat, "[]"),
        row("7", "POST", chat, "{}"),
        row("\"a\"", "POST", chat, "{}"),
        "{\"custom_id\":\"e\",\"url\":\"/v1/embeddings\",\"body\":{}}\n".to_owned(),
    ]
    .concat();
    let input = folder.file("in.jsonl", text);
    let items = items(&input, ReadOptions::default());
    let Item::Row(first) = &items[0] else {
        panic!()
    };
    let RowCall::Batch { url, body } = &first.call else {
        panic!()
    };
    assert_eq!((first.custom_id.as_str(), url.as_str()), ("a", chat));
    assert_eq!(
        body.get(),
        "{\"model\" : \"m\", \"x\": 1.50}",
        "bytes pass untouched"
    );
    let bad: Vec<(String, BadRowCode)> = items[1..]
        .iter()
        .map(|item| match item {
            Item::Bad(bad) => (bad.custom_id.clone(), bad.code),
            Item::Row(row) => panic!("{row:?}"),
        })
        .collect();
    let expected = [
        ("b", BadRowCode::InvalidField),
        ("c", BadRowCode::InvalidField),
        ("d", BadRowCode::InvalidField),
        ("row-5", BadRowCode::InvalidField),
        ("a", BadRowCode::DuplicateId),
        ("e", BadRowCode::MissingField),
    ];
    assert_eq!(bad, expected.map(|(id, code)| (id.to_owned(), code)));
}

#[test]
fn mistakes_in_the_whole_file_are_told_before_the_first_row() {
    let folder = Folder::new();
    let csv = folder.file("in.csv", "id,name\n1,x\n");
    let jsonl = folder.file("in.jsonl", "{\"id\":1,\"name\":\"x\"}\n");
    for input in [&csv, &jsonl] {
        let told = message(input, template("{{nmae}}"));
        assert!(told.contains("--template names \"nmae\"") && told.contains("it has id, name"));
        let told = message(input, with_id(template("{{name}}"), "key"));
        assert!(told.contains("--id names \"key\"") && told.contains("it has id, name"));
        let told = message(input, ReadOptions::default());
        assert!(
            told.contains("--template \"… {{id}} …\"; columns are id, name"),
            "{told}"
        );
    }
    let txt = folder.file("in.txt", "x\n");
    assert!(message(&txt, template("{{x}}")).contains("it has line"));
    assert!(message(&txt, with_id(ReadOptions::default(), "x")).contains("--id cannot be used"));
    let batch = folder.file("b.jsonl", "{\"custom_id\":\"a\",\"body\":{}}\n");
    assert!(message(&batch, with_id(ReadOptions::default(), "x")).contains("custom_id"));
    let twice = folder.file("t.csv", "a,a\n1,2\n");
    assert!(message(&twice, template("{{a}}")).contains("\"a\" is there twice"));
}

#[test]
fn an_empty_file_is_told_by_name() {
    let folder = Folder::new();
    for (name, content) in [
        ("e.jsonl", ""),
        ("b.jsonl", "\n \n"),
        ("e.txt", "\u{FEFF}"),
        ("e.csv", ""),
        ("h.csv", "id,name\n"),
    ] {
        let input = folder.file(name, content);
        let error = open(&input, template("{{name}}{{line}}")).err().unwrap();
        assert!(matches!(error, InputError::Empty { .. }), "{name}: {error}");
        assert!(error.to_string().contains(name));
    }
}

#[test]
fn files_that_are_something_else_are_told() {
    let folder = Folder::new();
    let utf16 = folder.file("in.csv", b"\xFF\xFEi\0d\0");
    assert!(message(&utf16, template("{{id}}")).contains("UTF-16"));
    let packed = folder.file("packed.txt", b"\x1F\x8B\x08\x00");
    assert!(message(&packed, ReadOptions::default()).contains("gzip"));
    let not_packed = folder.file("plain.txt.gz", b"plain");
    assert!(message(&not_packed, ReadOptions::default()).contains("plain.txt.gz"));
    let missing = InputSource::from_argument("no/such/file.txt");
    assert!(message(&missing, ReadOptions::default()).contains("no/such/file.txt"));
    let directory = InputSource::File(folder.0.path().join("d.txt"));
    std::fs::create_dir(folder.0.path().join("d.txt")).unwrap();
    assert!(message(&directory, ReadOptions::default()).contains("cannot open"));
}

#[test]
fn a_row_of_five_megabytes_is_fine_and_one_above_the_limit_is_bad() {
    let folder = Folder::new();
    let long = "x".repeat(5 << 20);
    let input = folder.file("in.txt", format!("a\n{long}\nb\n"));
    let rows = items(&input, ReadOptions::default());
    let Item::Row(row) = &rows[1] else { panic!() };
    assert_eq!(prompt(row).len(), 5 << 20);
    let options = ReadOptions {
        max_row_bytes: 1 << 20,
        ..ReadOptions::default()
    };
    let expected = ["1 row-1 a", "2 row-2 !row_too_long", "3 row-3 b"];
    assert_eq!(told(&input, options), expected);
}

#[test]
fn an_open_quote_is_a_bad_row_that_names_its_line() {
    let folder = Folder::new();
    let input = folder.file("in.csv", "name\nfine\n\"open\nand on\n");
    let bad = only_bad(&input, template("{{name}}"));
    assert_eq!((bad.line, bad.physical_line), (2, 3));
    assert!(
        bad.message
            .starts_with("line 3: a quote is opened and never closed")
    );
}

#[test]
fn only_so_many_rows_are_given() {
    let folder = Folder::new();
    let input = folder.file("in.txt", "a\n\nb\nc\n");
    let limited = |limit_rows| ReadOptions {
        limit_rows: Some(limit_rows),
        ..ReadOptions::default()
    };
    assert_eq!(told(&input, limited(2)), ["1 row-1 a", "3 row-3 b"]);
    assert_eq!(told(&input, limited(0)), [""; 0]);
}

#[test]
fn a_strict_reading_names_the_first_bad_row_and_counts_them() {
    let folder = Folder::new();
    let input = folder.file("in.csv", "id,name\n1,a\n1,b\nx\n");
    let options = with_id(template("{{name}}"), "id");
    let kind = InputKind::of(&input).unwrap();
    let error = refuse_bad_rows(&input, kind, options.clone()).unwrap_err();
    assert!(matches!(&error, StrictError::BadRows { count: 2, first, .. } if first.len() == 2));
    assert!(
        error
            .to_string()
            .contains("the first: line 3: the id \"1\" was used")
    );
    let good = folder.file("good.csv", "id,name\n1,a\n");
    assert_eq!(refuse_bad_rows(&good, kind, options).unwrap(), 1);
}

#[test]
fn a_packed_file_that_is_cut_off_gives_its_rows_and_then_an_error() {
    let folder = Folder::new();
    let mut text = String::new();
    for n in 0..20_000_u32 {
        writeln!(text, "prompt {}", n.wrapping_mul(2_654_435_761)).unwrap();
    }
    let packed = gzip(text.as_bytes());
    let input = folder.file("in.txt.gz", &packed[..packed.len() / 2]);
    let mut reader = open(&input, ReadOptions::default()).unwrap();
    let rows = reader.by_ref().take_while(Result::is_ok).count();
    assert!(rows > 1_000);
    assert!(reader.next().is_none(), "an error ends the reading");
    let error = count_rows(&input, InputKind::of(&input).unwrap(), None).unwrap_err();
    assert!(error.to_string().contains("beyond line"), "{error}");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_same_rows_come_from_every_packing_and_line_end(
        values in prop::collection::vec("[a-zé\",\t ]{0,12}", 1..20),
        has_mark in any::<bool>(),
        is_crlf in any::<bool>(),
        is_tsv in any::<bool>(),
    ) {
        let folder = Folder::new();
        let mut writer = csv::WriterBuilder::new()
            .delimiter(if is_tsv { b'\t' } else { b',' })
            .terminator(if is_crlf { csv::Terminator::CRLF } else { csv::Terminator::Any(b'\n') })
            .from_writer(Vec::new());
        writer.write_record(["key", "value"]).unwrap();
        for value in &values {
            writer.write_record(["k", value]).unwrap();
        }
        let mut text = if has_mark { b"\xEF\xBB\xBF".to_vec() } else { Vec::new() };
        text.extend(writer.into_inner().unwrap());
        let ending = if is_tsv { "tsv" } else { "csv" };
        let expected: Vec<String> =
            values.iter().zip(1..).map(|(value, n)| format!("{n} row-{n} k:{value}")).collect();
        // Two members or frames in one file are one input.
        let (first, second) = text.split_at(text.len() / 2);
        let zstd = |part| zstd::encode_all(part, 1).unwrap();
        for (name, content) in [
            (format!("in.{ending}"), text.clone()),
            (format!("in.{ending}.gz"), [gzip(first), gzip(second)].concat()),
            (format!("in.{ending}.zst"), [zstd(first), zstd(second)].concat()),
        ] {
            let input = folder.file(&name, content);
            prop_assert_eq!(&told(&input, template("{{key}}:{{value}}")), &expected);
        }
    }

    #[test]
    fn any_bytes_give_an_error_or_rows_in_ascending_order(
        bytes in prop::collection::vec(prop::sample::select(b"a\",\n\r{}:\xFF1".to_vec()), 1..60),
    ) {
        let folder = Folder::new();
        for name in ["x.jsonl", "x.csv", "x.tsv", "x.txt"] {
            let input = folder.file(name, &bytes);
            for options in [ReadOptions::default(), template("x")] {
                let Ok(reader) = open(&input, options) else { continue };
                let lines: Vec<u64> = reader.map(|item| item.unwrap().line()).collect();
                prop_assert!(lines.is_sorted_by(|a, b| a < b));
            }
        }
    }
}

#[test]
fn the_example_of_42_888_places_is_read_whole() {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/places.csv");
    let input = InputSource::File(path);
    let text = "Write a two-sentence introduction to {{name}}, {{region}}, {{country}}.";
    let mut rows = 0;
    for item in open(&input, with_id(template(text), "id")).unwrap() {
        let Item::Row(row) = item.unwrap() else {
            panic!("a bad row")
        };
        rows += 1;
        assert_eq!(row.line, rows);
        assert_eq!(row.custom_id, format!("place-{rows:05}"));
        if rows == 3 {
            assert_eq!(
                prompt(&row),
                "Write a two-sentence introduction to Palmillas, Guerrero, MX."
            );
        }
    }
    assert_eq!(rows, 42_888);
}
