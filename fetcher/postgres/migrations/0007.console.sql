-- What the console shows: price history, a narrow row for each deal that a query has judged,
-- and marks. Every statement can be repeated and holds its lock for an instant; fetchers go on.
-- The migration after this one fills the tables.

-- A value holds from its time until the next one of the same price.
CREATE TABLE IF NOT EXISTS price_history (
    domain_id  smallint    NOT NULL,
    asin       text        NOT NULL,
    price_type smallint    NOT NULL,
    time       timestamptz NOT NULL,
    -- In the unit of the price type: minor currency units, a rank, a count. Null: no offer.
    value      bigint,
    -- Of a day that was rolled up into one row: its lowest and highest value.
    low        bigint,
    high       bigint,
    -- A reply to a deal query, one about the product, or an imported history of Keepa's.
    source     text        NOT NULL CHECK (source IN ('deal', 'product', 'import')),
    PRIMARY KEY (domain_id, asin, price_type, time)
);
-- Retention looks for old rows only.
CREATE INDEX IF NOT EXISTS price_history_by_time ON price_history USING brin (time);

-- A product that was marked leaves the grid and the alerts.
CREATE TABLE IF NOT EXISTS marks (
    domain_id  smallint    NOT NULL,
    asin       text        NOT NULL,
    mark       text        NOT NULL CHECK (mark IN ('ignored', 'bought')),
    marked_by  text        NOT NULL,
    marked_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain_id, asin)
);

-- judged_deals without what is wide: any filter is one scan of this table.
CREATE TABLE IF NOT EXISTS deal_grid (
    domain_id     smallint    NOT NULL,
    price_type    smallint    NOT NULL,
    rating        smallint,
    date_range    smallint,
    drop_percent  integer,
    roi_percent   integer,
    rank          integer,
    reviews       integer,
    new_offers    integer,
    used_offers   integer,
    condition     integer,
    price_minor   bigint,
    value         bigint,
    drop_minor    bigint,
    profit_minor  bigint,
    root_category bigint,
    creation_time timestamptz,
    -- The same in Unix milliseconds, -1 for unknown: the order of the first page.
    created_ms    bigint      NOT NULL,
    reply_time    timestamptz NOT NULL,
    judged_at     timestamptz NOT NULL,
    asin          text        NOT NULL,
    query         text        NOT NULL,
    state         text        NOT NULL,
    -- In small letters, at most 300 of them: to search in. The title itself stays in listings.
    title         text,
    failed_rules  text[]      NOT NULL,
    PRIMARY KEY (query, domain_id, asin, price_type),
    FOREIGN KEY (domain_id, asin, price_type) REFERENCES deals ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS deal_grid_by_deal ON deal_grid (domain_id, asin, price_type);
-- One for each order of the grid, as in fetcher/postgres/deal_rows.py.
CREATE INDEX IF NOT EXISTS deal_grid_newest_of_state
    ON deal_grid (state, created_ms, query, domain_id, asin, price_type);
CREATE INDEX IF NOT EXISTS deal_grid_newest
    ON deal_grid (created_ms, query, domain_id, asin, price_type);
CREATE INDEX IF NOT EXISTS deal_grid_profit
    ON deal_grid ((coalesce(profit_minor, -9223372036854775807)), query, domain_id, asin,
                  price_type);
CREATE INDEX IF NOT EXISTS deal_grid_roi
    ON deal_grid ((coalesce(roi_percent, -2147483648)::bigint), query, domain_id, asin,
                  price_type);
CREATE INDEX IF NOT EXISTS deal_grid_drop
    ON deal_grid ((coalesce(drop_percent, -2147483648)::bigint), query, domain_id, asin,
                  price_type);
CREATE INDEX IF NOT EXISTS deal_grid_price
    ON deal_grid ((-coalesce(price_minor, 9223372036854775807)), query, domain_id, asin,
                  price_type);
CREATE INDEX IF NOT EXISTS deal_grid_rank
    ON deal_grid ((-coalesce(rank, 2147483647)::bigint), query, domain_id, asin, price_type);

-- A deal as each of its queries sees it, as it has to stand in deal_grid.
CREATE OR REPLACE VIEW grid_rows AS
SELECT v.domain_id, v.price_type, l.rating, v.date_range, v.drop_percent, v.roi_percent, l.rank,
       l.reviews, l.new_offers, l.used_offers, d.condition, d.price_minor, d.value,
       v.drop_minor, v.profit_minor, l.root_category, d.creation_time,
       coalesce((extract(epoch FROM d.creation_time) * 1000)::bigint, -1) AS created_ms,
       d.reply_time, v.judged_at, v.asin, v.query, v.state, lower(left(l.title, 300)) AS title,
       ARRAY(SELECT failure ->> 'rule' FROM jsonb_array_elements(v.failures) AS failure)
           AS failed_rules
  FROM verdicts v
  JOIN deals d USING (domain_id, asin, price_type)
  JOIN listings l USING (domain_id, asin)
 -- The verdict with details counts where there is one.
 WHERE v.stage = 'product'
    OR NOT EXISTS (SELECT FROM verdicts p
                    WHERE p.query = v.query AND p.domain_id = v.domain_id AND p.asin = v.asin
                      AND p.price_type = v.price_type AND p.stage = 'product');

-- One statement for all rows that a writer has touched: a page costs one of each. A writer
-- takes them in the order of keys, as everywhere, so that two never wait in a circle.
CREATE OR REPLACE FUNCTION refresh_grid_of_verdicts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO deal_grid AS g
    SELECT r.* FROM grid_rows r
      JOIN (SELECT DISTINCT query, domain_id, asin, price_type FROM touched) t
           USING (query, domain_id, asin, price_type)
     ORDER BY r.query, r.domain_id, r.asin, r.price_type
    ON CONFLICT (query, domain_id, asin, price_type) DO UPDATE SET
        rating = EXCLUDED.rating, date_range = EXCLUDED.date_range,
        drop_percent = EXCLUDED.drop_percent, roi_percent = EXCLUDED.roi_percent,
        rank = EXCLUDED.rank, reviews = EXCLUDED.reviews, new_offers = EXCLUDED.new_offers,
        used_offers = EXCLUDED.used_offers, condition = EXCLUDED.condition,
        price_minor = EXCLUDED.price_minor, value = EXCLUDED.value,
        drop_minor = EXCLUDED.drop_minor, profit_minor = EXCLUDED.profit_minor,
        root_category = EXCLUDED.root_category, creation_time = EXCLUDED.creation_time,
        created_ms = EXCLUDED.created_ms, reply_time = EXCLUDED.reply_time, judged_at = EXCLUDED.judged_at,
        state = EXCLUDED.state, title = EXCLUDED.title, failed_rules = EXCLUDED.failed_rules;
    RETURN NULL;
END
$$;

-- A verdict that is gone may uncover the one without details.
CREATE OR REPLACE FUNCTION forget_verdicts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM deal_grid g USING touched t
     WHERE g.query = t.query AND g.domain_id = t.domain_id AND g.asin = t.asin
       AND g.price_type = t.price_type
       AND NOT EXISTS (SELECT FROM verdicts v
                        WHERE v.query = t.query AND v.domain_id = t.domain_id
                          AND v.asin = t.asin AND v.price_type = t.price_type);
    UPDATE deal_grid g
       SET state = r.state, date_range = r.date_range, drop_percent = r.drop_percent,
           drop_minor = r.drop_minor, roi_percent = r.roi_percent,
           profit_minor = r.profit_minor, judged_at = r.judged_at,
           failed_rules = r.failed_rules
      FROM touched t JOIN grid_rows r USING (query, domain_id, asin, price_type)
     WHERE g.query = r.query AND g.domain_id = r.domain_id AND g.asin = r.asin
       AND g.price_type = r.price_type;
    RETURN NULL;
END
$$;

-- The verdict of the query that has brought the deal is written after it, with all of this;
-- here it is for the other queries that have judged the product before.
CREATE OR REPLACE FUNCTION note_changed_deals() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO price_history (domain_id, asin, price_type, time, value, source)
    SELECT n.domain_id, n.asin, n.price_type,
           least(coalesce(n.price_since, n.reply_time), n.reply_time),
           coalesce(n.price_minor, n.value), 'deal'
      FROM after n JOIN before o USING (domain_id, asin, price_type)
     WHERE coalesce(n.price_minor, n.value) IS DISTINCT FROM coalesce(o.price_minor, o.value)
     ORDER BY n.domain_id, n.asin, n.price_type
    ON CONFLICT (domain_id, asin, price_type, time) DO UPDATE SET value = EXCLUDED.value;
    UPDATE deal_grid g
       SET price_minor = d.price_minor, value = d.value, condition = d.condition,
           creation_time = d.creation_time,
           created_ms = coalesce((extract(epoch FROM d.creation_time) * 1000)::bigint, -1),
           reply_time = d.reply_time, rank = l.rank,
           rating = l.rating, reviews = l.reviews, new_offers = l.new_offers,
           used_offers = l.used_offers, title = lower(left(l.title, 300))
      FROM (SELECT DISTINCT n.domain_id, n.asin FROM after n) t
      JOIN listings l USING (domain_id, asin)
      JOIN deals d USING (domain_id, asin)
     WHERE g.domain_id = d.domain_id AND g.asin = d.asin AND g.price_type = d.price_type
       AND (g.price_minor, g.value, g.condition, g.creation_time, g.rank, g.rating, g.reviews,
            g.new_offers, g.used_offers)
           IS DISTINCT FROM
           (d.price_minor, d.value, d.condition, d.creation_time, l.rank, l.rating, l.reviews,
            l.new_offers, l.used_offers);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION note_added_deals() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO price_history (domain_id, asin, price_type, time, value, source)
    SELECT n.domain_id, n.asin, n.price_type,
           least(coalesce(n.price_since, n.reply_time), n.reply_time),
           coalesce(n.price_minor, n.value), 'deal'
      FROM after n
     ORDER BY n.domain_id, n.asin, n.price_type
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

-- Amazon's own price (0) and that of the buy box (18) come with every deal of a product.
CREATE OR REPLACE FUNCTION note_changed_listings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO price_history (domain_id, asin, price_type, time, value, source)
    SELECT n.domain_id, n.asin, p.price_type, n.reply_time, p.is_now, 'deal'
      FROM after n
      JOIN before o USING (domain_id, asin)
     CROSS JOIN LATERAL (VALUES (0::smallint, o.amazon_minor, n.amazon_minor),
                                (18::smallint, o.buy_box_minor, n.buy_box_minor))
                        AS p (price_type, was, is_now)
     WHERE p.was IS DISTINCT FROM p.is_now
     ORDER BY n.domain_id, n.asin, p.price_type
    ON CONFLICT (domain_id, asin, price_type, time) DO UPDATE SET value = EXCLUDED.value;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION note_added_listings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO price_history (domain_id, asin, price_type, time, value, source)
    SELECT n.domain_id, n.asin, p.price_type, n.reply_time, p.is_now, 'deal'
      FROM after n
     CROSS JOIN LATERAL (VALUES (0::smallint, n.amazon_minor), (18::smallint, n.buy_box_minor))
                        AS p (price_type, is_now)
     WHERE p.is_now IS NOT NULL
     ORDER BY n.domain_id, n.asin, p.price_type
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER note_added_listings AFTER INSERT ON listings
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION note_added_listings();
CREATE OR REPLACE TRIGGER note_changed_listings AFTER UPDATE ON listings
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION note_changed_listings();
CREATE OR REPLACE TRIGGER note_added_deals AFTER INSERT ON deals
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION note_added_deals();
CREATE OR REPLACE TRIGGER note_changed_deals AFTER UPDATE ON deals
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION note_changed_deals();
CREATE OR REPLACE TRIGGER grid_of_added_verdicts AFTER INSERT ON verdicts
    REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION refresh_grid_of_verdicts();
CREATE OR REPLACE TRIGGER grid_of_changed_verdicts AFTER UPDATE ON verdicts
    REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION refresh_grid_of_verdicts();
CREATE OR REPLACE TRIGGER grid_of_forgotten_verdicts AFTER DELETE ON verdicts
    REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION forget_verdicts();
