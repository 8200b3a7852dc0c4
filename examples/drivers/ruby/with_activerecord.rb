# ActiveRecord: prepared statements, its default, or prepared_statements: false.

require 'active_record'
require 'json'

# What the driver made of a column.
def tagged(value)
  case value
  when nil then nil
  when true, false then { bool: value }
  when Integer then { int: value.to_s }
  when Time then { time: value.getutc.iso8601(6) }
  when ActiveRecord::Type::Binary::Data then { bytes: value.hex }
  when String
    value.encoding == Encoding::BINARY ? { bytes: value.unpack1('H*') } : { text: value }
  else { json: value }
  end
end

file = JSON.parse(File.read(File.join(__dir__, '../statements.json')))
values = file['values']
read = {}
ActiveRecord::Base.establish_connection(
  adapter: 'postgresql', host: ENV['PGHOST'], port: ENV['PGPORT'], username: ENV['PGUSER'],
  database: ENV['PGDATABASE'], prepared_statements: ARGV[0] == 'default'
)
connection = ActiveRecord::Base.connection
binary = ActiveRecord::Type::Binary.new
puts JSON.generate(version: ActiveRecord.version.to_s)

file['steps'].each do |step|
  binds = step['args'].map do |name|
    kind, value = values.fetch(name) { ['bigint', read[name]] }
    case kind
    when 'bytes'
      ActiveRecord::Relation::QueryAttribute.new('', [value].pack('H*'), binary)
    when 'json'
      ActiveRecord::Relation::QueryAttribute.new('', value, ActiveRecord::Type::Json.new)
    when 'texts'
      ActiveRecord::Relation::QueryAttribute.new(
        '', "{#{value.map { |text| JSON.generate(text) }.join(',')}}", ActiveRecord::Type::String.new
      )
    when 'text'
      ActiveRecord::Relation::QueryAttribute.new('', value, ActiveRecord::Type::String.new)
    else
      ActiveRecord::Relation::QueryAttribute.new('', value, ActiveRecord::Type::Integer.new(limit: 8))
    end
  end
  begin
    sql = step['sql']
    unless connection.prepared_statements
      sql = sql.gsub(/\$(\d+)/) { connection.quote(binds[$1.to_i - 1].value_for_database) }
      binds = []
    end
    result = connection.exec_query(sql, 'step', binds)
    # of one column alone it makes no rows
    rows = result.cast_values
    rows = rows.map { |value| [value] } if result.columns.one?
    result.columns.each_with_index { |name, i| read["#{step['name']}.#{name}"] = rows[0][i] if rows[0] }
    puts JSON.generate(name: step['name'], columns: result.columns,
                       rows: rows.map { |row| row.map { |value| tagged(value) } })
  rescue ActiveRecord::StatementInvalid => e
    puts JSON.generate(name: step['name'], error: e.message)
  end
end
