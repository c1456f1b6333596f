-- The average, for each category, of the highest bid on each of its auctions while it was open.
CREATE TABLE q4 AS
SELECT q.category, avg(q.final) AS average
FROM (
    SELECT a.id, a.category, max(b.price) AS final
    FROM auction AS a JOIN bid AS b ON a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires
    GROUP BY a.id, a.category
) AS q
GROUP BY q.category;
