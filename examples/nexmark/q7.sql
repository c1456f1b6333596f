-- The highest bids of every ten seconds.
-- Flink joins the bids with the highest price of their window. Here a join of a stream with a table sees the table of
-- its moment, so the bids are ranked instead: rank() gives 1 to every bid of that price.
CREATE TABLE q7 AS
SELECT auction, bidder, price, date_time, extra
FROM (
    SELECT auction, bidder, price, date_time, extra, rank() OVER (PARTITION BY window_start ORDER BY price DESC) AS rank
    FROM TUMBLE(bid, date_time, INTERVAL '10 seconds')
) AS ranked
WHERE rank <= 1;
