//! Parameters and results of your own types, checked by the compiler.
//!
//! `cargo run -p llmq --example typed_models`

use std::error::Error;

use llmq::{ModelConfig, ProcessorError, QueueManager, QueueRequest};

#[derive(Debug, Clone)]
struct Review {
    product: String,
    text: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Mood {
    Happy,
    Angry { about: String },
}

/// Stands for a call that asks a model to classify.
async fn classify(request: QueueRequest<Review>) -> Result<Mood, ProcessorError> {
    let Review { product, text } = request.params;
    if text.contains("love") {
        return Ok(Mood::Happy);
    }
    Ok(Mood::Angry { about: product })
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let manager: QueueManager<Review, Mood> = QueueManager::new();
    // A queue in hand saves looking it up by name.
    let queue = manager.register_queue(ModelConfig::new("classifier").concurrent(4), classify)?;

    let review = |product: &str, text: &str| Review {
        product: product.to_owned(),
        text: text.to_owned(),
    };
    for review in [
        review("kettle", "I love it"),
        review("toaster", "It burns everything"),
    ] {
        let response = queue
            .submit(QueueRequest::new("classifier", review))
            .await?;
        match response.into_result()? {
            Mood::Happy => println!("a happy customer"),
            Mood::Angry { about } => println!("somebody should look at the {about}"),
        }
    }
    Ok(())
}
