// SPDX-License-Identifier: Apache-2.0
// Every public call: lock, one transaction, commit. Rows are checked by the same functions on the way in and on the way
// out.
#include "lk/serve/access/state_store.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <ctime>
#include <mutex>

#include "lk/base/names.h"
#include "lk/base/plain_text.h"
#include "lk/base/sha256.h"
#include "lk/serve/access/secrets.h"
#include "lk/serve/access/state_schema.h"

namespace lk {
namespace {

constexpr size_t kMaxPath = 4096;
constexpr int64_t kMaxLimit = int64_t{1} << 50;  // of every count and time in the file

using Kind = SqliteTransaction::Kind;

bool is_hex_digest(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == text.npos;
}
bool in_range(int64_t value, int64_t low = 0) { return value >= low && value <= kMaxLimit; }

Status check(const Tenant& tenant) { return check_account(tenant); }
Status check(const ApiKey& key) { return check_account(key); }

Status check(const StoredAdapter& adapter) {
  LK_RETURN_IF_ERROR(check_adapter_name("adapter", adapter.name));
  if (!in_range(adapter.version, 1))
    return invalid_argument("adapter {}: version {} is not positive", adapter.name, adapter.version);
  if (adapter.path.empty() || !is_plain_text(adapter.path, kMaxPath))
    return invalid_argument(
        "adapter {}: the path is empty, longer than {} bytes, or has control characters or no UTF-8", adapter.name,
        kMaxPath);
  if (!adapter.tenant.empty()) LK_RETURN_IF_ERROR(check_name("tenant", adapter.tenant));
  if (!adapter.digest.empty() && !is_hex_digest(adapter.digest))
    return invalid_argument("adapter {}: the digest is not SHA-256", adapter.name);
  return Status();
}

Status check(const StateStore::Alias& alias) {
  LK_RETURN_IF_ERROR(check_adapter_name("alias", alias.alias));
  LK_RETURN_IF_ERROR(check_adapter_name("adapter", alias.name));
  if (!in_range(alias.version)) return invalid_argument("alias {}: version {} is negative", alias.alias, alias.version);
  return Status();
}

std::string join_patterns(const std::vector<std::string>& patterns) {
  return fmt::format("{}", fmt::join(patterns, ","));
}

std::vector<std::string> split_patterns(const std::string& text) {
  std::vector<std::string> patterns;
  for (size_t begin = 0; !text.empty() && begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    patterns.push_back(text.substr(begin, comma - begin));
    begin = comma + 1;
  }
  return patterns;
}

// A mutex that is waited for no longer than one wants to. (std::timed_mutex waits by pthread_mutex_clocklock, which
// GCC 12's ThreadSanitizer does not know: it would report every unlock.)
class PatientMutex {
 public:
  bool try_lock_for(std::chrono::milliseconds longest) {
    std::unique_lock lock(mutex_);
    if (!freed_.wait_for(lock, longest, [this] { return !taken_; })) return false;
    return taken_ = true;
  }
  void lock() {
    std::unique_lock lock(mutex_);
    freed_.wait(lock, [this] { return !taken_; });
    taken_ = true;
  }
  void unlock() {
    {
      std::lock_guard lock(mutex_);
      taken_ = false;
    }
    freed_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable freed_;
  bool taken_ = false;
};

// One of the two connections. Requires, of all but the mutex: the mutex.
struct StateConnection {
  PatientMutex mutex;
  std::unique_ptr<SqliteDatabase> database;

  Result<SqliteStatement> prepare(std::string_view sql, std::initializer_list<SqliteValue> values = {}) {
    return SqliteStatement::prepare(*database, sql, values);
  }
  Status run(std::string_view sql, std::initializer_list<SqliteValue> values = {}) {
    LK_ASSIGN_OR_RETURN(SqliteStatement statement, prepare(sql, values));
    return statement.run();
  }
  Result<bool> exists(std::string_view sql, std::initializer_list<SqliteValue> values) {
    LK_ASSIGN_OR_RETURN(SqliteStatement statement, prepare(sql, values));
    return statement.next();
  }
  // Every row of `sql`, made by `read` and checked.
  template <class Row, class Read>
  Result<std::vector<Row>> rows(std::string_view sql, Read&& read, std::initializer_list<SqliteValue> values = {}) {
    LK_ASSIGN_OR_RETURN(SqliteStatement statement, prepare(sql, values));
    std::vector<Row> found;
    for (;;) {
      LK_ASSIGN_OR_RETURN(const bool more, statement.next());
      if (!more) return found;
      found.push_back(read(statement));
      if (const Status status = check(found.back()); !status.ok())
        return data_loss("state file {} is damaged: {}", database->path(), status.message());
    }
  }
  Result<std::vector<Tenant>> read_tenants();
  Result<std::vector<ApiKey>> read_keys();
};

// What the request or the state asks for cannot be, as against: the file cannot take it.
bool is_refusal(StatusCode code) {
  return code != StatusCode::kUnavailable && code != StatusCode::kIoError && code != StatusCode::kDataLoss;
}

}  // namespace

struct StateStore::Impl {
  StateConnection writer, reader;
  std::atomic<std::chrono::milliseconds> patience{std::chrono::seconds(5)};
  std::function<Status(const Status&)> on_failed_write;
  dev_t device = 0;
  ino_t inode = 0;
  int64_t data_version = 0;  // of what changed() saw last; guarded by reader.mutex
  std::string base;          // digest

  const std::string& path() const { return writer.database->path(); }
  // A file that was moved away takes writes without complaint, and a restart does not find them.
  Status check_in_place() const {
    struct stat info {};
    if (::stat(path().c_str(), &info) == 0 && info.st_dev == device && info.st_ino == inode) return Status();
    return data_loss("state file {} was removed or replaced while the server runs; put it back, or restart", path());
  }
  // `work` inside a write transaction.
  template <class Work>
  Status write(Work&& work) {
    const Status status = write_within(patience, work);
    return status.ok() || is_refusal(status.code()) || !on_failed_write ? status : on_failed_write(status);
  }
  template <class Work>
  Status write_within(std::chrono::milliseconds longest, Work&& work) {
    const auto begin = std::chrono::steady_clock::now();
    const std::unique_lock<PatientMutex> lock(writer.mutex, longest);
    if (!lock.owns_lock()) return unavailable("state file {} is busy with other changes", path());
    LK_RETURN_IF_ERROR(check_in_place());
    const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - begin);
    writer.database->wait_at_most(std::max(longest - waited, std::chrono::milliseconds(0)));
    LK_ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::begin(*writer.database, Kind::kWrite));
    LK_RETURN_IF_ERROR(work());
    return transaction.commit();
  }
  Status put_adapter(const StoredAdapter& adapter);
  Status remember_version(const std::string& name, int64_t version, const std::string& digest);
  Status put_tenant(const Tenant& tenant);
};

Result<std::unique_ptr<StateStore>> StateStore::open(const std::string& path) {
  std::unique_ptr<StateStore> store(new StateStore());
  store->impl_ = std::make_unique<Impl>();
  Impl& impl = *store->impl_;
  LK_ASSIGN_OR_RETURN(impl.writer.database, open_state_file(path));
  LK_ASSIGN_OR_RETURN(impl.reader.database, SqliteDatabase::open(path));
  LK_RETURN_IF_ERROR(impl.reader.database->execute("PRAGMA cell_size_check = ON; PRAGMA query_only = ON"));
  LK_ASSIGN_OR_RETURN(impl.data_version, impl.reader.database->query_integer("PRAGMA data_version"));
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return io_error("cannot open state file {}: {}", path, std::strerror(errno));
  impl.device = info.st_dev;
  impl.inode = info.st_ino;
  return store;
}

StateStore::~StateStore() = default;

void StateStore::set_patience(std::chrono::milliseconds patience) { impl_->patience = patience; }

void StateStore::on_failed_write(std::function<Status(const Status&)> callback) {
  impl_->on_failed_write = std::move(callback);
}

Result<bool> StateStore::changed() {
  LK_RETURN_IF_ERROR(impl_->check_in_place());
  const std::lock_guard lock(impl_->reader.mutex);
  LK_ASSIGN_OR_RETURN(const int64_t now, impl_->reader.database->query_integer("PRAGMA data_version"));
  return std::exchange(impl_->data_version, now) != now;
}

// --- Tenants

Result<std::vector<Tenant>> StateConnection::read_tenants() {
  LK_ASSIGN_OR_RETURN(const bool unsalted, exists("SELECT 1 FROM tenants WHERE cache_salt = 0", {}));
  if (unsalted) return data_loss("state file {} is damaged: a tenant without a cache salt", database->path());
  return rows<Tenant>(
      "SELECT name, weight, max_in_flight, tokens_per_minute, adapters, cache_salt, max_adapters, max_versions, "
      "max_sums "
      "FROM tenants WHERE removed = 0 ORDER BY name",
      [](const SqliteStatement& row) {
        return Tenant{.name = row.text(0),
                      .weight = row.real(1),
                      .max_in_flight = row.integer(2),
                      .tokens_per_minute = row.integer(3),
                      .adapters = split_patterns(row.text(4)),
                      .max_adapters = row.integer(6),
                      .max_versions = row.integer(7),
                      .max_sums = row.integer(8),
                      .cache_salt = std::bit_cast<uint64_t>(row.integer(5))};
      });
}

// Requires: a write transaction.
Status StateStore::Impl::put_tenant(const Tenant& tenant) {
  const auto new_salt = std::bit_cast<int64_t>(random_salt());
  // A tenant that comes back after its removal is a new one: it must not find the old one's cached prefixes.
  return writer.run(
      "INSERT INTO tenants(name, weight, max_in_flight, tokens_per_minute, adapters, cache_salt, max_adapters, "
      "max_versions, max_sums) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) "
      "ON CONFLICT(name) DO UPDATE SET weight = ?2, max_in_flight = ?3, tokens_per_minute = ?4, adapters = ?5, "
      "max_adapters = ?7, max_versions = ?8, max_sums = ?9, "
      "cache_salt = CASE removed WHEN 0 THEN cache_salt ELSE ?6 END, removed = 0",
      {tenant.name, tenant.weight, tenant.max_in_flight, tenant.tokens_per_minute, join_patterns(tenant.adapters),
       new_salt, tenant.max_adapters, tenant.max_versions, tenant.max_sums});
}

Status StateStore::put_tenant(const Tenant& tenant) {
  LK_RETURN_IF_ERROR(check(tenant));
  return impl_->write([&] { return impl_->put_tenant(tenant); });
}

Status StateStore::create_tenant(const Tenant& tenant) {
  LK_RETURN_IF_ERROR(check(tenant));
  return impl_->write([&]() -> Status {
    LK_ASSIGN_OR_RETURN(const bool known,
                        impl_->writer.exists("SELECT 1 FROM tenants WHERE name = ? AND removed = 0", {tenant.name}));
    if (known) return already_exists("there is a tenant \"{}\" already", tenant.name);
    return impl_->put_tenant(tenant);
  });
}

Result<Tenant> StateStore::change_tenant(const std::string& name, const std::function<Status(Tenant&)>& change,
                                         bool may_be_new) {
  LK_RETURN_IF_ERROR(check_name("tenant", name));
  Tenant changed;
  LK_RETURN_IF_ERROR(impl_->write([&]() -> Status {
    LK_ASSIGN_OR_RETURN(std::vector<Tenant> tenants, impl_->writer.read_tenants());
    const auto known = std::ranges::find(tenants, name, &Tenant::name);
    if (known == tenants.end() && !may_be_new) return not_found("no tenant \"{}\"", name);
    changed = known == tenants.end() ? Tenant{.name = name} : std::move(*known);
    LK_RETURN_IF_ERROR(change(changed));
    changed.name = name;
    LK_RETURN_IF_ERROR(check(changed));
    return impl_->put_tenant(changed);
  }));
  return changed;
}

Status StateStore::remove_tenant(const std::string& name) {
  LK_RETURN_IF_ERROR(check_name("tenant", name));
  const int64_t now = std::time(nullptr);
  return impl_->write([&]() -> Status {
    LK_ASSIGN_OR_RETURN(const bool known,
                        impl_->writer.exists("SELECT 1 FROM tenants WHERE name = ? AND removed = 0", {name}));
    if (!known) return not_found("no tenant \"{}\"", name);
    LK_ASSIGN_OR_RETURN(
        const bool used,
        impl_->writer.exists("SELECT 1 FROM keys WHERE tenant = ? AND revoked = 0 AND (expires = 0 OR expires > ?)",
                             {name, now}));
    if (used) return failed_precondition("tenant \"{}\" has usable keys; revoke them first", name);
    LK_RETURN_IF_ERROR(impl_->writer.run("UPDATE keys SET revoked = 1 WHERE tenant = ?", {name}));
    return impl_->writer.run("UPDATE tenants SET removed = 1 WHERE name = ?", {name});
  });
}

// --- Keys

Result<std::vector<ApiKey>> StateConnection::read_keys() {
  return rows<ApiKey>(
      "SELECT id, secret_sha256, tenant, scopes, note, created, expires, revoked FROM keys ORDER BY created, id",
      [](const SqliteStatement& row) {
        const int64_t scopes = row.integer(3);
        return ApiKey{.id = row.text(0),
                      .secret_sha256 = row.text(1),
                      .tenant = row.text(2),
                      .scopes = scopes >= 0 && scopes <= kAllScopes ? static_cast<uint8_t>(scopes) : uint8_t{0},
                      .note = row.text(4),
                      .created = row.integer(5),
                      .expires = row.integer(6),
                      .revoked = row.integer(7) != 0};
      });
}

Result<StateStore::NewKey> StateStore::create_key(const std::string& tenant, uint8_t scopes, const std::string& note,
                                                  int64_t expires) {
  LK_ASSIGN_OR_RETURN(NewKey made, make_key(tenant, scopes, note, expires));
  const ApiKey& key = made.key;
  LK_RETURN_IF_ERROR(impl_->write([&]() -> Status {
    LK_ASSIGN_OR_RETURN(const bool known,
                        impl_->writer.exists("SELECT 1 FROM tenants WHERE name = ? AND removed = 0", {tenant}));
    if (!known) return not_found("no tenant \"{}\"", tenant);
    return impl_->writer.run(
        "INSERT INTO keys(id, secret_sha256, tenant, scopes, note, created, expires) VALUES(?, ?, ?, ?, ?, ?, ?)",
        {key.id, key.secret_sha256, key.tenant, int64_t{key.scopes}, key.note, key.created, key.expires});
  }));
  return made;
}

Status StateStore::revoke_key(const std::string& id) {
  return impl_->write([&]() -> Status {
    LK_RETURN_IF_ERROR(impl_->writer.run("UPDATE keys SET revoked = 1 WHERE id = ?", {id}));
    if (impl_->writer.database->changes() == 0) return not_found("no key \"{}\"", is_valid_name(id) ? id : "?");
    return Status();
  });
}

Result<StateStore::Accounts> StateStore::accounts() {
  const std::lock_guard lock(impl_->reader.mutex);
  LK_ASSIGN_OR_RETURN(const SqliteTransaction both, SqliteTransaction::begin(*impl_->reader.database, Kind::kRead));
  Accounts accounts;
  LK_ASSIGN_OR_RETURN(accounts.tenants, impl_->reader.read_tenants());
  LK_ASSIGN_OR_RETURN(accounts.keys, impl_->reader.read_keys());
  return accounts;
}

Result<KeyRing> StateStore::load_key_ring() {
  LK_ASSIGN_OR_RETURN(Accounts found, accounts());
  return KeyRing(std::move(found.tenants), std::move(found.keys));
}

// --- Adapters

Status StateStore::use_base(const std::string& digest) {
  if (!is_hex_digest(digest)) return invalid_argument("the base's digest is not SHA-256");
  impl_->base = digest;
  {
    const std::lock_guard lock(impl_->reader.mutex);
    LK_ASSIGN_OR_RETURN(const bool any, impl_->reader.exists("SELECT 1 FROM adapters WHERE base = '' UNION ALL "
                                                             "SELECT 1 FROM aliases_of_bases WHERE base = ''",
                                                             {}));
    if (!any) return Status();  // a start need not wait for somebody who holds the file
  }
  return impl_->write([&]() -> Status {
    LK_RETURN_IF_ERROR(impl_->writer.run("UPDATE adapters SET base = ? WHERE base = ''", {digest}));
    return impl_->writer.run("UPDATE aliases_of_bases SET base = ? WHERE base = ''", {digest});
  });
}

Result<int64_t> StateStore::num_of_other_bases() {
  const std::lock_guard lock(impl_->reader.mutex);
  LK_ASSIGN_OR_RETURN(SqliteStatement statement,
                      impl_->reader.prepare("SELECT count(*) FROM adapters WHERE base <> ?", {impl_->base}));
  LK_ASSIGN_OR_RETURN(const bool row, statement.next());
  return row ? statement.integer(0) : 0;
}

Result<std::vector<StoredAdapter>> StateStore::adapters() {
  const std::lock_guard lock(impl_->reader.mutex);
  return impl_->reader.rows<StoredAdapter>(
      "SELECT name, version, path, digest, pinned, is_default, tenant FROM adapters WHERE base = ? ORDER BY name, "
      "version",
      [](const SqliteStatement& row) {
        return StoredAdapter{.name = row.text(0),
                             .version = row.integer(1),
                             .path = row.text(2),
                             .digest = row.text(3),
                             .pinned = row.integer(4) != 0,
                             .is_default = row.integer(5) != 0,
                             .tenant = row.text(6)};
      },
      {impl_->base});
}

// Requires: a write transaction.
Status StateStore::Impl::put_adapter(const StoredAdapter& adapter) {
  LK_ASSIGN_OR_RETURN(const bool known,
                      writer.exists("SELECT 1 FROM adapters WHERE name = ? AND version = ? AND base = ?",
                                    {adapter.name, adapter.version, base}));
  if (!known) {
    LK_ASSIGN_OR_RETURN(const bool used, writer.exists("SELECT 1 FROM adapter_versions WHERE name = ? AND last >= ?",
                                                       {adapter.name, adapter.version}));
    if (used)
      return already_exists("version {} of adapter \"{}\" was used before; versions are not used again",
                            adapter.version, adapter.name);
  }
  if (adapter.is_default)
    LK_RETURN_IF_ERROR(
        writer.run("UPDATE adapters SET is_default = 0 WHERE name = ? AND base = ?", {adapter.name, base}));
  LK_RETURN_IF_ERROR(
      writer.run("INSERT OR REPLACE INTO adapters(name, version, path, digest, pinned, is_default, tenant, base) "
                 "VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
                 {adapter.name, adapter.version, adapter.path, adapter.digest, int64_t{adapter.pinned},
                  int64_t{adapter.is_default}, adapter.tenant, base}));
  return remember_version(adapter.name, adapter.version, adapter.digest);
}

Status StateStore::Impl::remember_version(const std::string& name, int64_t version, const std::string& digest) {
  return writer.run(
      "INSERT INTO adapter_versions(name, last, digest, base) VALUES(?1, ?2, ?3, ?4) ON CONFLICT(name) DO UPDATE SET "
      "last = ?2, digest = ?3, base = ?4 WHERE last <= ?2",
      {name, version, digest, base});
}

Status StateStore::put_version(const std::string& name, int64_t version, const std::string& digest) {
  LK_RETURN_IF_ERROR(check(StoredAdapter{.name = name, .version = version, .path = "-", .digest = digest}));
  LK_ASSIGN_OR_RETURN(const LastVersion last, last_version(name));
  if (last.version == version && last.digest == digest) return Status();  // nothing to write, nothing to wait for
  return impl_->write([&] { return impl_->remember_version(name, version, digest); });
}

Status StateStore::put_adapter(const StoredAdapter& adapter, const std::vector<int64_t>& retired) {
  LK_RETURN_IF_ERROR(check(adapter));
  return impl_->write([&]() -> Status {
    for (const int64_t version : retired)
      LK_RETURN_IF_ERROR(
          impl_->writer.run("DELETE FROM adapters WHERE name = ? AND version = ?", {adapter.name, version}));
    return impl_->put_adapter(adapter);
  });
}

Status StateStore::remove_adapter(const std::string& name, int64_t version) {
  LK_RETURN_IF_ERROR(check_adapter_name("adapter", name));
  return impl_->write([&]() -> Status {
    LK_RETURN_IF_ERROR(impl_->writer.run("DELETE FROM adapters WHERE name = ? AND version = ?", {name, version}));
    if (impl_->writer.database->changes() == 0) return not_found("no version {} of adapter \"{}\"", version, name);
    return Status();
  });
}

Status StateStore::remove(const std::vector<std::pair<std::string, int64_t>>& versions,
                          const std::vector<std::string>& aliases) {
  if (versions.empty() && aliases.empty()) return Status();
  return impl_->write([&]() -> Status {
    for (const auto& [name, version] : versions)
      LK_RETURN_IF_ERROR(impl_->writer.run("DELETE FROM adapters WHERE name = ? AND version = ?", {name, version}));
    for (const std::string& alias : aliases)
      LK_RETURN_IF_ERROR(
          impl_->writer.run("DELETE FROM aliases_of_bases WHERE alias = ? AND base = ?", {alias, impl_->base}));
    return Status();
  });
}

Result<StateStore::LastVersion> StateStore::last_version(const std::string& name) {
  const std::lock_guard lock(impl_->reader.mutex);
  LK_ASSIGN_OR_RETURN(SqliteStatement statement,
                      impl_->reader.prepare("SELECT last, digest, base FROM adapter_versions WHERE name = ?", {name}));
  LK_ASSIGN_OR_RETURN(const bool row, statement.next());
  if (!row) return LastVersion();
  LastVersion last{.version = statement.integer(0), .digest = {}};
  if (statement.text(2) == impl_->base) last.digest = statement.text(1);
  if (!in_range(last.version) || !(last.digest.empty() || is_hex_digest(last.digest)))
    return data_loss("state file {} is damaged: last version {} of an adapter", impl_->path(), last.version);
  return last;
}

// --- Aliases

Result<std::vector<StateStore::Alias>> StateStore::aliases() {
  const std::lock_guard lock(impl_->reader.mutex);
  return impl_->reader.rows<Alias>("SELECT alias, name, version FROM aliases_of_bases WHERE base = ? ORDER BY alias",
                                   [](const SqliteStatement& row) {
                                     return Alias{.alias = row.text(0), .name = row.text(1), .version = row.integer(2)};
                                   },
                                   {impl_->base});
}

Status StateStore::put_alias(const Alias& alias) { return put({}, alias); }

Status StateStore::put(const std::optional<StoredAdapter>& adapter, const std::optional<Alias>& alias) {
  if (adapter) LK_RETURN_IF_ERROR(check(*adapter));
  if (alias) LK_RETURN_IF_ERROR(check(*alias));
  if (!adapter && !alias) return Status();
  return impl_->write([&]() -> Status {
    if (adapter) LK_RETURN_IF_ERROR(impl_->put_adapter(*adapter));
    if (!alias) return Status();
    return impl_->writer.run("INSERT OR REPLACE INTO aliases_of_bases(base, alias, name, version) VALUES(?, ?, ?, ?)",
                             {impl_->base, alias->alias, alias->name, alias->version});
  });
}

Status StateStore::remove_alias(const std::string& alias) {
  LK_RETURN_IF_ERROR(check_adapter_name("alias", alias));
  return impl_->write([&]() -> Status {
    LK_RETURN_IF_ERROR(
        impl_->writer.run("DELETE FROM aliases_of_bases WHERE alias = ? AND base = ?", {alias, impl_->base}));
    if (impl_->writer.database->changes() == 0) return not_found("no alias \"{}\"", alias);
    return Status();
  });
}

}  // namespace lk
