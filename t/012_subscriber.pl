# Logical replication of the extension's tables.
#
# Scenario: a publication has the keys and the policies; another server, which
# has the extension as well, subscribes.  A session there has already used the
# policy, and so cached it.  The policy is then changed on the publisher: the
# session must follow it with its next statement, although a subscriber fires
# no statement triggers.  A key that was completed on the publisher is replayed
# by the subscriber, byte for byte.  idem_dedupe meets a rival in the middle of its
# keys: of the row that the rival was faster with nothing is sent.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IdemTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $publisher = new_node('publisher', streaming => 1,
	conf => "wal_level = logical\n");
my $subscriber = new_node('subscriber');
my $address = $publisher->connstr . ' dbname=postgres';

sub catch_up
{
	$publisher->wait_for_catchup('follower');
}

$publisher->safe_psql(
	'postgres', q{
SELECT idem_policy('copied', mismatch_status => 409);
CREATE PUBLICATION keys FOR TABLE idempotency_keys, idempotency_policies;
});
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION follower CONNECTION '$address' PUBLICATION keys");
$subscriber->poll_query_until('postgres',
	"SELECT count(*) = 2 FROM pg_subscription_rel WHERE srsubstate = 'r'")
  or die 'the tables were not copied in time';

my $session = session($subscriber);
my $status = q{SELECT http_status FROM idem_claim('s', 'k', '2', policy => 'copied')};
is( $session->query(q{SELECT outcome FROM idem_claim('s', 'k', '1', policy => 'copied')}),
	'claimed', 'a session of the subscriber uses the policy');
is($session->query($status), '409', 'as it was copied');

$publisher->safe_psql('postgres',
	q{SELECT idem_policy('copied', mismatch_status => 418)});
catch_up();
is($session->query($status), '418', 'and as it was changed');

$publisher->safe_psql(
	'postgres', q{
BEGIN;
SELECT idem_claim('s', 'done');
SELECT idem_complete('s', 'done', '{"a" :  1}'::json, 201);
COMMIT;
});
catch_up();
is( $session->query(
		q{SELECT outcome, status_code, idem_json(r) FROM idem_claim('s', 'done') r}),
	'replayed|201|{"a" :  1}',
	'a key of the publisher is replayed');

# The row of the first key is locked until idem_dedupe has looked, and a rival come.
my ($locker, $rival, $marker) = map { session($publisher) } 1 .. 3;
my $waits = 'SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND pid = ' . $marker->pid;
$publisher->safe_psql('postgres', q{
SELECT count(*) FROM idem_dedupe('many', '{a}');
UPDATE idempotency_keys SET expires_at = expires_at - interval '1 week',
	purge_at = purge_at - interval '1 week' WHERE scope = 'many'});
$locker->query(q{BEGIN; SELECT FROM idempotency_keys WHERE scope = 'many' FOR UPDATE});
$marker->send(q{SELECT string_agg(key, ' ') FILTER (WHERE first) FROM idem_dedupe('many', '{a,k1,k2,k3}')});
$publisher->poll_query_until('postgres', $waits) or die 'nobody waits for the lock';
$rival->query(q{BEGIN; SELECT * FROM idem_dedupe('many', '{k2}')});
$locker->query('COMMIT');
$publisher->poll_query_until('postgres', $waits) or die 'nobody waits for the rival';
$rival->query('COMMIT');
is($marker->receive, 'a k1 k3', 'a rival in the middle of many keys');
catch_up();
is($subscriber->safe_psql('postgres', q{SELECT string_agg(key, ' ' ORDER BY key) FROM idempotency_keys WHERE scope = 'many'}),
	'a k1 k2 k3', 'the subscriber has each once');
$_->quit foreach $locker, $rival, $marker;

# The log as a whole: a partition that is made later is no table to look for.
$publisher->safe_psql('postgres', q{CREATE PUBLICATION log FOR TABLE idempotency_audit_log
	WITH (publish_via_partition_root = true, publish = 'insert')});
is($publisher->safe_psql('postgres', q{SELECT ok FROM idem_health() WHERE check_name = 'publications'}),
	't', 'health is content with it');
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION reader CONNECTION '$address' PUBLICATION log");
$subscriber->poll_query_until('postgres',
	"SELECT count(*) = 3 FROM pg_subscription_rel WHERE srsubstate = 'r'")
  or die 'the log was not copied in time';
$publisher->safe_psql('postgres', q{SELECT idem_audit('before', 'partition', '1')});
$publisher->safe_psql('postgres', 'SELECT idem_audit_seal()');
$publisher->safe_psql('postgres', q{
INSERT INTO idempotency_audit_log (at, xid, action, entity, entity_id, session_role, effective_role)
SELECT now() + interval '1 min', pg_current_xact_id(), 'in', 'partition', '2', 'a', 'b'});
is($publisher->safe_psql('postgres', q{SELECT count(DISTINCT tableoid) FROM idempotency_audit_log}),
	'2', 'rows in two partitions');
$publisher->wait_for_catchup('reader');
is($subscriber->safe_psql('postgres', q{SELECT string_agg(action, ' ' ORDER BY id) FROM idempotency_audit_log}),
	'before in', 'come to a subscriber, which has others');

$session->quit;
$subscriber->stop;
$publisher->stop;
done_testing();
