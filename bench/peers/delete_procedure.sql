-- A plain batched DELETE with a commit after each batch, as in many a cron job.

CREATE PROCEDURE peer_sweep(batch integer DEFAULT 10000) LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		DELETE FROM peer_keys WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM peer_keys WHERE purge_at <= now()
			ORDER BY purge_at LIMIT batch));
		EXIT WHEN NOT FOUND;
		COMMIT;
	END LOOP;
END
$$;
