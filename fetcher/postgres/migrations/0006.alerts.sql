-- Alerts: what each alert remembers of each deal, and the outbox of what is to be delivered.
-- Every statement can be repeated and holds its lock for an instant; fetchers go on.

-- The alerts that have been set up: one row per query and key (channel and condition).
CREATE TABLE IF NOT EXISTS alert_rules (
    query      text        NOT NULL,
    rule       text        NOT NULL,
    channel    text        NOT NULL,
    added_at   timestamptz NOT NULL DEFAULT now(),
    -- The end of the first scan. What that scan finds is summed up, and reported as one.
    primed_at  timestamptz,
    PRIMARY KEY (query, rule)
);

-- Without a row a deal does not match, and was not reported lately.
CREATE TABLE IF NOT EXISTS alert_memory (
    query       text        NOT NULL,
    rule        text        NOT NULL,
    domain_id   smallint    NOT NULL,
    asin        text        NOT NULL,
    price_type  smallint    NOT NULL,
    phase       text        NOT NULL CHECK (phase IN ('out', 'in', 'due', 'before')),
    -- At the last report, in the unit of the price type; and Keepa's clock then.
    value       bigint,
    reported    timestamptz,
    PRIMARY KEY (query, rule, domain_id, asin, price_type),
    FOREIGN KEY (query, rule) REFERENCES alert_rules ON DELETE CASCADE,
    FOREIGN KEY (domain_id, asin, price_type) REFERENCES deals ON DELETE CASCADE
);

CREATE INDEX IF NOT EXISTS alert_memory_by_deal ON alert_memory (domain_id, asin, price_type);

-- The outbox. A message is written in the transaction that causes it, and keeps its id through
-- every try.
CREATE TABLE IF NOT EXISTS alert_messages (
    channel       text        NOT NULL,
    id            bigint      GENERATED ALWAYS AS IDENTITY,
    -- What receivers see: the same at every try.
    message_id    uuid        NOT NULL DEFAULT gen_random_uuid(),
    kind          text        NOT NULL CHECK (kind IN ('deals', 'summary', 'operators', 'test')),
    query         text,
    rule          text,
    is_digest     boolean     NOT NULL DEFAULT false,
    -- What has no rows in alerts: the facts of a summary or a trouble.
    content       jsonb,
    state         text        NOT NULL DEFAULT 'waiting'
                              CHECK (state IN ('waiting', 'claimed', 'delivered', 'dead')),
    -- Grows with every claim: a change under an older number is refused.
    fence         bigint      NOT NULL DEFAULT 0,
    holder        text,
    claim_expires timestamptz,
    -- Failed tries.
    attempts      integer     NOT NULL DEFAULT 0,
    not_before    timestamptz NOT NULL DEFAULT now(),
    error         text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    delivered_at  timestamptz,
    PRIMARY KEY (channel, id),
    UNIQUE (id)
);

CREATE INDEX IF NOT EXISTS alert_messages_open ON alert_messages (channel, not_before)
    WHERE state IN ('waiting', 'claimed');
CREATE INDEX IF NOT EXISTS alert_messages_dead ON alert_messages (id) WHERE state = 'dead';
CREATE INDEX IF NOT EXISTS alert_messages_delivered ON alert_messages (delivered_at)
    WHERE state = 'delivered';
-- A digest takes reports in until its first claim.
CREATE UNIQUE INDEX IF NOT EXISTS alert_messages_collecting
    ON alert_messages (channel, query, rule)
    WHERE is_digest AND state = 'waiting' AND fence = 0;

-- One row per report on a deal.
CREATE TABLE IF NOT EXISTS alerts (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message    bigint      NOT NULL REFERENCES alert_messages (id) ON DELETE CASCADE,
    channel    text        NOT NULL,
    query      text        NOT NULL,
    rule       text        NOT NULL,
    domain_id  smallint    NOT NULL,
    asin       text        NOT NULL,
    price_type smallint    NOT NULL,
    -- Keepa's clock when it served the deal that crossed the line.
    crossing   timestamptz NOT NULL,
    occasion   text        NOT NULL CHECK (occasion IN ('crossing', 'again')),
    -- The deal as it was then: every try sends the same.
    deal       jsonb       NOT NULL,
    UNIQUE (query, rule, domain_id, asin, price_type, crossing)
);

CREATE INDEX IF NOT EXISTS alerts_by_message ON alerts (message);

-- Rate limits, common to all processes: when the channel's next message is due at its rate.
CREATE TABLE IF NOT EXISTS alert_channels (
    channel text        PRIMARY KEY,
    next_at timestamptz NOT NULL DEFAULT '-infinity'
);

-- Troubles that operators have been alerted to, until they end.
CREATE TABLE IF NOT EXISTS alert_troubles (
    trouble    text        NOT NULL,
    subject    text        NOT NULL,
    since      timestamptz NOT NULL DEFAULT now(),
    -- Null: it has not lasted long enough to be reported.
    reported   timestamptz,
    PRIMARY KEY (trouble, subject)
);

-- The processes that deliver.
CREATE TABLE IF NOT EXISTS alert_senders (
    holder  text        PRIMARY KEY,
    version text        NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    doing   text        NOT NULL
);
