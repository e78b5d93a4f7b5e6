-- Carries over what had no room before, beside running fetchers: nobody waits for long.

-- A deal was overwritten by queries on other prices of its product. The row that stayed tells
-- the prices of all types: what other queries have judged is made of it. Its creation time is
-- that price's last change (the same in 5,324 recorded rows). A negative number is "none".
INSERT INTO deals (domain_id, asin, price_type, price_minor, condition, last_update,
                   creation_time, price_since, lightning_start, lightning_end, raw, reply_time,
                   first_seen)
SELECT d.domain_id, d.asin, j.price_type, p.price_minor, d.condition, d.last_update,
       p.since, p.since, d.lightning_start, d.lightning_end,
       CASE WHEN p.minutes IS NULL THEN d.raw
            ELSE jsonb_set(d.raw, '{creationDate}', to_jsonb(p.minutes)) END,
       d.reply_time, d.first_seen
  FROM (SELECT DISTINCT v.domain_id, v.asin, v.price_type FROM verdicts v
         WHERE NOT EXISTS (SELECT FROM deals o
                            WHERE o.domain_id = v.domain_id AND o.asin = v.asin
                              AND o.price_type = v.price_type)) j
 CROSS JOIN LATERAL (SELECT * FROM deals o
                      WHERE o.domain_id = j.domain_id AND o.asin = j.asin
                      ORDER BY o.reply_time DESC LIMIT 1) d
 CROSS JOIN LATERAL (
       SELECT price_minor, minutes, to_timestamp((minutes + 21564000)::float8 * 60) AS since
         FROM (SELECT CASE WHEN jsonb_typeof(d.raw -> 'current' -> j.price_type::int) = 'number'
                            AND (d.raw -> 'current' ->> j.price_type::int)::numeric
                                BETWEEN 0 AND 2147483647
                           THEN (d.raw -> 'current' ->> j.price_type::int)::numeric::bigint
                      END AS price_minor,
                      CASE WHEN jsonb_typeof(d.raw -> 'currentSince' -> j.price_type::int)
                                = 'number'
                            AND (d.raw -> 'currentSince' ->> j.price_type::int)::numeric
                                BETWEEN 1 AND 100000000
                           THEN (d.raw -> 'currentSince' ->> j.price_type::int)::numeric::bigint
                      END AS minutes) told) p
ON CONFLICT DO NOTHING;

-- Ranks, ratings and counts are no prices.
UPDATE deals SET value = price_minor, price_minor = NULL, last_drop_minor = NULL
 WHERE price_type IN (3, 11, 12, 13, 14, 15, 16, 17) AND price_minor IS NOT NULL;

ALTER TABLE deals VALIDATE CONSTRAINT deals_listing;
ALTER TABLE products VALIDATE CONSTRAINT products_listing;
ALTER TABLE verdicts VALIDATE CONSTRAINT verdicts_deal;

-- Last, so that nothing above is taken for a change of price.
CREATE OR REPLACE TRIGGER record_deal_change AFTER UPDATE ON deals FOR EACH ROW
    WHEN ((OLD.price_minor, OLD.value, OLD.condition)
          IS DISTINCT FROM (NEW.price_minor, NEW.value, NEW.condition))
    EXECUTE FUNCTION record_deal_change();
