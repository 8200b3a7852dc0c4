import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.concurrent.ThreadLocalRandom;

/**
 * Orders from standard input, a line each: KEY REQUEST. For each, one line:
 * STATUS OUTCOME TRIES BODY. Connects to what DATABASE_URL says, jdbc:postgresql:….
 */
public class Buy {
    static final int TRIES = 10;
    static final String BUY = """
        SELECT outcome, http_status, body, retry_after_ms
            FROM idempotency.idem_run('shop.buy(jsonb)',
                idempotency.idem_scope('shop', 'buy'), ?, ?::jsonb, 'orders')""";

    record Answer(String outcome, int status, byte[] body, double retryAfter) {}

    /** A lost connection, or none, is 08001, 08003 or 08006 with this driver. */
    static boolean worthARetry(String state) {
        return state == null || state.matches("08...|57P..|40001|40P01|53300");
    }

    /** 50 ms, 100 ms, … 2 s, from half of it to the whole; at least so many s. */
    static void pauseBefore(int tries, double atLeast) throws InterruptedException {
        double seconds = Math.min(2, 0.05 * (1 << (tries - 1)))
            * ThreadLocalRandom.current().nextDouble(0.5, 1);
        Thread.sleep((long) (1000 * Math.max(seconds, atLeast)));
    }

    static Answer buyOnce(String key, String request) throws SQLException {
        try (Connection connection = DriverManager.getConnection(System.getenv("DATABASE_URL"))) {
            connection.setAutoCommit(false);
            try (PreparedStatement statement = connection.prepareStatement(BUY)) {
                statement.setString(1, key);
                statement.setString(2, request);
                ResultSet row = statement.executeQuery();
                row.next();
                Answer answer = new Answer(
                    row.getString(1), row.getInt(2), row.getBytes(3), row.getDouble(4) / 1000);
                connection.commit();        // only now is it an answer
                return answer;
            }
        }
    }

    static void buy(String key, String request, PrintStream out) throws Exception {
        for (int tries = 1;; tries++) {
            double retryAfter = 0;
            try {
                Answer answer = buyOnce(key, request);
                if (!answer.outcome.equals("in_progress") || tries == TRIES) {
                    out.printf("%d %s %d ", answer.status, answer.outcome, tries);
                    out.write(answer.body == null ? new byte[0] : answer.body);
                    out.print("\n");
                    out.flush();
                    return;
                }
                retryAfter = answer.retryAfter;
            } catch (SQLException error) {
                if (!worthARetry(error.getSQLState()) || tries == TRIES) {
                    System.err.println(error.getMessage());
                    out.printf("error %s %d\n", error.getSQLState(), tries);
                    out.flush();
                    return;
                }
            }
            pauseBefore(tries, retryAfter);
        }
    }

    public static void main(String[] arguments) throws Exception {
        BufferedReader in = new BufferedReader(
            new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        for (String line; (line = in.readLine()) != null;) {
            String[] order = line.split(" ", 2);
            buy(order[0], order[1], out);
        }
    }
}
