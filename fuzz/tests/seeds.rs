//! The seeds keep the laws, whole and cut short anywhere: what fuzzing once broke stays mended.

use std::path::Path;

/// Beginnings of one seed that are checked.
const BEGINNINGS_MAX: usize = 100;

/// Checks every seed of a target, and beginnings of it.
fn check(target: &str, law: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target);
    let seeds: Vec<_> = std::fs::read_dir(folder)
        .expect("each target has seeds")
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    assert!(!seeds.is_empty());
    for seed in seeds {
        let bytes = std::fs::read(&seed).expect("a seed can be read");
        // A panic names the seed on its way out.
        let _named = Named(&seed);
        law(&bytes);
        for end in (0..bytes.len()).step_by(bytes.len().div_ceil(BEGINNINGS_MAX)) {
            law(&bytes[..end]);
        }
    }
}

struct Named<'a>(&'a Path);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed is {}", self.0.display());
        }
    }
}

#[test]
fn the_scanner_and_a_tree_of_the_same_json_agree() {
    check("scan", llmq_fuzz::scan::check);
}

#[test]
fn events_are_the_same_however_their_bytes_are_cut() {
    check("sse", llmq_fuzz::sse::check);
}

#[test]
fn headers_are_read_within_their_bounds_in_any_case() {
    check("headers", llmq_fuzz::headers::check);
}

#[test]
fn a_configuration_is_read_or_refused_and_shows_no_key() {
    check("config", llmq_fuzz::config::check);
}

#[test]
fn rows_come_in_order_with_their_own_ids() {
    check("rows", llmq_fuzz::rows::check);
}

#[test]
fn a_translation_is_json_however_its_bytes_are_cut() {
    check("translate", llmq_fuzz::translate::check);
}

#[test]
fn an_answer_is_the_same_however_its_bytes_are_cut() {
    check("answer", llmq_fuzz::answer::check);
}
