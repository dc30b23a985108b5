//! The program on the first pages is the one that the documentation compiles and runs.

const PROGRAM: &str = include_str!("../snippets/readme.rs");

/// As it is shown: without the lines that only make it whole.
fn shown() -> String {
    let lines = PROGRAM.lines().filter(|line| !line.starts_with("# "));
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn every_page_that_shows_it_shows_what_is_compiled() {
    for (page, text) in [
        ("README.md", include_str!("../../../README.md")),
        (
            "getting-started.md",
            include_str!("../../../docs/src/getting-started.md"),
        ),
        ("library.md", include_str!("../../../docs/src/library.md")),
    ] {
        assert!(text.contains(&shown()), "{page}");
    }
}
