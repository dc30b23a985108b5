//! Every example runs, and ends well.

#![expect(
    clippy::duplicate_mod,
    reason = "two examples bring their common module along"
)]

use std::error::Error;

#[path = "../examples/anthropic.rs"]
mod anthropic;
#[path = "../examples/basic.rs"]
mod basic;
#[path = "../examples/concurrent_mode.rs"]
mod concurrent_mode;
#[path = "../examples/custom_errors.rs"]
mod custom_errors;
#[path = "../examples/dynamic_configuration.rs"]
mod dynamic_configuration;
#[path = "../examples/fire_and_forget.rs"]
mod fire_and_forget;
#[path = "../examples/hooks_and_metrics.rs"]
mod hooks_and_metrics;
#[path = "../examples/many_limits.rs"]
mod many_limits;
#[path = "../examples/openai.rs"]
mod openai;
#[path = "../examples/typed_models.rs"]
mod typed_models;
#[path = "../examples/validation.rs"]
mod validation;

type Ended = Result<(), Box<dyn Error>>;

#[test]
fn basic_runs() -> Ended {
    basic::main()
}

#[test]
fn typed_models_runs() -> Ended {
    typed_models::main()
}

#[test]
fn concurrent_mode_runs() -> Ended {
    concurrent_mode::main()
}

#[test]
fn many_limits_runs() -> Ended {
    many_limits::main()
}

#[test]
fn fire_and_forget_runs() -> Ended {
    fire_and_forget::main()
}

#[test]
fn hooks_and_metrics_runs() -> Ended {
    hooks_and_metrics::main()
}

#[test]
fn dynamic_configuration_runs() -> Ended {
    dynamic_configuration::main()
}

#[test]
fn validation_runs() -> Ended {
    validation::main()
}

#[test]
fn custom_errors_runs() -> Ended {
    custom_errors::main()
}

// These two never make a real call from here, whatever the environment holds.

#[tokio::test]
async fn openai_runs_against_the_stand_in() -> Ended {
    openai::run(openai::common::Account::StandIn).await
}

#[tokio::test]
async fn anthropic_runs_against_the_stand_in() -> Ended {
    anthropic::run(anthropic::common::Account::StandIn).await
}

/// The programs' own entries are compiled here too.
#[test]
fn every_example_has_an_entry() {
    let _: [fn() -> Ended; 2] = [openai::main, anthropic::main];
}
