//! Tries to break the laws of [`llmq_fuzz::headers`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmq_fuzz::headers::check(data));
