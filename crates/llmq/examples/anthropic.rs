//! A queue in front of Anthropic's messages.
//!
//! With `ANTHROPIC_API_KEY` set it makes real calls (three small ones), else it talks to a stand-in that
//! behaves like it.
//!
//! `cargo run -p llmq --example anthropic`

pub(crate) mod common;

use std::error::Error;
use std::sync::Arc;

use common::{Account, Caller};
use llmq::{ModelConfig, ProcessorError, QueueManager, QueueRequest};
use llmq_provider::{Dialect, Operation};

const MODEL: &str = "claude-haiku-4-5";

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let account = Account::from_env(
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_API_KEY",
        "https://api.anthropic.com",
    );
    run(account).await
}

pub(crate) async fn run(account: Account) -> Result<(), Box<dyn Error>> {
    let caller = Caller::connect(Dialect::Anthropic, Operation::Messages, account).await?;
    let manager: QueueManager<String, String> = QueueManager::new();
    // The host decides how its limits count and refill.
    let config = ModelConfig::new(MODEL)
        .host(caller.host())
        .requests_per_minute(50)
        .input_tokens_per_minute(50_000)
        .output_tokens_per_minute(10_000)
        .concurrent(8);
    let (caller, teller) = (Arc::new(caller), manager.clone());
    manager.register_queue(config, move |request: QueueRequest<String>| {
        let (caller, teller) = (Arc::clone(&caller), teller.clone());
        async move {
            let reply = caller.call(MODEL, &request.params).await?;
            if let Some(usage) = reply.usage {
                let (input, output) = (usage.input_tokens, usage.output_tokens);
                teller.update_token_usage(MODEL, request.id, input, output)?;
            }
            Ok::<_, ProcessorError>(reply.text)
        }
    })?;

    let prompts = ["What is a queue?", "What is a token?", "What is a limit?"];
    let request = |prompt: &str| QueueRequest::new(MODEL, prompt.to_owned()).tokens(10, 200);
    for answer in manager.submit_all(prompts.map(request)).await {
        let response = answer?;
        println!("{:?}: {:?}", response.usage, response.result);
    }
    Ok(())
}
