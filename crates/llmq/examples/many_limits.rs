//! Calls, tokens and concurrency, all at once, and one limit that two models share.
//!
//! `cargo run -p llmq --example many_limits`

use std::error::Error;
use std::time::Duration;

use llmq::{CallSize, ModelConfig, ProcessorError, QueueManager, QueueRequest};

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let manager = QueueManager::new();
    // One account pays for both models, and counts their calls together.
    manager.share_limit("account", "requests=20/100ms".parse()?)?;
    let processor = |manager: QueueManager<String, usize>| {
        move |request: QueueRequest<String>| {
            let manager = manager.clone();
            async move {
                let answer = request.params.len();
                // What the provider says it used; limits are settled to it.
                let (input, output) = (request.params.len() as u64 / 4, 5);
                manager.update_token_usage(&request.model_id, request.id, input, output)?;
                Ok::<_, ProcessorError>(answer)
            }
        }
    };
    // A rough estimate before the call: four bytes a token, and ten tokens of answer.
    let size = |prompt: &String| CallSize {
        input_tokens: u32::try_from(prompt.len() / 4).unwrap_or(u32::MAX),
        max_output_tokens: Some(10),
        choices: 1,
    };
    for model in ["small", "large"] {
        let config = ModelConfig::new(model)
            .requests_per_minute(500)
            .tokens_per_minute(200_000)
            .requests_per(15, Duration::from_millis(100))
            .concurrent(4)
            .shared_limit("account");
        manager.register_queue_sized(config, processor(manager.clone()), size)?;
    }

    let requests = (0..40).map(|number| {
        let model = ["small", "large"][number % 2];
        QueueRequest::new(model, format!("Write a poem about the number {number}."))
    });
    for answer in manager.submit_all(requests).await {
        let _ = answer?;
    }
    for (model, info) in manager.get_all_queues_info() {
        println!("{model}: {} completed", info.metrics.completed);
        for limit in info.limits {
            println!(
                "  {:<20} {:>6.2} % in use",
                limit.name,
                limit.in_use * 100.0
            );
        }
    }
    Ok(())
}
