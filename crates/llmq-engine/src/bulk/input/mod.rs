//! Rows of a file, one at a time.
//!
//! [`source`](self) bytes, unpacked and without their byte-order mark, become records (`lines`,
//! `csv`), numbered records (`records`), and rows with a prompt or a body (`rows`),
//! made by the shape that was chosen for the file (`shape`).

mod csv;
mod error;
mod kind;
mod lines;
mod records;
mod rows;
mod shape;
mod source;

pub(crate) use csv::{CsvReader, Fields};
pub use error::{BadRow, BadRowCode, InputError, ParseKindError, StrictError};
pub use kind::{Compression, InputFormat, InputKind};
pub(crate) use lines::{Line, Lines};
pub(crate) use records::Records;
pub use rows::{
    BATCH_URLS, Item, ReadOptions, Row, RowCall, RowReader, count_rows, refuse_bad_rows,
};
pub use source::InputSource;
