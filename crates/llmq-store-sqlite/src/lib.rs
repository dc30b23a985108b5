//! The embedded store: one SQLite file with one writer. It holds keys and what was learned of limits.
