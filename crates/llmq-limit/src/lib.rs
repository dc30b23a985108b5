//! May this call start now, and if not, when?
