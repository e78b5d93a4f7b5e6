-- Copies what moves, beside running fetchers: readers never wait, and writers only for the
-- rows of verdicts and while the last index is built. What is written between this and 0004
-- is filled in there; hence the functions.

CREATE OR REPLACE FUNCTION fill_listings() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO listings (
        domain_id, asin, title, parent_asin, root_category, categories, image, amazon_minor,
        buy_box_minor, rank, rating, reviews, new_offers, used_offers, rank_drops_30,
        rank_drops_90, last_update, reply_time, first_seen)
    SELECT domain_id, asin, title, parent_asin, root_category, categories, image, amazon_minor,
           buy_box_minor, rank, rating, reviews, new_offers, used_offers, rank_drops_30,
           rank_drops_90, last_update, reply_time, first_seen
      FROM deals d
     WHERE NOT EXISTS (SELECT FROM listings l
                        WHERE l.domain_id = d.domain_id AND l.asin = d.asin);
END
$$;

-- The query that judged asked for one price type and date range: those of the scan that
-- brought the deal, else of the query's newest scan; without any scan left, the deal's own.
-- Drop and average were the deal's own, too: they are known for the query that wrote it last,
-- and the others learn theirs when the fetchers judge again.
CREATE OR REPLACE FUNCTION fill_verdicts() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH asked AS (
        SELECT id, query, (selection -> 'priceTypes' ->> 0)::numeric::smallint AS price_type,
               coalesce((selection ->> 'dateRange')::numeric, 0)::smallint AS date_range
          FROM scans),
    newest AS (
        SELECT DISTINCT ON (query) query, price_type, date_range FROM asked
         ORDER BY query, id DESC),
    found AS (
        SELECT v.query, v.domain_id, v.asin, v.stage,
               coalesce(a.price_type, n.price_type, d.price_type) AS price_type,
               coalesce(a.date_range, n.date_range, d.date_range) AS date_range,
               d.price_type AS own_type, d.date_range AS own_range,
               d.average_minor, d.drop_minor, d.drop_percent
          FROM verdicts v
          JOIN deals d USING (domain_id, asin)
          LEFT JOIN asked a ON a.id = v.scan_id
          LEFT JOIN newest n ON n.query = v.query
         WHERE v.price_type IS NULL),
    known AS (
        SELECT *, (price_type, date_range) = (own_type, own_range) AS is_own,
               price_type IN (3, 11, 12, 13, 14, 15, 16, 17) AS is_no_price
          FROM found)
    UPDATE verdicts v
       SET price_type = k.price_type, date_range = k.date_range,
           average_minor = CASE WHEN k.is_own AND NOT k.is_no_price THEN k.average_minor END,
           drop_minor = CASE WHEN k.is_own AND NOT k.is_no_price THEN k.drop_minor END,
           drop_percent = CASE WHEN k.is_own THEN k.drop_percent END
      FROM known k
     WHERE v.query = k.query AND v.domain_id = k.domain_id AND v.asin = k.asin
       AND v.stage = k.stage;
END
$$;

-- Applied again after 0004, there is nothing left to copy from.
DO $$
BEGIN
    IF EXISTS (SELECT FROM information_schema.columns
                WHERE table_schema = current_schema() AND table_name = 'deals'
                  AND column_name = 'title') THEN
        PERFORM fill_listings();
        PERFORM fill_verdicts();
        CREATE UNIQUE INDEX IF NOT EXISTS verdicts_key
            ON verdicts (query, domain_id, asin, price_type, stage);
        CREATE UNIQUE INDEX IF NOT EXISTS deals_key ON deals (domain_id, asin, price_type);
    END IF;
END
$$;
