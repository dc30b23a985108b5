//! How a strict provider enforces its limits.
