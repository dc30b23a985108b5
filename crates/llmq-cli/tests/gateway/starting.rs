//! With what a gateway starts, and with what it does not.

use crate::common::{World, outcome, words};
use crate::running::Running;
use crate::world::{Served, Strict, call, config, send};

#[test]
fn with_nothing_at_all_it_stops_and_names_all_three_ways() {
    let world = World::new();
    let ways = ["--config FILE", "OPENAI_API_KEY", "--mock"];
    world.run("serve --listen 127.0.0.1:0").says(2, &ways);
}

#[test]
fn a_key_in_the_environment_is_enough() {
    let provider = Strict::with(&[]);
    let world = World::new();
    let url = format!("http://{}/v1", provider.addr());
    let mut running = Running::start_with(
        &world,
        "serve --listen 127.0.0.1:0 --store memory:",
        &[("OPENAI_API_KEY", "sk-x"), ("OPENAI_BASE_URL", &url)],
    );
    let said = running.wait_for("listening: ");
    let addr = said.split("://").nth(1).unwrap().split('/').next().unwrap();
    assert_eq!(call(addr.parse().unwrap(), "").0, 200);
    assert_eq!(provider.counted(), (1, 0));
}

#[test]
fn a_stand_in_needs_nothing() {
    let world = World::new();
    let served = Served::start(&world, "--mock");
    assert_eq!(served.calls(3, ""), [200; 3]);
    assert!(
        !world.path("llmq.db").exists(),
        "trying it out leaves nothing behind"
    );
}

#[test]
fn an_upstream_named_twice_is_refused_with_its_line() {
    let provider = Strict::with(&[]);
    let world = World::new();
    let twice = config(provider.addr(), "") + "[upstreams.one]\nprovider = \"anthropic\"\n";
    world.write("llmq.toml", twice);
    for command in ["serve", "config check"] {
        world
            .run(&format!("{command} --config llmq.toml"))
            .says(2, &["llmq.toml", "line 8", "duplicate key"]);
    }
}

#[test]
fn an_upstream_whose_name_leads_nowhere_is_told_to_its_callers_and_harms_nobody_else() {
    let provider = Strict::with(&[]);
    let world = World::new();
    let nowhere = "[upstreams.two]\nprovider = \"openai\"\n\
                   base_url = \"http://nowhere.invalid/v1\"\n\
                   [models.n]\nupstreams = [{ upstream = \"two\" }]\n\
                   [retry]\nmax_attempts = 2\nserver = { base = \"1ms\", max = \"2ms\" }\n";
    world.write("llmq.toml", config(provider.addr(), "") + nowhere);
    let served = Served::start(&world, "--config llmq.toml --store memory:");
    let body = r#"{"model":"n","messages":[]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (status, answer) = send(served.addr, &request);
    assert_eq!(status, 502, "{answer}");
    assert!(answer.contains("nowhere.invalid"), "{answer}");
    assert_eq!(served.calls(2, ""), [200; 2]);
}

#[test]
fn a_certificate_that_is_not_there_is_told_with_its_name() {
    let provider = Strict::with(&[]);
    let world = World::new();
    let tls = "[server]\ntls = { cert = \"cert.pem\", key = \"key.pem\" }\n";
    world.write("llmq.toml", config(provider.addr(), "") + tls);
    let mut command = world.command(words("serve --config llmq.toml --listen 127.0.0.1:0"));
    outcome(&mut command).says(2, &["server.tls.cert", "cert.pem", "No such file"]);
}

#[test]
fn calls_are_recorded_in_development_and_nowhere_else() {
    let provider = Strict::with(&[]);
    let world = World::new();
    let records = "record_llm_responses = true\n";
    let rest = config(provider.addr(), "");
    world.write("llmq.toml", format!("{records}{rest}"));
    world
        .run("serve --config llmq.toml --store memory:")
        .says(2, &["record_llm_responses", "development"]);
    let file = format!("environment = \"development\"\n{records}{rest}");
    world.write("llmq.toml", file);
    let served = Served::start(&world, "--config llmq.toml --store memory:");
    assert_eq!(served.calls(3, ""), [200; 3]);
    served.running.signal("-TERM");
    assert_eq!(served.running.end().0, 0);
    let files = std::fs::read_dir(world.path("llm_response_logs")).unwrap();
    let recorded = files.filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_string_lossy()
            .ends_with("_chat_completions.llmq.json")
    });
    assert_eq!(recorded.count(), 3);
}

/// Started again from a shell whose SDKs were pointed at it, the gateway took itself for its
/// provider, and each call became another until no connection was left.
#[test]
fn a_gateway_that_would_call_itself_does_not_start() {
    let world = World::new();
    let mut command = world.command(words("serve --listen 127.0.0.1:18080 --store memory:"));
    command
        .env("OPENAI_API_KEY", "sk-x")
        .env("OPENAI_BASE_URL", "http://127.0.0.1:18080/v1");
    outcome(&mut command).says(2, &["openai", "127.0.0.1:18080", "OPENAI_BASE_URL"]);
}
