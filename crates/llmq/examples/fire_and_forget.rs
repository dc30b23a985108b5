//! Requests that nobody waits for: hand them in, do something else, fetch the results later.
//!
//! `cargo run -p llmq --example fire_and_forget`

use std::error::Error;
use std::time::Duration;

use llmq::{ModelConfig, ProcessorError, QueueManager, QueueRequest, Status};

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let manager = QueueManager::new();
    manager.register_queue(
        ModelConfig::new("gpt-4o-mini").concurrent(2),
        |request: QueueRequest<u32>| async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok::<_, ProcessorError>(request.params * request.params)
        },
    )?;

    let mut ids = Vec::new();
    for number in 1..=5 {
        let request = QueueRequest::new("gpt-4o-mini", number).without_waiting();
        let response = manager.submit_request(request).await?;
        assert_eq!(response.status, Status::Queued);
        ids.push(response.request_id);
    }
    // Look …
    if let Some(response) = manager.get_status("gpt-4o-mini", ids[4])? {
        println!("the last one is {}", response.status);
    }
    // … or wait.
    for id in &ids {
        let response = manager.wait("gpt-4o-mini", *id).await?;
        println!("{:?}", response.result);
    }
    // The same question, asked twice while it is in flight, is asked once.
    let same = || QueueRequest::new("gpt-4o-mini", 12).dedup_key("twelve");
    let (first, second) = tokio::join!(
        manager.submit_request(same()),
        manager.submit_request(same())
    );
    assert_eq!(first?.request_id, second?.request_id);

    let report = manager.shutdown_all(Duration::from_secs(5)).await;
    println!("everything finished: {}", report.is_clean());
    Ok(())
}
