//! What files that must not be lost have in common: names beside them, and replacing one safely.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How many symbolic links lead to a file, at most: Linux follows as many.
const LINKS_MAX: usize = 40;

/// `path` with `ending` put behind its whole name: `out.jsonl` gives `out.jsonl.lock`. A file has
/// one such name, whatever links lead to it.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = behind_links(path).into();
    name.push(ending);
    PathBuf::from(name)
}

/// The file that `path` leads to through symbolic links, whether it is there or not.
pub(crate) fn behind_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    // What stands behind a pipe's link is no path.
    if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        return path;
    }
    for _ in 0..LINKS_MAX {
        let Ok(target) = fs::read_link(&path) else {
            break;
        };
        path = directory_of(&path).join(target);
    }
    path
}

/// The directory that `path` lies in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

/// Makes created, renamed and removed names in `path`'s directory survive a power cut.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(directory_of(path))?.sync_all()
    } else {
        // A directory cannot be opened as a file elsewhere, and renames are journaled there.
        Ok(())
    }
}

/// Replaces the file at `path`, or makes it: on disk it is what it was or all of `content`,
/// whatever happens meanwhile. Processes that do so at once do not disturb each other. Blocks.
///
/// # Errors
///
/// What the system said; the old file is as it was.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("count.json");
/// llmq_engine::replace_file(&path, b"1")?;
/// llmq_engine::replace_file(&path, b"2")?;
/// assert_eq!(std::fs::read(&path)?, b"2");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let ending = format!(".{}.new", std::process::id());
    replace_by(path, &ending, |file| file.write_all(content))
}

/// Replaces `path` by what `fill` writes, all of it or nothing: a new file in the same
/// directory is filled, synced and renamed, and then the directory is synced. By the one process
/// that holds `path`.
pub(crate) fn replace<T>(
    path: &Path,
    fill: impl FnOnce(&mut io::BufWriter<&File>) -> io::Result<T>,
) -> io::Result<T> {
    replace_by(path, ".tmp", fill)
}

fn replace_by<T>(
    path: &Path,
    ending: &str,
    fill: impl FnOnce(&mut io::BufWriter<&File>) -> io::Result<T>,
) -> io::Result<T> {
    // Through a symbolic link the file is replaced and not the link.
    let target = behind_links(path);
    let new_path = beside(&target, ending);
    let filled = fill_new(&target, &new_path, fill);
    if filled.is_err() {
        // It is in nobody's way, so failing to remove it must not hide why it was left.
        let _ = fs::remove_file(&new_path);
    }
    filled
}

fn fill_new<T>(
    target: &Path,
    new_path: &Path,
    fill: impl FnOnce(&mut io::BufWriter<&File>) -> io::Result<T>,
) -> io::Result<T> {
    let file = File::create(new_path)?;
    if let Ok(metadata) = fs::metadata(target) {
        file.set_permissions(metadata.permissions())?;
    }
    let mut writer = io::BufWriter::new(&file);
    let value = fill(&mut writer)?;
    writer.flush()?;
    drop(writer);
    file.sync_all()?;
    fs::rename(new_path, target)?;
    sync_directory(target)?;
    Ok(value)
}

/// Whether an error says that there is no room: a full disk or a used-up disk quota.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::StorageFull | K::QuotaExceeded)
}
