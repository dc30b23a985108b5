//! The layout's history. Entries are only ever appended: what a file went through stays true.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, TransactionBehavior};

use crate::OpenError;

/// What makes version N out of version N - 1, from version 1 on.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_keys_and_limits.sql"),
    include_str!("migrations/0002_jobs.sql"),
    include_str!("migrations/0003_sums.sql"),
    include_str!("migrations/0004_charges.sql"),
    include_str!("migrations/0005_addressees.sql"),
    include_str!("migrations/0006_all_sums.sql"),
];

/// `llmq` in ASCII: tells our files from those of other programs.
const APPLICATION_ID: u32 = 0x6c6c_6d71;

/// Brings the database to the newest layout. Each step is one transaction, so a crash between
/// two of them leaves an older layout that is whole.
pub(crate) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    migrate_with(connection, path, MIGRATIONS)
}

/// That the database is one of ours, and of no newer layout than this build knows.
pub(crate) fn expect_known(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    version_of(connection, path, MIGRATIONS.len()).map(|_| ())
}

/// That the database is one of ours, and of the newest layout.
pub(crate) fn expect_newest(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let found = version_of(connection, path, MIGRATIONS.len())?;
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    if found < known {
        return Err(OpenError::Older {
            path: path.to_owned(),
            found,
            known,
        });
    }
    Ok(())
}

/// The version of our database at `path`, of which `known` are known.
fn version_of(connection: &Connection, path: &Path, known: usize) -> Result<u32, OpenError> {
    let found = identify(connection).map_err(|source| failed(path, source))?;
    let found = found.ok_or_else(|| OpenError::Foreign {
        path: path.to_owned(),
    })?;
    let known = u32::try_from(known).unwrap_or(u32::MAX);
    if found > known {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    Ok(found)
}

fn failed(path: &Path, source: rusqlite::Error) -> OpenError {
    OpenError::Database {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

fn migrate_with(
    connection: &mut Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<(), OpenError> {
    let found = version_of(connection, path, migrations.len())?;
    for (version, step) in (1..).zip(migrations).skip(found as usize) {
        apply(connection, step, version).map_err(|source| failed(path, source))?;
    }
    Ok(())
}

/// The version of an llmq database, 0 for an empty one; `None` for one of something else.
fn identify(connection: &Connection) -> rusqlite::Result<Option<u32>> {
    let application: u32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application == APPLICATION_ID {
        return connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map(Some);
    }
    let objects: u32 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok((application == 0 && objects == 0).then_some(0))
}

fn apply(connection: &mut Connection, step: &str, version: u32) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(step)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", version)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> u32 {
        connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap()
    }

    #[test]
    fn a_step_that_fails_leaves_the_layout_before_it_whole() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("x.db");
        let steps = [
            "CREATE TABLE one (a)",
            "CREATE TABLE two (a); CREATE TABLE one (a)",
        ];
        assert!(migrate_with(&mut connection, path, &steps).is_err());
        assert_eq!(version(&connection), 1);
        let mended = ["CREATE TABLE one (a)", "CREATE TABLE two (a)"];
        migrate_with(&mut connection, path, &mended).unwrap();
        assert_eq!(version(&connection), 2);
        let error = migrate_with(&mut connection, path, &mended[..1]).unwrap_err();
        assert!(matches!(
            error,
            OpenError::Newer {
                found: 2,
                known: 1,
                ..
            }
        ));
    }

    #[test]
    fn a_database_of_something_else_is_left_alone() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE notes (a)").unwrap();
        let error = migrate(&mut connection, Path::new("x.db")).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }));
        assert_eq!(version(&connection), 0);
    }
}
