-- Which broker leads, one row per Keepa account; see broker/core/elector.py.

-- Even IF NOT EXISTS needs the right to create schemas, which a role with a schema of its own
-- may lack.
DO $$
BEGIN
    IF to_regnamespace('tokenbroker') IS NULL THEN
        CREATE SCHEMA tokenbroker;
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS tokenbroker.leader (
    -- The fingerprint of the Keepa key.
    account     text PRIMARY KEY,
    epoch       bigint NOT NULL,
    -- Unique per process start; empty once the leader has handed over.
    holder      text NOT NULL,
    -- Where the leader is reached, by its own account.
    address     text NOT NULL,
    -- Different after every renewal: standbys watch whether it stands still.
    renewals    bigint NOT NULL,
    -- Times of the server, for people; no decision rests on them.
    taken_at    timestamptz NOT NULL,
    renewed_at  timestamptz NOT NULL,
    -- Makes the epoch a key column: FOR KEY SHARE blocks a take, but no renewal.
    UNIQUE (account, epoch)
);
