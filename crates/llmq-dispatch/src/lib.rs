//! Which waiting call goes next, and where.
