//! Tries to break the laws of [`llmq_fuzz::answer`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmq_fuzz::answer::check(data));
