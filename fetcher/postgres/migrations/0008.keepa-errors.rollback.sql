DROP TABLE keepa_errors;
