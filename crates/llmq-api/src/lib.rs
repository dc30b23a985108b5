//! What the HTTP interface says, as types: shared by the server and its clients.

mod problem;

pub use problem::ProblemBody;
