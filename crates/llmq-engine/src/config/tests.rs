use std::time::Duration;

use llmq_core::{Backoffs, Host};
use llmq_dispatch::Capacity;
use llmq_limit::{AdaptiveConfig, PlainPolicy, QuotaConfig};
use llmq_provider::Timeouts;

use super::*;

fn parse(text: &str) -> Config {
    Config::parse("llmq.toml", text).unwrap()
}

fn settings(text: &str) -> Settings {
    parse(text).check().unwrap()
}

/// The mistakes of `text`, as they are shown.
fn mistakes(text: &str) -> Vec<String> {
    let errors = parse(text).check().unwrap_err();
    errors.0.iter().map(ToString::to_string).collect()
}

/// There is exactly one mistake, and it is shown so.
fn wrong(text: &str, expected: &str) {
    assert_eq!(mistakes(text), [expected], "{text}");
}

/// The default file with its lines behind a bare `#` made settings.
fn whole_example() -> String {
    let line = |line: &'static str| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') && !setting.is_empty() => setting,
        _ => line,
    };
    DEFAULT_TOML
        .lines()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_default_is_the_default_file() {
    assert_eq!(settings(DEFAULT_TOML), Config::default().check().unwrap());
    assert_eq!(settings(""), Config::default().check().unwrap());
}

#[test]
fn the_default_file_says_what_the_code_does() {
    let settings = Config::default().check().unwrap();
    assert_eq!(settings.quota, QuotaConfig::default());
    assert_eq!(settings.retry.backoffs, Backoffs::default());
    assert_eq!(settings.retry.max_attempts, 5);
    assert_eq!(settings.store.capacity, Capacity::default());
    assert_eq!(settings.server.max_body_bytes, 32_000_000);
    assert_eq!(settings.server.max_batch_lines, 50_000);
    assert_eq!(settings.store.fallback.max_bytes, 100_000_000);
    assert!(settings.upstreams.is_empty() && settings.models.is_empty());
}

#[test]
fn the_examples_of_the_default_file_hold_and_show_the_defaults() {
    let whole = settings(&whole_example());
    let bare = settings("[upstreams.openai]\nprovider = \"openai\"");
    assert_eq!(whole.upstreams, bare.upstreams);
    assert_eq!(whole.upstreams["openai"].timeouts, Timeouts::default());
    assert_eq!(
        whole.upstreams["openai"].adaptive,
        Some(AdaptiveConfig::default())
    );
    let model = &whole.models["gpt-4o-mini"];
    assert_eq!(model.stream_recovery, StreamRecovery::Error);
    assert_eq!(model.upstreams[0].limits.specs(Host::Unknown).len(), 4);
    assert_eq!(whole.limits["account"].short.len(), 2);
    assert!(whole.server.tls.is_some() && whole.store.wait_aof.is_some());
}

#[test]
fn every_setting_has_its_sentence() {
    let mut sentence = false;
    for line in whole_example().lines() {
        let setting = line.split_once(" = ").is_some() && !line.starts_with('#');
        assert!(
            !setting || sentence || line == "tpm = \"8M\"" || line == "rpm = \"10k\"",
            "{line}"
        );
        sentence = line.starts_with("# ");
    }
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let attempts = |config: &Config| config.check().unwrap().retry.max_attempts;
    let file = parse("[retry]\nmax_attempts = 6");
    let env = file
        .clone()
        .with_env([("LLMQ_RETRY_MAX_ATTEMPTS".to_owned(), "7".to_owned())]);
    let flag = env
        .clone()
        .with_flag("retry.max_attempts", "--max-attempts", "8");
    let all = [&Config::default(), &file, &env, &flag].map(attempts);
    assert_eq!(all, [5, 6, 7, 8]);
}

#[test]
fn every_setting_has_a_variable_and_five_have_the_names_of_their_flags() {
    let variables = [
        ("LLMQ_STORE_URL", "memory:"),
        ("LLMQ_SERVER_MAX_WAIT", "5s"),
        ("LLMQ_SERVER_CORS", "https://a.example, https://b.example"),
        ("LLMQ_QUOTA_PAUSE_THRESHOLD", "0.5"),
        ("LLMQ_QUOTA_MONITORING", "false"),
        ("LLMQ_DAILY_REQUEST_LIMIT", "900"),
        ("LLMQ_PAUSE_DURATION_HOURS", "3"),
        ("LLMQ_QUOTA_LOG_INTERVAL", "7"),
        ("LLMQ_UPSTREAMS_MY_GPU_BASE_URL", "http://gpu:1/v1"),
        ("LLMQ_UPSTREAMS_MY_GPU_TIMEOUTS_TOTAL", "1m"),
        ("LLMQ_TEST_SCALE", "not a setting"),
        ("LLMQ_RETRY_JITTER", ""),
    ];
    let pairs = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = parse("[upstreams.my-gpu]\nprovider = \"openai\"").with_env(pairs);
    let settings = config.check().unwrap();
    assert_eq!(settings.store.url, StoreUrl::Memory);
    assert_eq!(settings.server.max_wait, Duration::from_secs(5));
    assert_eq!(settings.server.cors.len(), 2);
    assert_eq!(settings.quota.pause_threshold, 0.5);
    assert!(!settings.quota.monitoring);
    assert_eq!(settings.quota.daily_request_limit, Some(900));
    assert_eq!(
        settings.quota.pause_duration,
        Duration::from_secs(3 * 3_600)
    );
    assert_eq!(settings.quota.log_interval, 7);
    assert_eq!(settings.upstreams["my-gpu"].base_url, "http://gpu:1/v1");
    assert_eq!(
        settings.upstreams["my-gpu"].timeouts.total,
        Duration::from_secs(60)
    );
}

/// They were passed over in silence.
#[test]
fn a_variable_that_is_meant_for_a_setting_and_stands_for_none_is_a_mistake() {
    let mistakes = |file: &str, name: &str| -> Vec<String> {
        let config = parse(file).with_env([(name.to_owned(), "1".to_owned())]);
        let errors = config
            .check()
            .err()
            .map_or_else(Vec::new, |errors| errors.0);
        errors.iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        mistakes("", "LLMQ_QUOTA_PAUSE_TRESHOLD"),
        [
            "LLMQ_QUOTA_PAUSE_TRESHOLD: there is no such setting; did you mean \
          `LLMQ_QUOTA_PAUSE_THRESHOLD`?"
        ]
    );
    assert_eq!(
        mistakes("", "LLMQ_UPSTREAMS_OPENAI_HTTP2"),
        [
            "LLMQ_UPSTREAMS_OPENAI_HTTP2: it says more of what a configuration file names, and none \
          names this"
        ]
    );
    let file = "[upstreams.openai]\nprovider = \"openai\"";
    assert_eq!(
        mistakes(file, "LLMQ_UPSTREAMS_OPENAI_TIMEOUTS_TOTL"),
        [
            "LLMQ_UPSTREAMS_OPENAI_TIMEOUTS_TOTL: there is no such setting; did you mean \
          `LLMQ_UPSTREAMS_OPENAI_TIMEOUTS_TOTAL`?"
        ]
    );
    for others in [
        "LLMQ_SERVER_SERVICE_HOST",
        "LLMQ_SERVER_PORT_8080_TCP_PROTO",
        "LLMQ_STORE_SEED",
        "LLMQ_API_KEY",
    ] {
        assert_eq!(mistakes("", others), Vec::<String>::new(), "{others}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_each_with_its_path() {
    let text = "
        surprise = 1
        [server]
        max_wiat = \"60s\"
        max_wait = 60
        [store]
        url = \"postgres://x\"
        high_watermark = 1.2
        [retry]
        jitter = 2
        [upstreams.a]
        provider = \"openia\"
        [models.\"gpt-4o\"]
        upstreams = [ { upstream = \"b\", weight = 0, limits = { rpm = \"many\", custom = [\"images=1/s\"] } } ]
    ";
    let mut told = mistakes(text);
    told.sort();
    let expected = [
        "models.gpt-4o.upstreams[0].limits.custom: `images` cannot be limited: use requests, tokens, input_tokens, output_tokens or concurrency",
        "models.gpt-4o.upstreams[0].limits.rpm: `many` is not a count: use a whole number of at least 1, with k or M for thousands and millions",
        "models.gpt-4o.upstreams[0].upstream: there is no [upstreams.b]",
        "models.gpt-4o.upstreams[0].weight: 0 is out of range, use a number above 0",
        "retry.jitter: 2 is out of range, use 0 to 1",
        "server.max_wait: 60 is not a length of time: write it like \"500ms\", \"60s\" or \"10m\"",
        "server.max_wiat: there is no such setting; did you mean `max_wait`?",
        "store.high_watermark: 1.2 is out of range, use 0.5 to 1",
        "store.url: is no store: use sqlite:PATH or memory:",
        "surprise: there is no such setting; there are environment, record_llm_responses, server, store, upstreams, models, limits, quota, retry, webhooks",
        "upstreams.a.provider: \"openia\" is none of \"openai\", \"anthropic\", \"azure\", \"mock\"",
    ];
    assert_eq!(told, expected);
}

/// `rmp` is too unlike `rpm` for a guess, and was refused without a word on what there is.
#[test]
fn a_short_name_that_is_misspelt_is_told_those_that_there_are() {
    let told = mistakes(
        "[upstreams.a]\nprovider = \"mock\"\n[models.m]\n\
         upstreams = [ { upstream = \"a\", limits = { rmp = 5 } } ]",
    );
    let known = "rpm, rpd, tpm, tpd, itpm, otpm, concurrency, custom";
    let expected =
        format!("models.m.upstreams[0].limits.rmp: there is no such setting; there are {known}");
    assert_eq!(told, [expected]);
}

#[test]
fn settings_out_of_range_are_refused_by_their_path() {
    let quota = |line: &str, expected: &str| wrong(&format!("[quota]\n{line}"), expected);
    for value in ["0.0", "0.05", "1.5"] {
        let told = value.parse::<f64>().unwrap();
        quota(
            &format!("pause_threshold = {value}"),
            &format!("quota.pause_threshold: {told} is out of range, use 0.1 to 1"),
        );
    }
    for hours in [0, 100] {
        quota(
            &format!("pause_duration_hours = {hours}"),
            &format!("quota.pause_duration_hours: {hours} is out of range, use 1 to 72"),
        );
    }
    quota(
        "log_interval = 0",
        "quota.log_interval: 0 is out of range, use at least 1",
    );
    let store = |lines: &str, expected: &str| wrong(&format!("[store]\n{lines}"), expected);
    store(
        "high_watermark = 0.4\nlow_watermark = 0.1",
        "store.high_watermark: 0.4 is out of range, use 0.5 to 1",
    );
    for low in ["0.8", "0.9"] {
        store(
            &format!("low_watermark = {low}"),
            &format!("store.low_watermark: {low} must be below high_watermark, which is 0.8"),
        );
    }
    wrong(
        "[retry]\nmax_attempts = 0",
        "retry.max_attempts: 0 is out of range, use 1 to 100",
    );
    wrong(
        "[retry]\nserver = { base = \"9s\" }",
        "retry.server.max: 4s is shorter than base, 9s",
    );
    wrong(
        "[server]\nauth = \"none\"\nlisten = \"0.0.0.0:80\"",
        "server.auth: \"none\" is only accepted on a loopback address such as 127.0.0.1",
    );
    wrong(
        "record_llm_responses = true",
        "record_llm_responses: only works with environment = \"development\"",
    );
    wrong(
        "[webhooks]\nallow = [\"10.0.0.0/33\"]",
        "webhooks.allow: \"10.0.0.0/33\" is not a network: write it like \"10.0.0.0/8\"",
    );
    wrong("server = 5", "server: must be a table");
}

#[test]
fn a_daily_limit_of_none_is_written_as_0_in_a_file_and_refused_as_a_flag() {
    assert_eq!(
        settings("[quota]\ndaily_request_limit = 0")
            .quota
            .daily_request_limit,
        None
    );
    let flag = Config::default().with_flag("quota.daily_request_limit", "--daily-limit", "0");
    assert_eq!(
        flag.check().unwrap_err().to_string(),
        "--daily-limit (quota.daily_request_limit): 0 allows nothing, use at least 1 or leave it out"
    );
}

#[test]
fn names_that_are_referred_to_must_exist() {
    let text = "
        [upstreams.openai]
        provider = \"openai\"
        shared_limits = [\"acount\"]
        [limits.account]
        rpm = 5
        [models.a]
        upstreams = [ { upstream = \"opnai\" } ]
        fallback = [\"b\"]
    ";
    let mut told = mistakes(text);
    told.sort();
    assert_eq!(
        told,
        [
            "models.a.fallback: there is no [models.b]",
            "models.a.upstreams[0].upstream: there is no [upstreams.opnai]; did you mean \"openai\"?",
            "upstreams.openai.shared_limits: there is no [limits.acount]; did you mean \"account\"?",
        ]
    );
}

/// It was nobody's provider in the metrics, and `a` with the model `b/c` had the name of `a/b` with
/// the model `c`.
#[test]
fn an_accounts_name_has_no_slash() {
    wrong(
        "[upstreams.\"azure/east\"]\nprovider = \"mock\"\n\
         [models.\"a/b\"]\nupstreams = [ { upstream = \"azure/east\", model = \"c/d\" } ]",
        "upstreams.\"azure/east\": an account's name has no `/`, which stands between it and the \
         name of a model: call it \"azure-east\", here and in the models that name it",
    );
}

#[test]
fn adaptive_concurrency_has_two_policies_and_can_be_off() {
    let adaptive = |value: &str| {
        let text = format!("[upstreams.a]\nprovider = \"mock\"\nadaptive = {value}");
        settings(&text).upstreams["a"].adaptive
    };
    assert_eq!(adaptive("{ max = 0 }"), None);
    let plain = AdaptiveConfig::Plain(PlainPolicy::default());
    assert_eq!(adaptive("{ policy = \"plain\" }"), Some(plain));
    wrong(
        "[upstreams.a]\nprovider = \"mock\"\nadaptive = { initial = 9, max = 3 }",
        "upstreams.a.adaptive.initial: 9 is above max, which is 3",
    );
}

#[test]
fn secrets_are_never_shown() {
    let text = "
        [store]
        url = \"redis://me:hunter2@redis:6379\"
        [upstreams.a]
        provider = \"openai\"
        api_key = \"hunter2\"
    ";
    let config =
        parse(text).with_env([("LLMQ_UPSTREAMS_A_API_KEY".to_owned(), "hunter2".to_owned())]);
    let settings = config.check().unwrap();
    let shown = format!("{settings:?} {:?}", config.entries());
    assert!(!shown.contains("hunter2"), "{shown}");
    let key = settings.upstreams["a"].api_key.clone().unwrap();
    assert_eq!(key.resolve().unwrap().expose(), "hunter2");
    for text in [
        "[upstreams.a]\nprovider = \"openai\"\napi_key = [\"hunter2\"]",
        "[upstreams.a]\nprovider = \"openai\"\napi_key = { key = \"hunter2\" }",
        "[upstreams.a]\nprovider = \"openai\"\nbase_url = \"https://me:hunter2@x/v1\"",
        "[store]\nurl = \"redys://me:hunter2@redis:6379\"",
    ] {
        assert!(!mistakes(text).concat().contains("hunter2"), "{text}");
    }
    let syntax = Config::parse("llmq.toml", "\n[a]\napi_key = \"hunter2").unwrap_err();
    let told = syntax.to_string();
    assert!(
        told.starts_with("llmq.toml, line 3: ") && !told.contains("hunter2"),
        "{told}"
    );
}

/// They were right here, and refused one at a time when the server began.
#[test]
fn an_address_that_is_none_and_a_key_that_no_header_holds_are_mistakes() {
    let text = "
        [upstreams.a]
        provider = \"openai\"
        base_url = \"https://exa mple.com/v1\"
        [upstreams.b]
        provider = \"anthropic\"
        base_url = \"http://h/v1/messages\"
        [upstreams.c]
        provider = \"openai\"
        base_url = \"http://h/v1#part\"
        api_key = \"hunter2\\nhunter2\"
    ";
    assert_eq!(
        mistakes(text),
        [
            "upstreams.a.base_url: the base URL is not a URL: write it like \
             https://api.openai.com/v1",
            "upstreams.b.base_url: the base URL ends with /messages, which is added by itself: \
             leave it out",
            "upstreams.c.base_url: the base URL holds a `#` part, which is never sent",
            "upstreams.c.api_key: the API key holds characters that cannot stand in a header",
        ]
    );
}

#[test]
fn entries_tell_where_each_value_comes_from() {
    let config = parse("[server]\nmax_wait = \"5s\"").with_flag("retry.jitter", "--jitter", "0.3");
    let entries = config.entries();
    let find = |path: &str| {
        let entry = entries.iter().find(|entry| entry.path == path).unwrap();
        (entry.value.clone(), entry.origin.clone())
    };
    assert_eq!(find("server.max_wait"), ("\"5s\"".to_owned(), Origin::File));
    assert_eq!(find("retry.jitter").1, Origin::Flag("--jitter".to_owned()));
    assert_eq!(
        find("retry.server.base"),
        ("\"500ms\"".to_owned(), Origin::Default)
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|[\\n=\\[\\]{}\".]){0,80}") {
        if let Ok(config) = Config::parse("x", &text) {
            let _ = config.check();
        }
    }

    #[test]
    fn no_value_makes_it_panic(path in 0usize..60, value in "(-?[0-9.e]{1,8}|\"\\PC{0,6}\"|true|\\[\\]|\\{\\})") {
        let entries = Config::default().entries();
        let path = &entries[path % entries.len()].path;
        if let Ok(config) = Config::parse("x", &format!("{path} = {value}")) {
            let _ = config.check();
        }
    }
}

/// The two variables of a certificate were ignored where the file had no `[server.tls]`, and the
/// server answered in clear without a word.
#[test]
fn tables_that_may_be_absent_are_there_when_the_environment_gives_them() {
    let file = parse(
        "[upstreams.one]\nprovider = \"openai\"\n[models.m]\nupstreams = [{ upstream = \"one\" }]",
    );
    let with = |variables: &[(&str, &str)]| {
        let pairs = variables.iter();
        let pairs = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        file.clone().with_env(pairs).check()
    };
    let none = with(&[]).unwrap();
    assert!(none.server.tls.is_none() && none.store.wait_aof.is_none());
    assert!(none.models["m"].price.is_none() && none.models["m"].reserve.is_empty());
    let all = with(&[
        ("LLMQ_SERVER_TLS_CERT", "cert.pem"),
        ("LLMQ_SERVER_TLS_KEY", "key.pem"),
        ("LLMQ_STORE_WAIT_AOF_REPLICAS", "2"),
        ("LLMQ_MODELS_M_PRICE_INPUT", "0.15"),
        ("LLMQ_MODELS_M_RESERVE_HIGH", "0.05"),
    ]);
    let all = all.unwrap();
    assert!(all.server.tls.is_some());
    assert_eq!(all.store.wait_aof.unwrap().replicas, 2);
    assert_eq!(all.models["m"].price.unwrap().input, 0.15);
    assert_eq!(all.models["m"].reserve[0].share, 0.05);
    let half = with(&[("LLMQ_SERVER_TLS_CERT", "cert.pem")]).unwrap_err();
    assert_eq!(
        half.0[0].to_string(),
        "server.tls: needs both cert and key, the names of two files"
    );
    let wrong = with(&[("LLMQ_MODELS_M_RESERVE_HIGH", "0.9")]).unwrap_err();
    assert!(wrong.0[0].to_string().contains("use 0 to 0.5"), "{wrong}");
}

#[test]
fn two_models_that_lead_to_one_upstream_do_not_state_two_sets_of_limits() {
    let models = |limits: &str| {
        format!(
            "[upstreams.one]
             provider = \"openai\"
             [models.a]
             upstreams = [{{ upstream = \"one\", model = \"x\", limits = {{ rpm = 5 }} }}]
             [models.b]
             upstreams = [{{ upstream = \"one\", model = \"y\" }}, {{ upstream = \"one\", model = \"x\"{limits} }}]"
        )
    };
    for same in ["", ", limits = { rpm = 5 }"] {
        assert!(parse(&models(same)).check().is_ok(), "{same}");
    }
    wrong(
        &models(", limits = { rpm = 6 }"),
        "models.b.upstreams[1]: has other limits than models.a.upstreams[0], and both lead to \
         one/x: state the limits of that once",
    );
}
