-- Deals, what changed about them, what the rules said, and the scans that found them.
-- Every statement can be repeated: a migration that was killed before it was
-- recorded as applied is simply applied again.

-- Every deal seen: the newest row served, once per product and Amazon site.
CREATE TABLE IF NOT EXISTS deals (
    domain_id       smallint    NOT NULL,
    asin            text        NOT NULL,
    -- What the query that served the row asked about; prices below are of this type.
    price_type      smallint    NOT NULL,
    date_range      smallint    NOT NULL,
    title           text,
    parent_asin     text,
    root_category   bigint,
    categories      bigint[]    NOT NULL,
    image           text,
    condition       integer,
    -- Minor currency units; null is unknown or none, never zero.
    price_minor     bigint,
    average_minor   bigint,
    drop_minor      bigint,
    drop_percent    integer,
    last_drop_minor bigint,
    amazon_minor    bigint,
    buy_box_minor   bigint,
    rank            integer,
    rating          smallint,
    reviews         integer,
    new_offers      integer,
    used_offers     integer,
    rank_drops_30   integer,
    rank_drops_90   integer,
    last_update     timestamptz,
    creation_time   timestamptz,
    price_since     timestamptz,
    lightning_start timestamptz,
    lightning_end   timestamptz,
    raw             jsonb       NOT NULL,
    -- Keepa's clock when it served the row.
    reply_time      timestamptz NOT NULL,
    first_seen      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain_id, asin)
);

CREATE INDEX IF NOT EXISTS deals_by_asin ON deals (asin);

-- One row for each time a later reply differed in what a buyer cares about.
CREATE TABLE IF NOT EXISTS deal_changes (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    domain_id   smallint    NOT NULL,
    asin        text        NOT NULL,
    reply_time  timestamptz NOT NULL,
    price_type  smallint    NOT NULL,
    -- {"price_minor": [before, after], ...}
    changes     jsonb       NOT NULL
);

CREATE INDEX IF NOT EXISTS deal_changes_by_deal ON deal_changes (domain_id, asin, id);

-- Queries with different price types share a row, so the price before is looked
-- up in the raw deal, which holds all types. Rank and averages move with every
-- reply and would only be noise.
CREATE OR REPLACE FUNCTION deal_difference(before deals, after deals) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_object_agg(name, jsonb_build_array(was, is_now))
      FROM (VALUES
            ('price_minor',
             to_jsonb(CASE WHEN jsonb_typeof(before.raw -> 'current' -> after.price_type::int)
                                = 'number'
                           THEN nullif(greatest((before.raw -> 'current'
                                                 ->> after.price_type::int)::numeric, -1), -1)
                      END),
             to_jsonb(after.price_minor)),
            ('amazon_minor', to_jsonb(before.amazon_minor), to_jsonb(after.amazon_minor)),
            ('buy_box_minor', to_jsonb(before.buy_box_minor), to_jsonb(after.buy_box_minor)),
            ('condition', to_jsonb(before.condition), to_jsonb(after.condition)),
            ('new_offers', to_jsonb(before.new_offers), to_jsonb(after.new_offers)),
            ('used_offers', to_jsonb(before.used_offers), to_jsonb(after.used_offers)),
            ('rating', to_jsonb(before.rating), to_jsonb(after.rating)),
            ('reviews', to_jsonb(before.reviews), to_jsonb(after.reviews)),
            ('title', to_jsonb(before.title), to_jsonb(after.title))
           ) AS field (name, was, is_now)
     WHERE was IS DISTINCT FROM is_now
$$;

CREATE OR REPLACE FUNCTION record_deal_change() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    difference jsonb := deal_difference(OLD, NEW);
BEGIN
    IF difference IS NOT NULL THEN
        INSERT INTO deal_changes (domain_id, asin, reply_time, price_type, changes)
        VALUES (NEW.domain_id, NEW.asin, NEW.reply_time, NEW.price_type, difference);
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER record_deal_change AFTER UPDATE ON deals
    FOR EACH ROW EXECUTE FUNCTION record_deal_change();

-- Details of accepted deals, paid for once while the product is unchanged.
CREATE TABLE IF NOT EXISTS products (
    domain_id      smallint    NOT NULL,
    asin           text        NOT NULL,
    -- 'known' and 'no_data' are answers, 'dead' is a call that failed too often.
    state          text        NOT NULL
                               CHECK (state IN ('wanted', 'claimed', 'known', 'no_data', 'dead')),
    -- What is to be asked for: the operation names the price, the parameters the call.
    operation      text        NOT NULL,
    parameters     jsonb       NOT NULL,
    unit_tokens    integer     NOT NULL,
    wanted_at      timestamptz NOT NULL DEFAULT now(),
    -- Grows with every claim: a commit under an older number is refused.
    fence          bigint      NOT NULL DEFAULT 0,
    holder         text,
    claim_expires  timestamptz,
    attempts       integer     NOT NULL DEFAULT 0,
    not_before     timestamptz NOT NULL DEFAULT now(),
    error          text,
    -- The last answer, with the parameters that brought it; it stays while a new one is awaited.
    known_by       jsonb,
    raw            jsonb,
    last_update    timestamptz,
    reply_time     timestamptz,
    PRIMARY KEY (domain_id, asin),
    FOREIGN KEY (domain_id, asin) REFERENCES deals ON DELETE CASCADE
);

CREATE INDEX IF NOT EXISTS products_open ON products (wanted_at)
    WHERE state IN ('wanted', 'claimed');

-- What the rules of one query say about one deal, at one stage:
-- 'deal' judges the deal alone, 'product' with the details that were paid for.
CREATE TABLE IF NOT EXISTS verdicts (
    query        text        NOT NULL,
    domain_id    smallint    NOT NULL,
    asin         text        NOT NULL,
    stage        text        NOT NULL CHECK (stage IN ('deal', 'product')),
    state        text        NOT NULL CHECK (state IN ('accepted', 'rejected', 'pending')),
    -- Every rule that failed or could not be decided, as data.
    failures     jsonb       NOT NULL,
    rule_version text        NOT NULL,
    -- The estimate with every input; null without details.
    profit       jsonb,
    profit_minor bigint,
    roi_percent  integer,
    -- The reply that was judged, the scan that brought it, and when it was judged.
    reply_time   timestamptz NOT NULL,
    scan_id      bigint,
    judged_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (query, domain_id, asin, stage),
    FOREIGN KEY (domain_id, asin) REFERENCES deals ON DELETE CASCADE
);

CREATE INDEX IF NOT EXISTS verdicts_by_deal ON verdicts (domain_id, asin);

-- What counts: the verdict with details where there is one.
CREATE OR REPLACE VIEW final_verdicts AS
SELECT DISTINCT ON (query, domain_id, asin) *
  FROM verdicts
 ORDER BY query, domain_id, asin, stage DESC;

-- How far each query has been read, per selection: a changed selection starts anew.
CREATE TABLE IF NOT EXISTS watermarks (
    query          text        NOT NULL,
    selection_hash text        NOT NULL,
    -- The newest creation time fully read, and when that last moved.
    watermark      timestamptz,
    moved_at       timestamptz,
    -- Keepa's clock at the last scan, the last page and the last full scan.
    last_scan      timestamptz,
    last_read      timestamptz,
    last_full      timestamptz,
    -- Rows that a page cap cut off, to be read later.
    gaps           jsonb       NOT NULL DEFAULT '[]',
    -- What the newest deal of the last first page was, and Keepa's clock then.
    newest_deal    timestamptz,
    newest_seen    timestamptz,
    -- By how much Keepa's clock was ahead of ours at the last page; times above are Keepa's.
    keepa_ahead_ms bigint      NOT NULL DEFAULT 0,
    -- What the polling rules remember of the yield.
    polling        jsonb,
    PRIMARY KEY (query, selection_hash)
);

-- A run over the pages of one query.
CREATE TABLE IF NOT EXISTS scans (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    query          text        NOT NULL,
    selection_hash text        NOT NULL,
    selection      jsonb       NOT NULL,
    sort_type      smallint    NOT NULL,
    kind           text        NOT NULL,
    -- Fresh deals go before what looks for missed ones.
    background     boolean     NOT NULL,
    plan           jsonb       NOT NULL,
    state          text        NOT NULL DEFAULT 'running'
                               CHECK (state IN ('running', 'completed', 'abandoned')),
    -- The page that ended it and why; the scan is complete when all before it are done.
    end_page       integer,
    end_reason     text,
    watermark      timestamptz,
    started_at     timestamptz NOT NULL DEFAULT now(),
    ended_at       timestamptz
);

-- One scan of a kind per query at a time, whoever starts it.
CREATE UNIQUE INDEX IF NOT EXISTS scans_running ON scans (query, selection_hash, kind)
    WHERE state = 'running';
CREATE INDEX IF NOT EXISTS scans_by_query ON scans (query, id);

CREATE TABLE IF NOT EXISTS scan_pages (
    scan_id       bigint      NOT NULL REFERENCES scans ON DELETE CASCADE,
    page          integer     NOT NULL CHECK (page >= 0),
    -- 'dropped' pages turned out not to be needed.
    state         text        NOT NULL DEFAULT 'ready'
                              CHECK (state IN ('ready', 'claimed', 'done', 'dead', 'dropped')),
    -- Grows with every claim: a commit under an older number is refused.
    fence         bigint      NOT NULL DEFAULT 0,
    holder        text,
    claim_expires timestamptz,
    -- Failed tries; a refusal for want of tokens is none.
    attempts      integer     NOT NULL DEFAULT 0,
    not_before    timestamptz NOT NULL DEFAULT now(),
    error         text,
    -- How often it has been read; once more where rows moved over its border.
    reads         integer     NOT NULL DEFAULT 0,
    tokens        integer     NOT NULL DEFAULT 0,
    row_count     integer,
    -- Products never seen before, and deals younger than the watermark.
    new_deals     integer,
    fresh_deals   integer,
    oddities      jsonb,
    facts         jsonb,
    reply_time    timestamptz,
    done_at       timestamptz,
    PRIMARY KEY (scan_id, page)
);

CREATE INDEX IF NOT EXISTS scan_pages_open ON scan_pages (scan_id, page)
    WHERE state IN ('ready', 'claimed');
CREATE INDEX IF NOT EXISTS scan_pages_dead ON scan_pages (scan_id, page) WHERE state = 'dead';

-- Which processes are alive, for people.
CREATE TABLE IF NOT EXISTS workers (
    holder     text        PRIMARY KEY,
    version    text        NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now(),
    doing      text        NOT NULL
);
