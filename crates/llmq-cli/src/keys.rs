//! `llmq keys`.

use clap::{Args, Subcommand};
use hyper::Method;
use llmq_api::{CreateKey, CreatedKey, KeyBudget, KeyInfo, KeyList, KeyScope};
use llmq_core::parse_count;
use uuid::Uuid;

use crate::cli::{Format, Global};
use crate::client::ServerArgs;
use crate::exit::Failure;
use crate::output;

/// Keys of a running server: who may call, and what each one may do and spend.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq keys create admin --scope call,read,manage
  llmq keys create app --limit rpm=60 --usd-per-day 5 --model gpt-4o-mini
  llmq keys list
  llmq keys revoke 0198c0de-7a11-7000-8000-000000000000

The first key closes a server on a loopback address to calls without one, so it needs the scope
manage. The key is shown once; the server keeps only its SHA-256.")]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key; it is printed this once
    Create(Box<CreateArgs>),
    /// List all keys, newest first
    List,
    /// Refuse a key from now on
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
    let server = args.server;
    match args.command {
        KeysCommand::Create(wanted) => create(&server, *wanted, global),
        KeysCommand::List => list(&server, global),
        KeysCommand::Revoke { id } => revoke(&server, id, global),
    }
}

fn create(server: &ServerArgs, args: CreateArgs, global: &Global) -> Result<(), Failure> {
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
    let created: CreatedKey = server.send(Method::POST, "/api/keys", Some(&wanted))?;
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

fn list(server: &ServerArgs, global: &Global) -> Result<(), Failure> {
    let mut keys = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/api/keys?limit=1000{cursor}");
        let page: KeyList = server.send(Method::GET, &path, None::<&()>)?;
        keys.extend(page.keys);
        match page.next_cursor {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let text = match global.format {
        Format::Table => table(&keys),
        Format::Json => output::json(&keys, Format::Json)?,
        Format::Jsonl => {
            let lines = keys.iter().map(|key| output::json(key, Format::Jsonl));
            lines.collect::<Result<_, _>>()?
        }
    };
    output::print(&text)
}

fn revoke(server: &ServerArgs, id: Uuid, global: &Global) -> Result<(), Failure> {
    let path = format!("/api/keys/{id}");
    let revoked: KeyInfo = server.send(Method::DELETE, &path, None::<&()>)?;
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

/// One line a key, each column as wide as its widest entry.
fn table(keys: &[KeyInfo]) -> String {
    let head = ["ID", "NAME", "KEY", "SCOPES", "TENANT", "LIMITS", "STATE"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(keys.iter().map(|key| {
        let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
        [
            key.id.to_string(),
            key.name.clone(),
            format!("{}…", key.prefix),
            scopes.join(","),
            key.tenant.clone(),
            key.limits.join(","),
            key.revoked_at
                .as_ref()
                .map_or("in use", |_| "revoked")
                .to_owned(),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).filter_map(width).collect();
    let line = |row: &[String; 7]| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
