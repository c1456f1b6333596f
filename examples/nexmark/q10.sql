-- Every bid with its day and minute.
-- In the original they name the files of a partitioned directory that the bids are written to. Here the stream is
-- stored as it is; `COPY (SELECT … FROM q10 WHERE day = '…') TO STDOUT` takes out a part of it.
CREATE STREAM q10 AS
SELECT auction, bidder, price, date_time, extra, to_char(date_time, 'YYYY-MM-DD') AS day,
       to_char(date_time, 'HH24:MI') AS minute
FROM bid;
