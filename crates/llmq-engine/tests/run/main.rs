//! Whole runs of a file against the stand-in provider, over real connections.

mod days;
mod refused;
mod scene;
mod stops;
mod whole;
