//! The embedded store: one SQLite file that one process owns and one writer writes.
//!
//! Read [`Store`] first: everything is asked of it, and each method says what is on disk when it
//! returns. Then `writer`, the thread behind it: it takes all that waits, makes one transaction
//! of it, syncs once and only then tells each caller; who is alone does it himself (`writer::room`). `keys`, `usage`, `books` and `learned` are
//! tables, one module each; `jobs` is a room of its own, and [`llmq_store::Store`] is how it is
//! asked. `migrate` holds the history of the layout, `sums` the checksums of
//! its smaller rows, `owner` the lock that keeps other processes out, `header` what is looked at before SQLite is.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use llmq_core::WallTime;
//! use llmq_store_sqlite::{Place, Store};
//!
//! let store = Store::open(&"memory:".parse::<Place>()?, WallTime::default())?;
//! store.save_learned("openai", "api.openai.com", vec!["requests=500/1m".into()]).await?;
//! assert_eq!(store.learned().await?[0].limits, ["requests=500/1m"]);
//! # Ok(()) }
//! ```

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod error;
mod place;
mod store;

mod header;

mod ballast;
mod writer;

mod keys;
mod usage;

mod books;
mod learned;

mod jobs;

mod care;

mod migrate;
mod owner;
mod sums;

pub use books::{LimitBooks, UsedPart};
pub use care::{Checked, backup, check, compact};
pub use error::OpenError;
pub use jobs::Opened;
pub use keys::{Budget, InsertedKey, KeyRecord, RevokedKey};
pub use learned::LearnedLimits;
pub use llmq_store::StoreError;
pub use owner::Owner;
pub use place::{ParsePlaceError, Place};
pub use store::{Options, Store};
pub use usage::{KeyUsage, Spend, UsageRecord};
