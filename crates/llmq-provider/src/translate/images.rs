//! Images and files: a `data:` URL at OpenAI, a source at Anthropic.

use super::Untranslatable;
use super::anthropic::Source;
use super::json::{Json, Text, quoted};

/// The source for an image's URL, or for a file's data.
pub(super) fn source_of<'a>(name: &str, url: Text<'a>) -> Result<Source<'a>, Untranslatable> {
    let said = url.to_str();
    let Some(rest) = said.strip_prefix("data:") else {
        return Ok(Source::Url { url: url.json() });
    };
    let (media_type, data) = rest.split_once(";base64,").ok_or_else(|| {
        Untranslatable::no_counterpart(name, "a data URL must be in base64 (RFC 2397)")
    })?;
    Ok(Source::Base64 {
        media_type: quoted(media_type),
        data: quoted(data),
    })
}

/// The `data:` URL of base64 data (RFC 2397).
pub(super) fn data_url(media_type: Text<'_>, data: Text<'_>) -> Json<'static> {
    quoted(&format!(
        "data:{};base64,{}",
        media_type.to_str(),
        data.to_str()
    ))
}
