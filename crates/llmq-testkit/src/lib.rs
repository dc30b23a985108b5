//! What tests of several crates share: a dev-dependency, never part of a program.
//!
//! - [`FakeClock`] tells the time that a test wants: it stands still, or follows tokio's, and its
//!   wall clock can be set.
//! - [`ScriptedServer`] is a provider that says exactly what a test tells it to, byte for byte:
//!   half an answer, something else than HTTP, silence, a reset.
//! - [`Identity, SecureServer`] is a provider over TLS, whose authority nobody knows but the test.
//! - `disk`, a feature, is a file system for SQLite that loses power, gets full or breaks.
//! - [`SmallFile`] is a file with room for so many bytes, which knows what was synced.
//! - [`FaultyStore`] is a store that fails, or holds an answer back, when a test wants it.
//! - [`CountedMemory`] counts what is held, in a test's program of its own.
//! - [`scale`] says how much larger than usual the tests are to be.
//! - [`scratch`] is a directory whose disk need not be waited for.
//! - [`zone_far_from_midnight`] is where today does not end during a test.
//!
//! It knows no crates but `llmq-core` and `llmq-store`, so that nearly every other one can use it.
//! Everything panics where a test would: there is nobody to hand an error to.

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod clock;
#[cfg(feature = "disk")]
pub mod disk;
mod faulty;
mod file;
mod memory;
mod scale;
mod scratch;
mod secure;
mod server;
mod zone;

pub use clock::FakeClock;
pub use faulty::{FaultyStore, Held};
pub use file::SmallFile;
pub use memory::CountedMemory;
pub use scale::{env_number, scale};
pub use scratch::scratch;
pub use secure::{Identity, SecureServer};
pub use server::{Guest, PATIENCE, ScriptedServer};
pub use zone::zone_far_from_midnight;
