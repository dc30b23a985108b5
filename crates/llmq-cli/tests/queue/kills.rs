//! Nothing that was accepted is lost, and each has one end, whatever is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llmq_core::{Status, WallTime};
use llmq_store::Entry;
use llmq_testkit::{env_number, scale};
use serde_json::{Value, json};

use crate::evidence::{Acknowledged, Evidence};
use crate::server::{PATIENCE, Place, Server, ask, request};
use crate::witness::{Request, Witness};

/// Kills over one file; `LLMQ_TEST_SCALE` multiplies the files.
const KILLS: u64 = 50;
/// Those who hand in, each in singles and in bulk.
const CALLERS: usize = 3;
/// How long a process that is killed before it listens has had at most.
const BEGINNING: Duration = Duration::from_millis(120);
/// What a provider takes for an answer.
const LATENCY: Duration = Duration::from_millis(20);
/// The time to start of those that may run out of it: some do in line, and all that wait while a
/// process is killed and another begins.
const SHORT_TTL: &str = "60ms";

#[test]
fn every_accepted_request_is_finished_once_over_kills_under_load() {
    let seed = env_number("LLMQ_KILLS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut kills = 0;
    for file in 0..scale() {
        kills += play(&mut random);
        println!("LLMQ_KILLS_SEED={seed}: {} files, {kills} kills", file + 1);
    }
}

/// Many lives over one file, each killed under load. Answers how many.
fn play(random: &mut fastrand::Rng) -> u64 {
    // Slow and narrow enough that there is always something waiting and something running.
    let provider = Witness::start(LATENCY);
    let place = Place::before(provider.addr, "concurrency = 16");
    // A request that is often first in line is often killed with its process.
    place.append("[retry]\nmax_attempts = 100\n");
    let load = Arc::new(Load::start());
    let mut faults = Vec::new();
    for kill in 0..KILLS {
        let in_flight = if random.u8(..5) == 0 {
            // While it opens the file and takes back what the one before held.
            let mut child = place.begin();
            std::thread::sleep(BEGINNING.mul_f64(random.f64()));
            child.kill().unwrap();
            child.wait().unwrap();
            0
        } else {
            live(&place, &provider, &load, kill, random.usize(1..60))
        };
        faults.push(Entry::Fault {
            what: "SIGKILL".to_owned(),
            in_flight,
        });
    }
    let server = place.serve();
    let begun = tokio::time::Instant::now();
    let is_open = |status: &str| {
        let path = format!("/api/requests?status={status}&limit=1");
        server.get(&path).1["requests"] != json!([])
    };
    while is_open("queued") || is_open("processing") || !load.all_told() {
        assert!(begun.elapsed() < PATIENCE * 2, "something does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    load.look_at_results(&server, random);
    assert_eq!(server.stop(), 0);
    let evidence = Evidence {
        sent: provider.sent(),
        faults,
        held: place.held(),
        ..load.evidence()
    };
    // Those that hit a process before it listened met no call of ours.
    let broken = evidence.broken(KILLS / 2);
    assert!(broken.is_empty(), "{broken:?}");
    let checked = llmq_store_sqlite::check(&place.file(), true).unwrap();
    assert!(checked.is_sound(), "{checked:?}");
    let expired = evidence.held.jobs.iter();
    let expired = expired.filter(|job| job.status == Status::Expired).count();
    assert!(expired > 0, "no request ran out of its time");
    println!(
        "{KILLS} kills, {} acknowledged, {expired} expired, {} calls at the provider",
        evidence.acknowledged.len(),
        evidence.sent.len()
    );
    KILLS
}

/// One life, until so many were accepted in it. Answers how many calls had no answer when it was
/// killed.
fn live(place: &Place, provider: &Witness, load: &Arc<Load>, life: u64, enough: usize) -> u64 {
    let server = place.serve();
    let (addr, over) = (server.addr, Arc::new(AtomicBool::new(false)));
    let before = load.acknowledged.lock().unwrap().len();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (over, load) = (Arc::clone(&over), Arc::clone(load));
            std::thread::spawn(move || load.hand_in(addr, &format!("{life}-{caller}"), &over))
        })
        .collect();
    let begun = tokio::time::Instant::now();
    while load.acknowledged.lock().unwrap().len() < before + enough {
        assert!(begun.elapsed() < PATIENCE, "nothing is accepted");
        std::thread::sleep(Duration::from_millis(1));
    }
    let in_flight = load.unanswered.load(Ordering::Relaxed) + provider.in_flight();
    server.kill();
    over.store(true, Ordering::Relaxed);
    callers
        .into_iter()
        .for_each(|caller| caller.join().unwrap());
    in_flight
}

/// Those who hand in, and what they were told.
struct Load {
    /// What was handed in, by its text.
    handed_in: Mutex<BTreeSet<String>>,
    acknowledged: Mutex<BTreeMap<String, Acknowledged>>,
    unanswered: AtomicU64,
    /// The ids of the webhooks that came for each.
    told: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
    hook: SocketAddr,
}

impl Load {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hook = listener.local_addr().unwrap();
        let told: Arc<Mutex<BTreeMap<String, Vec<String>>>> = Arc::default();
        let shared = Arc::clone(&told);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                hear(&stream, &shared);
            }
        });
        Self {
            handed_in: Mutex::default(),
            acknowledged: Mutex::default(),
            unanswered: AtomicU64::new(0),
            told,
            hook,
        }
    }

    /// Whether the end of a request with this text is told.
    fn is_told(text: &str) -> bool {
        text.ends_with('0')
    }

    /// Whether a request with this text may run out of its time.
    fn is_short_lived(text: &str) -> bool {
        text.ends_with(['3', '7', '0'])
    }

    fn request(&self, text: &str) -> Value {
        let mut request = request(text);
        if Self::is_short_lived(text) {
            request["ttl"] = SHORT_TTL.into();
        }
        if Self::is_told(text) {
            request["callback_url"] = format!("http://{}/{text}", self.hook).into();
        }
        self.handed_in.lock().unwrap().insert(text.to_owned());
        request
    }

    /// Hands in until the server is gone; keeps what was acknowledged.
    fn hand_in(&self, addr: SocketAddr, caller: &str, over: &AtomicBool) {
        for number in 0.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            let count = if number % 5 == 4 { 3 } else { 1 };
            let texts: Vec<String> = (0..count)
                .map(|part| format!("{caller}-{part}-{number}"))
                .collect();
            let requests: Vec<Value> = texts.iter().map(|text| self.request(text)).collect();
            let body = match requests.as_slice() {
                [one] => one.clone(),
                many => json!({"requests": many}),
            };
            self.unanswered.fetch_add(1, Ordering::Relaxed);
            let answer = ask(addr, "POST", "/api/requests", &body.to_string());
            self.unanswered.fetch_sub(1, Ordering::Relaxed);
            let Some((status, answer)) = answer else {
                return;
            };
            assert_eq!(status, 202, "{answer}");
            let one = std::slice::from_ref(&answer);
            let states = answer["requests"].as_array().map_or(one, Vec::as_slice);
            let mut acknowledged = self.acknowledged.lock().unwrap();
            for (text, state) in texts.into_iter().zip(states) {
                let told = Acknowledged {
                    job: state["queue_id"].as_str().unwrap().parse().unwrap(),
                    expires_at: instant(&state["expires_at"]),
                    is_to_be_told: Self::is_told(&text),
                };
                acknowledged.insert(text, told);
            }
        }
    }

    /// Whether the end of all that were acknowledged and are to be told was.
    fn all_told(&self) -> bool {
        let acknowledged = self.acknowledged.lock().unwrap();
        let told = self.told.lock().unwrap();
        let mut to_tell = acknowledged.keys().filter(|text| Self::is_told(text));
        to_tell.all(|text| told.contains_key(text))
    }

    /// Some of those that were accepted have their results.
    fn look_at_results(&self, server: &Server, random: &mut fastrand::Rng) {
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        for (text, told) in random.choose_multiple(acknowledged, 500) {
            let id = told.job;
            let state = server.end(&id.to_string());
            if Self::is_short_lived(&text) && state["status"] == "expired" {
                continue;
            }
            assert_eq!(state["status"], "completed", "{state}");
            let (status, result) = server.get(&format!("/api/requests/{id}/result"));
            let object = result["object"].as_str();
            assert_eq!((status, object), (200, Some("chat.completion")));
        }
    }

    /// What callers saw.
    fn evidence(&self) -> Evidence {
        Evidence {
            handed_in: self.handed_in.lock().unwrap().clone(),
            acknowledged: self.acknowledged.lock().unwrap().clone(),
            told: self.told.lock().unwrap().clone(),
            ..Evidence::default()
        }
    }
}

fn instant(text: &Value) -> WallTime {
    let at: jiff::Timestamp = text.as_str().unwrap().parse().unwrap();
    WallTime::from_micros(at.as_microsecond())
}

/// Hears one webhook, whose path is the text of its request.
fn hear(stream: &TcpStream, told: &Mutex<BTreeMap<String, Vec<String>>>) {
    // Its sender may have been killed. What is not read to its end would be reset, and the answer
    // with it.
    let Some(request) = Request::read(&mut BufReader::new(stream)) else {
        return;
    };
    let text = request.path.trim_start_matches('/').to_owned();
    if let Some(message) = request.header("webhook-id") {
        let mut told = told.lock().unwrap();
        told.entry(text).or_default().push(message.to_owned());
    }
    let answer = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
    let mut stream = stream;
    let _ = stream.write_all(answer.as_bytes());
}
