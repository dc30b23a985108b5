use std::fmt;

/// The wire dialect: whose JSON, headers and stream events a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI's API, also spoken by Azure, Groq, Mistral, Gemini, vLLM, Ollama and many more.
    OpenAi,
    /// Anthropic's Messages API.
    Anthropic,
}

/// What a call asks for; it decides the path and the shape of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `POST /chat/completions`.
    ChatCompletions,
    /// `POST /responses`.
    Responses,
    /// `POST /embeddings`.
    Embeddings,
    /// `POST /completions`.
    Completions,
    /// `POST /messages`, Anthropic.
    Messages,
    /// `POST /messages/count_tokens`, Anthropic.
    CountTokens,
    /// `GET /models`.
    Models,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 7] = [
        Self::ChatCompletions,
        Self::Responses,
        Self::Embeddings,
        Self::Completions,
        Self::Messages,
        Self::CountTokens,
        Self::Models,
    ];

    /// The path under the version prefix, such as `/chat/completions`.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/chat/completions",
            Self::Responses => "/responses",
            Self::Embeddings => "/embeddings",
            Self::Completions => "/completions",
            Self::Messages => "/messages",
            Self::CountTokens => "/messages/count_tokens",
            Self::Models => "/models",
        }
    }

    /// The operation behind a path, with or without `/v1` before it; `None` when there is none.
    ///
    /// ```
    /// use llmq_provider::Operation;
    /// assert_eq!(Operation::from_path("/v1/embeddings"), Some(Operation::Embeddings));
    /// assert_eq!(Operation::from_path("/v1/images/edits"), None);
    /// ```
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        let bare = path.strip_prefix("/v1").unwrap_or(path);
        Self::ALL
            .into_iter()
            .find(|operation| operation.path() == bare)
    }

    /// Whether the operation exists in `dialect`.
    #[must_use]
    pub fn speaks(self, dialect: Dialect) -> bool {
        match self {
            Self::Messages | Self::CountTokens => dialect == Dialect::Anthropic,
            Self::Models => true,
            Self::ChatCompletions | Self::Responses | Self::Embeddings | Self::Completions => {
                dialect == Dialect::OpenAi
            }
        }
    }

    /// The HTTP method.
    #[must_use]
    pub fn method(self) -> http::Method {
        match self {
            Self::Models => http::Method::GET,
            _ => http::Method::POST,
        }
    }

    /// Its place in a table with one entry per operation.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_leads_back_to_its_operation() {
        for (at, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(Operation::from_path(operation.path()), Some(operation));
            let versioned = format!("/v1{operation}");
            assert_eq!(Operation::from_path(&versioned), Some(operation));
            assert_eq!(operation.index(), at);
        }
    }
}
