//! New keys, checked, and keys that go.

use llmq_api::{CreateKey, KeyBudget, KeyScope};
use llmq_core::WallTime;
use llmq_provider::Secret;
use llmq_store_sqlite::{Budget, KeyRecord, StoreError};
use uuid::Uuid;

use super::parse_limit;
use super::token;

/// The longest name of a key or a tenant, in characters: they stand in logs and labels.
const NAME_MAX: usize = 100;
/// The most entries of a key's lists.
const LIST_MAX: usize = 100;
/// The longest model name, in bytes.
const MODEL_MAX: usize = 200;
/// The largest budget in dollars: its billionths fit 64 bits with room to add.
const USD_MAX: f64 = 1e9;
/// The largest budget in tokens, for the same reason.
const TOKENS_MAX: u64 = 1_000_000_000_000_000_000;

/// A key that was just made.
#[derive(Debug)]
pub struct Created {
    /// The key itself, which nobody can show again.
    pub key: Secret,
    /// What is recorded of it.
    pub record: KeyRecord,
}

/// Why a key was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateKeyError {
    /// A field is wrong.
    #[error("{field}: {message}")]
    Invalid {
        /// Which one, such as `limits[0]`.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// Another key in use has that name.
    #[error("there is a key named `{0}` already: choose another name, or revoke that key")]
    NameTaken(String),
    /// Nobody could manage keys: once one key is in use, keys are asked for.
    #[error(
        "no key that may manage keys is in use, so this one needs the scope `manage`: once a key \
         exists, only such a key can make others"
    )]
    NobodyManages,
    /// The system gave no randomness.
    #[error("the system gives no random bytes: {0}")]
    NoRandomness(String),
    /// It could not be recorded.
    #[error("the key cannot be recorded")]
    Store(#[from] StoreError),
}

/// Why a key was not revoked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevokeKeyError {
    /// There is no such key.
    #[error("there is no key {0}")]
    Unknown(Uuid),
    /// Others would be left that nobody could manage.
    #[error(
        "`{0}` is the last key that may manage keys: make another one with the scope `manage` \
         first, or revoke the others first"
    )]
    LastManager(String),
    /// It could not be recorded; the key is in use.
    #[error("the key cannot be revoked")]
    Store(#[from] StoreError),
}

/// Checks `wanted` and makes its key at `now`. Nothing is recorded yet.
pub(super) fn create(wanted: CreateKey, now: WallTime) -> Result<Created, CreateKeyError> {
    let name = name_in("name", &wanted.name)?;
    let tenant = wanted.tenant.as_deref();
    let tenant = tenant.map(|tenant| name_in("tenant", tenant)).transpose()?;
    let scopes = scopes(&wanted.scopes)?;
    let models = wanted.models.map(models).transpose()?;
    let limits = limits(wanted.limits)?;
    let budget = budget(&wanted.budget)?;
    let key = token::generate().map_err(|error| CreateKeyError::NoRandomness(error.to_string()))?;
    let record = KeyRecord {
        id: Uuid::now_v7(),
        name,
        prefix: token::shown(key.expose()).to_owned(),
        sha256: token::hash(key.expose()),
        scopes,
        models,
        tenant,
        any_tenant: wanted.any_tenant,
        limits,
        budget,
        created_at: now,
        revoked_at: None,
    };
    Ok(Created { key, record })
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> CreateKeyError {
    CreateKeyError::Invalid {
        field: field.into(),
        message: message.into(),
    }
}

/// Whether a key or a tenant may be called so: names stand in log lines and labels.
pub(super) fn is_name(name: &str) -> bool {
    let length = name.chars().count();
    (1..=NAME_MAX).contains(&length) && !name.chars().any(char::is_control)
}

/// A name as it may be recorded.
fn name_in(field: &str, text: &str) -> Result<String, CreateKeyError> {
    let name = text.trim();
    if !is_name(name) {
        let message =
            format!("must have 1 to {NAME_MAX} characters, none of them a control character");
        return Err(invalid(field, message));
    }
    Ok(name.to_owned())
}

fn scopes(wanted: &[KeyScope]) -> Result<Vec<String>, CreateKeyError> {
    if wanted.is_empty() {
        return Err(invalid("scopes", "a key needs one of call, read, manage"));
    }
    let scopes = KeyScope::ALL.into_iter();
    let scopes = scopes.filter(|scope| wanted.contains(scope));
    Ok(scopes.map(|scope| scope.as_str().to_owned()).collect())
}

fn models(wanted: Vec<String>) -> Result<Vec<String>, CreateKeyError> {
    check_length("models", wanted.len())?;
    if wanted.is_empty() {
        return Err(invalid("models", "leave it out to allow every model"));
    }
    for (index, model) in wanted.iter().enumerate() {
        if model.is_empty() || model.len() > MODEL_MAX || model.chars().any(char::is_control) {
            return Err(invalid(format!("models[{index}]"), "is not a model name"));
        }
    }
    Ok(wanted)
}

fn limits(wanted: Vec<String>) -> Result<Vec<String>, CreateKeyError> {
    check_length("limits", wanted.len())?;
    for (index, limit) in wanted.iter().enumerate() {
        parse_limit(limit)
            .map_err(|error| invalid(format!("limits[{index}]"), error.to_string()))?;
    }
    Ok(wanted)
}

fn check_length(field: &str, length: usize) -> Result<(), CreateKeyError> {
    if length > LIST_MAX {
        return Err(invalid(
            field,
            format!("holds {length} entries, {LIST_MAX} are possible"),
        ));
    }
    Ok(())
}

fn budget(wanted: &KeyBudget) -> Result<Budget, CreateKeyError> {
    Ok(Budget {
        tokens_per_day: tokens("budget.tokens_per_day", wanted.tokens_per_day)?,
        tokens_per_month: tokens("budget.tokens_per_month", wanted.tokens_per_month)?,
        nano_usd_per_day: nano("budget.usd_per_day", wanted.usd_per_day)?,
        nano_usd_per_month: nano("budget.usd_per_month", wanted.usd_per_month)?,
    })
}

fn tokens(field: &str, tokens: Option<u64>) -> Result<Option<u64>, CreateKeyError> {
    match tokens {
        Some(tokens) if tokens > TOKENS_MAX => Err(invalid(field, "is too large")),
        tokens => Ok(tokens),
    }
}

fn nano(field: &str, usd: Option<f64>) -> Result<Option<u64>, CreateKeyError> {
    let Some(usd) = usd else {
        return Ok(None);
    };
    if !(0.0..=USD_MAX).contains(&usd) {
        return Err(invalid(field, "must be 0 to 1,000,000,000 US dollars"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be between 0 and 10^18"
    )]
    let nano = (usd * 1e9).round() as u64;
    Ok(Some(nano))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(body: &str) -> CreateKey {
        serde_json::from_str(body).unwrap()
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let check = |body: &str, expected: &str| {
            let error = create(wanted(body), WallTime::default()).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        };
        check(r#"{"name":" "}"#, "name: must have 1 to 100 characters");
        check(r#"{"name":"a\nb"}"#, "name: ");
        check(r#"{"name":"a","tenant":""}"#, "tenant: ");
        check(r#"{"name":"a","scopes":[]}"#, "scopes: ");
        check(r#"{"name":"a","models":[]}"#, "models: ");
        check(r#"{"name":"a","models":["m",""]}"#, "models[1]: ");
        check(
            r#"{"name":"a","limits":["rpm=1","rpm"]}"#,
            "limits[1]: `rpm` is not a limit",
        );
        check(
            r#"{"name":"a","budget":{"usd_per_day":-1}}"#,
            "budget.usd_per_day: ",
        );
        check(
            r#"{"name":"a","budget":{"usd_per_month":1e10}}"#,
            "budget.usd_per_month: ",
        );
        check(
            r#"{"name":"a","budget":{"tokens_per_day":18446744073709551615}}"#,
            "budget.tokens_per_day: ",
        );
    }

    #[test]
    fn dollars_become_billionths() {
        let body = r#"{"name":"a","budget":{"usd_per_day":0.1,"usd_per_month":1234567.891}}"#;
        let budget = create(wanted(body), WallTime::default())
            .unwrap()
            .record
            .budget;
        assert_eq!(budget.nano_usd_per_day, Some(100_000_000));
        assert_eq!(budget.nano_usd_per_month, Some(1_234_567_891_000_000));
    }

    #[test]
    fn the_key_is_nowhere_but_in_its_own_field() {
        let created = create(wanted(r#"{"name":"a"}"#), WallTime::default()).unwrap();
        let text = format!("{created:?} {:?}", created.record);
        assert!(!text.contains(&created.key.expose()[13..]), "{text}");
        assert!(text.contains(&created.record.prefix));
    }
}
