use llmq::{ModelConfig, ProcessorError, QueueManager, QueueRequest};

# async fn call_the_model(prompt: String) -> Result<String, std::io::Error> { Ok(prompt) }
# #[tokio::main(flavor = "current_thread")]
# async fn main() -> Result<(), llmq::QueueError> {
// At most 500 calls a minute and 8 at once, whoever asks.
let manager = QueueManager::new();
manager.register_queue(
    ModelConfig::new("gpt-4o-mini").requests_per_minute(500).concurrent(8),
    |request: QueueRequest<String>| async move {
        let answer = call_the_model(request.params).await?;
        Ok::<String, ProcessorError>(answer)
    },
)?;

let request = QueueRequest::new("gpt-4o-mini", "Hello".to_owned());
let response = manager.submit_request(request).await?;
println!("{:?} after {:?}", response.result, response.queued_time);
# Ok(())
# }
