//! Nothing that was accepted is lost, and each has one end, whatever is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llmq_core::Status;
use llmq_store::{Entry, HistoryOptions, JobId, check_history};
use llmq_testkit::{env_number, scale};
use serde_json::{Value, json};

use crate::server::{PATIENCE, Place, ask, request};

/// Kills over one file; `LLMQ_TEST_SCALE` multiplies the files.
const KILLS: u64 = 50;
/// Those who hand in, each in singles and in bulk.
const CALLERS: usize = 3;
/// How long a process that is killed before it listens has had at most.
const BEGINNING: Duration = Duration::from_millis(120);

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
    let place = Place::new(Duration::from_millis(20), "concurrency = 16");
    // A request that is often first in line is often killed with its process.
    place.append("[retry]\nmax_attempts = 100\n");
    let load = Arc::new(Load::start());
    let mut history = Vec::new();
    for kill in 0..KILLS {
        let in_flight = if random.u8(..5) == 0 {
            // While it opens the file and takes back what the one before held.
            let mut child = place.begin();
            std::thread::sleep(BEGINNING.mul_f64(random.f64()));
            child.kill().unwrap();
            child.wait().unwrap();
            0
        } else {
            live(&place, &load, kill, random.usize(1..60))
        };
        history.push(Entry::Fault {
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
    let sent_twice = load.look_at_results(&server, random);
    assert_eq!(server.stop(), 0);
    load.judge(&place, history);
    println!(
        "{KILLS} kills, {} acknowledged, {sent_twice} perhaps sent twice, {} calls at the provider",
        load.acknowledged.lock().unwrap().len(),
        place.mock.report().calls
    );
    KILLS
}

/// One life, until so many were accepted in it. Answers how many calls had no answer when it was
/// killed.
fn live(place: &Place, load: &Arc<Load>, life: u64, enough: usize) -> u64 {
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
    let in_flight = load.unanswered.load(Ordering::Relaxed) + place.mock.report().in_flight;
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
    acknowledged: Mutex<BTreeMap<String, JobId>>,
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
                hear(stream, &shared);
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

    fn request(&self, text: &str) -> Value {
        let mut request = request(text);
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
                acknowledged.insert(text, id_of(state));
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

    /// Some of those that were accepted have their results. Answers how many of these may have
    /// been sent twice.
    fn look_at_results(&self, server: &crate::server::Server, random: &mut fastrand::Rng) -> usize {
        let ids: Vec<JobId> = self
            .acknowledged
            .lock()
            .unwrap()
            .values()
            .copied()
            .collect();
        let mut sent_twice = 0;
        for id in random.choose_multiple(ids, 500) {
            let state = server.end(&id.to_string());
            assert_eq!(state["status"], "completed", "{state}");
            sent_twice += usize::from(state["may_have_been_sent"] == true);
            let (status, result) = server.get(&format!("/api/requests/{id}/result"));
            let object = result["object"].as_str();
            assert_eq!((status, object), (200, Some("chat.completion")));
        }
        sent_twice
    }

    /// Holds all that was seen against the promises.
    fn judge(&self, place: &Place, faults: Vec<Entry>) {
        let held = place.held();
        let mut history = Vec::new();
        let handed_in = self.handed_in.lock().unwrap();
        let mut texts = BTreeSet::new();
        for (job, _, body) in &held.jobs {
            let text = body["messages"][0]["content"].as_str().unwrap();
            assert!(
                texts.insert(text),
                "{text} was handed in once and is there twice"
            );
            if handed_in.contains(text) {
                history.push(Entry::HandedIn { job: *job });
            }
            for message in self.told.lock().unwrap().get(text).into_iter().flatten() {
                history.push(Entry::Told {
                    job: *job,
                    target: "hook".to_owned(),
                    message: message.clone(),
                });
            }
        }
        for (text, job) in self.acknowledged.lock().unwrap().iter() {
            let hook = Self::is_told(text).then(|| "hook".to_owned());
            history.push(Entry::Accepted {
                job: *job,
                expires_at: None,
                targets: hook.into_iter().collect(),
            });
        }
        let kills = faults.len() as u64;
        history.extend(faults);
        let ended = |status: Status| status.is_final();
        let mut ends = BTreeMap::<JobId, u32>::new();
        for entry in &held.seen {
            if let Entry::Seen { job, status } = entry {
                *ends.entry(*job).or_default() += u32::from(ended(*status));
            }
        }
        assert!(
            ends.values().all(|ends| *ends == 1),
            "an end that came twice"
        );
        history.extend(held.seen);
        let jobs = held.jobs.iter().map(|(job, status, _)| (*job, *status));
        history.push(Entry::End {
            jobs: jobs.collect(),
        });
        let options = HistoryOptions {
            // Those that hit a process before it listened met no call of ours.
            faults_min: kills / 2,
            unfinished: false,
        };
        let broken = check_history(&history, options);
        assert!(broken.is_empty(), "{broken:?}");
        let checked = llmq_store_sqlite::check(&place.file(), true).unwrap();
        assert!(checked.is_sound(), "{checked:?}");
    }
}

fn id_of(state: &Value) -> JobId {
    state["queue_id"].as_str().unwrap().parse().unwrap()
}

/// Hears one webhook, whose path is the text of its request.
fn hear(stream: std::net::TcpStream, told: &Mutex<BTreeMap<String, Vec<String>>>) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut reader = BufReader::new(&stream);
    let (mut text, mut message, mut length) = (None, None, 0);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(read) if read > 2 => {}
            Ok(2) => break,
            // Its sender was killed.
            Ok(_) | Err(_) => return,
        }
        let line = line.trim_end();
        if let Some(path) = line.strip_prefix("POST /") {
            text = path.split(' ').next().map(str::to_owned);
        } else if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "webhook-id" => message = Some(value.to_owned()),
                "content-length" => length = value.parse().unwrap(),
                _ => {}
            }
        }
    }
    // A connection that is closed with something unread is reset, and the answer with it.
    if reader.read_exact(&mut vec![0; length]).is_err() {
        return;
    }
    if let (Some(text), Some(message)) = (text, message) {
        told.lock().unwrap().entry(text).or_default().push(message);
    }
    let answer = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
    let _ = (&stream).write_all(answer.as_bytes());
}
