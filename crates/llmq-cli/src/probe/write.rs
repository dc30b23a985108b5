use std::collections::BTreeMap;
use std::fmt::Write as _;

use llmq_core::LimitSpec;

use super::ask::Told;

/// Limits that a table names by a short word; others are written in full.
const SHORT: [&str; 6] = ["rpm", "rpd", "tpm", "tpd", "itpm", "otpm"];

/// A configuration with what was told, which can be used as it is.
pub(super) fn configuration(told: &[Told]) -> String {
    let mut text = "\
# Written by llmq probe, from the headers of one answer of each model. Headers seldom show all
# limits: compare with your provider's page. llmq config default explains every setting.
"
    .to_owned();
    accounts(&mut text, told);
    let mut models: BTreeMap<&str, Vec<&Told>> = BTreeMap::new();
    for told in told {
        models.entry(&told.model).or_default().push(told);
    }
    for (model, told) in models {
        write_model(&mut text, model, &told);
    }
    text
}

fn accounts(text: &mut String, told: &[Told]) {
    let mut seen = Vec::new();
    for told in told {
        if seen.contains(&told.account.as_str()) {
            continue;
        }
        seen.push(&told.account);
        let provider = told.provider.as_str();
        let _ = writeln!(
            text,
            "\n[upstreams.{}]\nprovider = {}",
            key(&told.account),
            quoted(provider)
        );
        if let Some(url) = &told.base_url {
            let _ = writeln!(text, "base_url = {}", quoted(url));
        }
        if let Some(name) = &told.key_variable {
            let _ = writeln!(text, "api_key = {{ env = {} }}", quoted(name));
        }
    }
}

fn write_model(text: &mut String, model: &str, told: &[&Told]) {
    let _ = writeln!(text);
    for told in told {
        let whose = format!(
            "{}/{}",
            told.account,
            told.provider_model.as_ref().unwrap_or(&told.model)
        );
        let _ = match &told.failure {
            None => writeln!(
                text,
                "# {} answered in {} ms.",
                comment(&whose),
                told.took.as_millis()
            ),
            Some((class, why)) => {
                writeln!(
                    text,
                    "# {} gave no answer ({class}): {}",
                    comment(&whose),
                    comment(why)
                )
            }
        };
        if told.limits.is_empty() {
            let _ = writeln!(
                text,
                "# It showed no limit: give those that you know, such as limits = {{ rpm = 500 }}."
            );
        }
        for unclear in &told.unclear {
            let _ = writeln!(text, "# It also told of {unclear}, and not in which time.");
        }
        for limit in &told.limits {
            if is_above_another(limit, &told.limits) {
                let _ = writeln!(text, "# It also told of {limit}: the lowest one is below.");
            }
        }
    }
    let routes: Vec<String> = told.iter().map(|told| route(told)).collect();
    let _ = writeln!(
        text,
        "[models.{}]\nupstreams = [ {} ]",
        key(model),
        routes.join(", ")
    );
}

fn route(told: &Told) -> String {
    let mut members = vec![format!("upstream = {}", quoted(&told.account))];
    members.extend(
        told.provider_model
            .as_ref()
            .map(|model| format!("model = {}", quoted(model))),
    );
    if !told.limits.is_empty() {
        members.push(format!("limits = {{ {} }}", limits(&told.limits)));
    }
    format!("{{ {} }}", members.join(", "))
}

fn limits(limits: &[LimitSpec]) -> String {
    let is_short = |limit: &&LimitSpec| SHORT.contains(&limit.name().as_str());
    let lowest = limits
        .iter()
        .filter(|limit| !is_above_another(limit, limits));
    let (short, custom): (Vec<&LimitSpec>, Vec<&LimitSpec>) = lowest.partition(is_short);
    let mut members: Vec<String> = short
        .into_iter()
        .map(|limit| format!("{} = {}", limit.name(), limit.count))
        .collect();
    if !custom.is_empty() {
        let custom: Vec<String> = custom
            .iter()
            .map(|limit| quoted(&limit.to_string()))
            .collect();
        members.push(format!("custom = [{}]", custom.join(", ")));
    }
    members.join(", ")
}

/// Whether another limit of this kind and period is lower: a project's beside its organization's.
/// A table has room for one of them, and what fits the lowest fits all.
fn is_above_another(limit: &LimitSpec, limits: &[LimitSpec]) -> bool {
    let mut alike = limits.iter().filter(|other| other.name() == limit.name());
    alike.any(|other| other.count < limit.count)
}

/// TOML's basic string.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A key, bare where it can be.
fn key(text: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !text.is_empty() && text.bytes().all(bare) {
        text.to_owned()
    } else {
        quoted(text)
    }
}

/// Text of others, on one line.
fn comment(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use llmq_core::FailureClass;
    use llmq_engine::config::{Config, ProviderKind};

    use super::*;

    fn told(model: &str, limits: &[&str]) -> Told {
        Told {
            model: model.to_owned(),
            account: "openai".to_owned(),
            provider_model: None,
            provider: ProviderKind::OpenAi,
            base_url: None,
            key_variable: Some("OPENAI_API_KEY".to_owned()),
            limits: limits.iter().map(|text| text.parse().unwrap()).collect(),
            unclear: Vec::new(),
            took: Duration::from_millis(5),
            failure: None,
        }
    }

    #[test]
    fn what_is_written_can_be_used_and_says_what_was_told() {
        let mut odd = told("org/m \"x\"", &["requests=200/2s", "tokens=7/1m"]);
        odd.account = "my gpu".to_owned();
        odd.base_url = Some("http://gpu:1/v1".to_owned());
        odd.provider_model = Some("x".to_owned());
        odd.failure = Some((FailureClass::NoAccess, "no\n[server]".to_owned()));
        odd.unclear = vec!["9 requests".to_owned()];
        let text = configuration(&[
            told(
                "gpt",
                &["requests=500/1m", "requests=10000/1d", "tokens=30000/1m"],
            ),
            odd,
        ]);
        let settings = Config::parse("probe", &text).unwrap().check();
        let settings = settings.unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        assert!(
            text.contains("limits = { rpm = 500, rpd = 10000, tpm = 30000 }"),
            "{text}"
        );
        assert!(text.contains("# openai/gpt answered in 5 ms."), "{text}");
        assert!(text.contains("(no-access): no [server]\n"), "{text}");
        assert!(text.contains("9 requests, and not in which time"), "{text}");
        let route = &settings.models["org/m \"x\""].upstreams[0];
        assert_eq!(
            (route.upstream.as_str(), route.limits.custom.len()),
            ("my gpu", 1)
        );
    }

    /// OpenAI tells of a project's tokens beside the organization's, and `tpm` stood there twice,
    /// which is no TOML.
    #[test]
    fn of_limits_of_one_kind_and_period_the_lowest_is_written_and_the_others_are_said() {
        let limits = [
            "tokens=30000/1m:bucket",
            "tokens=10000/1m:bucket",
            "requests=9/2s",
            "requests=8/2s",
        ];
        let text = configuration(&[told("gpt", &limits)]);
        let settings = Config::parse("probe", &text).unwrap().check();
        settings.unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        for part in [
            "limits = { tpm = 10000, custom = [\"requests=8/2s\"] }",
            "# It also told of tokens=30k/1m:bucket: ",
            "# It also told of requests=9/2s: ",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }
}
