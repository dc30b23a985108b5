//! Laws of the writing half: what a crash can leave, and what a resumed run makes of it.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use llmq_core::Timestamp;
use llmq_engine::bulk::{
    Answer, InputKind, InputSource, Item, Journal, JournalError, JournalFile, Output, OutputFormat,
    OutputPaths, ReadOptions, Resumed, RowError, RowReader, RowResult, Template, VerifyReport,
    forget_failed, set_aside, verify,
};
use llmq_testkit::SmallFile;
use proptest::prelude::*;

struct Run {
    folder: tempfile::TempDir,
    paths: OutputPaths,
}

impl Run {
    fn new(output: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let paths = OutputPaths {
            output: folder.path().join(output),
            errors: None,
        };
        Self { folder, paths }
    }

    fn with_errors(output: &str, errors: &str) -> Self {
        let mut run = Self::new(output);
        run.paths.errors = Some(run.folder.path().join(errors));
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> (Output, Resumed) {
        Output::open(&self.paths).unwrap()
    }

    fn write(&self, rows: &[(u64, Result<&str, &str>)]) {
        let (mut output, _) = self.open();
        for (line, outcome) in rows {
            output
                .append(&row(*line, *outcome), Timestamp::ZERO)
                .unwrap();
        }
        output.sync().unwrap();
    }

    fn content(&self) -> Vec<u8> {
        fs::read(&self.paths.output).unwrap()
    }

    fn done(&self) -> Vec<u64> {
        self.open().1.done.iter().collect()
    }
}

fn row<'a>(line: u64, outcome: Result<&'a str, &'a str>) -> RowResult<'a> {
    RowResult {
        line,
        custom_id: "an id",
        answer: outcome.ok().map(|body| Answer {
            status_code: 200,
            request_id: None,
            body: body.as_bytes(),
            text: body,
            tokens: Some(1_000),
        }),
        error: outcome.err().map(|message| RowError {
            code: "row_fault",
            message,
        }),
        attempts: 1,
        ambiguous_attempts: 0,
        queued_ms: 10,
        took_ms: 20,
    }
}

/// The rows whose last byte lies before each offset, by reading the whole file independently:
/// after each row's append and flush its length was noted.
fn grow(run: &Run, rows: &[(u64, Result<&str, &str>)]) -> BTreeMap<usize, u64> {
    let (mut output, _) = run.open();
    let mut ends = BTreeMap::new();
    for (line, outcome) in rows {
        output
            .append(&row(*line, *outcome), Timestamp::ZERO)
            .unwrap();
        output.flush().unwrap();
        ends.insert(run.content().len(), *line);
    }
    ends
}

/// Among them an answer that imitates the end of a line.
const ROWS: [(u64, Result<&str, &str>); 5] = [
    (3, Ok("{\n \"text\": \"line\\nbreak, \\\"quoted\\\"\"\n}")),
    (1, Ok("not json\nbut two lines")),
    (7, Err("it said \"no\",\nand é")),
    (
        12,
        Ok("{\"a\":1,\"llmq\":{\"line\":99,\"attempts\":1,\"queued_ms\":0,\"took_ms\":0}}"),
    ),
    (123, Ok("\"\"")),
];

#[test]
fn cut_at_every_byte_no_whole_row_is_lost_and_no_torn_one_kept() {
    for name in ["out.jsonl", "out.csv"] {
        let full = Run::new(name);
        let ends = grow(&full, &ROWS);
        let bytes = full.content();
        for cut in 0..=bytes.len() {
            let run = Run::new(name);
            fs::write(&run.paths.output, &bytes[..cut]).unwrap();
            let (mut output, resumed) = run.open();
            // In JSON a last line that lacks only its line break is whole.
            let is_json = name == "out.jsonl";
            let whole = |end: usize| end <= cut || (is_json && end == cut + 1);
            let mut expected: Vec<u64> = ends
                .iter()
                .filter(|&(&end, _)| whole(end))
                .map(|(_, &line)| line)
                .collect();
            let last_end = ends.keys().copied().filter(|&end| whole(end)).max();
            expected.sort_unstable();
            assert_eq!(
                resumed.done.iter().collect::<Vec<_>>(),
                expected,
                "{name} cut at {cut}"
            );
            if is_json {
                let torn = cut.saturating_sub(last_end.unwrap_or(0));
                assert_eq!(resumed.torn_bytes, torn as u64, "{name} cut at {cut}");
            }
            // What follows stands on a line of its own.
            output.append(&row(500, Ok("1")), Timestamp::ZERO).unwrap();
            output.flush().unwrap();
            expected.push(500);
            drop(output);
            let (_, again) = run.open();
            assert_eq!(
                again.done.iter().collect::<Vec<_>>(),
                expected,
                "{name} cut at {cut}"
            );
            assert_eq!(
                (again.torn_bytes, again.damaged_rows, again.duplicates),
                (0, 0, 0)
            );
        }
    }
}

#[test]
fn a_hole_anywhere_loses_only_the_rows_it_touches() {
    let full = Run::new("out.jsonl");
    let ends = grow(&full, &ROWS);
    let bytes = full.content();
    for start in (0..bytes.len()).step_by(11) {
        for length in [1, 64, 512] {
            let mut holed = bytes.clone();
            let hole = start..(start + length).min(bytes.len());
            holed[hole.clone()].fill(0);
            let run = Run::new("out.jsonl");
            fs::write(&run.paths.output, &holed).unwrap();
            let begins = std::iter::once(0).chain(ends.keys().copied());
            let mut expected: Vec<u64> = begins
                .zip(&ends)
                // A line break that is gone joins two rows: the next one is lost too.
                .filter(|&(begin, (&end, _))| {
                    let before = begin.saturating_sub(1);
                    hole.end <= before || hole.start >= end
                })
                .map(|(_, (_, &line))| line)
                .collect();
            expected.sort_unstable();
            assert_eq!(run.done(), expected, "hole {hole:?}");
            let (_, again) = run.open();
            assert_eq!(
                (again.torn_bytes, again.damaged_rows),
                (0, 0),
                "repaired once"
            );
            assert!(!run.content().contains(&0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_rows_cut_anywhere_resume_as_the_whole_rows_before_the_cut(
        rows in prop::collection::vec((1_u64..10_000, any::<bool>(), ".{0,40}"), 1..12),
        cut in 0.0..1.0_f64,
        is_csv in any::<bool>(),
    ) {
        let name = if is_csv { "out.csv" } else { "out.jsonl" };
        let run = Run::new(name);
        let rows: BTreeMap<u64, Result<&str, &str>> = rows
            .iter()
            .map(|(line, failed, text)| (*line, if *failed { Err(&**text) } else { Ok(&**text) }))
            .collect();
        let rows: Vec<_> = rows.into_iter().collect();
        let ends = grow(&run, &rows);
        let bytes = run.content();
        let cut = (bytes.len() as f64 * cut).floor();
        let cut = bytes.iter().zip(0_u32..).take_while(|(_, at)| f64::from(*at) < cut).count();
        fs::write(&run.paths.output, &bytes[..cut]).unwrap();
        let whole = |end: usize| end <= cut || (!is_csv && end == cut + 1);
        let expected: Vec<u64> =
            ends.iter().filter(|&(&end, _)| whole(end)).map(|(_, &line)| line).collect();
        let (_, resumed) = run.open();
        prop_assert_eq!(resumed.done.iter().collect::<Vec<_>>(), expected);
        for (line, outcome) in &rows {
            let is_failed = resumed.done.contains(*line) && outcome.is_err();
            prop_assert_eq!(resumed.failed.contains(*line), is_failed);
        }
    }
}

/// A file that remembers how much of it was synced.
struct Recorder(SmallFile);

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl JournalFile for Recorder {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync();
        Ok(())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.0.cut(length);
        Ok(())
    }
}

/// What a power cut can leave: what was synced, and of the rest any sectors of 512 bytes.
fn after_power_cut(file: &SmallFile, kept_sectors: &[bool], kept_length: usize) -> Vec<u8> {
    let mut image = file.content.clone();
    for (sector, bytes) in image.chunks_mut(512).enumerate() {
        let unsynced = file
            .synced_bytes
            .saturating_sub(sector * 512)
            .min(bytes.len());
        if !kept_sectors[sector % kept_sectors.len()] {
            bytes[unsynced..].fill(0);
        }
    }
    image.truncate(kept_length.max(file.synced_bytes));
    image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_power_cut_takes_no_row_that_was_synced_and_invents_none(
        lengths in prop::collection::vec((0_usize..900, any::<bool>()), 1..16),
        synced_rows in 0_usize..8,
        kept_sectors in prop::collection::vec(any::<bool>(), 1..40),
        kept_length in 0_usize..20_000,
        is_csv in any::<bool>(),
    ) {
        let (name, format) = if is_csv {
            ("out.csv", OutputFormat::Csv)
        } else {
            ("out.jsonl", OutputFormat::Jsonl)
        };
        let run = Run::new(name);
        // The file as it lies there when it was opened, with its header.
        drop(run.open());
        let file = SmallFile::holding(run.content());
        let length = file.content.len() as u64;
        let mut journal = Journal::over(Recorder(file), &run.paths.output, format, length);
        let mut rows = 0;
        let mut synced = 0;
        for (length, is_failed) in lengths {
            rows += 1;
            // Text that looks like records, should a quote be lost.
            let text = "x,y,,,77\n\"".repeat(length / 10);
            let outcome = if is_failed { Err(&*text) } else { Ok(&*text) };
            journal.append(&row(rows, outcome), Timestamp::ZERO).unwrap();
            if rows == synced_rows as u64 {
                journal.sync().unwrap();
                synced = rows;
            }
        }
        journal.flush().unwrap();
        let image = after_power_cut(&journal.file().0, &kept_sectors, kept_length);
        fs::write(&run.paths.output, &image).unwrap();
        let done = run.done();
        prop_assert!((1..=synced).all(|row| done.contains(&row)), "{done:?} of {synced}");
        prop_assert!(done.iter().all(|row| (1..=rows).contains(row)), "{done:?} of {rows}");
        prop_assert_eq!(run.done(), done, "what was repaired stays so");
        prop_assert!(!run.content().contains(&0));
    }
}

#[test]
fn failed_rows_go_to_their_own_file_and_are_done_there() {
    let run = Run::with_errors("out.jsonl", "errors.csv");
    run.write(&ROWS);
    let errors = fs::read_to_string(run.path("errors.csv")).unwrap();
    assert_eq!(
        errors,
        "id,text,tokens,error,line\nan id,,,\"row_fault: it said \"\"no\"\",\nand é\",7\n"
    );
    let (_, resumed) = run.open();
    assert_eq!(resumed.done.iter().collect::<Vec<_>>(), [1, 3, 7, 12, 123]);
    assert_eq!((resumed.completed(), resumed.failed.len()), (4, 1));
}

#[test]
fn failed_rows_can_be_forgotten_wherever_they_are() {
    for errors in [None, Some("errors.jsonl")] {
        for name in ["out.jsonl", "out.csv"] {
            // A first run without --errors leaves failures in OUTPUT, a later one beside it.
            let mut run = Run::new(name);
            run.write(&ROWS);
            run.paths.errors = errors.map(|errors| run.path(errors));
            run.write(&[(8, Err("later"))]);
            assert_eq!(forget_failed(&run.paths).unwrap(), 2);
            assert_eq!(run.done(), [1, 3, 12, 123]);
            assert_eq!(forget_failed(&run.paths).unwrap(), 0);
            assert!(!beside(&run.paths.output, ".tmp").exists());
        }
    }
}

#[test]
fn forgetting_repairs_a_last_row_without_its_line_break() {
    let run = Run::new("out.jsonl");
    run.write(&ROWS);
    let bytes = run.content();
    fs::write(&run.paths.output, &bytes[..bytes.len() - 1]).unwrap();
    forget_failed(&run.paths).unwrap();
    run.write(&[(7, Ok("1"))]);
    assert_eq!(run.done(), [1, 3, 7, 12, 123]);
}

#[test]
fn paid_results_are_set_aside_and_never_overwritten() {
    let run = Run::new("out.jsonl");
    assert_eq!(set_aside(&run.paths.output).unwrap(), None);
    for number in 1..=3 {
        run.write(&[(number, Ok("1"))]);
        let old = set_aside(&run.paths.output).unwrap().unwrap();
        assert_eq!(old, run.path(&format!("out.jsonl.{number}")));
        assert!(
            fs::read_to_string(old)
                .unwrap()
                .contains(&format!("\"line\":{number},"))
        );
        assert!(!run.paths.output.exists());
    }
}

#[test]
fn a_file_that_is_not_ours_is_left_untouched() {
    for (name, content) in [
        ("out.jsonl", "hello"),
        ("out.jsonl", "a\nb\n"),
        ("out.jsonl", "{\"custom_id\":\"a\",\"method\":\"POST\"}\n"),
        ("out.jsonl", "id,name\n1,2\n"),
        // An answer that was saved without a line break was taken for a torn line, and removed.
        (
            "out.jsonl",
            "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\"}",
        ),
        ("out.jsonl", "{\"id\":\"chatcmpl-1\",\"object\":\"chat.com"),
        ("out.jsonl", "{\"id\":\"batch_req_1\",\"custom_id\":\"a\"}"),
        ("out.csv", "id,name\n1,2\n"),
        (
            "out.csv",
            "id,text,tokens,error,line\na,b,c,d,not a number\n",
        ),
        ("out.csv", "hello"),
    ] {
        let run = Run::new(name);
        fs::write(&run.paths.output, content).unwrap();
        let error = Output::open(&run.paths).unwrap_err();
        assert!(
            matches!(error, JournalError::NotOurs { .. }),
            "{content}: {error}"
        );
        assert!(error.to_string().contains(name));
        assert_eq!(run.content(), content.as_bytes());
    }
}

#[test]
fn a_place_where_nothing_can_be_written_is_told() {
    let error = |output: PathBuf, errors: Option<PathBuf>| {
        Output::open(&OutputPaths { output, errors }).unwrap_err()
    };
    let folder = tempfile::tempdir().unwrap();
    let inside = |name: &str| folder.path().join(name);
    assert!(matches!(
        error(inside("no/out.jsonl"), None),
        JournalError::MissingDirectory { .. }
    ));
    assert!(matches!(
        error(folder.path().to_owned(), None),
        JournalError::NotAFile { .. }
    ));
    assert!(matches!(
        error(inside("out.jsonl.gz"), None),
        JournalError::Packed { .. }
    ));
    assert!(matches!(
        error(inside("out.jsonl"), Some(inside("./out.jsonl"))),
        JournalError::SameFile { .. }
    ));
    if cfg!(target_os = "linux") {
        assert!(matches!(
            error(PathBuf::from("/dev/full"), None),
            JournalError::NotAFile { .. }
        ));
    }
}

/// Each name had a lock of its own: two runs wrote to one file, and all rows were sent twice.
#[cfg(unix)]
#[test]
fn another_name_of_an_output_that_is_open_is_no_second_output() {
    let mut run = Run::new("out.jsonl");
    run.write(&ROWS);
    let link = run.path("link.jsonl");
    let (output, _) = run.open();
    // Made while it is written.
    fs::hard_link(&run.paths.output, &link).unwrap();
    let linked = OutputPaths {
        output: link.clone(),
        errors: None,
    };
    let before = run.content();
    let error = Output::open(&linked).unwrap_err();
    assert!(matches!(error, JournalError::Held { .. }), "{error}");
    let error = forget_failed(&linked).unwrap_err();
    assert!(matches!(error, JournalError::Held { .. }), "{error}");
    assert_eq!(run.content(), before);
    drop(output);
    let (_, resumed) = Output::open(&linked).unwrap();
    assert_eq!(resumed.done.len(), 5);
    run.paths.errors = Some(link);
    let error = run.paths.check().unwrap_err();
    assert!(matches!(error, JournalError::SameFile { .. }), "{error}");
}

#[test]
fn the_reserve_lies_beside_the_output_while_it_is_open() {
    let run = Run::new("out.jsonl");
    let (mut output, _) = run.open();
    output.set_reserve(&run.paths.output, 100_000).unwrap();
    let reserve = run.path("out.jsonl.reserve");
    assert_eq!(fs::metadata(&reserve).unwrap().len(), 100_000);
    drop(output);
    assert!(!reserve.exists());
}

fn verified(run: &Run) -> VerifyReport {
    let input = InputSource::File(run.path("in.txt"));
    verify(&input, InputKind::of(&input).unwrap(), None, &run.paths).unwrap()
}

#[test]
fn the_proof_holds_for_a_whole_run_and_for_no_other() {
    let run = Run::with_errors("out.jsonl", "errors.jsonl");
    fs::write(run.path("in.txt"), "1\n2\n\n4\n5\n6\n").unwrap();
    run.write(&[
        (2, Ok("1")),
        (1, Ok("1")),
        (6, Ok("1")),
        (4, Err("no")),
        (5, Ok("1")),
    ]);
    let whole = verified(&run);
    assert!(whole.is_whole(), "{whole}");
    assert_eq!((whole.rows, whole.completed, whole.failed), (5, 4, 1));
    let good = run.content();
    let lines: Vec<&[u8]> = good.split_inclusive(|&byte| byte == b'\n').collect();

    let check = |content: &[u8], expected: &str| {
        fs::write(&run.paths.output, content).unwrap();
        let report = verified(&run);
        assert!(!report.is_whole());
        assert!(report.to_string().contains(expected), "{report}");
        assert_eq!(run.content(), content, "a proof changes nothing");
    };
    // A lost row; two of them, with a failed one between; rows twice, in one file and across.
    check(&lines[1..].concat(), "1 missing (rows 2),");
    check(&[lines[0], lines[1]].concat(), "2 missing (rows 5-6)");
    check(&[lines[1], lines[3]].concat(), "2 missing (rows 2, 6)");
    check(&[&good, lines[0]].concat(), "1 written twice");
    let stranger = String::from_utf8(lines[0].to_vec()).unwrap();
    let stranger = stranger.replace("\"line\":2", "\"line\":3");
    check(&[&good, stranger.as_bytes()].concat(), "1 unknown");
    check(
        &good[..good.len() - 5],
        "1 missing (rows 5), 0 written twice",
    );
    fs::write(&run.paths.output, &good[..good.len() - 5]).unwrap();
    assert_eq!(verified(&run).torn_bytes, lines[3].len() as u64 - 5);
    let mut holed = good;
    holed[10..20].fill(0);
    check(
        &holed,
        "1 missing (rows 2), 0 written twice, 0 unknown, 1 damaged",
    );
}

#[test]
fn good_and_bad_rows_of_an_input_are_all_done_and_proven() {
    let run = Run::new("out.csv");
    let text = "id,name\na,x\na,again\nuneven\n\nrow-2,\"two\nlines\"\n";
    fs::write(run.path("in.csv"), text).unwrap();
    let input = InputSource::File(run.path("in.csv"));
    let kind = InputKind::of(&input).unwrap();
    let options = ReadOptions {
        template: Some(Template::parse("{{name}}").unwrap()),
        id: Some("id".to_owned()),
        ..ReadOptions::default()
    };
    // One row a session, as if each were cut short.
    for _ in 0..4 {
        let (mut output, resumed) = run.open();
        let reader = RowReader::open(&input, kind, options.clone()).unwrap();
        let mut left = reader
            .map(Result::unwrap)
            .filter(|item| !resumed.done.contains(item.line()));
        let result = match left.next().unwrap() {
            Item::Row(done) => output.append(&row(done.line, Ok("1")), Timestamp::ZERO),
            Item::Bad(bad) => output.append(&RowResult::from(&bad), Timestamp::ZERO),
        };
        result.unwrap();
        output.sync().unwrap();
    }
    let report = verify(&input, kind, None, &run.paths).unwrap();
    assert!(report.is_whole(), "{report}");
    assert_eq!((report.completed, report.failed), (2, 2));
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
