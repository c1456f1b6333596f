-- The auctions with the most bids in the last ten seconds, every two seconds.
CREATE TABLE q5 AS
SELECT bids.window_start, bids.auction, bids.num
FROM (
    SELECT auction, window_start, window_end, count(*) AS num
    FROM HOP(bid, date_time, INTERVAL '2 seconds', INTERVAL '10 seconds')
    GROUP BY auction, window_start, window_end
) AS bids
JOIN (
    SELECT window_start, window_end, max(num) AS most
    FROM (
        SELECT window_start, window_end, count(*) AS num
        FROM HOP(bid, date_time, INTERVAL '2 seconds', INTERVAL '10 seconds')
        GROUP BY auction, window_start, window_end
    ) AS counts
    GROUP BY window_start, window_end
) AS hottest
ON bids.window_start = hottest.window_start AND bids.window_end = hottest.window_end AND bids.num >= hottest.most;
