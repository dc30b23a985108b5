use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than any step of a test needs; reached only when something hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A provider that says exactly what a test tells it to, byte for byte.
///
/// ```
/// use llmq_testkit::ScriptedServer;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let server = ScriptedServer::start().await;
/// let client = async {
///     let mut stream = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
///     stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
///     let mut answer = String::new();
///     stream.read_to_string(&mut answer).await.unwrap();
///     answer
/// };
/// let script = async {
///     let mut guest = server.serve().await;
///     // Half a body, and the connection ends.
///     guest.say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"a\"").await;
/// };
/// let (answer, ()) = tokio::join!(client, script);
/// assert!(answer.ends_with("{\"a\""));
/// # });
/// ```
#[derive(Debug)]
pub struct ScriptedServer {
    listener: TcpListener,
    addr: SocketAddr,
}

/// A connection on the server's side. Dropping it closes it in order.
#[derive(Debug)]
pub struct Guest {
    stream: TcpStream,
    read: Vec<u8>,
}

impl ScriptedServer {
    /// Listens on a free port of this machine.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("this machine has a free port");
        let addr = listener.local_addr().expect("it listens somewhere");
        Self { listener, addr }
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base URL of an OpenAI-compatible provider at this address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// Accepts one connection.
    ///
    /// # Panics
    ///
    /// When none comes within [`PATIENCE`].
    pub async fn accept(&self) -> Guest {
        let accepted = timeout(PATIENCE, self.listener.accept()).await;
        let accepted = accepted.expect("a connection comes in time");
        let (stream, _) = accepted.expect("it can be accepted");
        Guest::new(stream)
    }

    /// Accepts every connection, however long none comes, and gives each to `serve`, all at
    /// once. It ends when it is dropped, and they with it.
    ///
    /// A `serve` that panics, since its guest left, ends nothing else.
    ///
    /// # Panics
    ///
    /// When the system lets no more in.
    pub async fn serve_each<F>(self, serve: impl Fn(Guest) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut guests = JoinSet::new();
        loop {
            let accepted = self.listener.accept().await;
            let (stream, _) = accepted.expect("it can be accepted");
            guests.spawn(serve(Guest::new(stream)));
            while guests.try_join_next().is_some() {}
        }
    }

    /// Accepts one connection and reads one call.
    ///
    /// # Panics
    ///
    /// Like [`accept`](Self::accept) and [`Guest::read_call`].
    pub async fn serve(&self) -> Guest {
        let mut guest = self.accept().await;
        guest.read_call().await;
        guest
    }
}

impl Guest {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// Reads one HTTP/1.1 request with a stated length, or without a body; gives its head and
    /// body. What follows it is kept for the next one.
    ///
    /// # Panics
    ///
    /// When the connection ends before the call does, or the rest of it does not come within
    /// [`PATIENCE`].
    pub async fn read_call(&mut self) -> (String, Vec<u8>) {
        let head_end = loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.read_some().await > 0, "the call ended in its head");
        };
        let head = String::from_utf8(self.read[..head_end].to_vec()).expect("a head is text");
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, length)| length.trim().parse().expect("a length"));
        while self.read.len() < head_end + length {
            assert!(self.read_some().await > 0, "the call ended in its body");
        }
        let rest = self.read.split_off(head_end + length);
        let body = self.read.split_off(head_end);
        self.read = rest;
        (head, body)
    }

    /// Waits until something has come, and leaves it there.
    ///
    /// # Panics
    ///
    /// When the other side closes instead, or nothing comes within [`PATIENCE`].
    pub async fn readable(&self) {
        // `readable` of the stream alone may be told too early.
        let mut byte = [0];
        let peeked = timeout(PATIENCE, self.stream.peek(&mut byte)).await;
        let peeked = peeked.expect("something comes in time");
        assert!(peeked.expect("it can be read") > 0, "it was closed instead");
    }

    async fn read_some(&mut self) -> usize {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
        read.expect("the call goes on").expect("it can be read")
    }

    /// Sends `text` as it is.
    ///
    /// # Panics
    ///
    /// When the other side has gone.
    pub async fn say(&mut self, text: &str) {
        self.say_bytes(text.as_bytes()).await;
    }

    /// Sends `bytes` as they are.
    ///
    /// # Panics
    ///
    /// When the other side has gone.
    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        let written = self.stream.write_all(bytes).await;
        written.expect("the other side is there");
    }

    /// Answers 200 with `body`.
    ///
    /// # Panics
    ///
    /// When the other side has gone.
    pub async fn answer(&mut self, body: &str) {
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        self.say(&head).await;
    }

    /// Closes by reset instead of an orderly end.
    ///
    /// # Panics
    ///
    /// When the system does not let it.
    pub fn reset(self) {
        let lingers = self.stream.set_zero_linger();
        lingers.expect("a connection can be reset");
    }

    /// Says nothing until the other side has closed.
    ///
    /// # Panics
    ///
    /// When it does not within [`PATIENCE`].
    pub async fn closed(&mut self) {
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await;
        // A reset is an end too.
        let _ = end.expect("the other side closes in time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (Guest, TcpStream) {
        let server = ScriptedServer::start().await;
        let client = TcpStream::connect(server.addr());
        let (guest, client) = tokio::join!(server.accept(), client);
        (guest, client.unwrap())
    }

    #[tokio::test]
    async fn calls_are_read_one_by_one_however_they_are_cut() {
        let (mut guest, mut client) = pair().await;
        let sending = async {
            for part in [
                "POST /a HTTP/1.1\r\ncontent-",
                "length: 3\r\n\r\nab",
                "cGET /b HTTP/1.1\r\n\r\n",
            ] {
                client.write_all(part.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let reading = async { (guest.read_call().await, guest.read_call().await) };
        let ((), (first, second)) = tokio::join!(sending, reading);
        assert!(first.0.starts_with("POST /a ") && second.0.starts_with("GET /b "));
        assert_eq!((first.1, second.1), (b"abc".to_vec(), Vec::new()));
    }

    #[tokio::test]
    async fn a_reset_is_seen_as_one_and_an_end_as_an_end() {
        let (guest, mut client) = pair().await;
        guest.reset();
        let error = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let (guest, mut client) = pair().await;
        drop(guest);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn every_guest_is_served_whatever_became_of_the_others() {
        let server = ScriptedServer::start().await;
        let addr = server.addr();
        let serving = server.serve_each(|mut guest| async move {
            guest.read_call().await;
            guest.answer("{}").await;
        });
        let calling = async {
            // One leaves without a word.
            drop(TcpStream::connect(addr).await.unwrap());
            let mut clients = Vec::new();
            for _ in 0..2 {
                clients.push(TcpStream::connect(addr).await.unwrap());
            }
            for client in clients.iter_mut().rev() {
                client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.unwrap();
                assert!(answer.ends_with("{}"));
            }
        };
        tokio::select! {
            () = serving => unreachable!("it goes on"),
            () = calling => {}
        }
    }

    #[tokio::test]
    async fn silence_lasts_until_the_other_side_goes() {
        let (mut guest, client) = pair().await;
        drop(client);
        guest.closed().await;
    }
}
