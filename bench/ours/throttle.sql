-- One of 20,000 subjects asks; there is room for them all.
\set s random(1, 20000)
SELECT * FROM idem_throttle('bench', :s::text);
