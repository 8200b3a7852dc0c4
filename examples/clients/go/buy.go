// Orders from standard input, a line each: KEY REQUEST.  For each, one line:
// STATUS OUTCOME TRIES BODY.  Connects as the PG* variables say.
package main

import (
	"bufio"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"math/rand"
	"os"
	"strings"
	"time"

	_ "github.com/lib/pq" // or pgx: "github.com/jackc/pgx/v4/stdlib", and "pgx" below
)

const tries = 10
const driverName = "postgres"
const statement = `
	SELECT outcome, http_status, body, retry_after_ms
		FROM idempotency.idem_run('shop.buy(jsonb)',
			idempotency.idem_scope('shop', 'buy'), $1, $2::jsonb, 'orders')`

// The SQLSTATE, with lib/pq and with pgx; "none" if the error is not from the
// server: the connection is lost, or there was none.
func stateOf(err error) string {
	var server interface{ SQLState() string }
	if errors.As(err, &server) {
		return server.SQLState()
	}
	return "none"
}

func worthARetry(state string) bool {
	switch state {
	case "none", "40001", "40P01", "53300":
		return true
	}
	return strings.HasPrefix(state, "08") || strings.HasPrefix(state, "57P")
}

// 50 ms, 100 ms, … 2 s, from half of it to the whole; at least so many s.
func pauseBefore(try int, atLeast float64) {
	seconds := 2.0
	if try <= 6 {
		seconds = 0.05 * float64(int(1)<<(try-1))
	}
	seconds *= 0.5 + rand.Float64()/2
	if seconds < atLeast {
		seconds = atLeast
	}
	time.Sleep(time.Duration(seconds * float64(time.Second)))
}

func buy(db *sql.DB, key, request string) {
	for try := 1; ; try++ {
		var outcome string
		var status int
		var body []byte
		var retryAfterMs sql.NullInt64
		err := db.QueryRow(statement, key, request).Scan(&outcome, &status, &body, &retryAfterMs)
		if err == nil && (outcome != "in_progress" || try == tries) {
			fmt.Printf("%d %s %d %s\n", status, outcome, try, body)
			return
		}
		if err != nil && (!worthARetry(stateOf(err)) || try == tries) {
			log.Print(err)
			fmt.Printf("error %s %d\n", stateOf(err), try)
			return
		}
		pauseBefore(try, float64(retryAfterMs.Int64)/1000)
	}
}

func main() {
	rand.Seed(time.Now().UnixNano())
	db, err := sql.Open(driverName, "")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		key, request, _ := strings.Cut(in.Text(), " ")
		buy(db, key, request)
	}
}
