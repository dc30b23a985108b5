//! Who may call: llmq's own API keys, what each one may do, and what it may spend.
//!
//! Read [`KeyRing`] first. A request is [authenticated](KeyRing::authenticate) into a [`Caller`],
//! which is asked what it may do; before a call costs anything [`KeyRing::reserve`] sets aside
//! the most that it can cost, and the [`Booking`] that comes back is settled with what it did
//! cost. `token` makes keys, `auth` reads them from headers, `ledger` is the arithmetic of
//! budgets (pure), `period` their calendar, and [`router`] serves `/api/keys`.

mod ring;

mod auth;
mod caller;
mod token;

mod booking;
mod ledger;
mod period;

mod create;
mod limits;

mod guard;
mod http;

pub use auth::{AuthError, AuthPolicy};
pub use booking::{Booking, BudgetError};
pub use caller::{Caller, Forbidden};
pub use create::{CreateKeyError, Created, RevokeKeyError};
pub(crate) use guard::{Denied, HandIn, HasKeys, Look, Manage, May, Need, caller, tenant};
pub(crate) use http::described;
pub use http::router;
pub use ledger::{Overspent, SpendUnit};
pub use limits::parse_limit;
pub use llmq_api::KeyScope;
pub use llmq_store_sqlite::Spend;
pub use period::PeriodKind;
pub use ring::{KeyRing, KeyRingError, KeyRingOptions};
