use std::pin::Pin;

use http::HeaderValue;
use llmq_api::KeyBudget;
use llmq_core::Usage;
use llmq_store_sqlite::Place;
use llmq_testkit::FakeClock;

use super::*;
use crate::keys::Forbidden;

async fn ring(store: &Store, auth: AuthPolicy) -> Arc<KeyRing> {
    let options = KeyRingOptions {
        auth,
        time_zone: TimeZone::UTC,
    };
    let clock = Arc::new(FakeClock::new());
    let tasks = Tasks::new();
    KeyRing::open(store.clone(), clock, options, &tasks)
        .await
        .unwrap()
}

fn memory() -> Store {
    Store::open(&Place::Memory, WallTime::default()).unwrap()
}

fn wanted(name: &str) -> CreateKey {
    CreateKey {
        name: name.to_owned(),
        scopes: KeyScope::ALL.to_vec(),
        models: None,
        tenant: None,
        any_tenant: false,
        limits: Vec::new(),
        budget: KeyBudget::default(),
    }
}

fn showing(key: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let value = format!("Bearer {key}");
    headers.insert("authorization", HeaderValue::from_str(&value).unwrap());
    headers
}

#[tokio::test]
async fn a_key_is_let_in_until_it_is_revoked_and_stays_out_after_a_restart() {
    let store = memory();
    let keys = ring(&store, AuthPolicy::Keys).await;
    let first = keys.create(wanted("first")).await.unwrap();
    let second = keys.create(wanted("second")).await.unwrap();
    let shown = showing(second.key.expose());
    assert_eq!(keys.authenticate(&shown).unwrap().tenant(), "second");
    keys.revoke(second.record.id).await.unwrap();
    keys.revoke(second.record.id).await.unwrap();
    assert_eq!(keys.authenticate(&shown).unwrap_err(), AuthError::Refused);
    let again = ring(&store, AuthPolicy::Keys).await;
    assert_eq!(again.authenticate(&shown).unwrap_err(), AuthError::Refused);
    let caller = again.authenticate(&showing(first.key.expose())).unwrap();
    assert_eq!(caller.key_id(), Some(first.record.id));
}

#[tokio::test]
async fn wrong_and_foreign_keys_are_refused() {
    let keys = ring(&memory(), AuthPolicy::Keys).await;
    let key = keys.create(wanted("a")).await.unwrap().key;
    let (head, last) = key.expose().split_at(key.expose().len() - 1);
    let near = format!("{head}{}", if last == "x" { "y" } else { "x" });
    let check = |shown: &str, expected| {
        let refused = keys.authenticate(&showing(shown));
        assert_eq!(refused.unwrap_err(), expected, "{shown}");
    };
    check(&near, AuthError::Refused);
    check(head, AuthError::Refused);
    check("llmq_", AuthError::Refused);
    check("sk-proj-1234", AuthError::NotOurs);
    check("", AuthError::NotOurs);
    let nothing = keys.authenticate(&HeaderMap::new());
    assert_eq!(nothing.unwrap_err(), AuthError::Missing);
}

// The table's index is half of a hash: another key may share that half, and must not get in.
#[tokio::test]
async fn the_whole_hash_decides_and_not_its_index() {
    let keys = ring(&memory(), AuthPolicy::Keys).await;
    let created = keys.create(wanted("a")).await.unwrap();
    let hash = token::hash(created.key.expose());
    let table = keys.keys.load();
    assert!(table.find(&hash).is_some());
    for byte in 16..32 {
        let mut near = hash;
        near[byte] ^= 1;
        assert!(table.find(&near).is_none(), "byte {byte}");
    }
}

#[tokio::test]
async fn a_loopback_server_is_open_until_the_first_key() {
    let keys = ring(&memory(), AuthPolicy::OpenUntilKeys).await;
    for headers in [HeaderMap::new(), showing("sk-1"), showing("llmq_no")] {
        let caller = keys.authenticate(&headers).unwrap();
        assert_eq!((caller.tenant(), caller.key_id()), ("default", None));
    }
    let created = keys.create(wanted("a")).await.unwrap();
    assert!(keys.authenticate(&HeaderMap::new()).is_err());
    keys.revoke(created.record.id).await.unwrap();
    assert!(keys.authenticate(&HeaderMap::new()).is_ok());
    let open = ring(&memory(), AuthPolicy::Open).await;
    let created = open.create(wanted("a")).await.unwrap();
    assert!(open.authenticate(&HeaderMap::new()).is_ok());
    let caller = open.authenticate(&showing(created.key.expose())).unwrap();
    assert_eq!(caller.tenant(), "a");
}

// With the first key the door closes: if it could not manage, nobody could make another one.
#[tokio::test]
async fn somebody_can_always_manage() {
    let keys = ring(&memory(), AuthPolicy::OpenUntilKeys).await;
    let caller = CreateKey {
        scopes: vec![KeyScope::Call],
        ..wanted("caller")
    };
    let refused = keys.create(caller.clone()).await.unwrap_err();
    assert!(matches!(refused, CreateKeyError::NobodyManages));
    let manager = keys.create(wanted("manager")).await.unwrap().record.id;
    let caller = keys.create(caller).await.unwrap().record.id;
    let refused = keys.revoke(manager).await.unwrap_err();
    assert!(matches!(refused, RevokeKeyError::LastManager(_)));
    keys.revoke(caller).await.unwrap();
    keys.revoke(manager).await.unwrap();
    let unknown = keys.revoke(Uuid::nil()).await.unwrap_err();
    assert!(matches!(unknown, RevokeKeyError::Unknown(_)));
}

#[tokio::test]
async fn a_caller_may_what_its_key_says_and_no_more() {
    let keys = ring(&memory(), AuthPolicy::Keys).await;
    keys.create(wanted("manager")).await.unwrap();
    let narrow = CreateKey {
        scopes: vec![KeyScope::Call],
        models: Some(vec!["small".to_owned()]),
        tenant: Some("team".to_owned()),
        limits: vec!["rpm=60".to_owned()],
        ..wanted("narrow")
    };
    let created = keys.create(narrow).await.unwrap();
    let caller = keys.authenticate(&showing(created.key.expose())).unwrap();
    assert_eq!(caller.may(KeyScope::Call), Ok(()));
    let scope = caller.may(KeyScope::Manage);
    assert_eq!(scope, Err(Forbidden::Scope(KeyScope::Manage)));
    assert_eq!(caller.may_use("small"), Ok(()));
    let model = caller.may_use("large");
    assert_eq!(model, Err(Forbidden::Model("large".to_owned())));
    assert_eq!(caller.tenant_for(None), Ok("team"));
    assert_eq!(caller.tenant_for(Some("team")), Ok("team"));
    let tenant = caller.tenant_for(Some("other"));
    assert_eq!(tenant, Err(Forbidden::Tenant("other".to_owned())));
    assert_eq!(caller.limits(), ["requests=60/1m".parse().unwrap()]);
    let taken = keys.create(wanted("narrow")).await.unwrap_err();
    assert!(matches!(taken, CreateKeyError::NameTaken(name) if name == "narrow"));
}

#[tokio::test]
async fn no_key_and_no_hash_is_in_what_is_printed() {
    let keys = ring(&memory(), AuthPolicy::Keys).await;
    let created = keys.create(wanted("a")).await.unwrap();
    let caller = keys.authenticate(&showing(created.key.expose())).unwrap();
    let booking = keys.reserve(&caller, Spend::default()).await.unwrap();
    let printed = format!(
        "{keys:?} {caller:?} {created:?} {booking:?} {:?}",
        caller.key
    );
    assert!(!printed.contains(&created.key.expose()[13..]), "{printed}");
    let hash = format!("{:?}", created.record.sha256);
    assert!(!printed.contains(&hash[1..20]), "{printed}");
}

fn with_budget(tokens: u64) -> CreateKey {
    CreateKey {
        budget: KeyBudget {
            tokens_per_day: Some(tokens),
            ..KeyBudget::default()
        },
        ..wanted("a budget")
    }
}

fn tokens(tokens: u64) -> Spend {
    Spend {
        tokens,
        nano_usd: 0,
    }
}

/// An attempt that has left.
fn sent() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(true))
}

fn usage(input_tokens: u64) -> Usage {
    Usage {
        input_tokens,
        ..Usage::default()
    }
}

#[tokio::test]
async fn a_budget_holds_through_a_stop_and_through_a_crash() {
    let store = memory();
    let keys = ring(&store, AuthPolicy::Keys).await;
    let created = keys.create(with_budget(1_000)).await.unwrap();
    let headers = showing(created.key.expose());
    let caller = keys.authenticate(&headers).unwrap();
    assert!(caller.has_budget());
    let mut booking = keys.reserve(&caller, tokens(500)).await.unwrap();
    booking.begins(sent());
    booking.settle(&usage(400), 0);
    drop(keys.reserve(&caller, tokens(600)).await.unwrap());
    keys.save_last_usage().await.unwrap();

    // After a stop all that was not spent is free.
    let keys = ring(&store, AuthPolicy::Keys).await;
    let caller = keys.authenticate(&headers).unwrap();
    assert!(keys.reserve(&caller, tokens(601)).await.is_err());
    drop(keys.reserve(&caller, tokens(600)).await.unwrap());
    let mut booking = keys.reserve(&caller, tokens(100)).await.unwrap();
    booking.begins(sent());
    drop(booking);

    // After a crash what had been drawn is spent: here all of it.
    let keys = ring(&store, AuthPolicy::Keys).await;
    let caller = keys.authenticate(&headers).unwrap();
    let refused = keys.reserve(&caller, tokens(1)).await.unwrap_err();
    let BudgetError::Overspent {
        overspent,
        resets_at,
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!((overspent.left, overspent.budget), (0, 1_000));
    assert_eq!(resets_at.as_micros() % 86_400_000_000, 0);
}

#[tokio::test]
async fn a_call_that_was_sent_and_never_settled_counts_in_full() {
    let keys = ring(&memory(), AuthPolicy::Keys).await;
    let created = keys.create(with_budget(1_000)).await.unwrap();
    let caller = keys.authenticate(&showing(created.key.expose())).unwrap();
    drop(keys.reserve(&caller, tokens(700)).await.unwrap());
    let mut booking = keys.reserve(&caller, tokens(700)).await.unwrap();
    booking.begins(sent());
    drop(booking);
    assert!(keys.reserve(&caller, tokens(301)).await.is_err());
    assert!(keys.reserve(&caller, tokens(300)).await.is_ok());
}

// A caller that left while a connection was still being opened paid for all of its call.
#[tokio::test]
async fn an_attempt_of_which_nothing_has_left_costs_nothing() {
    let keys = ring(&memory(), AuthPolicy::Keys).await;
    let created = keys.create(with_budget(1_000)).await.unwrap();
    let caller = keys.authenticate(&showing(created.key.expose())).unwrap();
    let unsent = Arc::new(AtomicBool::new(false));
    let mut booking = keys.reserve(&caller, tokens(700)).await.unwrap();
    booking.begins(Arc::clone(&unsent));
    drop(booking);
    let mut booking = keys.reserve(&caller, tokens(400)).await.unwrap();
    booking.begins(sent());
    booking.begins(unsent);
    drop(booking);
    assert!(keys.reserve(&caller, tokens(601)).await.is_err());
    let mut booking = keys.reserve(&caller, tokens(600)).await.unwrap();
    let leaves_later = Arc::new(AtomicBool::new(false));
    booking.begins(Arc::clone(&leaves_later));
    leaves_later.store(true, Ordering::Release);
    drop(booking);
    assert!(keys.reserve(&caller, tokens(1)).await.is_err());
}

#[tokio::test]
async fn calls_at_once_share_a_budget_to_the_last_token() {
    let keys = ring(&memory(), AuthPolicy::Keys).await;
    let created = keys.create(with_budget(100)).await.unwrap();
    let caller = keys.authenticate(&showing(created.key.expose())).unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (keys, caller) = (Arc::clone(&keys), caller.clone());
        calls.spawn(async move { keys.reserve(&caller, tokens(3)).await.ok() });
    }
    let held: Vec<Option<Booking>> = calls.join_all().await;
    assert_eq!(held.iter().flatten().count(), 33);
}

#[tokio::test]
async fn what_is_booked_is_written_each_second_and_shown() {
    let store = memory();
    let keys = ring(&store, AuthPolicy::Keys).await;
    let created = keys.create(wanted("a")).await.unwrap();
    let caller = keys.authenticate(&showing(created.key.expose())).unwrap();
    for _ in 0..2 {
        let booking = keys.reserve(&caller, tokens(9)).await.unwrap();
        booking.settle(&usage(7), 11);
    }
    keys.save_usage().await.unwrap();
    let keys = ring(&store, AuthPolicy::Keys).await;
    let [day, month] = keys.booked(&created.record).unwrap();
    assert_eq!((day.input_tokens, day.nano_usd), (14, 22));
    assert_eq!(day, month);
}

/// Drops the future of a caller that hung up, and waits for what goes on without it.
async fn left(keys: &KeyRing, mut asked: impl Future + Unpin) {
    let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
    assert!(Pin::new(&mut asked).poll(context).is_pending());
    drop(asked);
    assert!(keys.tasks.ended(llmq_testkit::PATIENCE).await);
}

// Between the store's word and the table's there is a wait: once a key stayed in use until the
// next start when its revoker hung up there.
#[tokio::test]
async fn a_key_goes_out_of_use_although_its_revoker_goes() {
    let keys = ring(&memory(), AuthPolicy::Keys).await;
    keys.create(wanted("manager")).await.unwrap();
    let created = keys.create(wanted("a")).await.unwrap();
    left(&keys, Box::pin(keys.revoke(created.record.id))).await;
    let shown = showing(created.key.expose());
    assert_eq!(keys.authenticate(&shown).unwrap_err(), AuthError::Refused);
    let record = keys.one(created.record.id).await.unwrap().unwrap();
    assert!(record.revoked_at.is_some());
}

// Once such a key closed a loopback server to everybody at its next start.
#[tokio::test]
async fn a_key_that_nobody_was_told_is_taken_back() {
    let store = memory();
    let keys = ring(&store, AuthPolicy::OpenUntilKeys).await;
    left(&keys, Box::pin(keys.create(wanted("a")))).await;
    assert!(keys.asks_nobody());
    assert!(ring(&store, AuthPolicy::OpenUntilKeys).await.asks_nobody());
    keys.create(wanted("a")).await.unwrap();
}

#[tokio::test]
async fn a_revoked_key_that_had_limits_is_known_to_the_next_process() {
    let store = memory();
    let keys = ring(&store, AuthPolicy::Keys).await;
    keys.create(wanted("manager")).await.unwrap();
    let limited = CreateKey {
        limits: vec!["rpm=1".to_owned()],
        ..wanted("limited")
    };
    let created = keys.create(limited).await.unwrap();
    keys.revoke(created.record.id).await.unwrap();
    keys.save_usage().await.unwrap();
    for keys in [&keys, &ring(&store, AuthPolicy::Keys).await] {
        let caller = keys.by_id(created.record.id).unwrap();
        assert_eq!(caller.limits().len(), 1);
        assert!(keys.authenticate(&showing(created.key.expose())).is_err());
    }
}

// What it had waiting ran without a budget, a second after it was revoked or after a restart.
#[tokio::test]
async fn the_budget_of_a_revoked_key_holds_for_what_it_handed_in() {
    let store = memory();
    let keys = ring(&store, AuthPolicy::Keys).await;
    keys.create(wanted("manager")).await.unwrap();
    let created = keys.create(with_budget(1_000)).await.unwrap();
    let caller = keys.by_id(created.record.id).unwrap();
    let mut booking = keys.reserve(&caller, tokens(900)).await.unwrap();
    booking.begins(sent());
    booking.settle(&usage(900), 0);
    drop(caller);
    keys.revoke(created.record.id).await.unwrap();
    for _ in 0..3 {
        keys.save_usage().await.unwrap();
    }
    for keys in [&keys, &ring(&store, AuthPolicy::Keys).await] {
        let caller = keys.by_id(created.record.id).expect("it is known");
        assert!(caller.has_budget());
        assert!(keys.reserve(&caller, tokens(101)).await.is_err());
        keys.save_last_usage().await.unwrap();
    }
}

#[tokio::test]
async fn the_last_calls_of_a_revoked_key_are_booked_and_then_it_is_forgotten() {
    let store = memory();
    let keys = ring(&store, AuthPolicy::Keys).await;
    keys.create(wanted("manager")).await.unwrap();
    let created = keys.create(wanted("plain")).await.unwrap();
    let caller = keys.authenticate(&showing(created.key.expose())).unwrap();
    let booking = keys.reserve(&caller, tokens(9)).await.unwrap();
    drop(caller);
    keys.revoke(created.record.id).await.unwrap();
    keys.save_usage().await.unwrap();
    booking.settle(&usage(7), 0);
    for left in [1, 0] {
        keys.save_usage().await.unwrap();
        assert_eq!(keys.leaving().len(), left);
    }
}

#[tokio::test]
async fn nothing_may_be_spent_that_cannot_be_recorded() {
    let store = memory();
    let keys = ring(&store, AuthPolicy::Keys).await;
    let created = keys.create(with_budget(1_000)).await.unwrap();
    let caller = keys.authenticate(&showing(created.key.expose())).unwrap();
    store.close();
    let refused = keys.reserve(&caller, tokens(1)).await.unwrap_err();
    assert!(matches!(refused, BudgetError::Store(_)));
}
