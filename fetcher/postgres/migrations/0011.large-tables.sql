-- Settings of the tables that grow, chosen by measurement (fetcher/README.md, "Large databases").
-- Every statement can be repeated; rows from before stay as they are. The index of 600,000 pages,
-- a year of five queries, takes a second.

-- Most updates change no indexed column. With room on its page, a new version needs no entry in
-- any index, and the space of the old one is free again without a vacuum.
ALTER TABLE listings SET (fillfactor = 85);
ALTER TABLE deals SET (fillfactor = 85);

-- A fifth of a million rows, the default, is ten times what a day changes: the same newest deals
-- would be rewritten many times, and spread, before their space is free again.
ALTER TABLE listings SET (autovacuum_vacuum_scale_factor = 0.02,
                          autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE deals SET (autovacuum_vacuum_scale_factor = 0.02,
                       autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE verdicts SET (autovacuum_vacuum_scale_factor = 0.02,
                          autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE deal_grid SET (autovacuum_vacuum_scale_factor = 0.02,
                           autovacuum_analyze_scale_factor = 0.02);

-- Compresses as well as the default, for a quarter less processor time of a page's commit.
DO $$
BEGIN
    IF 'lz4' = ANY ((SELECT enumvals FROM pg_settings
                      WHERE name = 'default_toast_compression')::text[]) THEN
        ALTER TABLE deals ALTER COLUMN raw SET COMPRESSION lz4;
        ALTER TABLE products ALTER COLUMN raw SET COMPRESSION lz4;
    END IF;
END
$$;

-- What was read within the last hour, and when the last page was.
CREATE INDEX IF NOT EXISTS scan_pages_done ON scan_pages (done_at);
