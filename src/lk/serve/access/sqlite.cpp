// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/sqlite.h"

#include <utility>

namespace lk {

Result<std::unique_ptr<SqliteDatabase>> SqliteDatabase::open(const std::string& path) {
  std::unique_ptr<SqliteDatabase> database(new SqliteDatabase());
  database->path_ = path;
  // A leading ':' or "file:" would mean something else to SQLite than a file of that name.
  const bool special = path.starts_with(':') || path.starts_with("file:");
  const std::string name = special ? "./" + path : path;
  const int code =
      sqlite3_open_v2(name.c_str(), &database->handle_, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, nullptr);
  if (database->handle_ == nullptr) return io_error("{}: out of memory", path);
  if (code != SQLITE_OK) return database->error(code);
  sqlite3* handle = database->handle_;
  database->wait_at_most(std::chrono::seconds(5));
  sqlite3_limit(handle, SQLITE_LIMIT_LENGTH, 1 << 20);
  for (const auto& [setting, value] : {std::pair{SQLITE_DBCONFIG_DEFENSIVE, 1},
                                       {SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0},
                                       {SQLITE_DBCONFIG_ENABLE_TRIGGER, 0},
                                       {SQLITE_DBCONFIG_ENABLE_VIEW, 0},
                                       {SQLITE_DBCONFIG_ENABLE_FKEY, 1}})
    sqlite3_db_config(handle, setting, value, static_cast<int*>(nullptr));
  return database;
}

void SqliteDatabase::wait_at_most(std::chrono::milliseconds patience) {
  sqlite3_busy_timeout(handle_, static_cast<int>(patience.count()));
}

SqliteDatabase::~SqliteDatabase() { sqlite3_close_v2(handle_); }

Status SqliteDatabase::error(int code) const {
  const char* detail = handle_ != nullptr ? sqlite3_errmsg(handle_) : sqlite3_errstr(code);
  switch (code & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_FORMAT:
    case SQLITE_MISMATCH:
      return data_loss("state file {} is damaged: {}; restore it from a copy or move it away", path_, detail);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return unavailable("state file {} is locked by another process: {}", path_, detail);
    default:
      return io_error("state file {}: {}", path_, detail);
  }
}

Status SqliteDatabase::execute(const char* sql) {
  const int code = sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? Status() : error(code);
}

Result<int64_t> SqliteDatabase::query_integer(const char* sql) {
  LK_ASSIGN_OR_RETURN(SqliteStatement statement, SqliteStatement::prepare(*this, sql));
  LK_ASSIGN_OR_RETURN(const bool row, statement.next());
  return row ? statement.integer(0) : 0;
}

Result<std::string> SqliteDatabase::query_text(const char* sql) {
  LK_ASSIGN_OR_RETURN(SqliteStatement statement, SqliteStatement::prepare(*this, sql));
  LK_ASSIGN_OR_RETURN(const bool row, statement.next());
  return row ? statement.text(0) : std::string();
}

Result<SqliteStatement> SqliteStatement::prepare(SqliteDatabase& database, std::string_view sql,
                                                 std::initializer_list<SqliteValue> values) {
  sqlite3_stmt* handle = nullptr;
  int code = sqlite3_prepare_v2(database.handle(), sql.data(), static_cast<int>(sql.size()), &handle, nullptr);
  // Our own statements are right: one that does not fit the file means that its tables are not ours.
  if ((code & 0xff) == SQLITE_ERROR)
    return data_loss("state file {} has other tables than expected: {}", database.path(),
                     sqlite3_errmsg(database.handle()));
  if (code != SQLITE_OK) return database.error(code);
  SqliteStatement statement(database, handle);
  int index = 0;
  for (const SqliteValue& value : values) {
    ++index;
    if (const auto* number = std::get_if<int64_t>(&value))
      code = sqlite3_bind_int64(handle, index, *number);
    else if (const auto* real = std::get_if<double>(&value))
      code = sqlite3_bind_double(handle, index, *real);
    else {
      const auto text = std::get<std::string_view>(value);
      code = sqlite3_bind_text(handle, index, text.empty() ? "" : text.data(), static_cast<int>(text.size()),
                               SQLITE_STATIC);
    }
    if (code != SQLITE_OK) return database.error(code);
  }
  return statement;
}

SqliteStatement::SqliteStatement(SqliteStatement&& other) noexcept
    : database_(other.database_), handle_(std::exchange(other.handle_, nullptr)) {}

SqliteStatement::~SqliteStatement() { sqlite3_finalize(handle_); }

Result<bool> SqliteStatement::next() {
  const int code = sqlite3_step(handle_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return database_->error(code);
}

Status SqliteStatement::run() {
  for (;;) {
    LK_ASSIGN_OR_RETURN(const bool row, next());
    if (!row) return Status();
  }
}

std::string SqliteStatement::text(int column) const {
  const auto* data = reinterpret_cast<const char*>(sqlite3_column_text(handle_, column));
  return data == nullptr ? std::string()
                         : std::string(data, static_cast<size_t>(sqlite3_column_bytes(handle_, column)));
}

Result<SqliteTransaction> SqliteTransaction::begin(SqliteDatabase& database, Kind kind) {
  LK_RETURN_IF_ERROR(database.execute(kind == Kind::kWrite ? "BEGIN IMMEDIATE" : "BEGIN"));
  return SqliteTransaction(&database);
}

SqliteTransaction::~SqliteTransaction() {
  if (database_ != nullptr) (void)database_->execute("ROLLBACK");
}

Status SqliteTransaction::commit() {
  LK_RETURN_IF_ERROR(database_->execute("COMMIT"));
  database_ = nullptr;
  return Status();
}

}  // namespace lk
