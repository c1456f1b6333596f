-- Nexmark: an auction house as three streams. From the root of the project, with a server running:
--     psql -h 127.0.0.1 -p 7432 -U millstream -f examples/nexmark/nexmark.sql -f examples/nexmark/q5.sql
-- then insert events, and `SELECT * FROM q5`. `cargo bench --bench streaming` generates events, runs each query
-- continuously, and compares its result with the same SELECT run once over what is stored.
-- The queries are those of https://github.com/nexmark/nexmark; Some say where they differ.

CREATE STREAM person (
    id bigint KEY, name text, email_address text, credit_card text, city text, state text, date_time timestamp,
    extra text,
    WATERMARK FOR date_time AS date_time - INTERVAL '4 seconds'
) WITH (timestamp = 'date_time');

CREATE STREAM auction (
    id bigint KEY, item_name text, description text, initial_bid bigint, reserve bigint, date_time timestamp,
    expires timestamp, seller bigint, category bigint, extra text,
    WATERMARK FOR date_time AS date_time - INTERVAL '4 seconds'
) WITH (timestamp = 'date_time');

CREATE STREAM bid (
    auction bigint KEY, bidder bigint, price bigint, channel text, url text, date_time timestamp, extra text,
    WATERMARK FOR date_time AS date_time - INTERVAL '4 seconds'
) WITH (timestamp = 'date_time');

-- What q13 looks up.
CREATE TABLE side_input (key bigint PRIMARY KEY, value text);
INSERT INTO side_input SELECT k, 'value of ' || k FROM generate_series(0, 9999) AS keys (k);
