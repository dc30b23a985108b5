use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long an answer of the name service is used: short enough for a provider that moves,
/// long enough that a thousand connections opened at once ask once.
const ANSWER_LIFETIME: Duration = Duration::from_secs(5);

/// Looks up host names, one question at a time, and remembers the last answer.
///
/// The system's own lookup blocks a thread each; opening thousands of connections at once
/// would start hundreds of threads that all ask the same question.
#[derive(Clone, Default)]
pub(crate) struct CachedResolver {
    last: Arc<Mutex<Option<Answer>>>,
}

struct Answer {
    name: Name,
    addresses: Vec<SocketAddr>,
    asked_at: Instant,
}

impl CachedResolver {
    async fn resolve(self, name: Name) -> io::Result<std::vec::IntoIter<SocketAddr>> {
        // Held across the lookup on purpose: those who come meanwhile want the same answer.
        let mut last = self.last.lock().await;
        if let Some(answer) = last.as_ref()
            && answer.name == name
            && answer.asked_at.elapsed() < ANSWER_LIFETIME
        {
            return Ok(answer.addresses.clone().into_iter());
        }
        let asked_at = Instant::now();
        let question = name.as_str().to_owned();
        let addresses = tokio::task::spawn_blocking(move || look_up(&question))
            .await
            .map_err(io::Error::other)??;
        *last = Some(Answer {
            name,
            addresses: addresses.clone(),
            asked_at,
        });
        Ok(addresses.into_iter())
    }
}

fn look_up(name: &str) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = (name, 0).to_socket_addrs()?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no address",
        ));
    }
    Ok(addresses)
}

impl tower_service::Service<Name> for CachedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_asked_for_once_while_its_answer_is_fresh() {
        let resolver = CachedResolver::default();
        let name: Name = "localhost".parse().unwrap();
        let first: Vec<_> = resolver
            .clone()
            .resolve(name.clone())
            .await
            .unwrap()
            .collect();
        let asked_at = resolver.last.lock().await.as_ref().unwrap().asked_at;
        let again: Vec<_> = resolver.clone().resolve(name).await.unwrap().collect();
        assert_eq!(first, again);
        assert!(first.iter().all(|address| address.ip().is_loopback()));
        assert_eq!(
            resolver.last.lock().await.as_ref().unwrap().asked_at,
            asked_at
        );
    }
}
