//! One model, a limit of calls a minute, and a few prompts.
//!
//! `cargo run -p llmq --example basic`

use std::error::Error;
use std::time::Duration;

use llmq::{ModelConfig, ProcessorError, QueueManager, QueueRequest};

/// Stands for the call of your provider's API.
async fn answer(request: QueueRequest<String>) -> Result<String, ProcessorError> {
    tokio::time::sleep(Duration::from_millis(10)).await;
    Ok(format!("You said: {}", request.params))
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let manager = QueueManager::new();
    manager.register_queue(
        ModelConfig::new("gpt-4o-mini").requests_per_minute(500),
        answer,
    )?;

    let request = QueueRequest::new("gpt-4o-mini", "Hello".to_owned());
    let response = manager.submit_request(request).await?;
    println!("{:?} in {:?}", response.result, response.processing_time);

    // Many at once: the answers come back in the order of the requests.
    let prompts = ["What is a queue?", "What is a limit?", "What is a token?"];
    let requests = prompts.map(|prompt| QueueRequest::new("gpt-4o-mini", prompt.to_owned()));
    for response in manager.submit_all(requests).await {
        println!("{}", response?.into_result()?);
    }

    let info = manager.get_queue_info("gpt-4o-mini")?;
    println!(
        "{} waiting, {} completed",
        info.queue_size, info.metrics.completed
    );
    manager.shutdown_all(Duration::from_secs(5)).await;
    Ok(())
}
