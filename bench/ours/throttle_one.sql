-- All ask for one subject.
SELECT * FROM idem_throttle('bench', '1');
