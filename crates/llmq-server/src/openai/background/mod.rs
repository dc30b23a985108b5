//! Responses that nobody waits for: `background: true` of the Responses API.
//!
//! `asked` finds the wish in a body, `routes` accepts it as a job and answers those who come back
//! for it, `object` is the response as it stands, and `events` its stream. The provider is sent a
//! plain call: it need not know of any of this.

mod asked;
mod earlier;
mod events;
mod object;
mod routes;

pub(crate) use asked::{Background, asked, asks_for_background};
pub(crate) use earlier::providers_own;
pub(crate) use routes::{accepted, kept};
