// Go: pgx by its own interface, default or by the simple protocol; database/sql with
// lib/pq, default, with binary_parameters, or without parameters; or with pgx.
package main

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgtype"
	"github.com/jackc/pgx/v4"
	_ "github.com/jackc/pgx/v4/stdlib"
	"github.com/lib/pq"
)

type step struct {
	Name string
	SQL  string
	Args []string
}

type rows struct {
	columns []string
	values  [][]interface{}
}

var file struct {
	Values map[string][]json.RawMessage
	Steps  []step
}
var read = map[string]interface{}{}

func say(what map[string]interface{}) {
	line, err := json.Marshal(what)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(line))
}

// What the driver made of a column.
func tagged(value interface{}) interface{} {
	tag := func(name string, value interface{}) interface{} {
		return map[string]interface{}{name: value}
	}
	switch value := value.(type) {
	case nil:
		return nil
	case bool:
		return tag("bool", value)
	case int32, int64:
		return tag("int", fmt.Sprint(value))
	case []byte:
		return tag("bytes", hex.EncodeToString(value))
	case time.Time:
		return tag("time", value.UTC().Format(time.RFC3339Nano))
	case string:
		return tag("text", value)
	}
	return tag("json", value)
}

// JSON is sent as text; so are arrays where the driver is to be told of none.
func parameter(name string, arrays func([]string) interface{}) interface{} {
	given, ok := file.Values[name]
	if !ok {
		return read[name]
	}
	var kind, text string
	must(json.Unmarshal(given[0], &kind))
	switch kind {
	case "json":
		return string(given[1])
	case "int", "bigint":
		number, err := strconv.ParseInt(string(given[1]), 10, 64)
		must(err)
		return number
	case "texts":
		var texts []string
		must(json.Unmarshal(given[1], &texts))
		return arrays(texts)
	}
	if string(given[1]) == "null" {
		return nil
	}
	must(json.Unmarshal(given[1], &text))
	if kind == "bytes" {
		octets, err := hex.DecodeString(text)
		must(err)
		return octets
	}
	return text
}

var placeholder = regexp.MustCompile(`\$\d+`)

// The statement with its parameters in it.
func inlined(statement string, parameters []interface{}) string {
	return placeholder.ReplaceAllStringFunc(statement, func(found string) string {
		number, _ := strconv.Atoi(found[1:])
		switch value := parameters[number-1].(type) {
		case nil:
			return "NULL"
		case []byte:
			return pq.QuoteLiteral("\\x" + hex.EncodeToString(value))
		case *pq.StringArray:
			text, err := value.Value()
			must(err)
			return pq.QuoteLiteral(text.(string))
		default:
			return pq.QuoteLiteral(fmt.Sprint(value))
		}
	})
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func arraysOfPq(texts []string) interface{} { return (*pq.StringArray)(&texts) }
func arraysOfPgx(texts []string) interface{} { return texts }

// database/sql: lib/pq gives []byte for what it does not know, and JSON is such;
// by the column's type it is told what is text.
func byDatabaseSQL(db *sql.DB, statement string, parameters []interface{}) (rows, error) {
	found, err := db.Query(statement, parameters...)
	if err != nil {
		return rows{}, err
	}
	defer found.Close()
	types, err := found.ColumnTypes()
	must(err)
	all := rows{}
	for _, kind := range types {
		all.columns = append(all.columns, kind.Name())
	}
	for found.Next() {
		values := make([]interface{}, len(types))
		places := make([]interface{}, len(types))
		for i := range values {
			places[i] = &values[i]
		}
		if err := found.Scan(places...); err != nil {
			return rows{}, err
		}
		for i, value := range values {
			if octets, ok := value.([]byte); ok && types[i].DatabaseTypeName() != "BYTEA" {
				values[i] = string(octets)
			}
		}
		all.values = append(all.values, values)
	}
	return all, found.Err()
}

func byPgx(conn *pgx.Conn, statement string, parameters []interface{}) (rows, error) {
	found, err := conn.Query(context.Background(), statement, parameters...)
	if err != nil {
		return rows{}, err
	}
	defer found.Close()
	all := rows{}
	for _, field := range found.FieldDescriptions() {
		all.columns = append(all.columns, string(field.Name))
	}
	for found.Next() {
		values, err := found.Values()
		if err != nil {
			return rows{}, err
		}
		all.values = append(all.values, values)
	}
	return all, found.Err()
}

func run(version string, arrays func([]string) interface{},
	execute func(string, []interface{}) (rows, error)) {
	say(map[string]interface{}{"version": version})
	for _, step := range file.Steps {
		parameters := []interface{}{}
		for _, name := range step.Args {
			parameters = append(parameters, parameter(name, arrays))
		}
		result, err := execute(step.SQL, parameters)
		if err != nil {
			say(map[string]interface{}{"name": step.Name, "error": err.Error()})
			continue
		}
		lines := [][]interface{}{}
		for number, row := range result.values {
			line := []interface{}{}
			for i, value := range row {
				if number == 0 {
					read[step.Name+"."+result.columns[i]] = value
				}
				line = append(line, tagged(value))
			}
			lines = append(lines, line)
		}
		say(map[string]interface{}{
			"name": step.Name, "columns": result.columns, "rows": lines})
	}
}

func main() {
	text, err := os.ReadFile("../statements.json")
	must(err)
	must(json.Unmarshal(text, &file))
	version, driver, mode := os.Args[1], os.Args[2], os.Args[3]

	if driver == "pgx" && mode != "database/sql" {
		config, err := pgx.ParseConfig("")
		must(err)
		config.PreferSimpleProtocol = mode == "simple"
		conn, err := pgx.ConnectConfig(context.Background(), config)
		must(err)
		defer conn.Close(context.Background())
		run(version, arraysOfPgx, func(statement string, parameters []interface{}) (rows, error) {
			return byPgx(conn, statement, parameters)
		})
		return
	}

	url := ""
	if mode == "binary" {
		url = "binary_parameters=yes"
	}
	arrays := arraysOfPq
	if driver == "pgx" {
		arrays = func(texts []string) interface{} {
			var array pgtype.TextArray
			must(array.Set(texts))
			return &array
		}
	}
	db, err := sql.Open(map[string]string{"pgx": "pgx", "pq": "postgres"}[driver], url)
	must(err)
	defer db.Close()
	run(version, arrays, func(statement string, parameters []interface{}) (rows, error) {
		if mode == "simple" {
			return byDatabaseSQL(db, inlined(statement, parameters), nil)
		}
		return byDatabaseSQL(db, statement, parameters)
	})
}
