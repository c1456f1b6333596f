-- Every bid that came through a known channel, with the channel's number: of four by name, of the others by the URL.
CREATE STREAM q21 AS
SELECT auction, bidder, price, channel,
       CASE lower(channel)
           WHEN 'apple' THEN '0'
           WHEN 'google' THEN '1'
           WHEN 'facebook' THEN '2'
           WHEN 'baidu' THEN '3'
           ELSE (regexp_match(url, '(?:&|^)channel_id=([^&]*)'))[1]
       END AS channel_id
FROM bid
WHERE lower(channel) IN ('apple', 'google', 'facebook', 'baidu')
   OR (regexp_match(url, '(?:&|^)channel_id=([^&]*)'))[1] IS NOT NULL;
