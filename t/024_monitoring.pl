# What doc/monitoring.md ships works: collector, alerts, dashboard.
#
# Scenario: on a server with the library preloaded the role is made by the SQL
# of the document, there is activity of every kind, and the exporter runs with
# the file as shipped, but for host and port.  Every metric has the value that
# the views have.  Scopes, keys and the like are nowhere in what it delivers or
# logs.  The role can do no more than it must, and each of its privileges is
# needed.  Then a sweep fails and a check with it, and the server is down: all
# of that is seen.  On a server without preload there are no counters, and no
# errors.  The alerts pass their unit tests, each of them fires there and does
# not fire, and they and the dashboard name only metrics that were delivered.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use HTTP::Tiny;
use IdemTest;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($exporter, $promtool) = map { find_program($_) } qw(prometheus-sql-exporter promtool);
plan skip_all => 'there is no prometheus-sql-exporter' if !defined $exporter;
plan skip_all => 'there is no promtool' if !defined $promtool;

note(run_command([ $exporter, '-version' ]));
note(run_command([ $promtool, '--version' ]));

my $doc = "$FindBin::RealBin/../doc";
my $collector = slurp_file("$doc/monitoring/idempotency.collector.yml");
my $rules = slurp_file("$doc/monitoring/idempotency.rules.yml");
my $rules_test = slurp_file("$doc/monitoring/idempotency.rules.test.yml");
my $dashboard = slurp_file("$doc/monitoring/idempotency.dashboard.json");
my $document = slurp_file("$doc/monitoring.md");
my ($steps) = $document =~ /^## Setting it up\n(.*?)^## /ms;
my @setup = $steps =~ /^```sql(?: cluster)?\n(.*?)^```$/msg;
my %queries = find_queries($collector);
my $role = 'idempotency_monitor';
my $canary = 'canary4711';
my @running;

sub find_program
{
	my ($name) = @_;
	my ($path) = grep { -x } map { "$_/$name" } split /:/, $ENV{PATH};

	return $path;
}

# SQL by name of metric
sub find_queries
{
	my ($yaml) = @_;
	my ($name, %found);

	foreach my $line (split /\n/, $yaml)
	{
		if ($line =~ /^      - name: (\w+)$/)
		{
			$name = $1;
		}
		elsif ($line =~ /^          (.*)$/ && defined $name)
		{
			$found{"sql_$name"} .= "$1\n";
		}
		elsif ($line =~ /^\s*- name:/)
		{
			undef $name;
		}
	}
	return %found;
}

#
# The exporter
#

# Started for a node: where it listens, and what it says
sub start_exporter
{
	my ($node) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $run = { url => "http://127.0.0.1:$port/metrics", log => '' };
	my $file = PostgreSQL::Test::Utils::tempdir . '/collector.yml';
	my $config = $collector;
	my ($host, $node_port) = ($node->host, $node->port);

	$config =~ s{host=/var/run/postgresql&port=5432}{host=$host&port=$node_port}g;
	append_to_file($file, $config);
	local %ENV = map { $_ => $ENV{$_} } grep { !/^PG|^LOGLEVEL$/ } keys %ENV;
	$run->{handle} = IPC::Run::start(
		[ $exporter, '-config.file', $file, '-web.listen-address', "127.0.0.1:$port" ],
		'<', \undef, '>', \$run->{log}, '2>&1');
	push @running, $run;
	return $run;
}

sub stop_exporter
{
	my ($run) = @_;

	@running = grep { $_ != $run } @running;
	$run->{handle}->kill_kill(grace => 10);
	return;
}

END
{
	my $status = $?;

	stop_exporter($_) foreach @running;
	$? = $status;
}

# What it delivers now, '' if it does not
sub scrape
{
	my ($run) = @_;
	# not through a proxy, whatever the environment says
	my $http = HTTP::Tiny->new(timeout => 10, proxy => undef, http_proxy => undef);
	my $answer = $http->get($run->{url});

	# it must be able to write its log
	$run->{handle}->pump_nb;
	return $answer->{success} ? $answer->{content} : '';
}

# Lines of a scrape by metric, "label=value ... " => value; those labels left
# out that the exporter gives to every series
sub series
{
	my ($text) = @_;
	my %found;

	while ($text =~ /^(sql_\w+)\{(.*)\} (\S+)$/mg)
	{
		my ($metric, $labels, $value) = ($1, $2, $3);
		my %label = $labels =~ /(\w+)="([^"]*)"/g;

		delete @label{qw(driver host user sql_job)};
		# of the cluster: the database that was asked is of no interest
		delete $label{database} if exists $label{datname};
		$found{$metric}{ join ' ', map { "$_=$label{$_}" } sort keys %label } = $value;
	}
	return %found;
}

# Until each query has been tried, and all say the same: failed or not
sub wait_for_queries
{
	my ($run, $failed) = @_;
	my $text;

	eval {
		poll('the exporter', sub {
			$text = scrape($run);
			my @values = $text =~ /^sql_exporter_last_scrape_failed\{.*query="idempotency_.* (\d)$/mg;
			return @values == keys %queries && !grep { $_ != $failed } @values });
		1;
	} or die $@ . $run->{log};
	return $text;
}

#
# Servers
#

sub start_node
{
	my ($name, $conf) = @_;
	my $node = new_node($name, extension => 0, conf => $conf);

	$node->safe_psql('postgres', 'CREATE DATABASE shop; CREATE DATABASE other');
	$node->safe_psql($_, q{
SET client_min_messages = warning;
CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE}) foreach ('shop', 'other');
	$node->safe_psql('shop', q{
CREATE ROLE idempotency_owner NOLOGIN;
GRANT USAGE ON SCHEMA idempotency TO idempotency_owner;
ALTER TABLE idempotency.idempotency_keys OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO idempotency_owner});
	$node->safe_psql('shop', $_) foreach @setup;
	return $node;
}

# Something of everything; of what could be mixed up, not equally often
sub be_active
{
	my ($node) = @_;
	my ($scope, $key) = ("$canary-scope", "$canary-key");
	my $sql = qq{
SET search_path = idempotency, public;
CREATE FUNCTION f(request jsonb) RETURNS json LANGUAGE sql AS \$\$ SELECT '{"a": "$canary-body"}'::json \$\$;
CREATE FUNCTION bad(request jsonb) RETURNS json LANGUAGE plpgsql AS
	\$\$ BEGIN RAISE EXCEPTION '$canary-error'; END \$\$;
SELECT idem_policy('short', completed_ttl => '1 ms');
SELECT idem_policy('refuse', on_expiry => 'reject', tombstone => '1 d', completed_ttl => '1 us');
SELECT idem_run('f(jsonb)', '$scope', '$key', '{"a": 1}');
SELECT idem_run('f(jsonb)', '$scope', '$key', '{"a": 1}') FROM generate_series(1, 3);
SELECT idem_run('f(jsonb)', '$scope', '$key', '{"a": 2}') FROM generate_series(1, 2);
SELECT idem_run('bad(jsonb)', '$scope', '$key-bad', on_error => 'record') FROM generate_series(1, 2);
SELECT idem_run('f(jsonb)', '$scope', '$key-old', policy => 'refuse');
SELECT idem_claim('$scope', '$key-old', policy => 'refuse');
SELECT * FROM idem_dedupe('$scope', '{a,b,a}', 'short');
SELECT idem_claim('$scope', '$key-lease', lease => '1 us');
SELECT idem_claim('$scope', '$key-lease', lease => '1 h');
SELECT idem_claim('$scope', '$key-lease', wait => '20 ms');
SELECT idem_checkpoint('$scope', '$key-lease', (SELECT token FROM idempotency_keys
	WHERE key = '$key-lease'), '$canary-point');
SELECT idem_claim('$scope', '$key-gone', lease => '1 us', policy => 'refuse');
SELECT idem_claim('$scope', '$key-held', lease => '1 h', policy => 'refuse')};

	$node->safe_psql('shop', $sql);
	is(sqlstate($node, "SELECT idempotency.idem_complete('$scope', '$key-lease', token => 1)",
		database => 'shop'), 'ID002', 'a claim that is lost') for 1 .. 2;
	$node->safe_psql('other', q{SELECT idempotency.idem_claim('s', 'k')});
	return;
}

# What the views say, in the form of series().  Labels are text columns, values
# numbers; the label "col" is the name of the value.
sub expect
{
	my ($node, $labels, $value, $sql) = @_;
	my $text = $node->safe_psql('shop',
		"SET search_path = idempotency, public;
SELECT concat_ws(' ', $labels), $value FROM ($sql) q");

	return map { split /\|/ } split /\n/, $text;
}

# A counter of all databases
sub expect_counters
{
	my ($node, $label, $col, @columns) = @_;

	return map {
		expect($node,
			qq{'col=$col', 'datname=' || datname, } . ($label ? qq{'$label=$_', } : '') .
			  q{'policy=' || policy},
			$_, 'SELECT *, wait_ms / 1000 AS wait_s FROM idem_stats WHERE policy IS NOT NULL')
	} @columns;
}

sub expect_value
{
	my ($node, $col, $value, $sql) = @_;

	return expect($node, qq{'col=$col', 'database=shop'}, $value, $sql);
}

sub expect_all
{
	my ($node) = @_;
	my $status = 'SELECT * FROM idem_sweep_status';
	my $size = q{SELECT 'idempotency_keys'::regclass AS keys};
	my $tuples = q{SELECT * FROM pg_stat_user_tables WHERE relname = 'idempotency_keys'};
	my $claims = q{SELECT coalesce(policy, 'default') AS policy, count(*) AS n, count(*) FILTER (WHERE lease_until < now()) AS ended,
extract(epoch FROM now() - min(created_at)) AS age,
greatest(0, extract(epoch FROM now() - min(lease_until))) AS overdue
FROM idempotency_keys WHERE state = 'p' GROUP BY 1};

	return (
		sql_idempotency_calls_total => {
			expect_counters($node, 'outcome', 'calls',
				qw(claimed replayed in_progress mismatch duplicate expired)) },
		sql_idempotency_finishes_total => {
			expect_counters($node, 'outcome', 'finishes', qw(completed failed)) },
		sql_idempotency_keys_total => {
			expect_counters($node, 'event', 'keys', qw(taken_over lost swept)) },
		sql_idempotency_waits_total => { expect_counters($node, '', 'waits', 'waits') },
		sql_idempotency_wait_seconds_total => { expect_counters($node, '', 'seconds', 'wait_s') },
		sql_idempotency_throttled_total => {
			expect($node, q{'col=calls', 'datname=' || datname}, 'calls',
				'SELECT datname, sum(throttled) AS calls FROM idem_stats WHERE datname IS NOT NULL GROUP BY 1') },
		sql_idempotency_health_ok => {
			expect($node, q{'check=' || check_name, 'col=ok', 'database=shop'}, 'ok::integer',
				'SELECT * FROM idem_health()') },
		sql_idempotency_sweep_lag_seconds => {
			expect_value($node, 'lag', 'extract(epoch FROM lag)', $status) },
		sql_idempotency_sweep_last_run_timestamp_seconds => {
			expect_value($node, 'last_run', 'extract(epoch FROM last_run)', $status) },
		sql_idempotency_sweep_last_duration_seconds => {
			expect_value($node, 'last_duration', 'extract(epoch FROM last_duration)', $status) },
		sql_idempotency_sweep_last_rows => {
			expect_value($node, 'last_rows', 'last_rows', $status) },
		sql_idempotency_sweep_failed => {
			expect_value($node, 'failed', '(last_error IS NOT NULL)::integer', $status) },
		sql_idempotency_keys_bytes => {
			expect_value($node, 'table', 'pg_table_size(keys)', $size),
			expect_value($node, 'indexes', 'pg_indexes_size(keys)', $size) },
		sql_idempotency_keys_tuples => {
			expect_value($node, 'live', 'n_live_tup', $tuples),
			expect_value($node, 'dead', 'n_dead_tup', $tuples) },
		sql_idempotency_claims => {
			map {
				expect($node, qq{'col=$_->[0]', 'database=shop', 'policy=' || policy},
					$_->[1], $claims)
			} [ 'in_progress', 'n' ], [ 'lease_ended', 'ended' ],
			[ 'oldest_age_seconds', 'age' ], [ 'longest_overdue_seconds', 'overdue' ] });
}

# Times go on between the two looks, by no more than $slack seconds
sub same_values
{
	my ($got, $expected, $slack) = @_;
	my @wrong;

	foreach my $labels (sort keys %$expected)
	{
		my $value = delete $got->{$labels};
		my $low = $labels =~ /col=\w+_seconds|col=lag/ ? $expected->{$labels} - $slack
		  : $expected->{$labels};

		push @wrong, "$labels: " . ($value // 'nothing') . ", not $expected->{$labels}"
		  unless defined $value && $value - $expected->{$labels} <= 1e-5
		  && $value - $low >= -1e-5;
	}
	return (@wrong, map { "$_: too much" } sort keys %$got);
}

#
# With preload
#

my $node = start_node('monitored',
	"shared_preload_libraries = 'idempotency'\nidempotency.sweep_interval = '1 s'\n");
be_active($node);
$node->safe_psql('shop', qq{SELECT idempotency.idem_limiter('$canary-limiter', 1, '1 d');
	SELECT t.* FROM generate_series(1, 3) i,
		LATERAL idempotency.idem_throttle('$canary-limiter', '$canary-subject' || left(i::text, 0)) t});
poll('the sweep', sub {
	$node->safe_psql('shop', q{SELECT coalesce(sum(swept), 0) = 2 FROM idempotency.idem_stats}) eq 't' });
# Now nothing changes any more, but the time
$node->append_conf('postgresql.conf', "idempotency.worker = off\n");
$node->reload;
poll('the end of the worker', sub {
	$node->safe_psql('shop', q{SELECT last_run < clock_timestamp() - interval '3 s'
		AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'idempotency sweep')
		FROM idempotency.idem_sweep_status}) eq 't' });
# One that is due and not swept, one that is older than the others
$node->safe_psql('shop', q{
UPDATE idempotency.idempotency_keys SET purge_at = now() - interval '100 s' WHERE key LIKE '%-old';
UPDATE idempotency.idempotency_keys SET created_at = now() - interval '1000 s' WHERE key LIKE '%-held'});
poll('the statistics of the table', sub {
	$node->safe_psql('shop', q{SELECT n_live_tup > 0 AND n_dead_tup > 0
		FROM pg_stat_user_tables WHERE relname = 'idempotency_keys'}) eq 't' });

my $start = time;
my $run = start_exporter($node);
my %got = series(wait_for_queries($run, 0));
my %delivered = map { $_ => 1 } keys %got;
my %expected = expect_all($node);
my $slack = time - $start + 1;

is(join(' ', sort keys %queries), join(' ', sort keys %expected),
	'the metrics of the collector are those that we know');
foreach my $metric (sort keys %expected)
{
	ok(scalar(keys %{ $expected{$metric} }), "$metric: the views say something");
	is(join("\n", same_values($got{$metric}, $expected{$metric}, $slack)), '',
		"$metric is what the views say");
}
foreach my $metric (grep { /_total$/ } sort keys %expected)
{
	my %sum;

	foreach my $labels (keys %{ $expected{$metric} })
	{
		my ($of) = $labels =~ /(?:outcome|event)=(\w+)/;

		$sum{ $of // 'all' } += $expected{$metric}{$labels};
	}
	is(join(' ', sort grep { $sum{$_} == 0 } keys %sum), '', "$metric: each was seen to count");
}
ok(scalar(grep { /datname=other/ } keys %{ $expected{sql_idempotency_calls_total} }),
	'other databases are counted, too');
is( join(', ', map { "$_ $expected{sql_idempotency_claims}{$_}" }
		  grep { /in_progress|lease_ended/ } sort keys %{ $expected{sql_idempotency_claims} }),
	'col=in_progress database=shop policy=default 1, col=in_progress database=shop policy=refuse 2, '
	  . 'col=lease_ended database=shop policy=default 0, col=lease_ended database=shop policy=refuse 1',
	'claims in progress, one of them past its lease');
unlike(scrape($run), qr/canary/, 'no scope or key in what is delivered');
unlike($run->{log}, qr/canary/, 'nor in the log');
unlike($run->{log}, qr/"level":"(?!info|debug)/, 'and no errors there');
stop_exporter($run);

#
# Rights
#

# SQLSTATEs of all queries as the monitoring role
sub states
{
	my ($before) = @_;

	return map {
		sqlstate($node, "BEGIN; $before; SET LOCAL ROLE $role; $queries{$_}; ROLLBACK",
			database => 'shop')
	} sort keys %queries;
}

is(join('', states('SELECT')), '', 'every query is allowed');
my ($counters) = grep { $queries{$_} =~ /idem_stats/ } sort keys %queries;
my $all = "SET ROLE $role; SELECT count(*) FROM ($queries{$counters}) q";
my @rows = map { $node->safe_psql('shop', "BEGIN; $_; $all; ROLLBACK") }
  ('SELECT', "REVOKE pg_monitor FROM $role");
cmp_ok($rows[0], '>', $rows[1], 'needed: pg_monitor, for other databases');
foreach my $privileges ('USAGE ON SCHEMA idempotency', 'ALL ON ALL ROUTINES IN SCHEMA idempotency',
	'ALL ON ALL TABLES IN SCHEMA idempotency')
{
	ok(scalar(grep { $_ eq '42501' } states("REVOKE $privileges FROM $role")), "needed: $privileges");
}
is($node->safe_psql('shop', qq{
SELECT string_agg(p.proname, ' ' ORDER BY p.proname COLLATE "C") FROM pg_proc p
WHERE p.pronamespace = 'idempotency'::regnamespace
AND EXISTS (SELECT FROM aclexplode(p.proacl) WHERE grantee = '$role'::regrole)}),
	'idem_activity_values idem_health idem_stats_values idem_sweep_status_values idem_throttle_activity_values',
	'functions that it may call');
is($node->safe_psql('shop', qq{
SELECT string_agg(relname, ' ' ORDER BY relname COLLATE "C") FROM pg_class
WHERE relnamespace = 'idempotency'::regnamespace AND relkind IN ('r', 'v')
AND has_any_column_privilege('$role', oid, 'SELECT, INSERT, UPDATE')}),
	'idem_activity idem_stats idem_sweep_status idem_throttle_activity', 'relations that it may read');

#
# What goes wrong is seen
#

$node->safe_psql('shop', qq{
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
	\$\$ BEGIN RAISE EXCEPTION '$canary-sweep'; END \$\$;
CREATE TRIGGER refuse BEFORE DELETE ON idempotency.idempotency_keys
	FOR EACH ROW EXECUTE FUNCTION public.refuse();
SELECT count(*) FROM idempotency.idem_dedupe('s', '{c}', 'short')});
$node->append_conf('postgresql.conf', "idempotency.worker = on\n");
$node->reload;
poll('a sweep to fail', sub {
	$node->safe_psql('shop', 'SELECT last_error IS NOT NULL FROM idempotency.idem_sweep_status') eq 't' });
$run = start_exporter($node);
%got = series(my $text = wait_for_queries($run, 0));
is($got{sql_idempotency_sweep_failed}{'col=failed database=shop'}, 1, 'a sweep that failed');
is($got{sql_idempotency_health_ok}{'check=triggers col=ok database=shop'}, 0,
	'a check that fails');
unlike($text . $run->{log}, qr/canary/, 'and not what the error says');
stop_exporter($run);

$node->stop;
$run = start_exporter($node);
wait_for_queries($run, 1);
pass('a server that is down');
stop_exporter($run);

#
# Without preload
#

my $plain = start_node('plain', '');
$run = start_exporter($plain);
%got = series(wait_for_queries($run, 0));
is(join(' ', grep { /idempotency/ } sort keys %got),
	'sql_idempotency_claims sql_idempotency_health_ok sql_idempotency_keys_bytes'
	  . ' sql_idempotency_keys_tuples sql_idempotency_sweep_lag_seconds',
	'without preload: no counters');
is(join(' ', map { "$_ $got{sql_idempotency_claims}{$_}" } sort keys %{ $got{sql_idempotency_claims} }),
	join(' ', map { "col=$_ database=shop policy=default 0" }
		  qw(in_progress lease_ended longest_overdue_seconds oldest_age_seconds)),
	'and no claims: 0 of the default policy');
unlike($run->{log}, qr/"level":"(?!info|debug)/, 'and no errors in the log');
stop_exporter($run);
$plain->stop;

#
# Alerts
#

sub run_promtool
{
	my ($what, $file) = @_;

	command_ok([ $promtool, $what, 'rules', "$doc/monitoring/$file" ], "promtool $what rules");
	return;
}

run_promtool('check', 'idempotency.rules.yml');
run_promtool('test', 'idempotency.rules.test.yml');

my @alerts = $rules =~ /^ +- alert: (\w+)$/mg;
foreach my $alert (@alerts)
{
	like($rules_test, qr/alertname: $alert\n +eval_time: \w+\n +exp_alerts:\n/, "$alert is seen to fire");
	like($rules_test, qr/alertname: $alert\n +eval_time: \w+\n +exp_alerts: \[\]\n/, 'and not to fire');
}
my @described = $document =~ /^\| `(Idempotency\w+)` \|/mg;
is(join(' ', sort @described), join(' ', sort @alerts), 'the document has all alerts');

#
# The dashboard
#

my $board = eval { decode_json($dashboard) };
ok(defined $board, 'the dashboard is JSON');
my @panels = grep { $_->{type} ne 'row' } @{ $board->{panels} };
cmp_ok(scalar(@panels), '>', 10, 'it has panels');
my @expressions;
foreach my $panel (@panels)
{
	my @targets = map { $_->{expr} } @{ $panel->{targets} };

	ok( length $panel->{title} && length $panel->{description}
		  && length $panel->{fieldConfig}{defaults}{unit} && @targets && !grep { !length } @targets,
		'panel ' . ($panel->{title} // $panel->{id}) . ' has a title, a text, a unit and a target');
	is($panel->{datasource}{uid}, '${datasource}', 'and the source that is chosen');
	push @expressions, @targets;
}
is(join(' ', map { $_->{name} } @{ $board->{templating}{list} }), 'datasource database policy',
	'what can be chosen');
my %ids = map { $_->{id} => 1 } @{ $board->{panels} };
is(scalar(keys %ids), scalar(@{ $board->{panels} }), 'ids of panels are unique');

# The expressions are tried as rules, with what Grafana would put in
my $rules_of_board = PostgreSQL::Test::Utils::tempdir . '/board.yml';
append_to_file($rules_of_board, encode_json({ groups => [ { name => 'board', rules => [
	map { { record => "board:$_", expr => $expressions[$_]
		=~ s/\$__rate_interval/5m/gr =~ s/\$(database|policy)/.*/gr } } 0 .. $#expressions ] } ] }));
command_ok([ $promtool, 'check', 'rules', $rules_of_board ], 'promtool understands the panels');

#
# Names
#

my %names = (
	'the alerts' => join("\n", $rules =~ /expr:(.*?)^ +(?:for|labels):/msg),
	'the dashboard' => join("\n", @expressions,
		map { ref $_->{query} ? $_->{query}{query} : () } @{ $board->{templating}{list} }),
	'the document' => $document =~ s/\bsql_idempotency_sweep_last_`//gr);
foreach my $where (sort keys %names)
{
	my %missing = map { $_ => 1 } grep { !$delivered{$_} } $names{$where} =~ /\b(sql_(?:idem|exp)\w+)/g;

	is(join(' ', sort keys %missing), '', "$where: names of what is delivered");
}
my %unseen = map { $_ => 1 } grep { $names{'the dashboard'} !~ /\b$_\b/ } keys %queries;
is(join(' ', sort keys %unseen), '', 'the dashboard shows every metric');
my %undescribed = map { $_ => 1 } grep { $names{'the document'} !~ /^\| `$_` \|/m } keys %queries;
is(join(' ', sort keys %undescribed), '', 'the document describes every metric');

done_testing();
