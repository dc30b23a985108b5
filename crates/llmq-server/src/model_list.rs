//! The models that there are, as the API that the caller speaks lists them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use llmq_core::{Clock, Timestamp};
use llmq_provider::{Dialect, Operation, Provider};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

use crate::Gateway;
use crate::call::{self, Reply, ReplyBody};
use crate::front::{spoken, wrong_method};
use crate::keys::{self, Look, Need as _};

/// What accounts have said is believed for so long.
const FRESH: Duration = Duration::from_secs(60);
/// A list is no answer that anybody waits long for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the accounts said when they were asked last. Who asks meanwhile waits for the same answer.
#[derive(Debug, Default)]
pub(crate) struct Listed(Mutex<Option<Said>>);

#[derive(Debug, Default)]
struct Said {
    at: Timestamp,
    /// By account.
    names: BTreeMap<String, Vec<String>>,
}

/// `GET /v1/models`, or the one of a name.
pub(crate) async fn answer(
    gateway: &Gateway,
    request: &Request<Incoming>,
    name: Option<&str>,
) -> Reply {
    let dialect = spoken(request);
    let caller = match keys::caller(&gateway.keys, request.headers(), Look::SCOPES) {
        Ok(caller) => caller,
        Err(denied) => return call::refused(&denied.into(), dialect),
    };
    if *request.method() != Method::GET {
        return wrong_method("models are listed with GET", dialect, "GET, HEAD");
    }
    let model = |name: &str| match dialect {
        Dialect::OpenAi => {
            json!({"id": name, "object": "model", "created": 0, "owned_by": "llmq"})
        }
        Dialect::Anthropic => json!({
            "type": "model", "id": name, "display_name": name, "lifecycle": "active",
            "created_at": "1970-01-01T00:00:00Z",
        }),
    };
    let mut names = match name {
        // What is configured needs no asking.
        Some(name) if gateway.models.names().iter().any(|known| known == name) => {
            vec![name.to_owned()]
        }
        _ => names(gateway).await,
    };
    names.retain(|name| caller.may_use(name).is_ok());
    let body = match name {
        None => {
            let data: Vec<_> = names.iter().map(|name| model(name)).collect();
            match dialect {
                Dialect::OpenAi => json!({"object": "list", "data": data}),
                Dialect::Anthropic => json!({
                    "data": data, "has_more": false,
                    "first_id": names.first(), "last_id": names.last(),
                }),
            }
        }
        Some(name) if names.iter().any(|known| known == name) => model(name),
        Some(name) => {
            let refusal = call::unknown_among(&names, name);
            return call::refused(&refusal, dialect);
        }
    };
    let mut reply = Response::new(ReplyBody::whole(body.to_string().into()));
    reply.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    reply
}

/// The configured models; where callers may name any, what the accounts list and what was named
/// so far.
async fn names(gateway: &Gateway) -> Vec<String> {
    let mut names = gateway.models.names();
    if let Some(accounts) = gateway.models.open_accounts() {
        names.extend(theirs(gateway, &accounts).await);
        names.sort_unstable();
        names.dedup();
    }
    names
}

async fn theirs(gateway: &Gateway, accounts: &[(String, Provider)]) -> Vec<String> {
    let mut listed = gateway.listed.0.lock().await;
    let said = listed.get_or_insert_default();
    let now = gateway.clock.now().mono;
    if said.names.is_empty() || now - said.at >= FRESH {
        let asked = accounts.iter().map(|(account, provider)| async move {
            let names = tokio::time::timeout(PATIENCE, ask(provider)).await;
            (account.clone(), names.ok().flatten())
        });
        let before = std::mem::take(&mut said.names);
        for (account, names) in join_all(asked).await {
            // One that does not answer lists what it did before; one that never has, nothing,
            // and serves all the same.
            let names = names.or_else(|| before.get(&account).cloned());
            said.names.insert(account, names.unwrap_or_default());
        }
        said.at = now;
    }
    let listed = accounts.iter().filter_map(|(account, _)| {
        let names = said.names.get(account)?.iter();
        // A call of another name would go to another account.
        let leads_here = |name: &&String| gateway.models.leads_to(name).as_deref() == Some(account);
        Some(names.filter(leads_here).cloned().collect::<Vec<_>>())
    });
    listed.flatten().collect()
}

/// What an account lists: both APIs have it as the `id`s of `data`.
async fn ask(provider: &Provider) -> Option<Vec<String>> {
    let request = llmq_provider::Request::new(Operation::Models, Bytes::new());
    let whole = provider.call(request).await.ok()?.collect().await.ok()?;
    let page: Page = serde_json::from_slice(&whole.body).ok()?;
    Some(page.data.into_iter().map(|model| model.id).collect())
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Listing>,
}

#[derive(Deserialize)]
struct Listing {
    id: String,
}
