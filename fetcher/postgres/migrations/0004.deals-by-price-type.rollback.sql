-- Back to one price per product there is no way; 0001 takes the tables down.
DROP VIEW IF EXISTS judged_deals;
DROP TRIGGER IF EXISTS record_listing_change ON listings;
DROP FUNCTION IF EXISTS record_listing_change();
