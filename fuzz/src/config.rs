//! The configuration file.

use std::sync::Arc;

use llmq_core::{Clock, Now};
use llmq_engine::config::Config;
use llmq_engine::{SystemClock, assemble};
use toml::{Table, Value};

/// Stands in the place of every key that the file holds.
const SECRET: &str = "sk-fuzz-7c1d9be0";

/// Any text is read or refused with a reason; one key too many is one mistake more; no mistake,
/// no listing and no debugging output shows a provider's key; and what was found right can be
/// set up, or is refused with a reason.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(config) = Config::parse("fuzz.toml", text) else {
        return;
    };
    let found = mistakes(&config);
    assert_eq!(found, mistakes(&config), "the same file, read twice");
    assert!(found.iter().all(|mistake| !mistake.trim().is_empty()));

    let mut table: Table = text
        .trim_start_matches('\u{feff}')
        .parse()
        .expect("it was TOML a moment ago");
    hide_keys(&mut table);
    let written = table.to_string();
    let config = Config::parse("fuzz.toml", &written).expect("what is written as TOML is TOML");
    let settings = config.check();
    let listed: Vec<String> = config
        .entries()
        .iter()
        .map(|entry| entry.value.clone())
        .collect();
    let shown = format!("{settings:?} {listed:?} {:?}", mistakes(&config));
    assert!(!shown.contains(SECRET), "a key is shown");

    table.insert("no_such_setting".to_owned(), Value::Boolean(true));
    let more = Config::parse("fuzz.toml", &table.to_string()).expect("it is still TOML");
    assert_eq!(mistakes(&more).len(), mistakes(&config).len() + 1);

    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    if let Ok(settings) = settings
        && let Err(refused) = assemble(&settings, None, &clock, Now::default())
    {
        assert!(!refused.to_string().contains(SECRET), "a key is shown");
    }
}

fn mistakes(config: &Config) -> Vec<String> {
    let errors = config.check().err();
    let all = errors.into_iter().flat_map(|errors| errors.0);
    all.map(|mistake| mistake.to_string()).collect()
}

fn hide_keys(table: &mut Table) {
    let upstreams = table.get_mut("upstreams").and_then(Value::as_table_mut);
    for (_, upstream) in upstreams.into_iter().flatten() {
        if let Some(key @ Value::String(_)) = upstream.get_mut("api_key") {
            *key = Value::String(SECRET.to_owned());
        }
    }
}
