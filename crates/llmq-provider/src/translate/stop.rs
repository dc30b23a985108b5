//! Why an answer ended, in both dialects' words.

/// OpenAI's `finish_reason` for Anthropic's `stop_reason`.
pub(super) fn for_openai(stop_reason: &str) -> &'static str {
    match stop_reason {
        // A paused turn is not finished, and no other word of OpenAI's says so.
        "max_tokens" | "model_context_window_exceeded" | "pause_turn" => "length",
        "tool_use" => "tool_calls",
        "refusal" => "content_filter",
        _ => "stop",
    }
}

/// Anthropic's `stop_reason` for OpenAI's `finish_reason`.
///
/// OpenAI says `stop` after a call that `tool_choice` demanded, where Anthropic's clients look
/// for `tool_use`.
pub(super) fn for_anthropic(finish_reason: &str, calls_tools: bool) -> &str {
    match finish_reason {
        cut if is_cut_off(cut) => "max_tokens",
        "content_filter" => "refusal",
        "tool_calls" | "function_call" => "tool_use",
        // Together and text-generation-inference name the token that ends an answer.
        "" | "stop" | "eos" | "eos_token" if calls_tools => "tool_use",
        "" | "stop" | "eos" | "eos_token" => "end_turn",
        // Nobody knows whether the answer is whole. New words are to be expected of Anthropic too
        // ("Versions", docs.anthropic.com, 2026), so that clients bear this one.
        unknown => unknown,
    }
}

/// Whether a `finish_reason` says that the answer is not whole: the cap on output, or, in
/// Mistral's words (docs.mistral.ai, "Chat Completion", 2026), the model's context.
pub(super) fn is_cut_off(finish_reason: &str) -> bool {
    matches!(finish_reason, "length" | "model_length")
}
