# Logical replication of the extension's tables.
#
# Scenario: a publication has the keys and the policies; another server, which
# has the extension as well, subscribes.  A session there has already used the
# policy, and so cached it.  The policy is then changed on the publisher: the
# session must follow it with its next statement, although a subscriber fires
# no statement triggers.  A key that was completed on the publisher is replayed
# by the subscriber, byte for byte.

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

$session->quit;
$subscriber->stop;
$publisher->stop;
done_testing();
