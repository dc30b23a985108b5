//! Names as OpenAI's are: a word for the kind, and the id.

use llmq_engine::webhooks::batch_name;
use llmq_store::{BatchId, FileId, JobId};
use uuid::Uuid;

/// A response's name.
pub(super) fn response(job: JobId) -> String {
    format!("resp_{}", job.as_uuid().simple())
}

/// The job behind a response's name; none where the name is not of our making.
pub(super) fn job_of(name: &str) -> Option<JobId> {
    simple(name, "resp_").map(JobId::from_uuid)
}

/// A file's name.
pub(super) fn file(id: FileId) -> String {
    format!("file-{}", id.as_uuid().simple())
}

/// The file behind a name.
pub(super) fn file_of(name: &str) -> Option<FileId> {
    simple(name, "file-").map(FileId::from_uuid)
}

/// A batch's name.
pub(super) fn batch(id: BatchId) -> String {
    batch_name(id)
}

/// The batch behind a name.
pub(super) fn batch_of(name: &str) -> Option<BatchId> {
    simple(name, "batch_").map(BatchId::from_uuid)
}

/// The name of a line of a batch's output.
pub(super) fn line(job: JobId) -> String {
    format!("batch_req_{}", job.as_uuid().simple())
}

/// The id behind a name of ours, which is written in one way only.
fn simple(name: &str, kind: &str) -> Option<Uuid> {
    let digits = name.strip_prefix(kind)?;
    let is_ours = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 32 || !digits.bytes().all(is_ours) {
        return None;
    }
    Uuid::try_parse(digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_id_and_no_other_name_does() {
        let job = JobId::new();
        assert_eq!(job_of(&response(job)), Some(job));
        let (file_id, batch_id) = (FileId::new(), BatchId::new());
        assert_eq!(file_of(&file(file_id)), Some(file_id));
        assert_eq!(batch_of(&batch(batch_id)), Some(batch_id));
        assert_eq!(batch_of(&line(job)), None);
        for other in [
            job.to_string(),
            format!("resp_{job}"),
            response(job).to_uppercase(),
            format!("{}0", response(job)),
            "resp_68f0d3".to_owned(),
        ] {
            assert_eq!(job_of(&other), None, "{other}");
        }
    }
}
