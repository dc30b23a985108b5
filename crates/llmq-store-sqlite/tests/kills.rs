//! A process that is killed while it writes keeps everything that it had acknowledged, and the
//! next one opens the file at once.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use llmq_core::WallTime;
use llmq_store_sqlite::{Budget, KeyRecord, Place, Store};
use uuid::Uuid;

/// Where the child finds its store; without it this program is not a child.
const STORE: &str = "LLMQ_STORE_OF_KILLED_CHILD";
/// How many producers the child has, so that commits are shared.
const PRODUCERS: usize = 8;

fn key() -> KeyRecord {
    let id = Uuid::now_v7();
    let mut sha256 = [0; 32];
    sha256[..16].copy_from_slice(id.as_bytes());
    KeyRecord {
        id,
        name: id.to_string(),
        prefix: String::new(),
        sha256,
        scopes: Vec::new(),
        models: None,
        tenant: None,
        any_tenant: false,
        limits: Vec::new(),
        budget: Budget::default(),
        created_at: WallTime::default(),
        revoked_at: None,
    }
}

/// Writes keys for ever and says each one that it was told to be on disk.
#[tokio::test]
async fn child() {
    let Some(path) = std::env::var_os(STORE) else {
        return;
    };
    let store = Store::open(&Place::File(path.into()), WallTime::default()).unwrap();
    let mut producers = tokio::task::JoinSet::new();
    for _ in 0..PRODUCERS {
        let store = store.clone();
        producers.spawn(async move {
            loop {
                let key = key();
                let id = key.id;
                store.insert_key(key).await.unwrap();
                println!("acknowledged {id}");
            }
        });
    }
    producers.join_all().await;
}

fn start(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(STORE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn nothing_that_was_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let mut acknowledged = HashSet::new();
    for round in 0..6 {
        let mut child = start(&path);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        // Killed after another number of keys each time; what it had said by then counts too.
        while let Some(Ok(line)) = lines.next() {
            if let Some((_, id)) = line.split_once("acknowledged ")
                && let Ok(id) = id.parse::<Uuid>()
            {
                acknowledged.insert(id);
                seen += 1;
            }
            if seen == 1 + 23 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen > 23 * round, "{seen} keys in round {round}");
        let store = Store::open(&Place::File(path.clone()), WallTime::default()).unwrap();
        let keys = store.keys_in_use().await.unwrap();
        let found: HashSet<Uuid> = keys.iter().map(|key| key.id).collect();
        assert!(acknowledged.is_subset(&found), "round {round}");
        store.close();
    }
}
