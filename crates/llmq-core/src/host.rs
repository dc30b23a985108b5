/// Who runs the server behind an upstream, as far as its limits are concerned.
///
/// The wire dialect is another matter: most of these speak OpenAI's. Which URL belongs to
/// which host is known in `llmq-provider`; how each one counts, in `llmq-limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Host {
    /// api.openai.com.
    OpenAi,
    /// api.anthropic.com.
    Anthropic,
    /// Azure OpenAI / Foundry deployments.
    Azure,
    /// api.groq.com.
    Groq,
    /// api.mistral.ai.
    Mistral,
    /// generativelanguage.googleapis.com.
    Gemini,
    /// openrouter.ai.
    OpenRouter,
    /// api.cerebras.ai.
    Cerebras,
    /// api.deepseek.com.
    DeepSeek,
    /// The built-in stand-in, `llmq mock`.
    Mock,
    /// Any other server, whatever dialect it speaks.
    Unknown,
}
