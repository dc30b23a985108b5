//! Files of OpenAI's form.

use http::Method;
use serde_json::json;

use crate::world::{Got, World};

const BOUNDARY: &str = "X-BOUNDARY";

/// A form with the fields in this order; `file` is the one with a name.
fn form(fields: &[(&str, &str)]) -> String {
    let mut form = String::new();
    for (name, value) in fields {
        let filename = match *name {
            "file" => "; filename=\"calls.jsonl\"\r\nContent-Type: application/jsonl",
            _ => "",
        };
        form.push_str(&format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n\
             {value}\r\n"
        ));
    }
    format!("{form}--{BOUNDARY}--\r\n")
}

pub(crate) async fn upload(world: &World, fields: &[(&str, &str)]) -> Got {
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let headers = [("content-type", kind.as_str())];
    world
        .ask(Method::POST, "/v1/files", &headers, form(fields))
        .await
}

pub(crate) async fn uploaded(world: &World, content: &str) -> String {
    let got = upload(world, &[("purpose", "batch"), ("file", content)]).await;
    assert_eq!(got.status, 200, "{got:?}");
    got.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_file_comes_in_goes_out_and_is_removed() {
    let world = World::start().await;
    // The SDK for Node sends the file first.
    let fields = [
        ("file", "{}\n"),
        ("purpose", "user_data"),
        ("expires_after[anchor]", "created_at"),
        ("expires_after[seconds]", "3600"),
    ];
    let file = upload(&world, &fields).await.json();
    assert_eq!(
        (
            &file["bytes"],
            &file["filename"],
            &file["purpose"],
            &file["status"]
        ),
        (
            &json!(3),
            &json!("calls.jsonl"),
            &json!("user_data"),
            &json!("processed")
        )
    );
    let created = file["created_at"].as_i64().unwrap();
    assert_eq!(file["expires_at"], created + 3_600);
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(world.get(&path).await.json(), file);
    assert_eq!(world.get(&format!("{path}/content")).await.body, "{}\n");
    let deleted = world.ask(Method::DELETE, &path, &[], "").await;
    assert_eq!(
        deleted.json(),
        json!({"id": file["id"], "object": "file", "deleted": true})
    );
    assert_eq!(world.get(&path).await.status, 404);
}

#[tokio::test]
async fn files_are_listed_page_by_page_in_either_order() {
    let world = World::start().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(uploaded(&world, &n.to_string()).await);
    }
    upload(&world, &[("purpose", "vision"), ("file", "x")]).await;
    for (order, mut expected) in [
        ("asc", ids.clone()),
        ("desc", ids.into_iter().rev().collect()),
    ] {
        let mut after = String::new();
        while !expected.is_empty() {
            let path = format!("/v1/files?purpose=batch&limit=2&order={order}{after}");
            let page = world.get(&path).await.json();
            let data = page["data"].as_array().unwrap();
            let got: Vec<&str> = data
                .iter()
                .map(|file| file["id"].as_str().unwrap())
                .collect();
            let rest = expected.split_off(got.len());
            assert_eq!(got, expected);
            assert_eq!(page["has_more"], !rest.is_empty());
            after = format!("&after={}", page["last_id"].as_str().unwrap());
            expected = rest;
        }
    }
}

#[tokio::test]
async fn a_form_that_cannot_be_a_file_leaves_nothing() {
    let world = World::with(&[], "[server]\nmax_file = \"1KB\"").await;
    let large = "x".repeat(1_500);
    for (fields, status, param) in [
        (vec![("file", "x")], 400, "purpose"),
        (vec![("purpose", "batch")], 400, "file"),
        (vec![("purpose", "nonsense"), ("file", "x")], 400, "purpose"),
        (
            vec![("purpose", "batch"), ("file", large.as_str())],
            413,
            "file",
        ),
        (
            vec![
                ("file", "x"),
                ("purpose", "batch"),
                ("expires_after[seconds]", "60"),
            ],
            400,
            "expires_after",
        ),
    ] {
        let got = upload(&world, &fields).await;
        assert_eq!(got.status, status, "{fields:?}");
        assert_eq!(got.json()["error"]["param"], param);
    }
    let got = world.post("/v1/files", &json!({})).await;
    assert_eq!(got.status, 400);
    assert_eq!(world.get("/v1/files").await.json()["data"], json!([]));
    assert_eq!(world.get("/v1/files?limit=0").await.status, 400);
    assert_eq!(world.get("/v1/files?after=nonsense").await.status, 400);
}

/// Once anybody with a key could fill the disk, and nobody's requests were taken in any more.
#[tokio::test]
async fn files_together_have_a_bound() {
    let world = World::with(&[], "[store]\nmax_bytes = \"10KB\"\n").await;
    let content = "x".repeat(4_000);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let got = upload(&world, &[("purpose", "user_data"), ("file", &content)]).await;
        assert_eq!(got.status, 200, "{got:?}");
        ids.push(got.json()["id"].as_str().unwrap().to_owned());
    }
    for _ in 0..2 {
        let got = upload(&world, &[("purpose", "user_data"), ("file", &content)]).await;
        assert_eq!(got.status, 503, "{got:?}");
        assert_eq!(got.json()["error"]["code"], "queue_full");
    }
    let path = format!("/v1/files/{}", ids[0]);
    world.ask(Method::DELETE, &path, &[], "").await;
    let got = upload(&world, &[("purpose", "user_data"), ("file", &content)]).await;
    assert_eq!(got.status, 200, "{got:?}");
}
