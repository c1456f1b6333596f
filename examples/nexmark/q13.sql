-- Every bid with a value that a side input has for it.
-- The side input is a file in the original, and a table here. Each bid sees the table as it was when the bid was
-- committed, so the table must be filled first.
CREATE STREAM q13 AS
SELECT b.auction, b.bidder, b.price, b.date_time, s.value
FROM bid AS b JOIN side_input AS s ON mod(b.auction, 10000) = s.key;
