//! What the HTTP interface says, as types: shared by the server and its clients.

mod problem;

mod keys;

pub use keys::{
    CreateKey, CreatedKey, KeyBudget, KeyInfo, KeyList, KeyScope, KeyUse, UsedInPeriod,
};
pub use problem::ProblemBody;
