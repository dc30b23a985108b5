//! The page at `/`: no script, no outside source.

use std::fmt::{self, Write};

use llmq_api::{QueueMotion, QueueState, Stats};

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width\"><meta http-equiv=\"refresh\" content=\"5\">\
<title>llmq</title><style>\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;\
color-scheme:light dark}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .8rem .3rem 0;\
border-bottom:1px solid #8884;vertical-align:top}td.n,th.n{text-align:right}\
</style></head><body>";

/// The page.
pub(crate) fn html(stats: &Stats, queues: &[QueueState]) -> String {
    let mut page = HEAD.to_owned();
    // Writing to a string cannot fail.
    let _ = write_body(&mut page, stats, queues);
    page.push_str("</body></html>");
    page
}

fn write_body(page: &mut String, stats: &Stats, queues: &[QueueState]) -> fmt::Result {
    write!(
        page,
        "<h1>llmq {}</h1><p>{} calls, {} waiting, {} running, {} failed, {} 429s received. \
         {} of {} upstreams can be used.</p>",
        Text(&stats.version),
        stats.calls,
        stats.waiting,
        stats.running,
        stats.failed,
        stats.rate_limited,
        stats.upstreams_usable,
        stats.upstreams,
    )?;
    page.push_str(
        "<table><tr><th>Queue<th>State<th class=n>Waiting<th class=n>Running<th>Limits in use\
         <th>Waits for</tr>",
    );
    for queue in queues {
        write_queue(page, queue)?;
    }
    page.push_str("</table>");
    if queues.is_empty() {
        page.push_str("<p>No queue yet: the first call to a model makes one.</p>");
    }
    page.push_str(
        "<p><a href=\"/api/queues\">queues</a> · <a href=\"/api/stats\">stats</a> · \
         <a href=\"/api/events\">events</a> · <a href=\"/metrics\">metrics</a> · \
         <a href=\"/health\">health</a> · <a href=\"/v1/models\">models</a> · \
         <a href=\"/openapi.json\">OpenAPI</a></p>",
    );
    Ok(())
}

fn write_queue(page: &mut String, queue: &QueueState) -> fmt::Result {
    let state = match queue.state {
        QueueMotion::Running => "running",
        QueueMotion::Paused => "paused",
        QueueMotion::Draining => "draining",
        QueueMotion::Parked => "parked",
    };
    write!(
        page,
        "<tr><td>{}<td>{state}<td class=n>{}<td class=n>{}<td>",
        Text(&queue.name),
        queue.waiting,
        queue.running,
    )?;
    for limit in queue.upstreams.iter().flat_map(|upstream| &upstream.limits) {
        let name = Text(&limit.name);
        write!(page, "{name} {:.0} %<br>", limit.in_use * 100.0)?;
    }
    for upstream in queue.upstreams.iter().filter(|upstream| !upstream.usable) {
        let name = Text(&upstream.name);
        let class = Text(upstream.closed_by.as_deref().unwrap_or("down"));
        write!(page, "{name}: {class}<br>")?;
    }
    let waits = queue.waiting_for.as_deref().unwrap_or("");
    write!(page, "<td>{}</tr>", Text(waits))
}

/// Text that is no markup.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Callers name models where nothing is configured, so a name may be anything.
    #[test]
    fn a_name_is_never_markup() {
        assert_eq!(
            Text("<script>'a' & \"b\"").to_string(),
            "&lt;script&gt;&#39;a&#39; &amp; &quot;b&quot;"
        );
    }
}
