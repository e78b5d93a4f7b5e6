-- Searching among a million deals: words of titles, and an index for each range that a filter
-- may narrow. Every statement can be repeated; an index of a million rows takes a second.

-- The words of a title. A sign of Chinese or Japanese is a word of its own, because no blanks
-- stand between theirs. What separates words is in no word: not % and _, not quotes.
CREATE OR REPLACE FUNCTION title_words(title text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURNS NULL ON NULL INPUT AS $$
SELECT array_remove(regexp_split_to_array(
           regexp_replace(lower(left(title, 300)), '([\u3040-\u30ff\u3400-\u9fff])', ' \1 ', 'g'),
           '[\u0001-/:-@\[-`{-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f]+'), '')
$$;

-- What a search asks of a title: each of its words begins one there.
CREATE OR REPLACE FUNCTION title_query(search text) RETURNS tsquery
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURNS NULL ON NULL INPUT AS $$
SELECT ('''' || nullif(array_to_string(title_words(search), ''':* & '''), '') || ''':*')::tsquery
$$;

-- The same for a look at one title: patterns that cost less than taking it into words.
CREATE OR REPLACE FUNCTION title_patterns(search text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURNS NULL ON NULL INPUT AS $$
SELECT ARRAY(SELECT '%' || word || '%' FROM unnest(title_words(search)) AS word)
$$;

CREATE OR REPLACE FUNCTION title_has(title text, search tsquery) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURNS NULL ON NULL INPUT AS $$
SELECT array_to_tsvector(title_words(title)) @@ search
$$;

-- Beside listings: a new rank or price must not touch the index.
CREATE TABLE IF NOT EXISTS titles (
    domain_id smallint NOT NULL,
    asin      text     NOT NULL,
    words     tsvector NOT NULL,
    PRIMARY KEY (domain_id, asin),
    FOREIGN KEY (domain_id, asin) REFERENCES listings ON DELETE CASCADE
);
-- New words wait in a list, which every search reads: it stays short.
CREATE INDEX IF NOT EXISTS titles_by_word ON titles USING gin (words)
    WITH (gin_pending_list_limit = 256);

CREATE OR REPLACE FUNCTION note_added_titles() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO titles (domain_id, asin, words)
    SELECT domain_id, asin, array_to_tsvector(title_words(title)) FROM after
     WHERE title IS NOT NULL ORDER BY domain_id, asin
    ON CONFLICT (domain_id, asin) DO UPDATE SET words = EXCLUDED.words;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION note_changed_titles() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO titles (domain_id, asin, words)
    SELECT n.domain_id, n.asin, array_to_tsvector(title_words(coalesce(n.title, '')))
      FROM after n JOIN before o USING (domain_id, asin)
     WHERE n.title IS DISTINCT FROM o.title ORDER BY n.domain_id, n.asin
    ON CONFLICT (domain_id, asin) DO UPDATE SET words = EXCLUDED.words;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER note_added_titles AFTER INSERT ON listings
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION note_added_titles();
CREATE OR REPLACE TRIGGER note_changed_titles AFTER UPDATE ON listings
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION note_changed_titles();

-- The orders of the grid have indexes; these are for what it can only be filtered by. Few
-- distinct values: an entry takes six bytes.
CREATE INDEX IF NOT EXISTS deal_grid_judged ON deal_grid (judged_at);
CREATE INDEX IF NOT EXISTS deal_grid_reviews ON deal_grid (reviews);
CREATE INDEX IF NOT EXISTS deal_grid_rating ON deal_grid (rating);
CREATE INDEX IF NOT EXISTS deal_grid_new_offers ON deal_grid (new_offers);
CREATE INDEX IF NOT EXISTS deal_grid_used_offers ON deal_grid (used_offers);
CREATE INDEX IF NOT EXISTS deal_grid_category ON deal_grid (root_category);
