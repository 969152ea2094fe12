// SPDX-License-Identifier: Apache-2.0
// SQLite behind Status: connections, statements and transactions that clean up after themselves. Only state_store uses
// it.
#pragma once

#include <sqlite3.h>

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "lk/base/status.h"

namespace lk {

class SqliteDatabase {
 public:
  // The file must exist. Hardened: no triggers, no views, no functions from the schema, values of at most 1 MiB.
  static Result<std::unique_ptr<SqliteDatabase>> open(const std::string& path);
  ~SqliteDatabase();
  SqliteDatabase(const SqliteDatabase&) = delete;
  SqliteDatabase& operator=(const SqliteDatabase&) = delete;

  Status execute(const char* sql);
  // First column of the first row.
  Result<int64_t> query_integer(const char* sql);
  Result<std::string> query_text(const char* sql);

  // How long a statement may wait for other processes' locks; 5 s when nothing else is said.
  void wait_at_most(std::chrono::milliseconds patience);

  // kDataLoss for a damaged file, kUnavailable for a locked one, kIoError otherwise; names the file.
  Status error(int code) const;
  sqlite3* handle() { return handle_; }
  int64_t changes() const { return sqlite3_changes64(handle_); }  // rows of the last INSERT, UPDATE or DELETE
  const std::string& path() const { return path_; }

 private:
  SqliteDatabase() = default;
  sqlite3* handle_ = nullptr;
  std::string path_;
};

using SqliteValue = std::variant<int64_t, double, std::string_view>;  // texts need to live until the statement is done

class SqliteStatement {
 public:
  static Result<SqliteStatement> prepare(SqliteDatabase& database, std::string_view sql,
                                         std::initializer_list<SqliteValue> values = {});
  SqliteStatement(SqliteStatement&& other) noexcept;
  SqliteStatement& operator=(SqliteStatement&&) = delete;
  ~SqliteStatement();

  Result<bool> next();  // true: there is a row
  Status run();         // to the end
  int64_t integer(int column) const { return sqlite3_column_int64(handle_, column); }
  double real(int column) const { return sqlite3_column_double(handle_, column); }
  std::string text(int column) const;

 private:
  SqliteStatement(SqliteDatabase& database, sqlite3_stmt* handle) : database_(&database), handle_(handle) {}
  SqliteDatabase* database_;
  sqlite3_stmt* handle_;
};

// Rolled back unless committed.
class SqliteTransaction {
 public:
  enum class Kind { kRead, kWrite };
  static Result<SqliteTransaction> begin(SqliteDatabase& database, Kind kind);
  SqliteTransaction(SqliteTransaction&& other) noexcept : database_(std::exchange(other.database_, nullptr)) {}
  SqliteTransaction& operator=(SqliteTransaction&&) = delete;
  ~SqliteTransaction();
  Status commit();

 private:
  explicit SqliteTransaction(SqliteDatabase* database) : database_(database) {}
  SqliteDatabase* database_;
};

}  // namespace lk
