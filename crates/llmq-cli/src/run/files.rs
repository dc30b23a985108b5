use std::path::{Path, PathBuf};

use llmq_engine::bulk::{InputSource, OutputPaths, Side, same_file};

use super::args::RunArgs;
use crate::exit::Failure;

/// What a run keeps beside OUTPUT: the ending of its side file, and those that others have in its
/// place.
const BESIDE: [&str; 3] = ["llmq", "lock", "reserve"];

/// Refuses a file that a run would write to under two names, or read from as well: one of both
/// would be lost.
pub(super) fn are_distinct(
    args: &RunArgs,
    source: &InputSource,
    paths: &OutputPaths,
) -> Result<(), Failure> {
    let input = match source {
        InputSource::File(path) => Some(path),
        InputSource::Stdin => None,
    };
    let mut others: Vec<(&str, PathBuf)> = Vec::new();
    let read = [
        ("INPUT", input),
        ("--template-file", args.prompt.template_file.as_ref()),
    ];
    others.extend(read.into_iter().filter_map(named));
    let written = [
        ("OUTPUT", Some(&paths.output)),
        ("--errors", paths.errors.as_ref()),
        ("--summary", args.summary.as_ref()),
        ("--log", args.log.log.as_ref()),
    ];
    let side = Side::path_of(&paths.output);
    let kept = BESIDE.map(|ending| {
        let path = side.with_extension(ending);
        ("what llmq keeps beside OUTPUT", path)
    });
    for (name, path) in written.into_iter().filter_map(named).chain(kept) {
        if let Some((other, _)) = others.iter().find(|(_, other)| is_one(&path, other)) {
            return Err(Failure::usage(format!(
                "{} is named for both {other} and {name}; choose two files",
                path.display()
            )));
        }
        others.push((name, path));
    }
    Ok(())
}

fn named<'a>((name, path): (&'a str, Option<&PathBuf>)) -> Option<(&'a str, PathBuf)> {
    path.map(|path| (name, path.clone()))
}

/// A device or a pipe loses nothing by that.
fn is_one(a: &Path, b: &Path) -> bool {
    let is_no_file = a.metadata().is_ok_and(|metadata| !metadata.is_file());
    !is_no_file && same_file(a, b)
}
