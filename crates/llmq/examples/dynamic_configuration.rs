//! Models that come and go, and limits that change, while requests wait.
//!
//! `cargo run -p llmq --example dynamic_configuration`

use std::error::Error;
use std::time::Duration;

use llmq::{LimitSpec, ModelConfig, ProcessorError, QueueManager, QueueRequest};

async fn answer(request: QueueRequest<u32>) -> Result<u32, ProcessorError> {
    tokio::time::sleep(Duration::from_millis(5)).await;
    Ok(request.params)
}

/// What a configuration file may say: a model and its limits as text.
const FILE: [(&str, &[&str]); 2] = [
    ("small", &["requests=500/1m", "concurrency=1"]),
    ("large", &["requests=60/1m", "tokens=100k/1m:bucket"]),
];

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let manager = QueueManager::new();
    for (model, limits) in FILE {
        let mut config = ModelConfig::new(model);
        for limit in limits {
            config = config.limit(limit.parse::<LimitSpec>()?);
        }
        manager.register_queue(config, answer)?;
    }
    // A mistake is told by name, all of them at once.
    let wrong = ModelConfig::new("wrong").requests_per_minute(0).capacity(0);
    if let Err(error) = manager.register_queue(wrong, answer) {
        println!("{error}");
    }

    let small = manager.queue("small")?;
    let requests = (0..20).map(|number| QueueRequest::new("small", number));
    let (answers, ()) = tokio::join!(manager.submit_all(requests), async {
        // One at a time turns out to be too slow.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let wider = small.set_limit(LimitSpec::concurrency(10));
        println!("more at once: {}", wider.is_ok());
    });
    println!("{} answers", answers.len());

    // Nothing is started while a model is paused, and nothing is lost.
    manager.pause("large")?;
    let request = QueueRequest::new("large", 7).without_waiting();
    let id = manager.submit_request(request).await?.request_id;
    println!("paused: {}", manager.get_queue_info("large")?.is_paused);
    manager.resume("large")?;
    manager.wait("large", id).await?;

    manager
        .remove_queue("large", Duration::from_secs(1))
        .await?;
    println!("models left: {:?}", manager.models());
    Ok(())
}
