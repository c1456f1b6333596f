-- The last bid of each person on each auction.
-- Several bids fall into one millisecond: `rowoffset` says which one is the last.
CREATE TABLE q18 AS
SELECT auction, bidder, price, channel, url, date_time, extra
FROM (
    SELECT auction, bidder, price, channel, url, date_time, extra,
           row_number() OVER (PARTITION BY bidder, auction ORDER BY date_time DESC, rowoffset DESC) AS rank
    FROM bid
) AS ranked
WHERE rank <= 1;
