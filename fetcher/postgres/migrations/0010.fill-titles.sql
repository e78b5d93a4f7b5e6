-- Takes the titles from before into words, beside running fetchers: nobody waits for long.
INSERT INTO titles (domain_id, asin, words)
SELECT domain_id, asin, array_to_tsvector(title_words(title)) FROM listings
 WHERE title IS NOT NULL
ON CONFLICT DO NOTHING;
