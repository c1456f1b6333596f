-- The ten highest bids on each auction. `rowoffset` decides between those of equal price.
CREATE TABLE q19 AS
SELECT auction, bidder, price, channel, url, date_time, extra, rank
FROM (
    SELECT auction, bidder, price, channel, url, date_time, extra,
           row_number() OVER (PARTITION BY auction ORDER BY price DESC, rowoffset) AS rank
    FROM bid
) AS ranked
WHERE rank <= 10;
