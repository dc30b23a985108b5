//! A file whose calls go through an llmq server.

use crate::common::World;
use crate::is_whole;
use crate::support::Running;

#[test]
fn the_server_keeps_the_limits_and_the_file_is_finished() {
    let world = World::new().with_rows(30);
    let line = "serve --listen 127.0.0.1:0 --store memory: --mock --mock-limit requests=20/2s";
    let mut server = Running::start(&world, line);
    let said = server.wait_for("listening: ");
    let (_, address) = said.split_once("http://").unwrap();
    let (address, _) = address.split_once("/v1").unwrap();
    let run = format!(
        "run in.csv -o out.jsonl --model m --server http://{address} --template {{{{name}}}} \
         --progress none"
    );
    world.run(&run).says(0, &["30 completed, 0 failed"]);
    is_whole(&world, 30);
    server.signal("-INT");
    server.end();
    world
        .run(&format!("{run} --base-url http://{address}/v1"))
        .says(2, &["cannot be used with"]);
}
