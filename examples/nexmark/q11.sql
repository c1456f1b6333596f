-- How many bids each person made in each session: until ten seconds pass without one.
-- The end of a session is the time of its last bid, where Flink has that plus the ten seconds.
CREATE TABLE q11 AS
SELECT bidder, count(*) AS bids, windowstart AS session_start, windowend AS session_end
FROM bid WINDOW SESSION (10 SECONDS)
GROUP BY bidder;
