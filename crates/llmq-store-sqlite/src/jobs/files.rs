//! Files, in chunks.

use bytes::Bytes;
use llmq_core::WallTime;
use llmq_store::{FileId, StoredFile};
use rusqlite::{OptionalExtension, params};

use super::blobs;
use super::desk::{Desk, Done};
use super::outbox::{parsed, written};
use crate::sums::{expect_whole, whole_ones};

impl Desk<'_> {
    pub(crate) fn create_file(&self, file: &StoredFile) -> Done<()> {
        self.takes_work()?;
        let file = StoredFile {
            bytes: 0,
            ..file.clone()
        };
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO files (id, tenant, state, expires_at, data, sum)
             VALUES (?1, ?2, 0, ?3, ?4, checksum(?1, ?2, 0, ?3, ?4))",
        )?;
        let id = file.id.as_uuid();
        let expires_at = file.expires_at.map(WallTime::as_micros);
        insert.execute(params![
            id.as_bytes(),
            file.tenant,
            expires_at,
            written(&file)?
        ])?;
        Ok(())
    }

    pub(crate) fn append_file(&mut self, id: FileId, chunk: &Bytes) -> Done<Option<u64>> {
        self.takes_work()?;
        let Some(mut file) = self.file_in_state(id, 0)? else {
            return Ok(None);
        };
        file.bytes += chunk.len() as u64;
        self.index.last_blob += 1;
        blobs::put(self.connection, self.index.last_blob, chunk)?;
        let bytes = *id.as_uuid().as_bytes();
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO file_chunks (file, chunk, blob, sum)
             SELECT ?1, next, ?2, checksum(?1, next, ?2) FROM
               (SELECT coalesce(max(chunk) + 1, 0) AS next FROM file_chunks WHERE file = ?1)",
        )?;
        insert.execute(params![bytes, self.index.last_blob])?;
        let mut update = self.connection.prepare_cached(
            "UPDATE files SET data = ?2, sum = checksum(id, tenant, state, expires_at, ?2)
             WHERE id = ?1",
        )?;
        update.execute(params![bytes, written(&file)?])?;
        Ok(Some(file.bytes))
    }

    pub(crate) fn describe_file(&self, file: &StoredFile) -> Done<bool> {
        let Some(written_so_far) = self.file_in_state(file.id, 0)? else {
            return Ok(false);
        };
        let bytes = written_so_far.bytes;
        let file = StoredFile {
            bytes,
            ..file.clone()
        };
        let mut update = self.connection.prepare_cached(
            "UPDATE files SET tenant = ?2, expires_at = ?3, data = ?4,
               sum = checksum(id, ?2, state, ?3, ?4) WHERE id = ?1",
        )?;
        let (id, expires_at) = (file.id.as_uuid(), file.expires_at.map(WallTime::as_micros));
        update.execute(params![
            id.as_bytes(),
            file.tenant,
            expires_at,
            written(&file)?
        ])?;
        Ok(true)
    }

    pub(crate) fn publish_file(&self, id: FileId) -> Done<Option<StoredFile>> {
        let file = self.file_in_state(id, 0)?;
        self.set_file(id, 0, 1)?;
        Ok(file)
    }

    pub(crate) fn file(&self, id: FileId) -> Done<Option<StoredFile>> {
        Ok(self.file_in_state(id, 1)?)
    }

    fn file_in_state(&self, id: FileId, state: i64) -> rusqlite::Result<Option<StoredFile>> {
        let mut query = self.connection.prepare_cached(
            "SELECT data, sum IS checksum(id, tenant, state, expires_at, data) FROM files
                 WHERE id = ?1 AND state = ?2",
        )?;
        let found = query.query_row(params![id.as_uuid().as_bytes(), state], |row| {
            expect_whole(row, 1, "files")?;
            parsed(&row.get::<_, String>(0)?)
        });
        found.optional()
    }

    fn set_file(&self, id: FileId, from: i64, to: i64) -> rusqlite::Result<usize> {
        let mut update = self.connection.prepare_cached(
            "UPDATE files SET state = ?3, sum = checksum(id, tenant, ?3, expires_at, data)
             WHERE id = ?1 AND state = ?2",
        )?;
        update.execute(params![id.as_uuid().as_bytes(), from, to])
    }

    pub(crate) fn read_file(&mut self, id: FileId, chunk: u32) -> Done<Option<Bytes>> {
        let mut query = self.connection.prepare_cached(
            "SELECT blob, file_chunks.sum IS checksum(file, chunk, blob)
             FROM file_chunks JOIN files ON files.id = file
             WHERE file = ?1 AND chunk = ?2 AND state = 1",
        )?;
        let blob = query.query_row(params![id.as_uuid().as_bytes(), chunk], |row| {
            expect_whole(row, 1, "file_chunks")?;
            row.get(0)
        });
        match blob.optional()? {
            Some(blob) => Ok(Some(self.blob(blob)??)),
            None => Ok(None),
        }
    }

    pub(crate) fn files(
        &self,
        tenant: Option<&str>,
        after: Option<FileId>,
        limit: usize,
    ) -> Done<Vec<StoredFile>> {
        let before = after.map_or([0xff; 16], |after| *after.as_uuid().as_bytes());
        let mut query = self.connection.prepare_cached(
            "SELECT data, sum IS checksum(id, tenant, state, expires_at, data) FROM files
             WHERE id < ?1 AND state = 1 AND (?2 IS NULL OR tenant = ?2)
             ORDER BY id DESC",
        )?;
        let rows = query.query_map(params![before, tenant], |row| {
            expect_whole(row, 1, "files")?;
            parsed(&row.get::<_, String>(0)?)
        })?;
        Ok(whole_ones(rows, limit)?)
    }

    /// What it holds is removed by and by.
    pub(crate) fn delete_file(&self, id: FileId) -> Done<bool> {
        Ok(self.set_file(id, 0, 2)? + self.set_file(id, 1, 2)? > 0)
    }
}
