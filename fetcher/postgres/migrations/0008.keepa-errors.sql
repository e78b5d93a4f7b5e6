-- Failed calls to Keepa by kind, of all fetchers since the beginning: a counter for graphs.
CREATE TABLE IF NOT EXISTS keepa_errors (
    kind  text   PRIMARY KEY,
    calls bigint NOT NULL DEFAULT 0
);
