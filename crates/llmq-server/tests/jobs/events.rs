//! `/api/events` resumes without a gap.

use llmq_testkit::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::World;

/// Who listens to what a gateway tells.
pub(crate) struct Ear {
    stream: TcpStream,
    text: String,
}

/// One event: its id, name and data.
type Heard = (String, String, serde_json::Value);

impl Ear {
    async fn start(world: &World, last: Option<&str>) -> Self {
        let last = last.map_or_else(String::new, |id| format!("last-event-id: {id}\r\n"));
        Self::with(world, &last).await
    }

    /// With these headers.
    pub(crate) async fn with(world: &World, headers: &str) -> Self {
        let mut stream = TcpStream::connect(world.addr).await.unwrap();
        let request = format!("GET /api/events HTTP/1.0\r\nhost: x\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut ear = Self {
            stream,
            text: String::new(),
        };
        ear.until("events of llmq\n\n").await;
        ear
    }

    /// What is told up to and with this text.
    pub(crate) async fn until(&mut self, part: &str) -> String {
        let read = async {
            loop {
                if let Some(at) = self.text.find(part) {
                    let rest = self.text.split_off(at + part.len());
                    return std::mem::replace(&mut self.text, rest);
                }
                let mut piece = [0; 4_096];
                let count = self.stream.read(&mut piece).await.unwrap();
                assert!(count > 0, "it ended: {}", self.text);
                self.text
                    .push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("an event in time")
    }

    async fn next(&mut self) -> Heard {
        let frame = self.until("\n\n").await;
        let field = |name: &str| {
            let line = frame.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let data = serde_json::from_str(&field("data:")).unwrap_or_default();
        (field("id:"), field("event:"), data)
    }

    /// Events until a request has ended.
    async fn until_end(&mut self) -> Vec<Heard> {
        let mut heard = Vec::new();
        loop {
            let next = self.next().await;
            let over = next.1 == "request.completed";
            heard.push(next);
            if over {
                return heard;
            }
        }
    }
}

fn kinds(heard: &[Heard]) -> Vec<&str> {
    heard.iter().map(|(_, kind, _)| kind.as_str()).collect()
}

#[tokio::test]
async fn each_step_of_a_request_is_told_and_who_comes_back_misses_nothing() {
    let world = World::start().await;
    let mut ear = Ear::start(&world, None).await;
    let first = world.submit().await;
    let heard = ear.until_end().await;
    assert_eq!(
        kinds(&heard),
        ["request.queued", "request.started", "request.completed"]
    );
    assert!(
        heard
            .iter()
            .all(|(_, _, data)| data["queue_id"] == first.as_str()),
        "{heard:?}"
    );
    drop(ear);
    // Two requests pass while nobody listens.
    let (second, third) = (world.submit().await, world.submit().await);
    world.end(&second).await;
    world.end(&third).await;
    let mut ear = Ear::start(&world, Some(&heard[0].0)).await;
    let mut again = ear.until_end().await;
    assert_eq!(again, heard[1..]);
    again.extend(ear.until_end().await);
    again.extend(ear.until_end().await);
    for id in [&second, &third] {
        let of = again
            .iter()
            .filter(|(_, _, data)| data["queue_id"] == id.as_str());
        assert_eq!(of.count(), 3, "{again:?}");
    }
    let mut ids: Vec<&str> = again.iter().map(|(id, ..)| id.as_str()).collect();
    ids.dedup();
    assert_eq!(ids.len(), again.len(), "nothing twice");
}

#[tokio::test]
async fn what_is_not_known_any_more_is_told_by_a_reset() {
    let world = World::start().await;
    for unknown in ["nonsense", "1-1", "18446744073709551615-5"] {
        let mut ear = Ear::start(&world, Some(unknown)).await;
        assert_eq!(ear.next().await.1, "reset");
        world.submit().await;
        assert_eq!(ear.until_end().await.len(), 3);
    }
}

/// Once a listener heard for ever what its revoked key might not see.
#[tokio::test]
async fn a_listener_is_let_go_with_its_key() {
    let world = World::start().await;
    let mut open = Ear::start(&world, None).await;
    let all = serde_json::json!({"name": "a", "scopes": ["call", "read", "manage"]});
    let admin = world.post("/api/keys", &all).await.json();
    let admin = format!("Bearer {}", admin["key"].as_str().unwrap());
    let manage = [("authorization", admin.as_str())];
    let all = serde_json::json!({"name": "b", "scopes": ["read"]}).to_string();
    let made = world
        .ask(http::Method::POST, "/api/keys", &manage, all)
        .await
        .json();
    let shown = format!(
        "authorization: Bearer {}\r\n",
        made["key"].as_str().unwrap()
    );
    let mut with_key = Ear::with(&world, &shown).await;
    let path = format!("/api/keys/{}", made["id"].as_str().unwrap());
    world.ask(http::Method::DELETE, &path, &manage, "").await;
    let pause = "/api/queues/gpt/pause";
    world.ask(http::Method::POST, pause, &manage, "").await;
    // One whose key is gone, and one that needed none before the first key.
    for ear in [&mut open, &mut with_key] {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, ear.stream.read_to_end(&mut rest)).await;
        read.expect("it ends").unwrap();
        let text = String::from_utf8_lossy(&rest);
        assert!(!text.contains("queue.paused"), "{text}");
    }
}
