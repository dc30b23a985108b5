//! The files of a bulk run: rows in, results out, and everything that makes the run resumable.
//!
//! Read [`RowReader`] first (rows of a file, one at a time), then [`Output`] (the results, which
//! are also the journal that a resumed run continues from), then [`Side`] (what else a resumed
//! run must know), [`OutputLock`] (one process at a time) and [`verify`] (the proof on the files).
//!
//! [`run`] joins them to the dispatcher and finishes the file; [`Control`] looks at it and stops it.
//!
//! Apart from [`run`], everything here is synchronous file work, and no clock is read: the moment is
//! an argument.
//!
//! # Which row is which
//!
//! A row is known by its number in the input, from 1. In `.jsonl` and `.txt` that is the number
//! of its line, and blank lines are passed over but counted, so the number is the one that an
//! editor shows. In `.csv` and `.tsv` a record may span several lines, so it is the number of
//! the record after the header; blank lines are not records.
//!
//! # Resuming, restarting, trying again
//!
//! The same command continues: [`Output::open`] tells the rows that are done, and [`compare`]
//! whether the input and the settings are the same as before. `--resume-anyway` goes on in spite
//! of changes; `--restart` moves the old files out of the way ([`set_aside`]) and keeps what the
//! account has spent ([`Side::restarted`]); `--retry-failed` first takes the failed rows out
//! ([`forget_failed`]).
//!
//! # Memory
//!
//! Finished rows are a [`Bitmap`], one bit a row; ids that must be unique are kept as 64-bit
//! hashes in an [`IdSet`]; both together take under 12 bytes a row. Nothing else grows with the file.

mod bitmap;
mod ids;
mod json;
mod template;

mod input;

mod journal;

mod lock;
mod side;
mod verify;

mod run;

pub use bitmap::Bitmap;
pub use ids::IdSet;
pub use input::{
    BATCH_URLS, BadRow, BadRowCode, Compression, InputError, InputFormat, InputKind, InputSource,
    Item, ParseKindError, ReadOptions, Row, RowCall, RowReader, StrictError, count_rows,
    refuse_bad_rows,
};
pub use journal::{
    Answer, Journal, JournalError, JournalFile, Output, OutputFormat, OutputPaths, Resumed,
    RowError, RowResult, SYNC_INTERVAL, forget_failed, same_file, set_aside,
};
pub use lock::{Holder, LockError, OutputLock};
pub use run::{
    CallMaker, Control, Ended, Opened, Paused, Prepared, Price, Progress, RouteOptions, RunError,
    RunOptions, RunReport, Summary, run, run_by,
};
pub use side::{
    Change, Changes, HandedIn, InputPrint, PromptSettings, SIDE_VERSION, Side, SideError, compare,
};
pub use template::{Name, Template, TemplateError};
pub use verify::{VerifyError, VerifyReport, verify};
