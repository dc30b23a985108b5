//! `llmq keys` where there is no server: what is wrong is told by its exit code.

use std::net::{SocketAddr, TcpListener};

use crate::common::{Outcome, World, outcome, words};

fn keys(server: SocketAddr, key: &str, line: &str) -> Outcome {
    let world = World::new();
    let mut command = world.command(words(&format!("keys {line}")));
    command.env("LLMQ_BASE_URL", format!("http://{server}"));
    if !key.is_empty() {
        command.env("LLMQ_API_KEY", key);
    }
    outcome(&mut command)
}

#[test]
fn mistakes_and_servers_that_are_not_there_have_their_exit_codes() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = free.local_addr().unwrap();
    drop(free);
    keys(nobody, "llmq_x", "list").says(
        3,
        &[
            "cannot ask http://127.0.0.1",
            "; is `llmq serve` running there? --base-url or LLMQ_BASE_URL names another",
        ],
    );
    for wrong in ["localhost", "localhost:8080", "ftp://localhost"] {
        let how = "is no address of a server: write it like http://localhost:8080";
        keys(nobody, "", &format!("list --base-url {wrong}")).says(2, &["--base-url", how]);
    }
    keys(nobody, "", "list --timeout x").says(2, &["--timeout"]);
    keys(nobody, "", "revoke 7").says(2, &["<ID>"]);
    keys(nobody, "", "create a --scope write").says(2, &["call, read or manage"]);
}
