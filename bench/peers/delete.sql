-- The same from a table of the same shape; see delete_procedure.sql.
CALL peer_sweep();
