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
pub(super) fn for_anthropic(finish_reason: &str, calls_tools: bool) -> &'static str {
    match finish_reason {
        "length" => "max_tokens",
        "content_filter" => "refusal",
        "tool_calls" | "function_call" => "tool_use",
        _ if calls_tools => "tool_use",
        _ => "end_turn",
    }
}
