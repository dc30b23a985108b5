//! Names by number: rows hold numbers.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, params};

/// All names of a store.
#[derive(Debug, Default)]
pub(crate) struct Names {
    by_number: HashMap<i64, Arc<str>>,
    numbers: HashMap<Arc<str>, i64>,
    last: i64,
    /// Rows that are not what was written.
    damaged: Vec<i64>,
}

impl Names {
    pub(crate) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut names = Self::default();
        let mut query = connection.prepare(
            "SELECT number, sum IS checksum(number, name), name FROM names ORDER BY number",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let number = row.get(0)?;
            names.last = number;
            if row.get::<_, bool>(1)? {
                names.keep(number, row.get::<_, String>(2)?.into());
            } else {
                names.damaged.push(number);
            }
        }
        Ok(names)
    }

    /// The number of a name, if it has one.
    pub(crate) fn find(&self, name: &str) -> Option<i64> {
        self.numbers.get(name).copied()
    }

    /// The number of a name, given to it now if it has none.
    pub(crate) fn number(&mut self, connection: &Connection, name: &str) -> rusqlite::Result<i64> {
        if let Some(number) = self.find(name) {
            return Ok(number);
        }
        // Only a damaged row can have the name already.
        let mut insert = connection.prepare_cached(
            "INSERT OR REPLACE INTO names (number, name, sum) VALUES (?1, ?2, checksum(?1, ?2))",
        )?;
        let number = self.last + 1;
        insert.execute(params![number, name])?;
        self.last = number;
        self.keep(number, name.into());
        Ok(number)
    }

    /// The numbers of names that are not what was written.
    pub(crate) fn damaged(&self) -> &[i64] {
        &self.damaged
    }

    /// The name with this number. One that is not there was lost with its row.
    pub(crate) fn name(&self, number: i64) -> Arc<str> {
        let name = self.by_number.get(&number);
        name.map_or_else(|| Arc::from("(name lost)"), Arc::clone)
    }

    fn keep(&mut self, number: i64, name: Arc<str>) {
        self.by_number.insert(number, Arc::clone(&name));
        self.numbers.insert(name, number);
    }
}
