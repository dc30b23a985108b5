//! One call to one provider.
