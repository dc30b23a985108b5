//! A runner, its store, and one upstream.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use llmq_core::{Clock, Status, Usage, Verdict};
use llmq_dispatch::{QueueId, TenantId, UpstreamId};
use llmq_engine::config::{Config, ModelSettings};
use llmq_engine::jobs::{Directory, Holding, NotHeld, Runner, RunnerOptions, Told};
use llmq_engine::{
    AssembledRoute, Hub, Outgoing, Saying, StreamOf, SystemClock, Tasks, assemble, run,
};
use llmq_provider::Operation;
use llmq_provider::translate::Untranslatable;
use llmq_store::{Job, JobId, MemoryStore, NewJob, Settings, Store, StoreError};
use llmq_testkit::{Guest, PATIENCE, ScriptedServer};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use uuid::Uuid;

pub(crate) const BODY: &str = r#"{"model":"gpt","messages":[{"role":"user","content":"hello"}]}"#;

/// What the upstream does with one call.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// A good answer with this text.
    Answer(String),
    /// This status with an error of this message.
    Refuse(u16, &'static str),
    /// Too busy, to be asked again after so many seconds.
    Later(u8),
    /// A good answer, when the test lets it go.
    Wait,
}

pub(crate) struct Upstream {
    url: String,
    /// The bodies of its calls.
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    came: Arc<Notify>,
    go: Arc<tokio::sync::Semaphore>,
    _serving: JoinSet<()>,
}

impl Upstream {
    pub(crate) async fn start(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let server = ScriptedServer::start().await;
        let url = server.url();
        let calls: Arc<Mutex<Vec<String>>> = Arc::default();
        let (came, go) = (
            Arc::new(Notify::new()),
            Arc::new(tokio::sync::Semaphore::new(0)),
        );
        let (script, log, told, gate) = (
            Arc::new(script),
            Arc::clone(&calls),
            Arc::clone(&came),
            Arc::clone(&go),
        );
        let mut serving = JoinSet::new();
        serving.spawn(server.serve_each(move |mut guest| {
            let (script, log) = (Arc::clone(&script), Arc::clone(&log));
            let (told, gate) = (Arc::clone(&told), Arc::clone(&gate));
            async move {
                let (_, body) = guest.read_call().await;
                let number = {
                    let mut log = log.lock().unwrap();
                    log.push(String::from_utf8_lossy(&body).into_owned());
                    log.len() - 1
                };
                told.notify_waiters();
                match script(number) {
                    Act::Answer(text) => answer(&mut guest, &text).await,
                    Act::Refuse(status, message) => refuse(&mut guest, status, message).await,
                    Act::Later(seconds) => {
                        let told = format!("retry-after: {seconds}\r\n");
                        refuse_with(&mut guest, 503, &told, "busy").await;
                    }
                    Act::Wait => {
                        tokio::select! {
                            permit = gate.acquire() => {
                                permit.unwrap().forget();
                                answer(&mut guest, "late").await;
                            }
                            () = guest.closed() => {}
                        }
                    }
                }
            }
        }));
        Self {
            url,
            calls,
            came,
            go,
            _serving: serving,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// Waits until it got so many calls.
    pub(crate) async fn got(&self, calls: usize) {
        let wait = async {
            loop {
                let came = self.came.notified();
                tokio::pin!(came);
                came.as_mut().enable();
                if self.count() >= calls {
                    return;
                }
                came.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the call comes");
    }

    /// Lets so many calls that wait be answered.
    pub(crate) fn go(&self, calls: usize) {
        self.go.add_permits(calls);
    }
}

async fn answer(guest: &mut Guest, text: &str) {
    let body = format!(
        r#"{{"id":"x","object":"chat.completion","model":"gpt","choices":[{{"index":0,"finish_reason":"stop","message":{{"role":"assistant","content":"{text}"}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}}}"#
    );
    guest
        .say(&format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\n\
             set-cookie: secret=1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
}

async fn refuse(guest: &mut Guest, status: u16, message: &str) {
    refuse_with(guest, status, "", message).await;
}

async fn refuse_with(guest: &mut Guest, status: u16, headers: &str, message: &str) {
    let body = format!(r#"{{"error":{{"message":"{message}","type":"t","code":null}}}}"#);
    guest
        .say(&format!(
            "HTTP/1.1 {status} Error\r\ncontent-type: application/json\r\n\
             {headers}content-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
}

/// A process that accepts jobs.
pub(crate) struct World {
    pub(crate) runner: Runner,
    pub(crate) hub: Arc<Hub>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) models: Arc<Models>,
    tasks: Tasks,
}

pub(crate) struct Models {
    /// So often nothing can be recorded of a budget.
    pub(crate) budget_fails: AtomicUsize,
    /// So often the line of a model is said in turn to be another's and its own.
    pub(crate) moves: AtomicUsize,
    /// No grant leads anywhere.
    pub(crate) is_routeless: AtomicBool,
    /// No model is served.
    pub(crate) is_unserved: AtomicBool,
    settings: BTreeMap<String, ModelSettings>,
    queues: BTreeMap<String, QueueId>,
    routes: BTreeMap<UpstreamId, Arc<AssembledRoute>>,
    tenant: TenantId,
}

/// Takes one away; what there was, if there was something.
fn one_less(of: &AtomicUsize) -> Option<usize> {
    let less = |left: usize| left.checked_sub(1);
    of.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .ok()
}

impl Directory for Models {
    fn queue(&self, name: &str) -> Option<QueueId> {
        let is_moved = one_less(&self.moves).is_some_and(|left| left.is_multiple_of(2));
        let name = if is_moved { "huge" } else { name };
        let queue = self.queues.get(name).copied();
        queue.filter(|_| !self.is_unserved.load(Ordering::SeqCst))
    }

    fn larger_contexts(&self, name: &str) -> Vec<QueueId> {
        let names = self.settings[name].context_fallback.iter();
        names.map(|name| self.queues[name]).collect()
    }

    fn tenant(&self, _: &str, _: Option<Uuid>) -> TenantId {
        self.tenant
    }

    fn hold<'a>(&'a self, _: &'a Job) -> Holding<'a> {
        let held = match one_less(&self.budget_fails) {
            Some(_) => Err(NotHeld::Later(StoreError::Unavailable {
                reason: "the test has it fail".to_owned(),
                source: None,
            })),
            None => Ok(None),
        };
        Box::pin(std::future::ready(held))
    }

    fn say(
        &self,
        job: &Job,
        operation: Operation,
        body: &Bytes,
        route: &AssembledRoute,
    ) -> Result<Outgoing, Untranslatable> {
        let saying = Saying {
            operation,
            model: &job.queue,
            settings: &self.settings[&job.queue],
            body,
            stream: StreamOf::Nothing,
        };
        Outgoing::of(&saying, route)
    }

    fn route(&self, upstream: UpstreamId) -> Option<Arc<AssembledRoute>> {
        let route = self.routes.get(&upstream).cloned();
        route.filter(|_| !self.is_routeless.load(Ordering::SeqCst))
    }

    fn nano_usd(&self, _: &str, _: UpstreamId, usage: &Usage) -> Option<u64> {
        Some(usage.total() * 10)
    }

    fn told(&self, _: Told<'_>) {}
}

pub(crate) fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new(Settings::default()))
}

pub(crate) fn sqlite() -> Arc<dyn Store> {
    let now = SystemClock::new().now().wall;
    Arc::new(llmq_store_sqlite::Store::open(&llmq_store_sqlite::Place::Memory, now).unwrap())
}

/// Makes a test of each law, over each store.
macro_rules! over_each_store {
    ($($law:ident),* $(,)?) => {
        mod over_memory {
            $(
                #[tokio::test]
                async fn $law() {
                    super::$law(crate::world::memory()).await;
                }
            )*
        }

        mod over_sqlite {
            $(
                #[tokio::test]
                async fn $law() {
                    super::$law(crate::world::sqlite()).await;
                }
            )*
        }
    };
}

impl World {
    /// A process that finds `store` as another left it.
    pub(crate) async fn over(store: Arc<dyn Store>, upstream: &Upstream, limits: &str) -> Self {
        Self::leasing(store, upstream, limits, Duration::from_secs(30)).await
    }

    /// The same, whose attempts may be without a sign of life for so long.
    pub(crate) async fn leasing(
        store: Arc<dyn Store>,
        upstream: &Upstream,
        limits: &str,
        lease: Duration,
    ) -> Self {
        Self::by(SystemClock::new(), store, upstream, limits, lease).await
    }

    /// The same, by this clock.
    pub(crate) async fn by(
        clock: SystemClock,
        store: Arc<dyn Store>,
        upstream: &Upstream,
        limits: &str,
        lease: Duration,
    ) -> Self {
        let lives = (lease, Verdict::Retry);
        Self::opened(clock, store, upstream, &way("one", limits), lives).await
    }

    /// A process whose model is served by two upstreams, both at the same address.
    pub(crate) async fn over_two(store: Arc<dyn Store>, upstream: &Upstream) -> Self {
        let ways = format!("{}, {}", way("one", ""), way("two", ""));
        let lives = (Duration::from_secs(30), Verdict::Retry);
        Self::opened(SystemClock::new(), store, upstream, &ways, lives).await
    }

    /// A process that sends nothing again that may have been billed.
    pub(crate) async fn sending_once(store: Arc<dyn Store>, upstream: &Upstream) -> Self {
        let lives = (Duration::from_secs(30), Verdict::GiveUp);
        Self::opened(SystemClock::new(), store, upstream, &way("one", ""), lives).await
    }

    async fn opened(
        clock: SystemClock,
        store: Arc<dyn Store>,
        upstream: &Upstream,
        ways: &str,
        (lease, lost_attempt): (Duration, Verdict),
    ) -> Self {
        let text = format!(
            "[retry]\nserver = {{ base = \"10ms\", max = \"20ms\" }}\n\
             quota = {{ base = \"10ms\", max = \"20ms\" }}\n\
             [upstreams.one]\nprovider = \"openai\"\nbase_url = \"{url}/v1\"\n\
             [upstreams.two]\nprovider = \"openai\"\nbase_url = \"{url}/v1\"\n\
             [models.gpt]\nupstreams = [ {ways} ]\n\
             context_fallback = [\"huge\", \"vast\"]\n\
             [models.huge]\nupstreams = [ {{ upstream = \"one\" }} ]\n\
             [models.vast]\nupstreams = [ {{ upstream = \"one\" }} ]\n",
            url = upstream.url
        );
        let settings = Config::parse("test.toml", &text).unwrap().check().unwrap();
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let assembly = assemble(&settings, None, &shared, clock.now()).unwrap();
        let tasks = Tasks::new();
        let models = Arc::new(Models {
            budget_fails: AtomicUsize::new(0),
            moves: AtomicUsize::new(0),
            is_routeless: AtomicBool::new(false),
            is_unserved: AtomicBool::new(false),
            settings: settings.models.clone(),
            queues: assembly
                .models
                .iter()
                .map(|(name, model)| (name.clone(), model.queue))
                .collect(),
            routes: assembly
                .routes
                .into_iter()
                .map(|route| (route.upstream, Arc::new(route)))
                .collect(),
            tenant: assembly.tenant,
        });
        let hub = run(assembly.dispatcher, clock.clone(), &tasks);
        let options = RunnerOptions::new(
            Arc::clone(&store),
            Arc::clone(&hub),
            clock,
            Arc::clone(&models) as Arc<dyn Directory>,
        );
        let options = RunnerOptions {
            lease,
            lost_attempt,
            ..options
        };
        let runner = Runner::open(options, &tasks).await.unwrap();
        Self {
            runner,
            hub,
            store,
            models,
            tasks,
        }
    }

    pub(crate) async fn accept(&self) -> JobId {
        self.runner.accept(job()).await.unwrap().id
    }

    /// The job when it has ended.
    pub(crate) async fn end(&self, id: JobId) -> Job {
        let job = self.runner.ended(id, PATIENCE).await.unwrap().unwrap();
        assert!(job.status.is_final(), "{job:?}");
        job
    }

    pub(crate) async fn status(&self, id: JobId) -> Status {
        self.store.job(id).await.unwrap().unwrap().status
    }

    pub(crate) async fn answer(&self, id: JobId) -> (u16, String) {
        let answer = self.store.answer(id).await.unwrap().unwrap();
        (
            answer.status,
            String::from_utf8_lossy(&answer.body).into_owned(),
        )
    }

    /// The process ends without a word to its store.
    pub(crate) async fn dies(self) {
        self.tasks.cancel();
        drop(self.runner);
    }

    /// The process is told to end, and does so.
    pub(crate) async fn stops(self, grace: Duration) {
        self.runner.stop(grace).await;
        self.tasks.cancel();
    }
}

/// A way of a model to its upstream of this name.
fn way(upstream: &str, limits: &str) -> String {
    format!(r#"{{ upstream = "{upstream}", limits = {{ {limits} }} }}"#)
}

pub(crate) fn job() -> NewJob {
    let mut job = NewJob::new("gpt", "default", BODY);
    job.details.endpoint = "/v1/chat/completions".to_owned();
    job
}
