//! `/api/events` resumes without a gap.

use llmq_testkit::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::World;

struct Ear {
    stream: TcpStream,
    text: String,
}

/// One event: its id, name and data.
type Heard = (String, String, serde_json::Value);

impl Ear {
    async fn start(world: &World, last: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(world.addr).await.unwrap();
        let last = last.map_or_else(String::new, |id| format!("last-event-id: {id}\r\n"));
        let request = format!("GET /api/events HTTP/1.0\r\nhost: x\r\n{last}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut ear = Self {
            stream,
            text: String::new(),
        };
        ear.until("events of llmq\n\n").await;
        ear
    }

    async fn until(&mut self, part: &str) -> String {
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
