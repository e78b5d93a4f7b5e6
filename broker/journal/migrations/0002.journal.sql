-- The journal: what the broker has decided and learned; see broker/core/records.py.

CREATE TABLE IF NOT EXISTS tokenbroker.records (
    -- The fingerprint of the Keepa key.
    account     text NOT NULL,
    epoch       bigint NOT NULL,
    -- Order within the epoch.
    seq         bigint NOT NULL,
    -- On this server's clock, as it was when the broker connected first.
    time        timestamptz NOT NULL,
    kind        text NOT NULL,
    lease_id    text,
    holder      text,
    -- Of the holder, where the broker has identities; else empty.
    identity    text,
    operation   text,
    -- Tokens spent: of a settle, a write-off, or the correction of one.
    cost        bigint,
    -- Tokens charged to shares and budgets, and the time that they count for.
    charged     bigint,
    charged_at  timestamptz,
    -- The whole record.
    body        jsonb NOT NULL,
    -- Makes a batch that is sent twice count once.
    PRIMARY KEY (account, epoch, seq, time)
) PARTITION BY RANGE (time);

-- Rows of months without a partition of their own.
CREATE TABLE IF NOT EXISTS tokenbroker.records_other
    PARTITION OF tokenbroker.records DEFAULT;

CREATE INDEX IF NOT EXISTS records_by_time ON tokenbroker.records (account, time);
CREATE INDEX IF NOT EXISTS records_by_lease ON tokenbroker.records (account, lease_id);
CREATE INDEX IF NOT EXISTS records_by_holder ON tokenbroker.records (account, holder, time);
-- What a restart looks for, however long ago it was.
CREATE INDEX IF NOT EXISTS records_of_operators ON tokenbroker.records (account, time)
    WHERE kind IN ('paused', 'resumed');

-- Sums of the records; they outlive them. A quarter of an hour divides every time zone's day.
CREATE TABLE IF NOT EXISTS tokenbroker.spend (
    account             text NOT NULL,
    slot                timestamptz NOT NULL,
    holder              text NOT NULL,
    identity            text NOT NULL,
    operation           text NOT NULL,
    calls               bigint NOT NULL,
    refusals            bigint NOT NULL,
    denials             bigint NOT NULL,
    tokens              bigint NOT NULL,
    written_off_tokens  bigint NOT NULL,
    -- Charged to budgets, by the time of the grant.
    charged_tokens      bigint NOT NULL,
    PRIMARY KEY (account, slot, holder, operation)
);

-- Makes partitions for this month and those ahead, and drops those older than *months_kept*.
-- Runs with the rights of the role that migrates, so that the broker's role needs none.
CREATE OR REPLACE FUNCTION tokenbroker.keep_partitions(months_ahead integer, months_kept integer)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    this_month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    first timestamp;
    name text;
BEGIN
    PERFORM set_config('lock_timeout', '2s', true);
    PERFORM pg_advisory_xact_lock(5077206412);
    FOR ahead IN 0..months_ahead LOOP
        first := this_month + make_interval(months => ahead);
        name := 'records_' || to_char(first, 'YYYY_MM');
        IF to_regclass('tokenbroker.' || name) IS NULL THEN
            BEGIN
                EXECUTE format(
                    'CREATE TABLE tokenbroker.%I PARTITION OF tokenbroker.records'
                    ' FOR VALUES FROM (%L) TO (%L)',
                    name, first || '+00', first + interval '1 month' || '+00'
                );
            EXCEPTION WHEN check_violation THEN
                -- Rows of this month stand in records_other already, and stay there.
                NULL;
            END;
        END IF;
    END LOOP;
    first := this_month - make_interval(months => months_kept);
    FOR name IN
        SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'tokenbroker.records'::regclass
          AND relname ~ '^records_\d{4}_\d{2}$'
          AND relname < 'records_' || to_char(first, 'YYYY_MM')
    LOOP
        EXECUTE format('DROP TABLE tokenbroker.%I', name);
    END LOOP;
    DELETE FROM tokenbroker.records_other WHERE time < first AT TIME ZONE 'UTC';
END
$$;
