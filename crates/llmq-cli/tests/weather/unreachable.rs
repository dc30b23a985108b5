//! A provider that cannot be reached: the run ends with the cause and what to do, fails no row,
//! and goes on once it can be reached.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use llmq_testkit::SecureServer;
use tokio::runtime::Runtime;

use crate::common::{Outcome, World, outcome, words};
use crate::support::{Provider, Reply};
use crate::{is_whole, run_at};

const ROWS: usize = 5;

/// Tries a provider at `url`, whose TLS certificate must be of `authority` if one is named.
fn lost(world: &World, url: &str, authority: Option<&SecureServer>) -> Outcome {
    let line = format!(
        "run in.csv -o out.jsonl --model m --base-url {url} --template {{{{name}}}} \
         --progress none --summary s.json"
    );
    let mut command = world.command(words(&line));
    if let Some(server) = authority {
        world.write("authority.pem", server.authority());
        command.env("SSL_CERT_FILE", world.path("authority.pem"));
    }
    outcome(&mut command)
}

/// Ended with code 3 and these words, which the summary holds too; no row has a result.
fn names(world: &World, lost: &Outcome, parts: &[&str]) {
    lost.says(3, &["the provider cannot be reached: ", "This continues:"]);
    lost.says(3, parts);
    let summary = std::fs::read(world.path("s.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    let stopped = summary["stopped"].as_str().unwrap();
    for part in parts {
        assert!(stopped.contains(part), "no {part:?} in {stopped}");
    }
    assert!(world.results("out.jsonl").is_empty());
}

/// Where nobody listens.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// A server without TLS: it takes the beginning of a handshake for a bad call.
fn plain_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut guest in listener.incoming().flatten() {
            let _ = guest.read(&mut [0; 1_024]);
            let _ = guest.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    addr
}

fn secure(host: &str) -> (Runtime, SecureServer) {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(SecureServer::start(host, "{}"));
    (runtime, server)
}

#[test]
fn a_refused_connection_is_named() {
    let world = World::new().with_rows(ROWS);
    let url = format!("http://{}/v1", free_address());
    let parts = ["Connection refused", "check host and port of the base URL"];
    names(&world, &lost(&world, &url, None), &parts);
    let provider = Provider::start(|_| Reply::ok());
    run_at(&world, provider.addr, "--resume-anyway").says(0, &["5 completed"]);
    is_whole(&world, ROWS);
}

#[test]
fn a_name_that_is_not_found_is_named() {
    let world = World::new().with_rows(ROWS);
    // RFC 6761 §6.4: this name never has an address.
    let lost = lost(&world, "http://llmq.invalid/v1", None);
    let parts = ["its name was not found", "check the host in the base URL"];
    names(&world, &lost, &parts);
}

#[test]
fn a_port_for_https_that_is_called_without_is_named() {
    let world = World::new().with_rows(ROWS);
    let (_runtime, server) = secure("localhost");
    let url = server.url("localhost").replace("https:", "http:");
    names(&world, &lost(&world, &url, None), &["https://"]);
}

/// Waiting does not mend these, so nobody waits.
#[test]
fn what_is_wrong_with_a_secure_connection_is_named() {
    let world = World::new().with_rows(ROWS);
    let (_runtime, server) = secure("localhost");
    let (_other_runtime, other) = secure("localhost");
    let plain = plain_server();
    let cases: [(String, &SecureServer, &[&str]); 3] = [
        (
            server.url("localhost"),
            &other,
            &["authority that this machine does not know", "SSL_CERT_FILE"],
        ),
        (
            server.url("127.0.0.1"),
            &server,
            &["not valid for name", "name the host in the base URL"],
        ),
        (
            format!("https://localhost:{}/v1", plain.port()),
            &server,
            &["does not speak TLS", "should begin with http://"],
        ),
    ];
    for (url, authority, parts) in cases {
        let lost = lost(&world, &url, Some(authority));
        names(&world, &lost, parts);
        assert!(!lost.stderr.contains("has not answered for"), "{lost:?}");
    }
}

/// The address is wrong for every row, so none is marked failed.
#[test]
fn a_path_where_nothing_is_stops_the_run_and_is_named() {
    for (status, page, remedy) in [
        (
            "404 Not Found",
            "<html>nothing here</html>",
            "path of the base URL",
        ),
        (
            "400 Bad Request",
            "Client sent an HTTP request to an HTTPS server.\n",
            "Client sent an HTTP request to an HTTPS server.",
        ),
    ] {
        let world = World::new().with_rows(ROWS);
        let provider = Provider::start(move |_| Reply::Raw(status, String::new(), page.to_owned()));
        run_at(&world, provider.addr, "").says(4, &["stopped by the account: ", remedy]);
        assert!(world.results("out.jsonl").is_empty());
    }
}
