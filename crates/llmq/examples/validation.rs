//! Parameters that fail validation: refused before they cost anything, or by the processor
//! without another attempt.
//!
//! `cargo run -p llmq --example validation`

use std::error::Error;

use llmq::{ModelConfig, QueueError, QueueManager, QueueRequest};

#[derive(Debug, Clone)]
struct Prompt {
    text: String,
    temperature: f32,
}

#[derive(Debug, thiserror::Error)]
enum InvalidPrompt {
    #[error("the prompt is empty")]
    Empty,
    #[error("a temperature of {0} is not from 0 to 2")]
    Temperature(f32),
}

impl Prompt {
    fn new(text: &str, temperature: f32) -> Result<Self, InvalidPrompt> {
        let prompt = Self {
            text: text.to_owned(),
            temperature,
        };
        prompt.check().map(|()| prompt)
    }

    fn check(&self) -> Result<(), InvalidPrompt> {
        if self.text.trim().is_empty() {
            return Err(InvalidPrompt::Empty);
        }
        if !(0.0..=2.0).contains(&self.temperature) {
            return Err(InvalidPrompt::Temperature(self.temperature));
        }
        Ok(())
    }
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let manager = QueueManager::new();
    manager.register_queue(
        ModelConfig::new("gpt-4o-mini"),
        |request: QueueRequest<Prompt>| async move {
            // Any error of your own can be returned: it is final, so nothing is tried twice.
            request.params.check()?;
            Ok::<_, llmq::ProcessorError>(request.params.text.len())
        },
    )?;

    // The best place: no invalid value can be made at all.
    if let Err(error) = Prompt::new("Hello", 3.0) {
        println!("not submitted: {error}");
    }
    // The last place: one that was made otherwise.
    let params = Prompt {
        text: " ".to_owned(),
        temperature: 1.0,
    };
    let request = QueueRequest::new("gpt-4o-mini", params);
    let Err(error) = manager.submit_request(request).await else {
        return Err("an empty prompt was accepted".into());
    };
    assert!(matches!(
        error,
        QueueError::ProcessingError { attempts: 1, .. }
    ));
    match error.cause::<InvalidPrompt>() {
        Some(cause) => println!("refused by the processor: {cause}"),
        None => println!("something else: {error}"),
    }
    // One that is larger than a whole limit is refused by the queue itself.
    manager.register_queue(
        ModelConfig::new("tiny").tokens_per_minute(100),
        |request: QueueRequest<Prompt>| async move {
            Ok::<_, llmq::ProcessorError>(request.params.text.len())
        },
    )?;
    let request = QueueRequest::new("tiny", Prompt::new("Hello", 1.0)?).tokens(5_000, 100);
    if let Err(error) = manager.submit_request(request).await {
        println!("{error}");
    }
    Ok(())
}
