//! The request scanner, against a tree of the same JSON.

use llmq_provider::{RequestScan, TokenCounter, scan_request};

use crate::tree::Tree;

/// Members that decide where a call goes or what it costs; each may be there once.
const SINGLE: [&str; 8] = [
    "model",
    "stream",
    "stream_options",
    "max_completion_tokens",
    "max_tokens",
    "max_output_tokens",
    "n",
    "best_of",
];
/// Members whose text is input.
const PROMPTS: [&str; 5] = ["messages", "input", "prompt", "system", "instructions"];
/// Members inside those whose text is input.
const TEXTS: [&str; 6] = [
    "content",
    "text",
    "output",
    "tool_calls",
    "function",
    "arguments",
];

/// So many files are noted.
const FILES_MAX: usize = 256;

/// Any bytes are read or refused; what a JSON reader takes for an object the scanner takes, and
/// says of it what the tree says, unless it calls it doubtful.
pub fn check(body: &[u8]) {
    let scan = scan_request(body, TokenCounter::Chars);
    match serde_json::from_slice(body) {
        // A choice that is made twice is none.
        Ok(Tree::Object(members)) if members.iter().any(chooses_twice) => {}
        Ok(Tree::Object(members)) => {
            let scan = scan.expect("it is a JSON object");
            assert!(scan.prompt_at.is_none_or(|at| at < body.len()));
            agree(&scan, &members);
        }
        Ok(_) => assert!(scan.is_err(), "what is no object was taken"),
        // The scanner passes over what it does not need, so it may take a little more.
        Err(_) => {}
    }
}

fn agree(scan: &RequestScan, members: &[(String, Tree)]) {
    let mut files = Vec::new();
    for (_, value) in prompts(members) {
        name_files(value, &mut files);
    }
    files.truncate(FILES_MAX);
    assert_eq!(scan.kept.files, files);
    let twice = |name: &&str| members.iter().filter(|(key, _)| key == name).count() > 1;
    if let Some(name) = SINGLE.iter().find(|name| twice(name)) {
        assert!(scan.doubtful.is_some(), "{name} is there twice");
    }
    assert_eq!(scan.size.input_tokens, input_tokens(members));
    if scan.doubtful.is_some() {
        return;
    }
    let find = |name| {
        members
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    };
    assert_eq!(scan.model, find("model").and_then(text));
    assert_eq!(scan.stream, is_true(find("stream")));
    let usage = match find("stream_options") {
        Some(Tree::Object(options)) => options.iter().find(|(key, _)| key == "include_usage"),
        _ => None,
    };
    let usage = is_true(usage.map(|(_, value)| value));
    assert_eq!(scan.include_usage == Some(true), usage);
    let count = |name| find(name).and_then(whole).map(clamped);
    let choices = [count("n"), count("best_of")];
    let choices = choices.into_iter().flatten().max().unwrap_or(1).max(1);
    let prompts = members.iter().filter(|(name, _)| name == "prompt");
    let prompts = prompts.map(|(_, value)| answered(value)).max().unwrap_or(1);
    assert_eq!(scan.size.choices, choices.saturating_mul(prompts));
    let caps = [
        count("max_completion_tokens"),
        count("max_output_tokens"),
        count("max_tokens"),
    ];
    match (find("max_completion_tokens"), find("max_output_tokens")) {
        // Two names for one thing: either may be believed.
        (Some(_), Some(_)) => assert!(caps.contains(&scan.size.max_output_tokens)),
        _ => assert_eq!(
            scan.size.max_output_tokens,
            caps.into_iter().flatten().next()
        ),
    }
}

/// How many prompts a completion is asked for: its texts and lists of tokens.
fn answered(prompt: &Tree) -> u32 {
    let Tree::List(items) = prompt else {
        return 1;
    };
    let is_prompt = |item: &&Tree| matches!(item, Tree::Text(_) | Tree::List(_));
    clamped(items.iter().filter(is_prompt).count().max(1) as u64)
}

fn chooses_twice((name, value): &(String, Tree)) -> bool {
    let Tree::Object(options) = value else {
        return false;
    };
    let choices = options.iter().filter(|(key, _)| key == "include_usage");
    name == "stream_options" && choices.count() > 1
}

fn is_true(value: Option<&Tree>) -> bool {
    matches!(value, Some(Tree::Bool(true)))
}

fn text(value: &Tree) -> Option<String> {
    match value {
        Tree::Text(text) => Some(text.clone()),
        value => whole(value).map(|number| number.to_string()),
    }
}

/// Up to 2^53 a number with a fraction of zero is whole.
fn whole(value: &Tree) -> Option<u64> {
    match value {
        Tree::Whole(value) => Some(*value),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole and in range"
        )]
        Tree::Number(value) if value.fract() == 0.0 && (0.0..9e15).contains(value) => {
            Some(*value as u64)
        }
        _ => None,
    }
}

fn clamped(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn prompts(members: &[(String, Tree)]) -> impl Iterator<Item = &(String, Tree)> {
    let is_prompt = |(name, _): &&(String, Tree)| PROMPTS.contains(&name.as_str());
    members.iter().filter(is_prompt)
}

fn input_tokens(members: &[(String, Tree)]) -> u32 {
    let (mut chars, mut tokens) = (0, 0);
    for (_, value) in prompts(members) {
        add(value, &mut chars, &mut tokens);
    }
    clamped(chars.div_ceil(4) + tokens)
}

fn name_files<'a>(value: &'a Tree, files: &mut Vec<&'a str>) {
    let members = match value {
        Tree::List(items) => return items.iter().for_each(|item| name_files(item, files)),
        Tree::Object(members) => members,
        _ => return,
    };
    for (name, value) in members {
        match (name.as_str(), value) {
            ("file_id", Tree::Text(id)) => files.push(id),
            ("file" | "source", Tree::Object(holder)) => {
                let id = holder.iter().rfind(|(name, _)| name == "file_id");
                if let Some((_, Tree::Text(id))) = id {
                    files.push(id);
                }
            }
            (name, value) if TEXTS.contains(&name) => name_files(value, files),
            _ => {}
        }
    }
}

fn add(value: &Tree, chars: &mut u64, tokens: &mut u64) {
    match value {
        Tree::Text(text) => *chars += text.chars().count() as u64,
        Tree::Whole(_) => *tokens += 1,
        Tree::List(items) => items.iter().for_each(|item| add(item, chars, tokens)),
        Tree::Object(members) => {
            let texts = members
                .iter()
                .filter(|(name, _)| TEXTS.contains(&name.as_str()));
            texts.for_each(|(_, value)| add(value, chars, tokens));
        }
        Tree::Null | Tree::Bool(_) | Tree::Number(_) => {}
    }
}
