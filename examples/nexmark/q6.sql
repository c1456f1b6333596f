-- The average price of each seller's last auctions: of each, its highest bid and the ten before that.
-- Flink does not run this one: there, OVER takes no input whose rows change, as the highest bid does. Here it does. The
-- average is numeric, and the last columns of each ORDER BY decide between equals.
CREATE TABLE q6 AS
SELECT q.id, q.seller,
       avg(q.price) OVER (PARTITION BY q.seller ORDER BY q.date_time, q.id ROWS BETWEEN 10 PRECEDING AND CURRENT ROW)
           AS average
FROM (
    SELECT a.id, a.seller, b.price, b.date_time,
           row_number() OVER (PARTITION BY a.id, a.seller ORDER BY b.price DESC, b.date_time, b.rowoffset) AS rank
    FROM auction AS a JOIN bid AS b ON a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires
) AS q
WHERE q.rank <= 1;
