//! What passes through the gateway unchanged, and what does not pass.

use http::Request;

use crate::world::{Act, Upstream, World};

const CHAT: &str = "/v1/chat/completions";

async fn world(settings: &str) -> (Upstream, World) {
    let one = Upstream::start("one", |_| Act::Answer).await;
    let text = format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n{settings}\n\
         [models.m]\nupstreams = [{{ upstream = \"one\" }}]\n",
        one.url
    );
    let world = World::with(&text).await;
    (one, world)
}

#[tokio::test]
async fn a_body_passes_byte_for_byte_with_what_nobody_here_knows() {
    let (one, world) = world("").await;
    let body = "{ \"x_new\": {\"deep\": [1.50e3, \"\\u00e9\"]},\r\n\t\"messages\":[],\"model\" : \"m\" , \"seed\":1}";
    let seen = world.send(Request::post(CHAT), &[], body.to_owned()).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    assert_eq!(one.heard(0).body, body);
}

#[tokio::test]
async fn a_model_in_the_address_is_ignored() {
    let (one, world) = world("").await;
    let request = Request::post(format!("{CHAT}?model=other&x=1"));
    let body = r#"{"model":"m","messages":[]}"#;
    let seen = world.send(request, &[], body.to_owned()).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    let line = one.heard(0).head;
    assert!(
        line.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
        "{line}"
    );
}

#[tokio::test]
async fn members_that_decide_stand_there_once_and_unescaped_wherever_they_stand() {
    let (one, world) = world("").await;
    let names = [
        "model",
        "stream",
        "stream_options",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
    ];
    for name in names {
        let escaped = format!("\\u{:04x}{}", u32::from(name.as_bytes()[0]), &name[1..]);
        let bodies = [
            format!(r#"{{"{name}":null,"messages":[],"model":"m","{name}":null}}"#),
            format!(r#"{{"model":"m","messages":[],"{escaped}":1}}"#),
            format!(r#"{{"{escaped}":1,"messages":[],"model":"m"}}"#),
        ];
        for body in bodies {
            let seen = world.send(Request::post(CHAT), &[], body.clone()).await;
            seen.failed(400, name);
            assert!(
                seen.body.contains(&format!(r#""param":"{name}""#)),
                "{body}: {seen:?}"
            );
        }
    }
    assert_eq!(one.calls(), 0, "nothing was sent");
}

#[tokio::test]
async fn whose_account_is_charged_is_not_the_callers_choice_unless_the_upstream_allows_it() {
    let choice = [
        ("OpenAI-Organization", "org-1"),
        ("OpenAI-Project", "proj-1"),
        ("anthropic-workspace-id", "wrk-1"),
    ];
    let body = || r#"{"model":"m","messages":[]}"#.to_owned();
    for (settings, passed) in [
        ("", &[][..]),
        (
            r#"pass_headers = ["OpenAI-Project"]"#,
            &["openai-project"][..],
        ),
    ] {
        let (one, world) = world(settings).await;
        world.send(Request::post(CHAT), &choice, body()).await;
        let head = one.heard(0).head;
        for (name, value) in choice {
            let name = name.to_lowercase();
            let line = format!("{name}: {value}\r\n");
            assert_eq!(
                head.contains(&line),
                passed.contains(&name.as_str()),
                "{head}"
            );
        }
    }
}
