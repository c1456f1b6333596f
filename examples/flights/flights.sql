-- Real flights in, a live windowed table out. From the root of the project, with a server running:
--     psql -h 127.0.0.1 -p 7432 -U millstream -f examples/flights/flights.sql
--     millstream sql -f examples/flights/flights.sql
-- flights.csv: 20,000 flights of January to March 2001, in time order
-- (U.S. Bureau of Transportation Statistics, public domain).

DROP STREAM IF EXISTS flights CASCADE;

CREATE STREAM flights (
    scheduled timestamp, delay_minutes integer, distance_miles integer, origin text KEY, destination text
) WITH (timestamp = 'scheduled');

CREATE TABLE delays_by_airport AS
SELECT origin, count(*) AS flights, avg(delay_minutes) AS average_delay, max(delay_minutes) AS worst_delay
FROM flights WINDOW TUMBLING (SIZE 1 HOUR)
GROUP BY origin EMIT CHANGES;

\copy flights FROM 'examples/flights/flights.csv' WITH (FORMAT csv, HEADER)

FLUSH;

-- The ten worst hours.
SELECT windowstart, origin, flights, round(average_delay, 1) AS average_delay, worst_delay
FROM delays_by_airport WHERE flights >= 3
ORDER BY average_delay DESC, windowstart LIMIT 10;

-- The same rows, computed over the stored events.
SELECT windowstart, origin, count(*) AS flights, round(avg(delay_minutes), 1) AS average_delay,
       max(delay_minutes) AS worst_delay
FROM flights WINDOW TUMBLING (SIZE 1 HOUR)
GROUP BY origin HAVING count(*) >= 3
ORDER BY avg(delay_minutes) DESC, windowstart LIMIT 10;

SELECT name, state, input_rows, output_rows, late_rows, lag_rows FROM millstream.queries;
