-- A batch of 1,000 messages, all of them new.
\set k random(1, 1000000000000000)
SELECT count(*) FROM idem_dedupe('inbox', ARRAY(SELECT (:k::bigint * 1000 + g)::text FROM generate_series(0, 999) g)) WHERE first;
