//! At most eight calls at once, as a server of one's own wants it: 40 calls of 20 ms take five
//! rounds, not forty.
//!
//! `cargo run -p llmq --example concurrent_mode`

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use llmq::{ModelConfig, ProcessorError, QueueManager, QueueRequest};
use tokio::time::Instant;

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let manager = QueueManager::new();
    let peak = Arc::clone(&most);
    manager.register_queue(
        ModelConfig::new("llama").concurrent(8),
        move |request: QueueRequest<u32>| {
            let (running, peak) = (Arc::clone(&running), Arc::clone(&peak));
            async move {
                peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, ProcessorError>(request.params * 2)
            }
        },
    )?;

    let start = Instant::now();
    let requests = (0..40).map(|number| QueueRequest::new("llama", number));
    let answers = manager.submit_all(requests).await;
    let completed = answers.iter().filter(|answer| answer.is_ok()).count();
    println!(
        "{completed} calls in {:?}, at most {} at once",
        start.elapsed(),
        most.load(Ordering::SeqCst)
    );
    assert_eq!(most.load(Ordering::SeqCst), 8);
    Ok(())
}
