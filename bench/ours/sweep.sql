-- Remove a million keys, committing after every 10,000.
CALL idem_sweep_all();
