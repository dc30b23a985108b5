//! Tries to break the laws of [`llmq_fuzz::rows`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmq_fuzz::rows::check(data));
