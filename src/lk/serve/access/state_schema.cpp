// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/access/state_schema.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

#include "lk/base/file.h"

namespace lk {
namespace {

constexpr int64_t kSchemaVersion = 3;
constexpr int64_t kApplicationId = 0x4c4b5354;  // "LKST": says that the SQLite file is ours

// A removed tenant keeps its row because its revoked keys refer to it. adapter_versions outlives adapters: no version
// is used twice.
constexpr const char* kSchema = R"sql(
CREATE TABLE tenants(
  name TEXT PRIMARY KEY, weight REAL NOT NULL, max_in_flight INTEGER NOT NULL, tokens_per_minute INTEGER NOT NULL,
  adapters TEXT NOT NULL, cache_salt INTEGER NOT NULL, removed INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE keys(
  id TEXT PRIMARY KEY, secret_sha256 TEXT NOT NULL, tenant TEXT NOT NULL REFERENCES tenants(name), scopes INTEGER NOT NULL,
  note TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE adapters(
  name TEXT NOT NULL, version INTEGER NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, pinned INTEGER NOT NULL,
  is_default INTEGER NOT NULL, PRIMARY KEY(name, version)) STRICT;
CREATE TABLE adapter_versions(name TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT;
CREATE TABLE aliases(alias TEXT PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL) STRICT;
)sql";

// What each later version added, applied in order to a new file as to an old one.
// 2: quotas of tenants, and whose key loaded an adapter ('' = nobody's: of a server without keys, or before this).
// 3: the base that adapters and aliases belong to ('' = that of the next server that opens the file), and the content
//    that a name's last version stands for. The table aliases stays empty: a dropped one would leave pages that no
//    check of the file looks at.
constexpr const char* kUpgrades[] = {R"sql(
ALTER TABLE tenants ADD COLUMN max_adapters INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tenants ADD COLUMN max_versions INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tenants ADD COLUMN max_sums INTEGER NOT NULL DEFAULT 0;
ALTER TABLE adapters ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
)sql",
                                     R"sql(
ALTER TABLE adapters ADD COLUMN base TEXT NOT NULL DEFAULT '';
ALTER TABLE adapter_versions ADD COLUMN digest TEXT NOT NULL DEFAULT '';
ALTER TABLE adapter_versions ADD COLUMN base TEXT NOT NULL DEFAULT '';
CREATE TABLE aliases_of_bases(
  base TEXT NOT NULL DEFAULT '', alias TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
  PRIMARY KEY(base, alias)) STRICT;
INSERT INTO aliases_of_bases(alias, name, version) SELECT alias, name, version FROM aliases;
DELETE FROM aliases;
)sql"};
static_assert(std::size(kUpgrades) == kSchemaVersion - 1);

Status prepare_file(const std::string& path) {
  if (path.empty()) return invalid_argument("the state file has no name");
  if (path.find('\0') != std::string::npos) return invalid_argument("the state file's name has a NUL byte");
  const std::string directory = std::filesystem::path(path).parent_path();
  if (!directory.empty() && !is_directory(directory)) LK_RETURN_IF_ERROR(make_directories(directory));
  // Only ever opened here when it is new: closing a second descriptor of an open database would drop this process's
  // locks on it.
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd >= 0) {
    ::close(fd);
    return Status();
  }
  if (errno != EEXIST) return io_error("cannot create state file {}: {}", path, std::strerror(errno));
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return io_error("cannot open state file {}: {}", path, std::strerror(errno));
  if (!S_ISREG(info.st_mode)) return invalid_argument("state file {} is not a regular file", path);
  // SQLite takes a stump for an empty database; a file without content is one that another process is just creating.
  if (info.st_size > 0 && info.st_size < 512)
    return data_loss("state file {} is damaged: only {} bytes are left; restore it from a copy or move it away", path,
                     info.st_size);
  if ((info.st_mode & 0077) != 0 && ::chmod(path.c_str(), 0600) != 0)
    return io_error("others may read state file {} and its mode cannot be changed to 0600: {}", path,
                    std::strerror(errno));
  return Status();
}

Status check_version(SqliteDatabase& database, int64_t version, int64_t application) {
  if (version > kSchemaVersion)
    return failed_precondition(
        "state file {} was written by a newer Lorikeet (schema {}, this one knows {}): upgrade, or use another file",
        database.path(), version, kSchemaVersion);
  if (application != kApplicationId || version < 1)
    return invalid_argument("{} is an SQLite file, but not a state file of Lorikeet", database.path());
  return Status();
}

Status upgrade(SqliteDatabase& database, int64_t version) {
  for (; version < kSchemaVersion; ++version) LK_RETURN_IF_ERROR(database.execute(kUpgrades[version - 1]));
  return database.execute(fmt::format("PRAGMA user_version = {}", kSchemaVersion).c_str());
}

// Creates the tables in an empty file and brings older ones up to date; of two processes that try, one does.
Status check_schema(SqliteDatabase& database) {
  LK_ASSIGN_OR_RETURN(SqliteTransaction transaction,
                      SqliteTransaction::begin(database, SqliteTransaction::Kind::kWrite));
  LK_ASSIGN_OR_RETURN(const int64_t version, database.query_integer("PRAGMA user_version"));
  LK_ASSIGN_OR_RETURN(const int64_t application, database.query_integer("PRAGMA application_id"));
  LK_ASSIGN_OR_RETURN(const int64_t num_tables, database.query_integer("SELECT count(*) FROM sqlite_schema"));
  if (version != 0 || application != 0 || num_tables != 0) {
    LK_RETURN_IF_ERROR(check_version(database, version, application));
    if (version == kSchemaVersion) return Status();
    LK_RETURN_IF_ERROR(upgrade(database, version));
    return transaction.commit();
  }
  LK_RETURN_IF_ERROR(database.execute(kSchema));
  LK_RETURN_IF_ERROR(database.execute(fmt::format("PRAGMA application_id = {}", kApplicationId).c_str()));
  LK_RETURN_IF_ERROR(upgrade(database, 1));
  return transaction.commit();
}

Status check_integrity(SqliteDatabase& database) {
  LK_ASSIGN_OR_RETURN(const std::string found, database.query_text("PRAGMA quick_check(1)"));
  if (found != "ok")
    return data_loss("state file {} is damaged: {}; restore it from a copy or move it away", database.path(), found);
  return Status();
}

Result<std::unique_ptr<SqliteDatabase>> open_once(const std::string& path) {
  LK_ASSIGN_OR_RETURN(std::unique_ptr<SqliteDatabase> database, SqliteDatabase::open(path));
  LK_RETURN_IF_ERROR(database->execute("PRAGMA cell_size_check = ON"));
  LK_ASSIGN_OR_RETURN(const std::string mode, database->query_text("PRAGMA journal_mode = WAL"));
  if (mode != "wal") return io_error("state file {}: its file system does not support write-ahead logging", path);
  LK_RETURN_IF_ERROR(database->execute("PRAGMA synchronous = FULL"));  // a commit survives a power cut
  LK_RETURN_IF_ERROR(check_integrity(*database));
  LK_RETURN_IF_ERROR(check_schema(*database));
  return database;
}

}  // namespace

Result<std::unique_ptr<SqliteDatabase>> open_state_file(const std::string& path) {
  LK_RETURN_IF_ERROR(prepare_file(path));
  // The switch to WAL and recovery after a crash need the file alone for a moment; SQLite does not wait for that by
  // itself.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  for (;;) {
    Result<std::unique_ptr<SqliteDatabase>> database = open_once(path);
    if (database.ok() || database.status().code() != StatusCode::kUnavailable ||
        std::chrono::steady_clock::now() >= deadline)
      return database;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

}  // namespace lk
