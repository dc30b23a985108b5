//! What these tests share: providers at a scripted server, and the calls they make.

use std::sync::Arc;
use std::time::Duration;

use llmq_provider::{Dialect, Operation, Provider, ProviderConfig, Request, Secret, Timeouts};
use llmq_testkit::{FakeClock, PATIENCE, ScriptedServer};

/// A limit that a test waits for.
pub(crate) const SOON: Duration = Duration::from_millis(60);

/// How a scripted server is called.
pub(crate) trait Called {
    fn config(&self) -> ProviderConfig;

    fn provider(&self) -> Provider {
        provider(self.config())
    }
}

impl Called for ScriptedServer {
    fn config(&self) -> ProviderConfig {
        let mut config = ProviderConfig::new(Dialect::OpenAi, self.url())
            .with_key(Secret::new("sk-very-private"));
        config.timeouts = Timeouts {
            connect: PATIENCE,
            first_byte: PATIENCE,
            first_token: PATIENCE,
            idle: PATIENCE,
            total: PATIENCE,
        };
        config
    }
}

pub(crate) fn provider(config: ProviderConfig) -> Provider {
    Provider::new(config, Arc::new(FakeClock::with_tokio())).unwrap()
}

/// Lets the other side write for as long as its connection takes anything.
pub(crate) async fn until_stuck() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

pub(crate) fn chat(body: &'static str) -> Request {
    Request::new(Operation::ChatCompletions, body)
}
