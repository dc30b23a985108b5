use llmq_dispatch::{Call, Effect};

use super::*;
use crate::SystemClock;
use crate::books::Spent;
use crate::config::Config;

fn assembled(toml: &str) -> Assembly {
    let config = Config::parse("test.toml", toml).unwrap();
    let settings = config.check().unwrap();
    let clock = SystemClock::new();
    let now = clock.now();
    let clock: Arc<dyn Clock> = Arc::new(clock);
    assemble(&settings, None, &clock, now).unwrap()
}

const TWO_MODELS: &str = r#"
    [upstreams.one]
    provider = "mock"
    base_url = "http://127.0.0.1:9/v1"
    shared_limits = ["account"]
    [models.a]
    upstreams = [{ upstream = "one", model = "x", limits = { rpm = 10 } }]
    fallback = ["b"]
    [models.b]
    upstreams = [{ upstream = "one", model = "y" }, { upstream = "one", model = "x" }]
    [limits.account]
    rpm = 100
"#;

#[test]
fn an_account_and_model_are_one_upstream_whoever_refers_to_them() {
    let assembly = assembled(TWO_MODELS);
    let names: Vec<&str> = assembly.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["one/x", "one/y"]);
    assert_eq!(assembly.models.len(), 2);
}

#[test]
fn a_shared_limit_is_one_limit() {
    let assembly = assembled(TWO_MODELS);
    let limits = |index: usize| {
        let upstream = assembly.routes[index].upstream;
        assembly.dispatcher.upstream_view(upstream).limits
    };
    let common: Vec<LimitId> = limits(0)
        .into_iter()
        .filter(|limit| limits(1).contains(limit))
        .collect();
    assert_eq!(common.len(), 1);
}

/// The same accounts under another configuration, in the same dispatcher.
fn renew(assembly: &mut Assembly, toml: &str) -> (Vec<AssembledRoute>, Vec<String>) {
    let settings = Config::parse("test.toml", toml).unwrap().check().unwrap();
    let clock = SystemClock::new();
    let now = clock.now();
    let clock: Arc<dyn Clock> = Arc::new(clock);
    let mut accounts = assembly.accounts.renewed(&settings, &clock).unwrap();
    let mut routes = Vec::new();
    let dispatcher = &mut assembly.dispatcher;
    accounts.follow(&mut assembly.accounts);
    let models = accounts.models(dispatcher, &settings.models, &mut routes, now);
    accounts.retire_others(dispatcher, |name| models.contains_key(name));
    assembly.accounts = accounts;
    let names = assembly.dispatcher.queue_ids();
    let names = names.map(|id| assembly.dispatcher.queue_name(id).to_owned());
    (routes, names.collect())
}

fn now() -> Now {
    SystemClock::new().now()
}

/// Of each limit so much is used.
fn uses(assembly: &mut Assembly, route: &AssembledRoute, used: &[u64]) {
    let ids = assembly.dispatcher.upstream_view(route.upstream).limits;
    for (id, used) in ids.into_iter().zip(used) {
        let limit = assembly.dispatcher.limit_mut(id);
        limit.start_with(limit.spec().count - used, now().mono);
    }
}

fn limits(assembly: &mut Assembly, route: &AssembledRoute) -> Vec<String> {
    let ids = assembly.dispatcher.upstream_view(route.upstream).limits;
    let specs = ids.into_iter().map(|id| {
        let limit = assembly.dispatcher.limit_mut(id);
        let used = limit.saved(now().mono);
        let used: u64 = used.iter().map(|(_, used)| used).sum();
        format!("{} used {used}", limit.spec())
    });
    specs
        .filter(|text| !text.starts_with("concurrency"))
        .collect()
}

#[test]
fn another_configuration_keeps_the_books_of_what_stays() {
    let mut assembly = assembled(TWO_MODELS);
    let [one, _] = [&assembly.routes[0], &assembly.routes[1]].map(Clone::clone);
    uses(&mut assembly, &one, &[7, 7]);
    let changed = TWO_MODELS.replace("rpm = 10 }", "rpm = 20 }");
    let (routes, models) = renew(&mut assembly, &changed);
    assert_eq!(routes[0].upstream, one.upstream);
    assert_eq!(models, ["a", "b"]);
    let kept = ["requests=20/1m used 7", "requests=100/1m used 7"];
    assert_eq!(limits(&mut assembly, &routes[0]), kept);
}

/// A model that a caller named while another configuration was read was made a second time, and
/// its first queue and upstream were nobody's for the rest of the process.
#[test]
fn what_is_made_while_another_configuration_is_read_is_found_again() {
    let toml = TWO_MODELS.split("[models.a]").next().unwrap();
    let toml = format!("{toml}[limits.account]\nrpm = 100");
    let settings = Config::parse("test.toml", &toml).unwrap().check().unwrap();
    let named = Config::parse("test.toml", TWO_MODELS).unwrap().check();
    let named = BTreeMap::from([("b".to_owned(), named.unwrap().models["b"].clone())]);
    let mut assembly = assembled(&toml);
    let clock = SystemClock::new();
    let now = clock.now();
    let clock: Arc<dyn Clock> = Arc::new(clock);
    let mut accounts = assembly.accounts.renewed(&settings, &clock).unwrap();
    let mut routes = Vec::new();
    let dispatcher = &mut assembly.dispatcher;
    let before = &mut assembly.accounts;
    let made = before.model(dispatcher, "b", &named["b"], &mut routes, now);
    accounts.follow(before);
    let models = accounts.models(dispatcher, &named, &mut routes, now);
    accounts.retire_others(dispatcher, |name| models.contains_key(name));
    assert_eq!(models["b"].queue, made.queue);
    assert_eq!(models["b"].upstreams, made.upstreams);
    let upstreams: Vec<UpstreamId> = dispatcher.upstream_ids().collect();
    assert_eq!(upstreams, made.upstreams);
    assert_eq!(dispatcher.queue_ids().count(), 1);
}

/// The limit was another one then, and began unused: a whole window more was sent at once.
#[test]
fn a_limit_that_counts_by_another_algorithm_keeps_what_is_used_there_and_back() {
    let with = |own: &str, shared: &str| {
        let toml = TWO_MODELS.replace("rpm = 10 }", &format!("custom = [\"{own}\"] }}"));
        toml.replace("rpm = 100", &format!("custom = [\"{shared}\"]"))
    };
    let sliding = ["requests=10/1d", "requests=100/1d"];
    let other = ["requests=10/1d:bucket", "requests=100/1d:fixed"];
    let mut assembly = assembled(&with(sliding[0], sliding[1]));
    let one = assembly.routes[0].clone();
    uses(&mut assembly, &one, &[7, 7]);
    for stated in [other, sliding] {
        let (routes, _) = renew(&mut assembly, &with(stated[0], stated[1]));
        let kept = stated.map(|limit| format!("{limit} used 7"));
        assert_eq!(routes[0].upstream, one.upstream);
        assert_eq!(limits(&mut assembly, &routes[0]), kept);
    }
}

/// Each of them took the other's place, and both began unused after every change of the file. Of
/// two that differed in their counts alone the later one held.
#[test]
fn limits_of_one_kind_and_period_each_keep_what_is_used() {
    let with = |custom: &str| {
        let custom = format!("custom = [{custom}] }}");
        TWO_MODELS.replace("rpm = 10 }", &custom)
    };
    let [sliding, fixed] = [r#""requests=20/1d""#, r#""requests=30/1d:fixed""#];
    let twice = format!("{sliding}, {fixed}, \"requests=40/1d\"");
    let mut assembly = assembled(&with(&twice));
    let one = assembly.routes[0].clone();
    let ids = assembly.dispatcher.upstream_view(one.upstream).limits;
    let names = [0, 1].map(|index| assembly.dispatcher.limit_name(ids[index]).to_owned());
    assert_eq!(names, ["rpd one/x", "rpd one/x (fixed)"]);
    uses(&mut assembly, &one, &[7, 3]);
    let [sliding_kept, fixed_kept] = ["requests=20/1d used 7", "requests=30/1d:fixed used 3"];
    for (custom, kept) in [
        (twice, vec![sliding_kept, fixed_kept]),
        (
            format!("{fixed}, {sliding}"),
            vec![fixed_kept, sliding_kept],
        ),
        (fixed.to_owned(), vec![fixed_kept]),
    ] {
        let (routes, _) = renew(&mut assembly, &with(&custom));
        let mut limits = limits(&mut assembly, &routes[0]);
        assert_eq!(limits.pop().as_deref(), Some("requests=100/1m used 0"));
        assert_eq!(limits, kept);
    }
    let id = assembly.dispatcher.upstream_view(one.upstream).limits[0];
    assert_eq!(assembly.dispatcher.limit_name(id), "rpd one/x");
}

#[test]
fn what_goes_is_not_shown_and_is_found_again_when_it_comes_back() {
    let mut assembly = assembled(TWO_MODELS);
    let before = assembly.models["b"].queue;
    let without = TWO_MODELS.split("[models.b]").next().unwrap();
    let without = without.replace("fallback = [\"b\"]", "");
    let without = format!("{without}\n[limits.account]\nrpm = 100");
    let (routes, models) = renew(&mut assembly, &without);
    assert_eq!(models, ["a"]);
    assert_eq!(routes.len(), 1);
    assert_eq!(assembly.dispatcher.upstream_ids().count(), 1);
    let (routes, models) = renew(&mut assembly, TWO_MODELS);
    assert_eq!((routes.len(), models.len()), (2, 2));
    assert_eq!(assembly.accounts.known.queues["b"], before);
}

#[test]
fn another_server_under_the_same_name_has_limits_of_its_own() {
    let mut assembly = assembled(TWO_MODELS);
    let one = assembly.routes[0].upstream;
    let (routes, _) = renew(&mut assembly, &TWO_MODELS.replace(":9/", ":10/"));
    assert_ne!(routes[0].upstream, one);
}

/// The books had what was used at the other server, and the next process began with that.
#[test]
fn an_address_that_is_changed_back_has_its_own_use_in_the_books() {
    let two_models = TWO_MODELS.replace("rpm = 10 }", "rpd = 10 }");
    let mut assembly = assembled(&two_models);
    let one = assembly.routes[0].clone();
    uses(&mut assembly, &one, &[7]);
    let (there, _) = renew(&mut assembly, &two_models.replace(":9/", ":10/"));
    let (back, _) = renew(&mut assembly, &two_models);
    assert_eq!(back[0].upstream, one.upstream);
    let dispatcher = &mut assembly.dispatcher;
    let last = dispatcher.all_upstream_ids().last();
    assert!(last.is_some() && last != Some(there[0].upstream));
    let mut spent = Spent {
        clean: true,
        ..Spent::default()
    };
    for limit in dispatcher.limit_ids().collect::<Vec<_>>() {
        spent.add(dispatcher, limit, now());
    }
    let used: u64 = spent.limits["rpd one/x"]
        .used
        .iter()
        .map(|(_, used)| used)
        .sum();
    assert_eq!(used, 7);
}

/// The first model by name that led to an account's model decided on its limits, and where it
/// stated none, those that another one stated were kept by nobody.
#[test]
fn limits_hold_whichever_of_the_models_that_lead_there_states_them() {
    let mut assembly = assembled(
        r#"
        [upstreams.one]
        provider = "mock"
        base_url = "http://127.0.0.1:9/v1"
        [models.cheap]
        upstreams = [{ upstream = "one", model = "x" }]
        [models.x]
        upstreams = [{ upstream = "one", limits = { rpm = 500 }, shared_limits = ["account"] }]
        [limits.account]
        rpm = 100
    "#,
    );
    let route = assembly.routes[0].clone();
    let expected = ["requests=500/1m used 0", "requests=100/1m used 0"];
    assert_eq!(limits(&mut assembly, &route), expected);
}

/// How many of 300 calls of a model start at once.
fn starts(assembly: &mut Assembly, model: &str) -> usize {
    let call = Call::new(assembly.models[model].queue, assembly.tenant);
    let mut effects = Vec::new();
    for _ in 0..300 {
        let submitted = assembly
            .dispatcher
            .submit(call, Now::default(), &mut effects);
        submitted.unwrap();
    }
    let started = |effect: &&Effect| matches!(effect, Effect::Start(_));
    effects.iter().filter(started).count()
}

/// A gateway sent a whole window at once to a provider whose way of counting it did not know yet.
#[test]
fn a_provider_of_others_is_asked_before_its_tokens_are_bet_on() {
    for (url, expected) in [
        ("https://llm.example/v1", 200),
        ("http://127.0.0.1:9/v1", 300),
    ] {
        let mut assembly = assembled(&format!(
            r#"
            [upstreams.one]
            provider = "openai"
            base_url = "{url}"
            adaptive = {{ max = 0 }}
            [models.m]
            upstreams = [{{ upstream = "one", limits = {{ tpm = "100M" }} }}]
        "#
        ));
        assert_eq!(starts(&mut assembly, "m"), expected, "{url}");
    }
}

/// Each model had room for the whole of `max_jobs`, and of a million whatever was configured.
#[test]
fn what_waits_is_bounded_as_the_store_is() {
    let mut assembly = assembled(&format!("{TWO_MODELS}\n[store]\nmax_jobs = 10"));
    let calls = ["a", "b"].map(|name| Call::new(assembly.models[name].queue, assembly.tenant));
    let mut effects = Vec::new();
    let accepted = calls.iter().cycle().take(20).filter(|call| {
        let submitted = assembly
            .dispatcher
            .submit(**call, Now::default(), &mut effects);
        submitted.is_ok()
    });
    assert_eq!(accepted.count(), 8);
}

/// A credential's number was its account's place in the configuration. When the account before
/// it went, a late refusal of that one's key closed the one that had come into its place.
#[test]
fn a_credential_keeps_its_number_and_another_key_has_another() {
    let two = |accounts: &[(&str, &str)]| {
        let account = |(name, key): &(&str, &str)| {
            format!(
                "[upstreams.{name}]\nprovider = \"mock\"\nbase_url = \"http://127.0.0.1:9/v1\"\n\
                 api_key = \"{key}\"\n"
            )
        };
        accounts.iter().map(account).collect::<String>()
    };
    let credential = |assembly: &Assembly, name: &str| assembly.accounts.accounts[name].credential;
    let mut assembly = assembled(&two(&[("a", "key-a"), ("b", "key-b"), ("c", "key-b")]));
    let [a, b, c] = ["a", "b", "c"].map(|name| credential(&assembly, name));
    assert!(a != b && b == c, "one key, one credential");
    renew(&mut assembly, &two(&[("b", "key-b")]));
    assert_eq!(credential(&assembly, "b"), b);
    renew(&mut assembly, &two(&[("b", "another")]));
    let other = credential(&assembly, "b");
    assert!(![a, b].contains(&other));
}
