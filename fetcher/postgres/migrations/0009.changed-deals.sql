-- Reading on from where a reader stopped: each row of the grid holds the transaction that
-- changed it last. Rows from before have 0. Every statement can be repeated.

ALTER TABLE deal_grid ADD COLUMN IF NOT EXISTS changed bigint NOT NULL DEFAULT 0;

CREATE OR REPLACE FUNCTION note_grid_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER note_grid_change BEFORE INSERT OR UPDATE ON deal_grid
    FOR EACH ROW EXECUTE FUNCTION note_grid_change();

CREATE INDEX IF NOT EXISTS deal_grid_changed
    ON deal_grid (changed, query, domain_id, asin, price_type);
