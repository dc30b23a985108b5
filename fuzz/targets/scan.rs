//! Tries to break the laws of [`llmq_fuzz::scan`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmq_fuzz::scan::check(data));
