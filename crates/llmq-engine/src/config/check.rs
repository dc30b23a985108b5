use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use llmq_core::{Backoff, Backoffs};
use llmq_dispatch::Capacity;
use llmq_limit::{AlertShares, QuotaConfig};

use super::reader::{Reader, Section};
use super::settings::{
    Ambiguous, Auth, Copies, Environment, Fallback, OnStoreLoss, RetrySettings, ServerSettings,
    Settings, StoreSettings, StoreUrl, Tls, WebhookSettings,
};
use super::source::Origin;
use super::{upstreams, values};

/// More attempts than this would repeat a hopeless call for hours.
const ATTEMPTS_MAX: u32 = 100;

/// Reads every setting. Where one is missing or mistaken some value stands in its place: the
/// settings hold only if the reader gathered no mistakes.
pub(super) fn read(reader: &Reader<'_>) -> Settings {
    reader.root(|root| {
        let settings = Settings {
            environment: root.read_or(
                "environment",
                Environment::default(),
                values::word(&[
                    ("production", Environment::Production),
                    ("development", Environment::Development),
                ]),
            ),
            record_llm_responses: root.read_or("record_llm_responses", false, values::flag),
            server: root.table("server", server),
            store: root.table("store", store),
            upstreams: root.named("upstreams", upstreams::upstream),
            models: root.named("models", |_, section| upstreams::model(section)),
            limits: root.named("limits", |_, section| upstreams::limit_table(section)),
            quota: root.table("quota", quota),
            retry: root.table("retry", retry),
            webhooks: root.table("webhooks", |section| WebhookSettings {
                allow: section.read_or("allow", Vec::new(), values::networks),
            }),
        };
        if settings.record_llm_responses && settings.environment == Environment::Production {
            let message = "only works with environment = \"development\"";
            root.wrong("record_llm_responses", message.to_owned());
        }
        upstreams::check_references(root, &settings);
        upstreams::check_limits_agree(root, &settings);
        settings
    })
}

fn server(section: &Section<'_, '_>) -> ServerSettings {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let server = ServerSettings {
        listen: section.read_or("listen", loopback, values::address),
        auth: section.read_or(
            "auth",
            Auth::default(),
            values::word(&[
                ("auto", Auth::Auto),
                ("keys", Auth::Keys),
                ("none", Auth::None),
            ]),
        ),
        max_wait: section.read_or("max_wait", Duration::ZERO, values::duration),
        max_body_bytes: section.read_or("max_body", 1, values::bytes),
        max_file_bytes: section.read_or("max_file", 1, values::bytes),
        max_batch_lines: section.read_or("max_batch_lines", 1, values::small(1..=1_000_000)),
        cors: section.read_or("cors", Vec::new(), values::origins),
        tls: section.table_if_any("tls", tls).flatten(),
    };
    if server.auth == Auth::None && !server.listen.ip().is_loopback() {
        let message = "\"none\" is only accepted on a loopback address such as 127.0.0.1";
        section.wrong("auth", message.to_owned());
    }
    server
}

fn tls(section: &Section<'_, '_>) -> Option<Tls> {
    let cert = section.read("cert", values::non_empty);
    let key = section.read("key", values::non_empty);
    if cert.is_none() || key.is_none() {
        section.wrong_here("needs both cert and key, the names of two files".to_owned());
    }
    Some(Tls {
        cert: PathBuf::from(cert?),
        key: PathBuf::from(key?),
    })
}

fn store(section: &Section<'_, '_>) -> StoreSettings {
    let capacity = capacity(section);
    StoreSettings {
        url: url(section),
        capacity,
        request_ttl: section.read_or("request_ttl", Duration::ZERO, values::some_duration),
        keep_results: section.read_or("keep_results", Duration::ZERO, values::some_duration),
        wait_aof: section.table_if_any("wait_aof", |copies| Copies {
            local: copies.read_or("local", 1, values::small(0..=1)),
            replicas: copies.read_or("replicas", 0, values::small(0..=100)),
        }),
        on_store_loss: section.read_or(
            "on_store_loss",
            OnStoreLoss::default(),
            values::word(&[("wait", OnStoreLoss::Wait), ("share", OnStoreLoss::Share)]),
        ),
        fallback: section.table("fallback", fallback),
    }
}

fn url(section: &Section<'_, '_>) -> StoreUrl {
    section
        .read_masked("url", values::store_url, values::masked_url)
        .unwrap_or(StoreUrl::Memory)
}

fn capacity(section: &Section<'_, '_>) -> Capacity {
    let capacity = Capacity {
        jobs: section.read_or("max_jobs", 1, values::count),
        bytes: section.read_or("max_bytes", 1, values::bytes),
        high_watermark: section.read_or("high_watermark", 1.0, values::number(0.5..=1.0)),
        low_watermark: section.read_or("low_watermark", 0.0, values::number(0.0..=1.0)),
    };
    if capacity.low_watermark >= capacity.high_watermark {
        let (low, high) = (capacity.low_watermark, capacity.high_watermark);
        let message = format!("{low} must be below high_watermark, which is {high}");
        section.wrong("low_watermark", message);
    }
    capacity
}

fn fallback(section: &Section<'_, '_>) -> Fallback {
    let fallback = Fallback {
        url: url(section),
        max_jobs: section.read_or("max_jobs", 1, values::count),
        max_bytes: section.read_or("max_bytes", 1, values::bytes),
    };
    if !fallback.url.is_local() {
        let message = "must be on this machine: sqlite:PATH or memory:";
        section.wrong("url", message.to_owned());
    }
    fallback
}

/// The ranges are the quota's own: its check tells what is wrong.
fn quota(section: &Section<'_, '_>) -> QuotaConfig {
    let defaults = QuotaConfig::default();
    let threshold = defaults.pause_threshold;
    let quota = QuotaConfig {
        monitoring: section.read_or("monitoring", true, values::flag),
        pause_threshold: section.read_or("pause_threshold", threshold, values::any_number),
        daily_request_limit: section
            .read("daily_request_limit", |found| {
                let limit =
                    values::count(found).or_else(|_| values::integer(0..=u64::MAX)(found))?;
                // In a file 0 is the written form of "none"; whoever sets it from outside
                // wants something, and it cannot be this.
                let on_purpose = matches!(found.origin, Origin::Env(_) | Origin::Flag(_));
                Ok((limit > 0 || on_purpose).then_some(limit))
            })
            .flatten(),
        time_zone: section.read_or("time_zone", defaults.time_zone, values::non_empty),
        pause_duration: section.read_or("pause_duration_hours", defaults.pause_duration, |found| {
            let hours = values::any_number(found)?;
            Duration::try_from_secs_f64(hours * 3_600.0)
                .map_err(|_| format!("{hours} is out of range, use 1 to 72"))
        }),
        log_interval: section.read_or("log_interval", 1, values::integer(0..=u64::MAX)),
        alerts: section.table("alerts", |alerts| AlertShares {
            warning: alerts.read_or("warning", 0.1, values::any_number),
            critical: alerts.read_or("critical", 0.2, values::any_number),
            emergency: alerts.read_or("emergency", 0.3, values::any_number),
        }),
    };
    for error in quota.check().err().into_iter().flat_map(|errors| errors.0) {
        let told = error.to_string();
        let (path, message) = told.split_once(": ").unwrap_or(("quota", &told));
        let key = path.strip_prefix("quota.").unwrap_or(path);
        section.wrong(key, message.to_owned());
    }
    quota
}

fn retry(section: &Section<'_, '_>) -> RetrySettings {
    RetrySettings {
        max_attempts: section.read_or("max_attempts", 1, values::small(1..=ATTEMPTS_MAX)),
        backoffs: Backoffs {
            server: section.table("server", backoff),
            rate_limit: section.table("rate_limit", backoff),
            quota: section.table("quota", backoff),
            jitter: section.read_or("jitter", 0.0, values::number(0.0..=1.0)),
        },
        ambiguous: section.read_or(
            "ambiguous",
            Ambiguous::default(),
            values::word(&[("retry", Ambiguous::Retry), ("fail", Ambiguous::Fail)]),
        ),
    }
}

fn backoff(section: &Section<'_, '_>) -> Backoff {
    let backoff = Backoff {
        base: section.read_or("base", Duration::ZERO, values::some_duration),
        max: section.read_or("max", Duration::MAX, values::some_duration),
    };
    if backoff.max < backoff.base {
        let message = format!("{:?} is shorter than base, {:?}", backoff.max, backoff.base);
        section.wrong("max", message);
    }
    backoff
}
