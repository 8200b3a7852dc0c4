import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Timestamp;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import java.util.stream.StreamSupport;
import org.postgresql.jdbc.PgConnection;
import org.postgresql.jdbc.PreferQueryMode;
import org.postgresql.util.PGobject;

/**
 * JDBC: default, binary (a statement prepared at once, whose results are binary), or
 * preferQueryMode=simple. Columns are read by getObject, JSON is sent by setString.
 */
public class WithJdbc {
    static final Gson GSON = new GsonBuilder().serializeNulls().disableHtmlEscaping().create();
    static final Map<String, Object> READ = new HashMap<>();
    static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

    static JsonObject tag(String name, String value) {
        JsonObject tagged = new JsonObject();
        tagged.addProperty(name, value);
        return tagged;
    }

    /** What the driver made of a column. */
    static JsonElement tagged(Object value) {
        if (value == null) {
            return JsonNull.INSTANCE;
        } else if (value instanceof Boolean bool) {
            JsonObject tagged = new JsonObject();
            tagged.addProperty("bool", bool);
            return tagged;
        } else if (value instanceof Integer || value instanceof Long) {
            return tag("int", value.toString());
        } else if (value instanceof byte[] bytes) {
            return tag("bytes", HexFormat.of().formatHex(bytes));
        } else if (value instanceof Timestamp time) {
            return tag("time", time.toInstant().toString());
        } else if (value instanceof PGobject object) {
            return tag("text", object.getValue());
        } else if (value instanceof String text) {
            return tag("text", text);
        }
        throw new IllegalArgumentException("a column is a " + value.getClass());
    }

    static void set(Connection connection, PreparedStatement statement, int place, JsonArray given,
            String name) throws SQLException {
        if (given == null) {
            statement.setObject(place, READ.get(name));
            return;
        }
        JsonElement value = given.get(1);
        switch (given.get(0).getAsString()) {
            case "text" -> statement.setString(place, value.isJsonNull() ? null : value.getAsString());
            case "json" -> statement.setString(place, GSON.toJson(value));
            case "bytes" -> {
                // in this mode setBytes leaves a "?" in the statement
                if (connection.unwrap(PgConnection.class).getPreferQueryMode() == PreferQueryMode.SIMPLE) {
                    statement.setString(place, "\\x" + value.getAsString());
                } else {
                    statement.setBytes(place, HexFormat.of().parseHex(value.getAsString()));
                }
            }
            case "int" -> statement.setInt(place, value.getAsInt());
            case "bigint" -> statement.setLong(place, value.getAsLong());
            default -> statement.setArray(place, connection.createArrayOf("text",
                StreamSupport.stream(value.getAsJsonArray().spliterator(), false)
                    .map(JsonElement::getAsString).toArray()));
        }
    }

    static void report(String name, ResultSet result) throws SQLException {
        ResultSetMetaData meta = result.getMetaData();
        JsonArray columns = new JsonArray();
        JsonArray rows = new JsonArray();
        for (int i = 1; i <= meta.getColumnCount(); i++) {
            columns.add(meta.getColumnName(i));
        }
        while (result.next()) {
            JsonArray row = new JsonArray();
            for (int i = 1; i <= meta.getColumnCount(); i++) {
                Object value = result.getObject(i);
                READ.putIfAbsent(name + "." + meta.getColumnName(i), value);
                row.add(tagged(value));
            }
            rows.add(row);
        }
        JsonObject line = tag("name", name);
        line.add("columns", columns);
        line.add("rows", rows);
        OUT.println(GSON.toJson(line));
    }

    public static void main(String[] arguments) throws Exception {
        JsonObject file = JsonParser.parseString(
            Files.readString(Path.of("../statements.json"))).getAsJsonObject();
        JsonObject values = file.getAsJsonObject("values");
        String options = switch (arguments[0]) {
            case "simple" -> "&preferQueryMode=simple";
            case "binary" -> "&prepareThreshold=-1";
            default -> "";
        };
        OUT.println(GSON.toJson(tag("version", org.postgresql.util.DriverInfo.DRIVER_VERSION)));
        try (Connection connection =
                DriverManager.getConnection(System.getenv("DATABASE_URL") + options)) {
            for (JsonElement element : file.getAsJsonArray("steps")) {
                JsonObject step = element.getAsJsonObject();
                String name = step.get("name").getAsString();
                String sql = step.get("sql").getAsString().replaceAll("\\$\\d+", "?");
                try (PreparedStatement statement = connection.prepareStatement(sql)) {
                    JsonArray names = step.getAsJsonArray("args");
                    for (int i = 0; i < names.size(); i++) {
                        String value = names.get(i).getAsString();
                        set(connection, statement, i + 1, values.getAsJsonArray(value), value);
                    }
                    report(name, statement.executeQuery());
                } catch (SQLException error) {
                    JsonObject line = tag("name", name);
                    line.addProperty("error", error.getMessage());
                    OUT.println(GSON.toJson(line));
                }
            }
        }
    }
}
