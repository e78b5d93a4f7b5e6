DROP INDEX IF EXISTS scan_pages_done;
ALTER TABLE products ALTER COLUMN raw SET COMPRESSION DEFAULT;
ALTER TABLE deals ALTER COLUMN raw SET COMPRESSION DEFAULT;
ALTER TABLE deal_grid RESET (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor);
ALTER TABLE verdicts RESET (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor);
ALTER TABLE deals RESET (fillfactor, autovacuum_vacuum_scale_factor,
                         autovacuum_analyze_scale_factor);
ALTER TABLE listings RESET (fillfactor, autovacuum_vacuum_scale_factor,
                            autovacuum_analyze_scale_factor);
