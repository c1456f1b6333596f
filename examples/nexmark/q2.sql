-- The bids on some auctions.
CREATE STREAM q2 AS
SELECT auction, price FROM bid WHERE mod(auction, 123) = 0;
