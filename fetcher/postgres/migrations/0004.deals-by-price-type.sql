-- Switches to deals by price type. All locks are taken at once and held for what is short:
-- rows written since 0003, and changes of the catalogue. Constraints are checked in 0005.
-- Fetchers of the version before can't write any more.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM information_schema.columns
                    WHERE table_schema = current_schema() AND table_name = 'deals'
                      AND column_name = 'title') THEN
        RETURN;
    END IF;
    LOCK TABLE deals, verdicts, products, listings IN ACCESS EXCLUSIVE MODE;
    PERFORM fill_listings();
    PERFORM fill_verdicts();

    DROP TRIGGER record_deal_change ON deals;
    DROP FUNCTION deal_difference(deals, deals);
    DROP VIEW final_verdicts;

    ALTER TABLE verdicts DROP CONSTRAINT verdicts_domain_id_asin_fkey;
    ALTER TABLE products DROP CONSTRAINT products_domain_id_asin_fkey;
    ALTER TABLE deals DROP CONSTRAINT deals_pkey;
    ALTER TABLE deals ADD CONSTRAINT deals_pkey PRIMARY KEY USING INDEX deals_key;
    ALTER TABLE verdicts DROP CONSTRAINT verdicts_pkey;
    ALTER TABLE verdicts ADD CONSTRAINT verdicts_pkey PRIMARY KEY USING INDEX verdicts_key;

    ALTER TABLE deals
        ADD CONSTRAINT deals_listing FOREIGN KEY (domain_id, asin)
            REFERENCES listings ON DELETE CASCADE NOT VALID;
    ALTER TABLE products
        ADD CONSTRAINT products_listing FOREIGN KEY (domain_id, asin)
            REFERENCES listings ON DELETE CASCADE NOT VALID;
    ALTER TABLE verdicts
        ADD CONSTRAINT verdicts_deal FOREIGN KEY (domain_id, asin, price_type)
            REFERENCES deals ON DELETE CASCADE NOT VALID;

    ALTER TABLE deals
        DROP COLUMN date_range, DROP COLUMN average_minor, DROP COLUMN drop_minor,
        DROP COLUMN drop_percent, DROP COLUMN title, DROP COLUMN parent_asin,
        DROP COLUMN root_category, DROP COLUMN categories, DROP COLUMN image,
        DROP COLUMN amazon_minor, DROP COLUMN buy_box_minor, DROP COLUMN rank,
        DROP COLUMN rating, DROP COLUMN reviews, DROP COLUMN new_offers,
        DROP COLUMN used_offers, DROP COLUMN rank_drops_30, DROP COLUMN rank_drops_90;
END
$$;

DROP FUNCTION IF EXISTS fill_listings();
DROP FUNCTION IF EXISTS fill_verdicts();

-- One row for each time a later reply differed in what a buyer cares about. Rank and averages
-- move with every reply and would only be noise.
CREATE OR REPLACE FUNCTION record_deal_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO deal_changes (domain_id, asin, reply_time, price_type, changes)
    SELECT NEW.domain_id, NEW.asin, NEW.reply_time, NEW.price_type,
           jsonb_object_agg(name, jsonb_build_array(was, is_now))
      FROM (VALUES
            ('price_minor', to_jsonb(OLD.price_minor), to_jsonb(NEW.price_minor)),
            ('value', to_jsonb(OLD.value), to_jsonb(NEW.value)),
            ('condition', to_jsonb(OLD.condition), to_jsonb(NEW.condition))
           ) AS field (name, was, is_now)
     WHERE was IS DISTINCT FROM is_now;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION record_listing_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO deal_changes (domain_id, asin, reply_time, changes)
    SELECT NEW.domain_id, NEW.asin, NEW.reply_time,
           jsonb_object_agg(name, jsonb_build_array(was, is_now))
      FROM (VALUES
            ('amazon_minor', to_jsonb(OLD.amazon_minor), to_jsonb(NEW.amazon_minor)),
            ('buy_box_minor', to_jsonb(OLD.buy_box_minor), to_jsonb(NEW.buy_box_minor)),
            ('new_offers', to_jsonb(OLD.new_offers), to_jsonb(NEW.new_offers)),
            ('used_offers', to_jsonb(OLD.used_offers), to_jsonb(NEW.used_offers)),
            ('rating', to_jsonb(OLD.rating), to_jsonb(NEW.rating)),
            ('reviews', to_jsonb(OLD.reviews), to_jsonb(NEW.reviews)),
            ('title', to_jsonb(OLD.title), to_jsonb(NEW.title))
           ) AS field (name, was, is_now)
     WHERE was IS DISTINCT FROM is_now;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER record_listing_change AFTER UPDATE ON listings FOR EACH ROW
    WHEN ((OLD.amazon_minor, OLD.buy_box_minor, OLD.new_offers, OLD.used_offers, OLD.rating,
           OLD.reviews, OLD.title)
          IS DISTINCT FROM
          (NEW.amazon_minor, NEW.buy_box_minor, NEW.new_offers, NEW.used_offers, NEW.rating,
           NEW.reviews, NEW.title))
    EXECUTE FUNCTION record_listing_change();

-- What counts: the verdict with details where there is one.
CREATE OR REPLACE VIEW final_verdicts AS
SELECT DISTINCT ON (query, domain_id, asin, price_type) *
  FROM verdicts
 ORDER BY query, domain_id, asin, price_type, stage DESC;

-- One row for each query and deal, as the query sees it: its own price type and date range.
CREATE OR REPLACE VIEW judged_deals AS
SELECT v.query, v.state, domain_id, asin, price_type, l.title, d.price_minor, d.value,
       v.date_range, v.average_minor, v.drop_minor, v.drop_percent, v.profit_minor,
       v.roi_percent, l.rank, l.rating, l.reviews, l.new_offers, l.used_offers,
       l.root_category, d.condition, d.creation_time, d.last_update, d.reply_time,
       d.first_seen, v.failures, v.judged_at
  FROM final_verdicts v
  JOIN deals d USING (domain_id, asin, price_type)
  JOIN listings l USING (domain_id, asin);
