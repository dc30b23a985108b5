//! What was spent of limits, and which ones were learned, from one process to the next.
//!
//! Read [`Spent`] first: what is on disk of the limits' books, and when more than was used must
//! be. [`Earlier`] is what a process finds of the one before; it opens each limit with that. A
//! [`Keeper`] writes the books of a running dispatcher to a [`Shelf`]: bulk runs have a file
//! beside their output, the gateway its store.

mod earlier;
mod keeper;
mod spent;

pub(crate) use earlier::allow_first;
pub use earlier::{Earlier, Memory};
pub use keeper::{Keeper, Page, Save, Shelf, Wanted};
pub use spent::{Parts, Spent, learner, limit_names};
