//! Keys of a store that no server uses, and keys that must not be seen.

use crate::common::World;
use crate::provider::{Provider, Reply};
use crate::world::{Served, Strict, call, config, get};

#[test]
fn the_first_key_of_a_server_that_others_reach_is_made_before_it_runs() {
    let provider = Strict::with(&[]);
    let world = World::new();
    world.write("llmq.toml", config(provider.addr(), ""));
    let store = "--store sqlite:kept.db";
    world
        .run(&format!("keys create app {store}"))
        .says(2, &["manage"]);
    let made = world.run(&format!(
        "keys create admin --scope call,read,manage {store} -q"
    ));
    assert_eq!((made.code, made.stderr.as_str()), (0, ""), "{made:?}");
    let key = made.stdout.trim();
    assert!(key.starts_with("llmq_"), "{key}");
    world
        .run(&format!("keys create admin {store}"))
        .says(2, &["`admin`"]);

    let listen = "serve --config llmq.toml --listen 0.0.0.0:0 --store sqlite:kept.db";
    let mut running = crate::running::Running::start(&world, listen);
    let said = running.wait_for("listening: ");
    let port = said
        .split("0.0.0.0:")
        .nth(1)
        .unwrap()
        .split('/')
        .next()
        .unwrap();
    let addr = format!("127.0.0.1:{port}").parse().unwrap();
    assert_eq!(call(addr, "").0, 401);
    assert_eq!(
        call(addr, &format!("authorization: Bearer {key}\r\n")).0,
        200
    );
    // Whoever owns the store is asked instead.
    let refused = world.run(&format!("keys list {store}"));
    refused.says(
        2,
        &[
            "in use by process",
            &running.pid().to_string(),
            "--base-url",
        ],
    );
    running.kill();

    let listed = world.run(&format!("keys list {store} --format jsonl"));
    assert_eq!(
        listed.stdout.matches("\"name\":\"admin\"").count(),
        1,
        "{listed:?}"
    );
    let id = listed
        .stdout
        .split("\"id\":\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    world
        .run(&format!("keys revoke {id} {store}"))
        .says(0, &["revoked admin"]);
    world.run("keys list --store memory:").says(2, &["memory:"]);
}

#[test]
fn the_keys_of_providers_and_callers_are_in_no_output() {
    // A provider that refuses, then is not there: what is said of either is looked through.
    let provider = Strict::with(&["requests=1/1h"]);
    let world = World::new();
    let quoting = quotes("sk-of-the-quoting");
    let third = format!(
        "[upstreams.quoting]\nprovider = \"openai\"\nbase_url = \"http://{}/v1\"\n\
         api_key = \"sk-of-the-quoting\"\n\
         [models.quoting]\nupstreams = [{{ upstream = \"quoting\" }}]\n",
        quoting.addr
    );
    let two = "[upstreams.gone]\nprovider = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\n\
               api_key = \"sk-of-the-gone\"\n\
               [models.gone]\nupstreams = [{ upstream = \"gone\" }]\n\
               [retry]\nmax_attempts = 2\nserver = { base = \"1ms\", max = \"2ms\" }\n";
    world.write("llmq.toml", config(provider.addr(), "") + &third + two);
    let shown = world.run("config show --config llmq.toml --format json");
    let served = Served::start(
        &world,
        "--config llmq.toml --store sqlite:kept.db -vv --log log.txt --call-log calls.txt",
    );
    let theirs = "x-llmq-max-wait: 0s\r\nauthorization: Bearer sk-of-the-caller\r\n";
    let mut seen = vec![shown.stdout, shown.stderr];
    for _ in 0..3 {
        seen.push(call(served.addr, theirs).1);
    }
    for model in ["gone", "quoting"] {
        let body =
            format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}]}}"#);
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             {theirs}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        seen.push(crate::world::send(served.addr, &request).1);
    }
    assert!(
        seen.concat()
            .contains("Incorrect API key provided: ***, or ***."),
        "{seen:?}"
    );
    for path in [
        "/metrics",
        "/api/queues",
        "/api/stats",
        "/",
        "/health",
        "/openapi.json",
    ] {
        seen.push(get(served.addr, path, "").1);
    }
    served.running.signal("-HUP");
    served.running.signal("-INT");
    let (_, stdout, stderr) = served.running.end();
    seen.extend([stdout, stderr]);
    for file in ["log.txt", "calls.txt"] {
        seen.push(std::fs::read_to_string(world.path(file)).unwrap());
    }
    for name in ["kept.db", "kept.db-wal"] {
        let bytes = std::fs::read(world.path(name)).unwrap_or_default();
        seen.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    assert!(
        seen.concat().contains("upstream_failed"),
        "it was a run with faults"
    );
    for text in &seen {
        for key in [
            "sk-of-the-provider",
            "sk-of-the-gone",
            "sk-of-the-caller",
            "sk-of-the-quoting",
            "sk-of-th*",
        ] {
            assert!(!text.contains(key), "{key} in {text}");
        }
    }
}

/// A provider that refuses the key and quotes it: whole, and masked in its middle.
fn quotes(key: &'static str) -> Provider {
    Provider::start(move |_| {
        let (first, last) = (&key[..8], &key[key.len() - 4..]);
        let said = format!("Incorrect API key provided: {key}, or {first}*******{last}.");
        let body = format!(r#"{{"error":{{"message":"{said}","code":"invalid_api_key"}}}}"#);
        Reply::Raw("401 Unauthorized", String::new(), body)
    })
}
