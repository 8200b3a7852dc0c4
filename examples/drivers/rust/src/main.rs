//! tokio-postgres: prepared, with binary results, or simple_query, whose results are
//! text.  It takes a Rust type for each type of PostgreSQL: the enum has one here.

use std::collections::HashMap;
use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{json, Value};
use tokio_postgres::types::{to_sql_checked, FromSql, Kind, ToSql, Type};
use tokio_postgres::{Client, NoTls, Row, SimpleQueryMessage};

/// idem_outcome, or any other enum: its label.
struct Label(String);

impl<'a> FromSql<'a> for Label {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Label(std::str::from_utf8(raw)?.to_string()))
    }

    fn accepts(kind: &Type) -> bool {
        matches!(kind.kind(), Kind::Enum(_))
    }
}

/// An integer parameter, of the size that the server asks for.
#[derive(Debug)]
struct Number(i64);

impl ToSql for Number {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut tokio_postgres::types::private::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn Error + Sync + Send>> {
        if *kind == Type::INT4 {
            (self.0 as i32).to_sql(kind, out)
        } else {
            self.0.to_sql(kind, out)
        }
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::INT4 || *kind == Type::INT8
    }

    to_sql_checked!();
}

enum Parameter {
    Null,
    Text(String),
    Texts(Vec<String>),
    Bytes(Vec<u8>),
    Json(Value),
    Number(Number),
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap().to_string()
}

fn parameter(given: Option<&Value>, read: Option<&i64>) -> Parameter {
    let given = match given {
        Some(given) => given,
        None => return read.map_or(Parameter::Null, |number| Parameter::Number(Number(*number))),
    };
    let value = &given[1];
    match given[0].as_str().unwrap() {
        _ if value.is_null() => Parameter::Null,
        "text" => Parameter::Text(text_of(value)),
        "texts" => Parameter::Texts(value.as_array().unwrap().iter().map(text_of).collect()),
        "bytes" => Parameter::Bytes(unhex(value.as_str().unwrap())),
        "json" => Parameter::Json(value.clone()),
        _ => Parameter::Number(Number(value.as_i64().unwrap())),
    }
}

/// What the driver made of a column.
fn tagged(row: &Row, at: usize) -> Result<Value, tokio_postgres::Error> {
    fn tag<T>(value: Option<T>, make: impl Fn(T) -> Value) -> Value {
        value.map_or(Value::Null, make)
    }
    let kind = row.columns()[at].type_();
    Ok(match *kind {
        Type::BOOL => tag(row.try_get(at)?, |v: bool| json!({ "bool": v })),
        Type::INT4 => tag(row.try_get(at)?, |v: i32| json!({ "int": v.to_string() })),
        Type::INT8 => tag(row.try_get(at)?, |v: i64| json!({ "int": v.to_string() })),
        Type::BYTEA => tag(row.try_get(at)?, |v: Vec<u8>| json!({ "bytes": hex(&v) })),
        Type::JSON | Type::JSONB => tag(row.try_get(at)?, |v: Value| json!({ "json": v })),
        Type::TIMESTAMPTZ => tag(row.try_get(at)?, |v: SystemTime| {
            let since = v.duration_since(UNIX_EPOCH).unwrap();
            json!({ "epoch": [since.as_secs(), since.subsec_micros()] })
        }),
        Type::TEXT => tag(row.try_get(at)?, |v: String| json!({ "text": v })),
        _ => tag(row.try_get(at)?, |v: Label| json!({ "text": v.0 })),
    })
}

fn literal(parameter: &Parameter) -> String {
    let text = match parameter {
        Parameter::Null => return "NULL".to_string(),
        Parameter::Text(text) => text.clone(),
        Parameter::Texts(texts) => {
            let array = json!(texts).to_string();
            format!("{{{}}}", &array[1..array.len() - 1])
        }
        Parameter::Bytes(bytes) => format!("\\x{}", hex(bytes)),
        Parameter::Json(value) => value.to_string(),
        Parameter::Number(number) => return number.0.to_string(),
    };
    format!("'{}'", text.replace('\'', "''"))
}

type Rows = (Vec<String>, Vec<Vec<Value>>);

async fn prepared(client: &Client, sql: &str, parameters: &[Parameter]) -> Result<Rows, tokio_postgres::Error> {
    let references: Vec<&(dyn ToSql + Sync)> = parameters
        .iter()
        .map(|parameter| match parameter {
            Parameter::Null => &None::<String> as &(dyn ToSql + Sync),
            Parameter::Text(value) => value,
            Parameter::Texts(value) => value,
            Parameter::Bytes(value) => value,
            Parameter::Json(value) => value,
            Parameter::Number(value) => value,
        })
        .collect();
    let statement = client.prepare(sql).await?;
    let columns = statement.columns().iter().map(|column| column.name().to_string()).collect();
    let mut rows = Vec::new();
    for row in client.query(&statement, &references).await? {
        rows.push((0..row.len()).map(|at| tagged(&row, at)).collect::<Result<Vec<_>, _>>()?);
    }
    Ok((columns, rows))
}

/// All is text, and nothing says of which type: bytes are `\x` and digits.
async fn simple(client: &Client, sql: &str, parameters: &[Parameter]) -> Result<Rows, tokio_postgres::Error> {
    let mut statement = sql.to_string();
    let mut at = 0;
    for (number, parameter) in parameters.iter().enumerate() {
        let placeholder = format!("${}", number + 1);
        let found = at + statement[at..].find(&placeholder).unwrap();
        let literal = literal(parameter);
        statement.replace_range(found..found + placeholder.len(), &literal);
        at = found + literal.len();
    }
    let (mut columns, mut rows) = (Vec::new(), Vec::new());
    for message in client.simple_query(&statement).await? {
        if let SimpleQueryMessage::Row(row) = message {
            columns = row.columns().iter().map(|column| column.name().to_string()).collect();
            rows.push(
                (0..row.len())
                    .map(|at| match row.get(at) {
                        None => Value::Null,
                        Some(text) if BYTES.contains(&row.columns()[at].name()) => json!({ "bytes": &text[2..] }),
                        Some(text) => json!({ "text": text }),
                    })
                    .collect(),
            );
        }
    }
    Ok((columns, rows))
}

const BYTES: [&str; 5] = ["body", "body_sha256", "fingerprint", "idem_fingerprint", "idem_context"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let file: Value = serde_json::from_str(&std::fs::read_to_string("../statements.json")?)?;
    let setting = |name| std::env::var(name).unwrap();
    let (client, connection) = tokio_postgres::Config::new()
        .host(&setting("PGHOST"))
        .port(setting("PGPORT").parse()?)
        .user(&setting("PGUSER"))
        .dbname(&setting("PGDATABASE"))
        .connect(NoTls)
        .await?;
    let connection = tokio::spawn(connection);
    println!("{}", json!({ "version": arguments[1] }));

    let mut read: HashMap<String, i64> = HashMap::new();
    for step in file["steps"].as_array().unwrap() {
        let (name, sql) = (text_of(&step["name"]), text_of(&step["sql"]));
        let parameters: Vec<Parameter> = step["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap())
            .map(|name| parameter(file["values"].get(name), read.get(name)))
            .collect();
        let result = match arguments[2].as_str() {
            "simple" => simple(&client, &sql, &parameters).await,
            _ => prepared(&client, &sql, &parameters).await,
        };
        match result {
            Ok((columns, rows)) => {
                for (column, value) in columns.iter().zip(rows.first().unwrap_or(&Vec::new())) {
                    let number = value["int"].as_str().or_else(|| value["text"].as_str());
                    if let Some(Ok(number)) = number.map(str::parse) {
                        read.insert(format!("{name}.{column}"), number);
                    }
                }
                println!("{}", json!({ "name": name, "columns": columns, "rows": rows }));
            }
            Err(error) => println!("{}", json!({ "name": name, "error": format!("{error}: {:?}", error.source()) })),
        }
    }
    drop(client);
    connection.await??;
    Ok(())
}
