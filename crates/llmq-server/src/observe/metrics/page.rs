use std::fmt::{Display, Write};

use llmq_core::WallTime;

use super::histogram::Histogram;

/// A page in Prometheus' text format (version 0.0.4).
#[derive(Debug, Default)]
pub(crate) struct Page {
    text: String,
}

/// What `/metrics` says its body is.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Names and values of one sample's labels.
pub(crate) type Labels<'a> = [(&'a str, &'a str)];

/// What kind of figure a family holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Page {
    /// Begins a family: its samples must follow before the next one begins.
    pub(crate) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a string cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    pub(crate) fn sample(&mut self, name: &str, labels: &Labels<'_>, value: impl Display) {
        self.line(name, "", labels, None, value);
    }

    pub(crate) fn histogram(&mut self, name: &str, labels: &Labels<'_>, histogram: &Histogram) {
        let mut count = 0;
        for (bound, below) in histogram.cumulative() {
            let bound = bound.unwrap_or(f64::INFINITY);
            self.line(name, "_bucket", labels, Some(bound), below);
            count = below;
        }
        self.line(name, "_sum", labels, None, histogram.sum());
        self.line(name, "_count", labels, None, count);
    }

    /// Which program this is, and since when.
    pub(crate) fn about(&mut self, version: &str, started: WallTime) {
        self.family(
            "llmq_build_info",
            Kind::Gauge,
            "1, with the version of llmq.",
        );
        self.sample("llmq_build_info", &[("version", version)], 1);
        let name = "process_start_time_seconds";
        self.family(name, Kind::Gauge, "When the process began, in Unix time.");
        self.sample(name, &[], started.as_micros() / 1_000_000);
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }

    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &Labels<'_>,
        bound: Option<f64>,
        value: impl Display,
    ) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        let mut open = '{';
        for (label, value) in labels {
            self.text.push(open);
            let _ = write!(self.text, "{label}=\"");
            escape(value, &mut self.text);
            self.text.push('"');
            open = ',';
        }
        if let Some(bound) = bound {
            self.text.push(open);
            let _ = match bound {
                f64::INFINITY => write!(self.text, "le=\"+Inf\""),
                bound => write!(self.text, "le=\"{bound}\""),
            };
            open = ',';
        }
        if open == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

fn escape(value: &str, text: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::histogram::TOKENS;
    use super::*;

    #[test]
    fn a_value_cannot_break_out_of_its_label() {
        let mut page = Page::default();
        page.sample("m", &[("model", "a\"b\\c\nd")], 1);
        assert_eq!(page.finish(), "m{model=\"a\\\"b\\\\c\\nd\"} 1\n");
    }

    #[test]
    fn a_histogram_ends_with_what_it_holds_in_all() {
        let histogram = Histogram::new(&TOKENS);
        histogram.record(3);
        let mut page = Page::default();
        page.histogram("h", &[("a", "b")], &histogram);
        let text = page.finish();
        assert!(text.starts_with("h_bucket{a=\"b\",le=\"1\"} 0\nh_bucket{a=\"b\",le=\"4\"} 1\n"));
        assert!(
            text.ends_with(
                "h_bucket{a=\"b\",le=\"+Inf\"} 1\nh_sum{a=\"b\"} 3\nh_count{a=\"b\"} 1\n"
            )
        );
    }

    #[test]
    fn a_sample_without_labels_has_no_braces() {
        let mut page = Page::default();
        page.family("up", Kind::Gauge, "It is up.");
        page.sample("up", &[], 1);
        assert_eq!(
            page.finish(),
            "# HELP up It is up.\n# TYPE up gauge\nup 1\n"
        );
    }
}
