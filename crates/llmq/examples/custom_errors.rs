//! An error type of your own that says what is worth another attempt.
//!
//! `cargo run -p llmq --example custom_errors`

use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use llmq::{
    Backoff, Backoffs, ModelConfig, ProcessorError, QueueError, QueueManager, QueueRequest,
};

/// What the API of some provider answers.
#[derive(Debug, Clone, thiserror::Error)]
#[error("status {status}")]
struct ApiError {
    status: u16,
    retry_after: Option<Duration>,
}

impl ApiError {
    fn status(status: u16) -> Self {
        Self {
            status,
            retry_after: None,
        }
    }

    /// As every error it would count as final; here it chooses for itself.
    fn classified(self) -> ProcessorError {
        match self.status {
            429 => ProcessorError::RateLimited {
                retry_after: self.retry_after,
                source: Some(Box::new(self)),
            },
            500.. => ProcessorError::transient(self),
            _ => ProcessorError::permanent(self),
        }
    }
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let quick = Backoff {
        base: Duration::from_millis(10),
        max: Duration::from_millis(100),
    };
    let backoffs = Backoffs {
        server: quick,
        ..Backoffs::default()
    };
    let manager = QueueManager::builder().backoffs(backoffs).build();
    let calls = AtomicU32::new(0);
    manager.register_queue(
        ModelConfig::new("gpt-4o-mini").max_attempts(4),
        move |request: QueueRequest<u16>| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            let answer = match (request.params, call) {
                (200, 0) => Err(ApiError::status(503)),
                (200, 1) => Err(ApiError {
                    status: 429,
                    retry_after: Some(Duration::from_millis(50)),
                }),
                (200, _) => Ok("fine at last"),
                (status, _) => Err(ApiError::status(status)),
            };
            std::future::ready(answer.map_err(ApiError::classified))
        },
    )?;

    let response = manager
        .submit_request(QueueRequest::new("gpt-4o-mini", 200))
        .await?;
    println!("{:?}", response.result);

    match manager
        .submit_request(QueueRequest::new("gpt-4o-mini", 401))
        .await
    {
        Ok(_) => println!("unexpected"),
        Err(error) => {
            if let Some(ApiError { status: 401, .. }) = error.cause::<ApiError>() {
                println!("the key is wrong: {error}");
            }
        }
    }
    let unknown = manager
        .submit_request(QueueRequest::new("gpt-5", 200))
        .await;
    if let Err(QueueError::ModelNotRegistered { model }) = unknown {
        println!("please register {model} first");
    }
    Ok(())
}
