-- Expands the schema for deals by price type; 0003 fills, 0004 switches, 0005 carries over.
-- Each statement here holds its lock for an instant and can be repeated; fetchers go on.

-- What all deals of a product share, once per product and Amazon site.
CREATE TABLE IF NOT EXISTS listings (
    domain_id     smallint    NOT NULL,
    asin          text        NOT NULL,
    title         text,
    parent_asin   text,
    root_category bigint,
    categories    bigint[]    NOT NULL,
    image         text,
    -- Prices of two types that every deal tells, in minor currency units.
    amazon_minor  bigint,
    buy_box_minor bigint,
    rank          integer,
    rating        smallint,
    reviews       integer,
    new_offers    integer,
    used_offers   integer,
    rank_drops_30 integer,
    rank_drops_90 integer,
    last_update   timestamptz,
    -- Keepa's clock when it served the row.
    reply_time    timestamptz NOT NULL,
    first_seen    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain_id, asin)
);

-- What the price type counts where it is no price: a rank, a rating (0 to 50), a number of
-- offers. price_minor is null then.
ALTER TABLE deals ADD COLUMN IF NOT EXISTS value bigint;

-- The judged deal's price type, and the numbers of the query's own date range.
ALTER TABLE verdicts
    ADD COLUMN IF NOT EXISTS price_type    smallint,
    ADD COLUMN IF NOT EXISTS date_range    smallint,
    ADD COLUMN IF NOT EXISTS average_minor bigint,
    ADD COLUMN IF NOT EXISTS drop_minor    bigint,
    ADD COLUMN IF NOT EXISTS drop_percent  integer;

-- Null: the change is one of the product, not of one price.
ALTER TABLE deal_changes ALTER COLUMN price_type DROP NOT NULL;

-- The details as the parser of that revision read them; another one reads raw again.
ALTER TABLE products
    ADD COLUMN IF NOT EXISTS facts          jsonb,
    ADD COLUMN IF NOT EXISTS facts_revision smallint;

-- The first page read whose rows don't come newest first: no later one need look at it.
ALTER TABLE scans ADD COLUMN IF NOT EXISTS unordered_page integer;

-- Four minutes of disorder are tolerated, as in fetcher/scans/order.py.
UPDATE scans s SET unordered_page = (
    SELECT min(p.page) FROM scan_pages p
     WHERE p.scan_id = s.id AND p.facts IS NOT NULL
       AND coalesce((p.facts -> 'order' ->> 'disorder_ms')::bigint, 240001) > 240000)
 WHERE s.state = 'running' AND s.unordered_page IS NULL;
