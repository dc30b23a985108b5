use super::super::{
    messages_to_anthropic, messages_to_openai, request_to_anthropic, request_to_openai,
    tools_to_openai,
};

const CHAPTER: &str = include_str!("../../../../../docs/src/translation.md");

#[test]
fn the_chapter_names_every_member_that_is_refused_or_left_out() {
    let rules = [
        &request_to_anthropic::RULES[..],
        &request_to_openai::RULES,
        &messages_to_anthropic::MESSAGE_RULES,
        &messages_to_openai::TEXT_RULES,
        &messages_to_openai::DOCUMENT_RULES,
        &messages_to_openai::IMAGE_RULES,
        &messages_to_openai::TOOL_USE_RULES,
        &tools_to_openai::RULES,
    ];
    let hints = [
        &request_to_anthropic::HINTS[..],
        &messages_to_anthropic::MESSAGE_HINTS,
        &tools_to_openai::HINTS,
    ];
    let refused = rules.into_iter().flatten().map(|rule| rule.0);
    for name in refused.chain(hints.into_iter().flatten().copied()) {
        assert!(CHAPTER.contains(&format!("`{name}`")), "{name}");
    }
}
