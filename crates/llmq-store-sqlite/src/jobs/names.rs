//! Names by number: rows hold numbers.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::Connection;

/// All names of a store.
#[derive(Debug, Default)]
pub(crate) struct Names {
    by_number: HashMap<i64, Arc<str>>,
    numbers: HashMap<Arc<str>, i64>,
}

impl Names {
    pub(crate) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut names = Self::default();
        let mut query = connection.prepare("SELECT number, name FROM names")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        for row in rows {
            let (number, name) = row?;
            names.keep(number, name.into());
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
        let mut insert = connection.prepare_cached("INSERT INTO names (name) VALUES (?1)")?;
        let number = insert.insert([name])?;
        self.keep(number, name.into());
        Ok(number)
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
