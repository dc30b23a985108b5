//! One run that is killed again and again, and still brings every row once.
//!
//! The moments are drawn from a seed that is printed; `LLMQ_KILLS_SEED=n` plays it again.
//! `LLMQ_TEST_SCALE` multiplies rows and kills.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "the other tests of the command use all of it")]
#[path = "cli/common.rs"]
mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use llmq_provider::mock::{MockConfig, MockServer};
use llmq_testkit::{env_number, scale};
use serde_json::Value;

use common::{World, words};

const ROWS: u64 = 2_500;
const KILLS: u64 = 50;
/// A short window, since a whole one is waited for after each kill.
const LIMIT: &str = "requests=80/400ms";
/// The most calls in flight at a kill.
const IN_FLIGHT_MAX: u64 = 16;
/// Results between their arrival and the file, on average: a call's place in flight is free a
/// moment before its result is written.
const ON_THE_WAY: u64 = 4;
/// How often it is looked whether the moment has come.
const LOOK: Duration = Duration::from_millis(1);

/// When a process is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// When it has just taken the output.
    Opening,
    /// When the provider has let in so many of its calls; more than a window's are in a wait
    /// for the next.
    Calls(u64),
    /// When its output has grown by so many bytes.
    Grown(u64),
}

impl Moment {
    /// `rows` are left for this kill, so that there are some left for all.
    fn draw(random: &mut fastrand::Rng, rows: u64) -> Self {
        const LINE_BYTES: u64 = 400;
        // A kill comes a little late, and those in flight may get their answers.
        let rows = rows.saturating_sub(IN_FLIGHT_MAX + ON_THE_WAY).clamp(1, 60);
        match random.u8(..10) {
            0 => Self::Opening,
            1..=5 => Self::Calls(random.u64(1..=rows)),
            _ => Self::Grown(random.u64(1..=rows * LINE_BYTES)),
        }
    }
}

/// What one life of the run left behind.
#[derive(Debug)]
struct Life {
    killed: bool,
    /// Calls that the provider let in and that are not in the output.
    lost: u64,
}

/// A run and its provider.
struct Scene {
    world: World,
    _runtime: tokio::runtime::Runtime,
    mock: MockServer,
    arguments: Vec<String>,
    /// Rows that were in the output when the last life ended.
    kept: BTreeSet<u64>,
}

impl Scene {
    fn new(rows: u64) -> Self {
        let world = World::new().with_rows(usize::try_from(rows).unwrap());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let config = MockConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            limits: vec![LIMIT.parse().unwrap()],
            record: Some(world.path("answered")),
            ..MockConfig::default()
        };
        let mock = runtime.block_on(MockServer::start(config)).unwrap();
        let line = format!(
            "run in.csv -o out.jsonl --model m --base-url http://{}/v1 --progress none \
             --template {{{{name}}}} --limit {LIMIT} --concurrency {IN_FLIGHT_MAX}",
            mock.addr()
        );
        Self {
            world,
            _runtime: runtime,
            mock,
            arguments: words(&line),
            kept: BTreeSet::new(),
        }
    }

    /// Starts the run, kills it at `moment` unless it ends before, and looks at what it did.
    fn live(&mut self, moment: Option<Moment>) -> Life {
        let calls = self.mock.report().accepted;
        let bytes = self.bytes();
        let mut child = self.start();
        let killed = loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                break false;
            }
            let has_come = match moment {
                None => false,
                Some(Moment::Opening) => self.is_held_by(child.id()),
                Some(Moment::Calls(more)) => self.mock.report().accepted >= calls + more,
                Some(Moment::Grown(more)) => self.bytes() >= bytes + more,
            };
            if has_come {
                child.kill().unwrap();
                child.wait().unwrap();
                break true;
            }
            std::thread::sleep(LOOK);
        };
        // The provider notices only after a moment that nobody listens any more.
        while self.mock.report().in_flight > 0 {
            std::thread::sleep(LOOK);
        }
        self.look_back(killed, self.mock.report().accepted - calls)
    }

    fn start(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_llmq"))
            .args(&self.arguments)
            .current_dir(self.world.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap()
    }

    fn look_back(&mut self, killed: bool, calls: u64) -> Life {
        let now = self.written();
        assert!(self.kept.is_subset(&now), "rows are gone from the output");
        let again: Vec<u64> = self.answered().intersection(&self.kept).copied().collect();
        assert!(
            again.is_empty(),
            "rows in the output were sent again: {again:?}"
        );
        let gained = u64::try_from(now.len() - self.kept.len()).unwrap();
        self.kept = now;
        Life {
            killed,
            lost: calls - gained,
        }
    }

    fn bytes(&self) -> u64 {
        std::fs::metadata(self.world.path("out.jsonl")).map_or(0, |output| output.len())
    }

    fn is_held_by(&self, pid: u32) -> bool {
        std::fs::read_to_string(self.world.path("out.jsonl.lock"))
            .is_ok_and(|lock| lock.contains(&format!("\"pid\":{pid},")))
    }

    /// The rows in the output, each once. A kill may have torn the last line.
    fn written(&self) -> BTreeSet<u64> {
        let text = std::fs::read_to_string(self.world.path("out.jsonl")).unwrap_or_default();
        let mut rows = BTreeSet::new();
        for line in text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            let row: Value = serde_json::from_str(line).unwrap();
            assert_eq!(row["response"]["status_code"], 200, "{row}");
            let number = row["llmq"]["line"].as_u64().unwrap();
            assert!(rows.insert(number), "row {number} is there twice");
        }
        rows
    }

    /// The rows that were answered since this was last called.
    fn answered(&self) -> BTreeSet<u64> {
        let mut rows = BTreeSet::new();
        for entry in std::fs::read_dir(self.world.path("answered")).unwrap() {
            let path = entry.unwrap().path();
            // A call whose answer has not left yet: it is found at the next look.
            if path.extension().is_some_and(|ending| ending == "part") {
                continue;
            }
            let call: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let prompt = call["request"]["messages"][0]["content"].as_str().unwrap();
            let number = prompt.strip_prefix("Place ").unwrap();
            rows.insert(number.parse().unwrap());
            std::fs::remove_file(path).unwrap();
        }
        rows
    }
}

#[test]
fn killed_at_any_moment_a_run_brings_every_row_once_and_keeps_its_limit() {
    let scale = scale();
    let seed = env_number("LLMQ_KILLS_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("LLMQ_KILLS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let rows = ROWS * scale;
    let mut scene = Scene::new(rows);

    let (mut kills, mut lost) = (0, 0);
    while kills < KILLS * scale {
        let left = rows - u64::try_from(scene.kept.len()).unwrap();
        let moment = Moment::draw(&mut random, left / (KILLS * scale - kills));
        let life = scene.live(Some(moment));
        println!("{moment:?}: {life:?}, {} rows written", scene.kept.len());
        if !life.killed {
            break;
        }
        kills += 1;
        lost += life.lost;
    }
    let last = scene.live(None);
    assert_eq!(last.lost, 0);

    assert!(scene.kept.iter().copied().eq(1..=rows));
    let proof = scene.world.run("run in.csv -o out.jsonl --verify");
    proof.says(0, &[]);
    assert_eq!(kills, KILLS * scale, "it ended before the last kill");
    let books = scene.mock.report();
    assert_eq!(books.accepted, rows + lost);
    let in_flight = kills * (IN_FLIGHT_MAX + ON_THE_WAY);
    assert!(lost <= in_flight, "{lost} rows were sent twice");
    let paid_twice = books.answers.repeated;
    assert!(
        paid_twice <= kills * ON_THE_WAY,
        "{paid_twice} answers were lost"
    );
    assert_eq!(books.refused, 0, "{books:#?}");
}
