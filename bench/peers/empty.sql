-- A C function that does nothing, with the same arguments and result.
\set s random(1, 20000)
SELECT * FROM empty('bench', :s::text);
