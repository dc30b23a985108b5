use std::sync::Arc;
use std::time::Duration;

use llmq_client::webhooks::{SecretError, WebhookSecret};
use llmq_core::{Clock, Now, WallTime};
use llmq_store::{Endpoint, EndpointId, NewEvent, Store, StoreError, Subject};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

/// A secret that was replaced still signs for so long, so that receivers can change over.
pub const OVERLAP: Duration = Duration::from_secs(24 * 3_600);
/// An endpoint that took nothing for so long is disabled.
const FAILS_FOR: Duration = Duration::from_secs(5 * 24 * 3_600);
/// Of the time between two tries that failed no more counts: the longest that a message waits for
/// its next one. A clock that was set says nothing of an endpoint.
const STEP_MAX: Duration = Duration::from_secs(24 * 3_600);
/// When it failed last is kept to this.
const STEP_MIN: Duration = Duration::from_secs(3_600);

/// What llmq itself keeps with an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointState {
    /// What its owner calls it.
    pub description: Option<String>,
    /// Its secrets, newest first.
    pub secrets: Vec<SecretState>,
    /// Since when it has taken nothing.
    pub failing_since: Option<WallTime>,
    /// When a try failed last, to the hour; none: it takes what it is sent.
    pub failed_at: Option<WallTime>,
    /// Why it is disabled, if it is.
    pub disabled_because: Option<String>,
    /// Since when it is disabled.
    pub disabled_at: Option<WallTime>,
}

/// One of an endpoint's secrets.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct SecretState {
    /// `whsec_…`.
    pub secret: String,
    /// When it stops to sign; none: it is the one in force.
    pub until: Option<WallTime>,
}

impl std::fmt::Debug for SecretState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretState")
            .field("secret", &"***")
            .field("until", &self.until)
            .finish()
    }
}

impl EndpointState {
    /// What is kept with `endpoint`. What cannot be read counts as nothing: then it has no secret,
    /// and nothing is sent to it unsigned.
    #[must_use]
    pub fn of(endpoint: &Endpoint) -> Self {
        serde_json::from_value(endpoint.state.clone()).unwrap_or_default()
    }

    /// The secrets that sign now.
    #[must_use]
    pub fn signing(&self, now: WallTime) -> Vec<WebhookSecret> {
        self.secrets
            .iter()
            .filter(|secret| secret.until.is_none_or(|until| now < until))
            .filter_map(|secret| secret.secret.parse().ok())
            .collect()
    }

    /// A new secret is in force; the one before signs as well for [`OVERLAP`].
    pub fn rotate(&mut self, secret: &WebhookSecret, now: WallTime) {
        for old in &mut self.secrets {
            old.until.get_or_insert(now + OVERLAP);
        }
        self.secrets
            .retain(|old| old.until.is_none_or(|until| now < until));
        let new = SecretState {
            secret: secret.expose(),
            until: None,
        };
        self.secrets.insert(0, new);
    }

    /// A try succeeded, or it is tried anew.
    pub fn takes(&mut self) {
        (self.failing_since, self.failed_at) = (None, None);
    }

    /// A try failed. Tells for how long it has taken nothing.
    fn failed(&mut self, now: WallTime) -> Duration {
        if let (Some(since), Some(last)) = (self.failing_since, self.failed_at)
            && last > now
        {
            // The clock was set back: it has taken nothing for as long as before.
            self.failing_since = Some(since.before(last.since(now)));
            self.failed_at = Some(now);
        }
        let step = self.failed_at.map(|last| now.since(last));
        let since = match (self.failing_since, step) {
            (Some(since), Some(step)) => since + step.saturating_sub(STEP_MAX),
            (Some(since), None) => since.min(now),
            (None, _) => now,
        };
        self.failing_since = Some(since);
        if step.is_none_or(|step| step >= STEP_MIN) {
            self.failed_at = Some(now);
        }
        now.since(since)
    }

    /// As the store keeps it.
    #[must_use]
    pub fn to_value(&self) -> serde_json::Value {
        // Texts and numbers have a JSON form.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// The endpoints of a store. Changes follow one another.
#[derive(Clone)]
pub struct Endpoints {
    store: Arc<dyn Store>,
    clock: crate::SystemClock,
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoints").finish_non_exhaustive()
    }
}

impl Endpoints {
    /// Those of `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: crate::SystemClock) -> Self {
        Self {
            store,
            clock,
            changing: Arc::default(),
        }
    }

    /// Those that people made, oldest first.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn list(&self) -> Result<Vec<Endpoint>, StoreError> {
        let mut all = self.store.endpoints().await?;
        all.retain(|endpoint| !is_own(endpoint));
        Ok(all)
    }

    /// One that people made.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn get(&self, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
        let all = self.list().await?;
        Ok(all.into_iter().find(|endpoint| endpoint.id == id))
    }

    /// Records a new one.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn add(&self, endpoint: Endpoint) -> Result<(), StoreError> {
        let _turn = self.changing.lock().await;
        self.store.put_endpoint(endpoint, None, self.now()).await
    }

    /// Removes one, with what was still to be delivered to it. Whether there was one.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn remove(&self, id: EndpointId) -> Result<bool, StoreError> {
        let _turn = self.changing.lock().await;
        if self.get(id).await?.is_none() {
            return Ok(false);
        }
        self.store.delete_endpoint(id).await
    }

    /// Changes one; answers it as it is then, none where there is none.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn change(
        &self,
        id: EndpointId,
        change: impl FnOnce(&mut Endpoint, &mut EndpointState),
    ) -> Result<Option<Endpoint>, StoreError> {
        let _turn = self.changing.lock().await;
        let Some(mut endpoint) = self.get(id).await? else {
            return Ok(None);
        };
        let mut state = EndpointState::of(&endpoint);
        change(&mut endpoint, &mut state);
        self.put(&mut endpoint, &state, None).await?;
        Ok(Some(endpoint))
    }

    /// A try at an endpoint succeeded or failed. One that fails for five days, or that says that
    /// it is gone, is disabled, with an event that tells of it.
    pub(super) async fn tried(
        &self,
        id: EndpointId,
        taken: bool,
        gone: bool,
    ) -> Result<(), StoreError> {
        let _turn = self.changing.lock().await;
        let Some(mut endpoint) = self.get(id).await? else {
            return Ok(());
        };
        let (before, now) = (EndpointState::of(&endpoint), self.now());
        let mut state = before.clone();
        let failing = if taken {
            state.takes();
            Duration::ZERO
        } else {
            state.failed(now.wall)
        };
        let because = if gone {
            Some("it answered 410 Gone")
        } else if failing >= FAILS_FOR {
            Some("it took nothing for 5 days")
        } else {
            None
        };
        let mut event = None;
        if let Some(because) = because.filter(|_| !endpoint.disabled) {
            endpoint.disabled = true;
            state.disabled_because = Some(because.to_owned());
            state.disabled_at = Some(now.wall);
            event = Some(disabled(&endpoint, because));
        }
        if state != before {
            self.put(&mut endpoint, &state, event).await?;
        }
        Ok(())
    }

    /// The secret that signs the callbacks of single jobs: of a key's jobs, or of the server's
    /// own where there is no key. Made when it is first asked for.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn callback_secret(&self, key: Option<&str>) -> Result<WebhookSecret, StoreError> {
        let _turn = self.changing.lock().await;
        let id = key.and_then(|key| Uuid::parse_str(key).ok());
        let id = EndpointId::from_uuid(id.unwrap_or(Uuid::nil()));
        let all = self.store.endpoints().await?;
        let known = all.iter().find(|endpoint| endpoint.id == id);
        let known = known.and_then(|own| EndpointState::of(own).signing(WallTime::default()).pop());
        if let Some(secret) = known {
            return Ok(secret);
        }
        let secret = WebhookSecret::generate().map_err(no_randomness)?;
        let mut state = EndpointState::default();
        let now = self.now();
        state.rotate(&secret, now.wall);
        let own = Endpoint {
            id,
            tenant: None,
            url: String::new(),
            events: Vec::new(),
            // It is told nothing; it only keeps a secret.
            disabled: true,
            state: state.to_value(),
            created_at: now.wall,
        };
        self.store.put_endpoint(own, None, now).await?;
        Ok(secret)
    }

    async fn put(
        &self,
        endpoint: &mut Endpoint,
        state: &EndpointState,
        event: Option<NewEvent>,
    ) -> Result<(), StoreError> {
        endpoint.state = state.to_value();
        self.store
            .put_endpoint(endpoint.clone(), event, self.now())
            .await
    }

    fn now(&self) -> Now {
        self.clock.now()
    }
}

/// One that keeps a secret and is told nothing.
fn is_own(endpoint: &Endpoint) -> bool {
    endpoint.url.is_empty()
}

fn disabled(endpoint: &Endpoint, because: &str) -> NewEvent {
    NewEvent {
        kind: "webhook.disabled".to_owned(),
        tenant: endpoint.tenant.clone(),
        subject: Subject::Other(endpoint.id.to_string()),
        data: json!({"webhook_id": endpoint.id, "url": endpoint.url, "reason": because}),
    }
}

fn no_randomness(error: SecretError) -> StoreError {
    StoreError::unavailable("no secret could be made", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that booted years ago by its clock disabled what failed before and after the clock
    /// was set.
    #[test]
    fn no_clock_that_is_set_makes_days_of_failures() {
        let at = |hours: u64| WallTime::from_micros(0) + Duration::from_secs(hours * 3_600);
        let mut state = EndpointState::default();
        let mut fails = |hours| state.failed(at(hours)).as_secs() / 3_600;
        assert_eq!(fails(0), 0);
        assert_eq!(fails(50_000), 24, "the clock was set");
        assert_eq!([50_010, 50_020, 50_030].map(&mut fails), [34, 44, 54]);
        assert_eq!(fails(49_000), 54, "and back");
        assert_eq!([49_024, 49_048, 49_066].map(&mut fails), [78, 102, 120]);
        // One that was kept by an earlier version.
        let mut state = EndpointState {
            failing_since: Some(at(10)),
            ..EndpointState::default()
        };
        assert_eq!(state.failed(at(130)), FAILS_FOR);
        // It failed for the first time while the clock was years ahead: it was never disabled.
        for failed_at in [None, Some(at(50_000))] {
            let mut state = EndpointState {
                failing_since: Some(at(50_000)),
                failed_at,
                ..EndpointState::default()
            };
            let mut fails = |hours| state.failed(at(hours)).as_secs() / 3_600;
            assert_eq!([0, 24, 48, 72].map(&mut fails), [0, 24, 48, 72]);
            assert_eq!([96, 120].map(&mut fails), [96, 120]);
        }
        state.takes();
        assert_eq!(state.failed(at(200)), Duration::ZERO);
    }

    #[test]
    fn a_replaced_secret_signs_for_a_day_longer() {
        let at = |hours: u64| WallTime::from_micros(0) + Duration::from_secs(hours * 3_600);
        let secrets: Vec<WebhookSecret> =
            (0..2).map(|_| WebhookSecret::generate().unwrap()).collect();
        let mut state = EndpointState::default();
        state.rotate(&secrets[0], at(0));
        assert_eq!(state.signing(at(1_000)), [secrets[0].clone()]);
        state.rotate(&secrets[1], at(1));
        assert_eq!(
            state.signing(at(24)),
            [secrets[1].clone(), secrets[0].clone()]
        );
        assert_eq!(state.signing(at(25)), [secrets[1].clone()]);
        state.rotate(&secrets[0], at(30));
        assert_eq!(state.secrets.len(), 2, "what signs no more is forgotten");
        assert!(!format!("{state:?}").contains("whsec_"));
    }
}
