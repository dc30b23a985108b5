//! `llmq webhooks`.

mod listen;

use clap::{ArgGroup, Args, Subcommand};
use hyper::Method;
use llmq_api::{
    CallbackSecret, CreateWebhook, DeliveryInfo, DeliveryList, UpdateWebhook, WebhookInfo,
    WebhookList, WebhookTest, WebhookWithSecret,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::cli::{Format, Global};
use crate::client::ServerArgs;
use crate::exit::{FAILED, Failure};
use crate::output;
use listen::ListenArgs;

/// Webhooks of a server: who is told what, what was delivered, and a receiver to try it with.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq webhooks add https://example.com/hook --event 'request.*'
  llmq webhooks test 0198c0de-7a11-7000-8000-000000000000
  llmq webhooks update 0198c0de-7a11-7000-8000-000000000000 --all-events
  llmq webhooks deliveries
  llmq webhooks listen --secret whsec_…

The secret is shown when a webhook is made or its secret replaced, and never again.")]
pub(crate) struct WebhooksArgs {
    #[command(subcommand)]
    command: WebhooksCommand,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum WebhooksCommand {
    /// Make one; its secret is printed this once
    #[command(after_help = "\
Example:
  llmq webhooks add https://example.com/hook --event 'request.*' --event batch.completed")]
    Add(AddArgs),
    /// List them
    #[command(after_help = "Example:\n  llmq webhooks list --format jsonl")]
    List,
    /// Show one
    #[command(after_help = "Example:\n  llmq webhooks get 0198c0de-7a11-7000-8000-000000000000")]
    Get {
        /// Its id
        id: Uuid,
    },
    /// Change one; only what is named
    #[command(after_help = "\
Examples:
  llmq webhooks update 0198c0de-7a11-7000-8000-000000000000 --event 'batch.*'
  llmq webhooks update 0198c0de-7a11-7000-8000-000000000000 --enabled true")]
    Update(UpdateArgs),
    /// Remove one, with what it was still to be told
    #[command(after_help = "Example:\n  llmq webhooks delete 0198c0de-7a11-7000-8000-000000000000")]
    Delete {
        /// Its id
        id: Uuid,
    },
    /// Replace its secret; the old one signs as well for a day
    #[command(after_help = "Example:\n  llmq webhooks rotate 0198c0de-7a11-7000-8000-000000000000")]
    Rotate {
        /// Its id
        id: Uuid,
    },
    /// Send it a message that tells of nothing
    #[command(after_help = "Example:\n  llmq webhooks test 0198c0de-7a11-7000-8000-000000000000")]
    Test {
        /// Its id
        id: Uuid,
    },
    /// List what was or is to be delivered, newest first
    #[command(after_help = "\
Example:
  llmq webhooks deliveries 0198c0de-7a11-7000-8000-000000000000 --limit 10")]
    Deliveries {
        /// Only to this webhook
        id: Option<Uuid>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Send a message again
    #[command(after_help = "Example:\n  llmq webhooks redeliver 4711")]
    Redeliver {
        /// The delivery's number
        number: u64,
    },
    /// Print the secret that signs the callbacks of your own requests
    #[command(after_help = "Example:\n  llmq webhooks secret")]
    Secret,
    /// Receive webhooks here: verify each and print it
    #[command(after_help = "\
Example:
  LLMQ_WEBHOOK_SECRET=whsec_… llmq webhooks listen --listen 127.0.0.1:9000")]
    Listen(ListenArgs),
}

#[derive(Debug, Args)]
struct AddArgs {
    /// Where
    url: String,
    /// An event that it is told of, such as request.completed or 'batch.*'; may be repeated
    /// (default: all)
    #[arg(long = "event", value_name = "EVENT")]
    events: Vec<String>,
    /// What you call it
    #[arg(long)]
    description: Option<String>,
    /// A secret of your own, whsec_…
    #[arg(long)]
    secret: Option<String>,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("change").required(true).multiple(true)))]
struct UpdateArgs {
    /// Its id
    id: Uuid,
    /// Where
    #[arg(long, group = "change")]
    url: Option<String>,
    /// An event that it is told of from now on, and of no others; may be repeated
    #[arg(long = "event", value_name = "EVENT", group = "change")]
    events: Vec<String>,
    /// Tell it of all events again
    #[arg(long, group = "change", conflicts_with = "events")]
    all_events: bool,
    /// What you call it
    #[arg(long, group = "change")]
    description: Option<String>,
    /// Whether it is told at all; `true` also brings one back that the server disabled
    #[arg(long, value_name = "BOOL", group = "change")]
    enabled: Option<bool>,
}

/// Does it.
pub(crate) fn webhooks(args: WebhooksArgs, global: &Global) -> Result<(), Failure> {
    let server = args.server;
    let of = |id: Uuid| format!("/api/webhooks/{id}");
    match args.command {
        WebhooksCommand::Add(wanted) => {
            let wanted = CreateWebhook {
                url: wanted.url,
                events: wanted.events,
                description: wanted.description,
                secret: wanted.secret,
            };
            with_secret(
                &send(&server, Method::POST, "/api/webhooks", Some(&wanted))?,
                global,
            )
        }
        WebhooksCommand::List => {
            let list: WebhookList = server.get("/api/webhooks")?;
            print_all(&list.webhooks, global)
        }
        WebhooksCommand::Get { id } => print(&server.get(&of(id))?, global),
        WebhooksCommand::Update(wanted) => {
            let change = UpdateWebhook {
                url: wanted.url,
                // An empty list asks for all.
                events: (wanted.all_events || !wanted.events.is_empty()).then_some(wanted.events),
                description: wanted.description,
                enabled: wanted.enabled,
            };
            print(
                &send(&server, Method::PATCH, &of(wanted.id), Some(&change))?,
                global,
            )
        }
        WebhooksCommand::Delete { id } => print(
            &send(&server, Method::DELETE, &of(id), None::<&()>)?,
            global,
        ),
        WebhooksCommand::Rotate { id } => {
            let path = format!("{}/rotate", of(id));
            with_secret(&send(&server, Method::POST, &path, None::<&()>)?, global)
        }
        WebhooksCommand::Test { id } => test(&server, &format!("{}/test", of(id)), global),
        WebhooksCommand::Deliveries { id, limit } => deliveries(&server, id, limit, global),
        WebhooksCommand::Redeliver { number } => {
            let path = format!("/api/webhooks/deliveries/{number}/redeliver");
            let one: DeliveryInfo = send(&server, Method::POST, &path, None::<&()>)?;
            print_deliveries(&[one], global)
        }
        WebhooksCommand::Secret => {
            let secret: CallbackSecret = server.get("/api/webhooks/secret")?;
            output::print(&format!("{}\n", secret.secret))
        }
        WebhooksCommand::Listen(wanted) => listen::listen(&wanted, global),
    }
}

fn send<T: DeserializeOwned>(
    server: &ServerArgs,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, Failure> {
    server.send(method, path, body)
}

fn test(server: &ServerArgs, path: &str, global: &Global) -> Result<(), Failure> {
    let test: WebhookTest = send(server, Method::POST, path, None::<&()>)?;
    match global.format {
        Format::Table => output::print(&format!("{}\n", test.outcome))?,
        format => output::print(&output::json(&test, format)?)?,
    }
    match test.delivered {
        true => Ok(()),
        false => Err(Failure::silent(FAILED)),
    }
}

fn with_secret(made: &WebhookWithSecret, global: &Global) -> Result<(), Failure> {
    match global.format {
        Format::Table => {
            if !global.quiet {
                say!(
                    "webhook {}; this is the only time that its secret is shown:",
                    made.info.id
                );
            }
            output::print(&format!("{}\n", made.secret))
        }
        format => output::print(&output::json(made, format)?),
    }
}

fn print(info: &WebhookInfo, global: &Global) -> Result<(), Failure> {
    match global.format {
        Format::Table => print_all(std::slice::from_ref(info), global),
        format => output::print(&output::json(info, format)?),
    }
}

fn print_all(all: &[WebhookInfo], global: &Global) -> Result<(), Failure> {
    let text = match global.format {
        Format::Table => {
            let head = ["ID", "URL", "EVENTS", "STATE"];
            let rows = all.iter().map(|info| {
                let events = match info.events.as_slice() {
                    [] => "all".to_owned(),
                    events => events.join(","),
                };
                let state = match (&info.disabled_because, info.enabled) {
                    (_, true) => "enabled".to_owned(),
                    (Some(because), false) => format!("disabled: {because}"),
                    (None, false) => "disabled".to_owned(),
                };
                [info.id.clone(), info.url.clone(), events, state]
            });
            output::table(head, rows)
        }
        format => output::json_list(all, format)?,
    };
    output::print(&text)
}

fn deliveries(
    server: &ServerArgs,
    id: Option<Uuid>,
    limit: usize,
    global: &Global,
) -> Result<(), Failure> {
    let path = match id {
        Some(id) => format!("/api/webhooks/{id}/deliveries"),
        None => "/api/webhooks/deliveries".to_owned(),
    };
    let mut all = Vec::new();
    let mut cursor = String::new();
    while all.len() < limit {
        let left = (limit - all.len()).min(1_000);
        let page: DeliveryList = server.get(&format!("{path}?limit={left}{cursor}"))?;
        all.extend(page.deliveries);
        match page.next_cursor {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    print_deliveries(&all, global)
}

fn print_deliveries(all: &[DeliveryInfo], global: &Global) -> Result<(), Failure> {
    let text = match global.format {
        Format::Table => {
            let head = [
                "DELIVERY",
                "EVENT",
                "STATUS",
                "ATTEMPTS",
                "TO",
                "LAST OUTCOME",
            ];
            let rows = all.iter().map(|one| {
                let to = one.webhook_id.as_ref().or(one.callback_url.as_ref());
                [
                    one.id.to_string(),
                    one.event.clone(),
                    format!("{:?}", one.status).to_lowercase(),
                    one.attempts.to_string(),
                    to.cloned().unwrap_or_default(),
                    one.last_outcome.clone().unwrap_or_default(),
                ]
            });
            output::table(head, rows)
        }
        format => output::json_list(all, format)?,
    };
    output::print(&text)
}
