//! `llmq batches` at a server that goes away, and with more than fits in memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// More than is held of any answer that is read whole.
const OUTPUT: usize = 65 << 20;
const INPUT: u64 = 200 << 20;

/// One call that came, with the length of its body, which was read.
struct Call {
    line: String,
    body: u64,
    stream: TcpStream,
}

impl Call {
    fn next(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse().unwrap())
        });
        let mut body = reader.take(length.unwrap_or(0));
        let body = std::io::copy(&mut body, &mut std::io::sink()).unwrap();
        let line = head.lines().next().unwrap_or_default().to_owned();
        Self { line, body, stream }
    }

    fn says(mut self, answer: &Value) {
        let text = answer.to_string();
        let length = text.len();
        write!(
            self.stream,
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{text}"
        )
        .unwrap();
    }
}

fn llmq(addr: SocketAddr, words: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_llmq"))
        .args(words)
        .env("LLMQ_BASE_URL", format!("http://{addr}"))
        .env_remove("LLMQ_API_KEY")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn batch(status: &str, failed: u64) -> Value {
    json!({"id": "batch_1", "status": status, "output_file_id": "file-2",
        "request_counts": {"total": 2, "completed": 2 - failed, "failed": failed}})
}

#[test]
fn a_batch_is_waited_for_while_its_server_is_away_and_its_failures_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("calls.jsonl");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(INPUT)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let create = ["batches", "create", path.to_str().unwrap(), "--wait"];
    let endpoint = ["--endpoint", "/v1/chat/completions"];
    let mut child = llmq(addr, &[&create[..], &endpoint].concat());
    let upload = Call::next(&listener);
    assert!(
        upload.line.starts_with("POST /v1/files "),
        "{}",
        upload.line
    );
    assert!(upload.body > INPUT, "{}", upload.body);
    upload.says(&json!({"id": "file-1"}));
    Call::next(&listener).says(&batch("validating", 0));
    Call::next(&listener).says(&batch("in_progress", 0));
    drop(listener);
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut word = String::new();
    said.read_line(&mut word).unwrap();
    assert!(word.contains("waiting for it"), "{word}");
    if let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", child.id())) {
        let most = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        let most: u64 = most.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(most < 64 << 10, "{most} KiB for a file of {INPUT} bytes");
    }
    let listener = TcpListener::bind(addr).unwrap();
    Call::next(&listener).says(&batch("completed", 1));
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("there again"), "{rest}");
    assert!(rest.contains("1 of its calls"), "{rest}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn results_of_any_length_come_as_they_are() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut child = llmq(addr, &["batches", "results", "batch_1"]);
    let mut out = child.stdout.take().unwrap();
    let got = std::thread::spawn(move || {
        let (mut bytes, mut sum, mut part) = (0, 0_u64, vec![0; 1 << 16]);
        loop {
            match out.read(&mut part).unwrap() {
                0 => return (bytes, sum),
                read => {
                    bytes += read;
                    sum += part[..read]
                        .iter()
                        .map(|byte| u64::from(*byte))
                        .sum::<u64>();
                }
            }
        }
    });
    Call::next(&listener).says(&batch("completed", 0));
    let mut call = Call::next(&listener);
    assert!(
        call.line.starts_with("GET /v1/files/file-2/content "),
        "{}",
        call.line
    );
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {OUTPUT}\r\n\r\n");
    call.stream.write_all(head.as_bytes()).unwrap();
    // No text: bytes are not looked at.
    let part = vec![0xff; 1 << 20];
    for _ in 0..OUTPUT >> 20 {
        call.stream.write_all(&part).unwrap();
    }
    assert_eq!(got.join().unwrap(), (OUTPUT, OUTPUT as u64 * 0xff));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
