//! Hearing of every step of every request, and counting them.
//!
//! `cargo run -p llmq --example hooks_and_metrics`

use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};

use llmq::{HookEvent, Hooks, ModelConfig, ProcessorError, QueueError, QueueManager, QueueRequest};

struct Printer;

impl Hooks for Printer {
    fn queued(&self, event: &HookEvent<'_>) {
        println!("{} queued for {}", event.request_id, user(event));
    }

    fn started(&self, event: &HookEvent<'_>) {
        println!("{} started, attempt {}", event.request_id, event.attempt);
    }

    fn retried(&self, event: &HookEvent<'_>, error: &ProcessorError) {
        println!("{} will be tried again: {error}", event.request_id);
    }

    fn completed(&self, event: &HookEvent<'_>) {
        println!("{} completed after {:?}", event.request_id, event.age);
    }

    fn failed(&self, event: &HookEvent<'_>, error: &QueueError) {
        println!("{} failed: {error}", event.request_id);
    }
}

fn user<'a>(event: &'a HookEvent<'_>) -> &'a str {
    event.metadata.get("user").map_or("nobody", String::as_str)
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let manager = QueueManager::builder().hooks(Printer).build();
    let calls = AtomicU32::new(0);
    manager.register_queue(
        ModelConfig::new("gpt-4o-mini"),
        move |request: QueueRequest<String>| {
            let is_first = calls.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                match request.params.as_str() {
                    _ if is_first => Err(ProcessorError::transient("the server was busy")),
                    "" => Err(ProcessorError::permanent("an empty prompt")),
                    prompt => Ok(prompt.to_uppercase()),
                }
            }
        },
    )?;
    let prompt =
        |text: &str| QueueRequest::new("gpt-4o-mini", text.to_owned()).metadata("user", "ada");
    manager.submit_request(prompt("hello")).await?;
    let refused = manager.submit_request(prompt("")).await;
    assert!(refused.is_err());

    let metrics = manager.metrics();
    println!(
        "{} accepted, {} completed, {} failed, {} attempts, mean {:?}",
        metrics.accepted,
        metrics.completed,
        metrics.failed,
        metrics.attempts,
        metrics.mean_processing_time()
    );
    Ok(())
}
