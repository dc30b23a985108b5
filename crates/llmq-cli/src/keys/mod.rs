//! `llmq keys`.

mod offline;

use clap::{Args, Subcommand};
use hyper::Method;
use llmq_api::{CreateKey, CreatedKey, KeyBudget, KeyInfo, KeyList, KeyScope};
use llmq_core::parse_count;
use llmq_store_sqlite::Place;
use uuid::Uuid;

use crate::cli::{Format, Global};
use crate::client::ServerArgs;
use crate::exit::Failure;
use crate::output;
use offline::Offline;

/// How many keys are asked for at once.
const PAGE: u32 = 1_000;

/// Keys of a running server: who may call, and what each one may do and spend.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq keys create admin --scope call,read,manage
  llmq keys create app --limit rpm=60 --usd-per-day 5 --model gpt-4o-mini
  llmq keys create admin --scope call,read,manage --store sqlite:llmq.db
  llmq keys list
  llmq keys revoke 0198c0de-7a11-7000-8000-000000000000

The first key closes a server on a loopback address to calls without one, so it needs the scope
manage. A server on another address asks for a key from the start: make its first one with --store
while it does not run. The key is shown once; only its SHA-256 is kept.")]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
    /// Use this store itself, sqlite:PATH, while no server does
    #[arg(long, value_name = "URL", global = true)]
    store: Option<Place>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key; it is printed this once
    #[command(after_help = "\
Examples:
  llmq keys create app --limit rpm=60 --usd-per-day 5 --model gpt-4o-mini
  llmq keys create admin --scope call,read,manage --store sqlite:llmq.db")]
    Create(Box<CreateArgs>),
    /// List all keys, newest first
    #[command(after_help = "Example:\n  llmq keys list --format json")]
    List,
    /// Refuse a key from now on
    #[command(after_help = "Example:\n  llmq keys revoke 0198c0de-7a11-7000-8000-000000000000")]
    Revoke {
        /// The key's id, as `llmq keys list` shows it
        id: Uuid,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// What people call it; its calls are charged to this tenant
    name: String,
    /// What it may do: call, read, manage
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', default_values = ["call", "read"], value_parser = scope)]
    scopes: Vec<KeyScope>,
    /// A model that it may use; may be repeated (default: every one)
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// Charge its calls to this tenant instead
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Let its calls name any tenant
    #[arg(long)]
    any_tenant: bool,
    /// A limit of its own, such as rpm=60 or requests=200/2s; may be repeated
    #[arg(long = "limit", value_name = "LIMIT")]
    limits: Vec<String>,
    /// Tokens that it may use a day
    #[arg(long, value_name = "N", value_parser = count)]
    tokens_per_day: Option<u64>,
    /// Tokens that it may use a month
    #[arg(long, value_name = "N", value_parser = count)]
    tokens_per_month: Option<u64>,
    /// US dollars that it may spend a day
    #[arg(long, value_name = "USD")]
    usd_per_day: Option<f64>,
    /// US dollars that it may spend a month
    #[arg(long, value_name = "USD")]
    usd_per_month: Option<f64>,
}

fn scope(word: &str) -> Result<KeyScope, String> {
    KeyScope::named(word).ok_or_else(|| "use call, read or manage".to_owned())
}

fn count(text: &str) -> Result<u64, String> {
    parse_count(text).map_err(|error| error.to_string())
}

/// Does it.
pub(crate) fn keys(args: KeysArgs, global: &Global) -> Result<(), Failure> {
    let way = match &args.store {
        Some(place) => Way::Store(Offline::open(place)?),
        None => Way::Server(args.server),
    };
    match args.command {
        KeysCommand::Create(wanted) => create(&way, *wanted, global),
        KeysCommand::List => list(&way, global),
        KeysCommand::Revoke { id } => revoke(&way, id, global),
    }
}

/// Who is asked.
enum Way {
    Server(ServerArgs),
    Store(Offline),
}

impl Way {
    fn create(&self, wanted: CreateKey) -> Result<CreatedKey, Failure> {
        match self {
            Self::Server(server) => server.send(Method::POST, "/api/keys", Some(&wanted)),
            Self::Store(store) => store.create(wanted),
        }
    }

    /// Keys before `cursor`, newest first, and where the next page begins.
    fn page(&self, cursor: Option<Uuid>) -> Result<(Vec<KeyInfo>, Option<Uuid>), Failure> {
        match self {
            Self::Store(store) => store.page(cursor),
            Self::Server(server) => {
                let cursor = cursor.map_or_else(String::new, |id| format!("&cursor={id}"));
                let path = format!("/api/keys?limit={PAGE}{cursor}");
                let page: KeyList = server.send(Method::GET, &path, None::<&()>)?;
                let next = page.next_cursor.and_then(|next| next.parse().ok());
                Ok((page.keys, next))
            }
        }
    }

    fn revoke(&self, id: Uuid) -> Result<KeyInfo, Failure> {
        match self {
            Self::Server(server) => {
                server.send(Method::DELETE, &format!("/api/keys/{id}"), None::<&()>)
            }
            Self::Store(store) => store.revoke(id),
        }
    }
}

fn create(way: &Way, args: CreateArgs, global: &Global) -> Result<(), Failure> {
    let wanted = CreateKey {
        name: args.name,
        scopes: args.scopes,
        models: Some(args.models).filter(|models| !models.is_empty()),
        tenant: args.tenant,
        any_tenant: args.any_tenant,
        limits: args.limits,
        budget: KeyBudget {
            tokens_per_day: args.tokens_per_day,
            tokens_per_month: args.tokens_per_month,
            usd_per_day: args.usd_per_day,
            usd_per_month: args.usd_per_month,
        },
    };
    let created = way.create(wanted)?;
    match global.format {
        Format::Table => {
            if !global.quiet {
                say!(
                    "made {} ({}); this is the only time that the key is shown:",
                    created.info.name,
                    created.info.id
                );
            }
            output::print(&format!("{}\n", created.key))
        }
        format => output::print(&output::json(&created, format)?),
    }
}

fn list(way: &Way, global: &Global) -> Result<(), Failure> {
    let mut keys = Vec::new();
    let mut cursor = None;
    loop {
        let (page, next) = way.page(cursor)?;
        keys.extend(page);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    let text = match global.format {
        Format::Table => table(&keys),
        format => output::json_list(&keys, format)?,
    };
    output::print(&text)
}

fn revoke(way: &Way, id: Uuid, global: &Global) -> Result<(), Failure> {
    let revoked = way.revoke(id)?;
    match global.format {
        Format::Table => {
            if !global.quiet {
                say!("revoked {} ({})", revoked.name, revoked.prefix);
            }
            Ok(())
        }
        format => output::print(&output::json(&revoked, format)?),
    }
}

/// One line a key.
fn table(keys: &[KeyInfo]) -> String {
    let head = ["ID", "NAME", "KEY", "SCOPES", "TENANT", "LIMITS", "STATE"];
    let rows = keys.iter().map(|key| {
        let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
        let state = key.revoked_at.as_ref().map_or("in use", |_| "revoked");
        [
            key.id.to_string(),
            key.name.clone(),
            format!("{}…", key.prefix),
            scopes.join(","),
            key.tenant.clone(),
            key.limits.join(","),
            state.to_owned(),
        ]
    });
    output::table(head, rows)
}
