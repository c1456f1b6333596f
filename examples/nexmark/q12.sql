-- How many bids each person made in every ten seconds.
-- The original counts by the time at which a bid is processed, whose result is another one in each run. Here it is the
-- time of the event.
CREATE TABLE q12 AS
SELECT bidder, count(*) AS bids, windowstart, windowend
FROM bid WINDOW TUMBLING (SIZE 10 SECONDS)
GROUP BY bidder;
