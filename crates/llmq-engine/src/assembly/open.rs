//! The accounts of settings: their keys, their connections, and what records them.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use llmq_core::Clock;
use llmq_dispatch::Rules;
use llmq_provider::{Provider, ProviderConfig, Recorder, Secret};
use rustc_hash::FxHashMap;

use super::{Account, Accounts, AssemblyError, Known};
use crate::books::Memory;
use crate::config::{Ambiguous, KeySource, Settings, UpstreamSettings};

/// Where calls and answers are recorded in development, in the directory of the process.
pub(super) const RECORDINGS: &str = "llm_response_logs";

impl Accounts {
    pub(super) fn open(
        settings: &Settings,
        memory: Option<Memory>,
        mut known: Known,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, AssemblyError> {
        let recorder = recorder(settings, clock)?;
        let mut accounts: BTreeMap<String, Account> = BTreeMap::new();
        for (name, upstream) in &settings.upstreams {
            let key = key(name, upstream)?;
            let credential = known.credential(&upstream.base_url, key.as_ref());
            let config = ProviderConfig {
                api_key: key,
                host: upstream.host(),
                timeouts: upstream.timeouts,
                http2: upstream.http2,
                recorder: recorder.clone(),
                ..ProviderConfig::new(upstream.provider.dialect(), upstream.base_url.clone())
            };
            let provider = Provider::new(config, Arc::clone(clock)).map_err(|source| {
                AssemblyError::Upstream {
                    upstream: name.clone(),
                    source,
                }
            })?;
            let account = Account {
                settings: upstream.clone(),
                provider,
                credential,
            };
            accounts.insert(name.clone(), account);
        }
        Ok(Self {
            accounts,
            limits: settings.limits.clone(),
            quota: settings.quota.check().map_err(AssemblyError::Quota)?,
            rules: Rules {
                capacity: settings.store.capacity,
                backoffs: settings.retry.backoffs,
                ..Rules::default()
            },
            max_attempts: settings.retry.max_attempts,
            retry_ambiguous: settings.retry.ambiguous == Ambiguous::Retry,
            memory,
            known,
            shared: FxHashMap::default(),
            stated: FxHashMap::default(),
            made: FxHashMap::default(),
            news: Vec::new(),
        })
    }
}

impl Known {
    /// The number of a server's key.
    fn credential(&mut self, base_url: &str, key: Option<&Secret>) -> u32 {
        let key = self.hashes.hash_one(key.map(Secret::expose));
        let next = u32::try_from(self.credentials.len()).unwrap_or(u32::MAX);
        let known = self.credentials.entry((base_url.to_owned(), key));
        *known.or_insert(next)
    }
}

/// What records all calls, where that is asked for.
fn recorder(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Arc<Recorder>>, AssemblyError> {
    if !settings.record_llm_responses {
        return Ok(None);
    }
    let recorder = Recorder::open(RECORDINGS, Arc::clone(clock))
        .map_err(|source| AssemblyError::Recorder { source })?;
    tracing::warn!(directory = RECORDINGS, "prompts and answers are recorded");
    Ok(Some(Arc::new(recorder)))
}

fn key(name: &str, upstream: &UpstreamSettings) -> Result<Option<Secret>, AssemblyError> {
    let key = upstream.api_key.as_ref().map(KeySource::resolve);
    key.transpose().map_err(|source| AssemblyError::Key {
        upstream: name.to_owned(),
        source,
    })
}
