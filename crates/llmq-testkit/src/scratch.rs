/// A directory that is removed when it is dropped, in memory where the system has room there: for
/// tests that write much and lose no power.
///
/// # Panics
///
/// When none can be made.
#[must_use]
pub fn scratch() -> tempfile::TempDir {
    let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    made.expect("a directory can be made")
}
