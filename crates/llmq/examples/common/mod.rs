//! One call of a provider, for the examples that make real ones.

use std::error::Error;
use std::sync::Arc;

use llmq::{Host, ProcessorError, Usage};
use llmq_engine::SystemClock;
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_provider::{
    Dialect, Operation, Prompt, Provider, ProviderConfig, Request, Secret, Source, answer_text,
    check_answer, host_of, prompt_body,
};

/// Where the calls go: a real account, or the stand-in where there is no key.
pub(crate) enum Account {
    /// This address, with this key.
    Real { base_url: String, key: Secret },
    /// A stand-in provider, started for the occasion.
    StandIn,
}

impl Account {
    /// What the environment says.
    pub(crate) fn from_env(url_variable: &str, key_variable: &str, default_url: &str) -> Self {
        match Secret::from_env(key_variable) {
            Ok(key) => Self::Real {
                base_url: std::env::var(url_variable).unwrap_or(default_url.to_owned()),
                key,
            },
            Err(_) => Self::StandIn,
        }
    }
}

/// A provider that is ready to be called.
pub(crate) struct Caller {
    provider: Provider,
    clock: Arc<SystemClock>,
    source: Source,
    operation: Operation,
    // Serves until it is dropped.
    _stand_in: Option<MockServer>,
}

/// A text, and what it used.
pub(crate) struct Reply {
    pub(crate) text: String,
    pub(crate) usage: Option<Usage>,
}

impl Caller {
    pub(crate) async fn connect(
        dialect: Dialect,
        operation: Operation,
        account: Account,
    ) -> Result<Self, Box<dyn Error>> {
        let (config, stand_in) = match account {
            Account::Real { base_url, key } => {
                (ProviderConfig::new(dialect, base_url).with_key(key), None)
            }
            Account::StandIn => {
                let config = MockConfig {
                    listen: "127.0.0.1:0".parse()?,
                    ..MockConfig::default()
                };
                let mock = MockServer::start(config).await?;
                let url = format!("http://{}/v1", mock.addr());
                (ProviderConfig::new(dialect, url), Some(mock))
            }
        };
        let clock = Arc::new(SystemClock::new());
        let source = Source {
            host: host_of(&config.base_url),
            dialect,
        };
        Ok(Self {
            provider: Provider::new(config, clock.clone())?,
            clock,
            source,
            operation,
            _stand_in: stand_in,
        })
    }

    /// Who runs the server, so that its limits are counted as it counts.
    pub(crate) fn host(&self) -> Host {
        self.source.host
    }

    /// One call. What went wrong is put into its class, so that the queue knows what to do.
    pub(crate) async fn call(&self, model: &str, text: &str) -> Result<Reply, ProcessorError> {
        let params = serde_json::Map::new();
        let prompt = Prompt {
            model,
            system: None,
            text,
            params: &params,
        };
        let request = Request::new(self.operation, prompt_body(self.operation, prompt));
        let sent = async { self.provider.call(request).await?.collect().await };
        let answer = sent
            .await
            .map_err(|error| ProcessorError::classified(error.class(), None, error))?;
        let now = llmq_core::Clock::now(&*self.clock);
        let facts = check_answer(self.source, &answer, now).map_err(|verdict| {
            let (class, wait) = (verdict.class, verdict.wait);
            ProcessorError::classified(class, wait, *verdict)
        })?;
        Ok(Reply {
            text: answer_text(&answer.body).unwrap_or_default(),
            usage: facts.usage,
        })
    }
}
