DROP INDEX IF EXISTS deal_grid_judged, deal_grid_reviews, deal_grid_rating, deal_grid_new_offers,
    deal_grid_used_offers, deal_grid_category;
DROP TRIGGER IF EXISTS note_added_titles ON listings;
DROP TRIGGER IF EXISTS note_changed_titles ON listings;
DROP FUNCTION IF EXISTS note_added_titles();
DROP FUNCTION IF EXISTS note_changed_titles();
DROP TABLE IF EXISTS titles;
DROP FUNCTION IF EXISTS title_has(text, tsquery);
DROP FUNCTION IF EXISTS title_patterns(text);
DROP FUNCTION IF EXISTS title_query(text);
DROP FUNCTION IF EXISTS title_words(text);
