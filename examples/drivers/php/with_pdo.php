<?php
// PDO: prepared by the server, or ATTR_EMULATE_PREPARES, which puts the values into
// the statement and has the simple protocol.

function say(array $what): void
{
    echo json_encode($what, JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES | JSON_THROW_ON_ERROR), "\n";
}

// What the driver made of a column; bytes are a stream.
function tagged($value): ?array
{
    if ($value === null) {
        return null;
    }
    if (is_bool($value)) {
        return ['bool' => $value];
    }
    if (is_int($value)) {
        return ['int' => (string) $value];
    }
    if (is_resource($value)) {
        return ['bytes' => bin2hex(stream_get_contents($value))];
    }
    return ['text' => $value];
}

$file = json_decode(file_get_contents('../statements.json'));
$values = (array) $file->values;
$read = [];
$pdo = new PDO("pgsql:host={$_SERVER['PGHOST']};port={$_SERVER['PGPORT']};dbname={$_SERVER['PGDATABASE']}",
    $_SERVER['PGUSER'], null, [
        PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION,
        PDO::ATTR_EMULATE_PREPARES => $argv[1] === 'emulated',
    ]);
say(['version' => PHP_VERSION]);

foreach ($file->steps as $step) {
    try {
        $statement = $pdo->prepare(preg_replace('/\$\d+/', '?', $step->sql));
        foreach ($step->args as $number => $name) {
            [$kind, $value] = $values[$name] ?? ['bigint', $read[$name] ?? null];
            $type = PDO::PARAM_STR;
            if ($value === null) {
                $type = PDO::PARAM_NULL;
            } elseif ($kind === 'json') {
                $value = json_encode($value);
            } elseif ($kind === 'bytes') {
                $value = hex2bin($value);
                $type = PDO::PARAM_LOB;
            } elseif ($kind === 'texts') {
                $value = '{' . substr(json_encode($value), 1, -1) . '}';
            } elseif (is_int($value)) {
                $type = PDO::PARAM_INT;
            }
            $statement->bindValue($number + 1, $value, $type);
        }
        $statement->execute();
        $rows = $statement->fetchAll(PDO::FETCH_ASSOC);
        foreach ($rows[0] ?? [] as $column => $value) {
            $read["$step->name.$column"] = $value;
        }
        say([
            'name' => $step->name,
            'columns' => array_keys($rows[0] ?? []),
            'rows' => array_map(fn ($row) => array_map('tagged', array_values($row)), $rows),
        ]);
    } catch (PDOException $error) {
        say(['name' => $step->name, 'error' => $error->getMessage()]);
    }
}
