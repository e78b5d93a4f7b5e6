-- Fills the tables of the console, beside running fetchers: nobody waits for long. What they
-- write meanwhile is put there by the triggers, and stays.

INSERT INTO price_history (domain_id, asin, price_type, time, value, source)
SELECT domain_id, asin, price_type, least(coalesce(price_since, reply_time), reply_time),
       coalesce(price_minor, value), 'deal'
  FROM deals
ON CONFLICT DO NOTHING;

INSERT INTO price_history (domain_id, asin, price_type, time, value, source)
SELECT c.domain_id, c.asin, p.price_type, c.reply_time, (c.changes -> p.name ->> 1)::bigint, 'deal'
  FROM deal_changes c
 CROSS JOIN LATERAL (VALUES ('price_minor', c.price_type), ('value', c.price_type),
                            ('amazon_minor', 0::smallint), ('buy_box_minor', 18::smallint))
                    AS p (name, price_type)
 WHERE c.changes ? p.name AND p.price_type IS NOT NULL
ON CONFLICT DO NOTHING;

INSERT INTO deal_grid SELECT * FROM grid_rows ON CONFLICT DO NOTHING;
