//! What a route's provider is told, and in which dialect.

use bytes::Bytes;
use llmq_provider::{Dialect, Operation, translate, with_model};

use crate::AssembledRoute;

/// What one provider is to get of a call.
#[derive(Debug)]
pub struct Outgoing {
    /// The operation in the provider's dialect.
    pub operation: Operation,
    /// The body: the caller's own bytes wherever that is possible.
    pub body: Bytes,
    /// Set where the call is translated: whether the caller asked for a stream's usage.
    pub include_usage: Option<bool>,
}

impl Outgoing {
    /// The caller's own bytes, but for the name of the model where the provider knows it by
    /// another; in the other dialect where the provider speaks that.
    ///
    /// # Errors
    ///
    /// The provider's dialect has no words for it.
    pub fn of(
        operation: Operation,
        model: &str,
        body: &Bytes,
        route: &AssembledRoute,
    ) -> Result<Self, translate::Untranslatable> {
        let name = route.model.as_deref().unwrap_or(model);
        if !operation.speaks(route.provider.dialect()) {
            let said = translate::request(operation, body, translate::Target::new(name))?;
            return Ok(Self {
                operation: said.operation,
                body: said.body,
                include_usage: Some(said.include_usage),
            });
        }
        let body = if name == model {
            body.clone()
        } else {
            // A body that was scanned is an object.
            with_model(body, name).unwrap_or_else(|_| body.clone())
        };
        Ok(Self {
            operation,
            body,
            include_usage: None,
        })
    }
}

/// The dialect in which the caller of an operation expects answers and errors.
#[must_use]
pub fn spoken(operation: Operation) -> Dialect {
    match operation {
        Operation::Messages | Operation::CountTokens => Dialect::Anthropic,
        _ => Dialect::OpenAi,
    }
}
