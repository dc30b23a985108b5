-- How many tokens a provider charges for a million that our rules say, by the limit's name.
CREATE TABLE charges (
    name                TEXT PRIMARY KEY NOT NULL,
    charged_per_million INTEGER NOT NULL CHECK (charged_per_million > 0)
) STRICT, WITHOUT ROWID;
