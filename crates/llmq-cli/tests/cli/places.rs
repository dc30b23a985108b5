//! Where servers listen and stores lie: every command takes it in the same words, refuses it with
//! the same exit code and says how to write it.

use std::net::TcpListener;

use llmq_core::WallTime;
use llmq_store_sqlite::{Place, Store};

use crate::common::World;

const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz";

#[test]
fn an_address_to_listen_on_is_written_alike_everywhere() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for command in [
        "serve --mock --store memory:",
        "mock",
        &format!("webhooks listen --secret {SECRET}"),
    ] {
        let listen = |address: &str| world.run(&format!("{command} --listen {address}"));
        for wrong in ["127.0.0.1", "localhost", "here:80"] {
            let how = "is not an address: write it like \"127.0.0.1:8080\"";
            listen(wrong).says(2, &["--listen", wrong, how]);
        }
        listen(&format!("localhost:{port}")).says(2, &["--listen names another address"]);
    }
}

#[test]
fn a_store_that_cannot_be_opened_ends_every_command_with_the_same_code() {
    let world = World::new();
    let check = |store: &str, commands: &[&str], parts: &[&str]| {
        for command in commands {
            let outcome = world.run(&format!("{command} --store sqlite:{store}"));
            outcome.says(2, parts);
        }
    };
    let (serve, keys) = ("serve --mock --listen 127.0.0.1:0", "keys list");
    let way_out = "there is no directory none; create it or choose another store";
    check("none/llmq.db", &[serve, keys], &[way_out]);
    world.write("notes.db", "what I wanted to buy, and where. ".repeat(40));
    let care = ["store check", "store compact"];
    check(
        "notes.db",
        &[serve, keys, care[0], care[1]],
        &["not a database"],
    );
    let place = Place::File(world.path("used.db"));
    let owned = Store::open(&place, WallTime::from_micros(0)).unwrap();
    check("used.db", &[serve, keys, care[1]], &["is in use by"]);
    drop(owned);
}
