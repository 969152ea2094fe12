// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/adapter_record.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>
#include <tuple>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/names.h"
#include "lk/base/sha256.h"

namespace lk {
namespace {

constexpr int64_t kForm = 1;
constexpr size_t kMaxFiles = 64, kMaxValue = 32 << 10;
constexpr int64_t kMaxBytes = int64_t{1} << 40;  // of one adapter
constexpr std::string_view kSumOfNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr std::string_view kStates[] = {"pending", "ready", "deleted"};

// A name as one part of a key: what is more than a letter, a digit or one of "._-" as %XX.
std::string encode(std::string_view name) {
  std::string out;
  for (const char c : name) {
    const bool plain =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
    out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

// Whatever is not encode()'s own comes back as something whose encoding differs.
std::string decode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    const bool coded = text[i] == '%' && i + 2 < text.size() &&
                       std::from_chars(text.data() + i + 1, text.data() + i + 3, value, 16).ptr == text.data() + i + 3;
    out += coded ? static_cast<char>(value) : text[i];
    if (coded) i += 2;
  }
  return out;
}

// What a key of a version says; kDataLoss: it is none.
Result<std::pair<std::string, int64_t>> read_key(std::string_view key) {
  const size_t slash = key.rfind('/');
  if (!key.starts_with(kAdapters) || slash < kAdapters.size()) return data_loss("no name of an adapter");
  std::pair<std::string, int64_t> read(decode(key.substr(kAdapters.size(), slash - kAdapters.size())), 0);
  const std::string_view number = key.substr(slash + 1);
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), read.second);
  if (!is_adapter_name(read.first) || error != std::errc() || read.second < 1 || read.second > kMaxAdapterVersion ||
      key != adapter_key(read.first, read.second))
    return data_loss("no name of an adapter");
  return read;
}

bool is_file_name(std::string_view name) {
  const size_t slash = name.find('/');
  if (slash == std::string_view::npos) return is_valid_name(name);
  return is_valid_name(name.substr(0, slash)) && is_valid_name(name.substr(slash + 1));
}

Result<int64_t> read_form(const boost::json::object& object) {
  JsonFields fields(object, "it");
  int64_t form = 0;
  fields.read_int("form", form, 0, std::numeric_limits<int64_t>::max());
  if (fields.failed()) return data_loss("{}", fields.status().message());
  if (form != kForm) return unsupported("its form is {}, known here is {}", form, kForm);
  return form;
}

Result<boost::json::object> read_value(std::string_view value) {
  if (value.size() > kMaxValue) return data_loss("{} bytes", value.size());
  Result<boost::json::object> object = parse_json_object(value, "it");
  if (!object.ok()) return data_loss("{}", object.status().message());
  LK_RETURN_IF_ERROR(read_form(*object).status());
  return object;
}

Status read_files(const boost::json::array& list, AdapterRecord& record) {
  std::set<std::string> names;
  int64_t total = 0;
  for (const boost::json::value& value : list) {
    if (!value.is_object()) return data_loss("a file that is no object");
    JsonFields fields(value.get_object(), "a file");
    AdapterRecord::File file;
    fields.read_string("name", file.name, 1, 300);
    fields.read_string("sha256", file.sha256, 64, 64);
    fields.read_int("bytes", file.bytes, 0, kMaxBytes);
    if (fields.failed()) return data_loss("{}", fields.status().message());
    if (!is_file_name(file.name)) return data_loss("\"{}\" is no name of a file", file.name);
    if (!is_sha256(file.sha256)) return data_loss("{}: no SHA-256", file.name);
    if (!is_possible(file)) return data_loss("{}: {} bytes cannot have that SHA-256", file.name, file.bytes);
    if (!names.insert(file.name).second) return data_loss("{} is named twice", file.name);
    if ((total += file.bytes) > kMaxBytes) return data_loss("its files have more than {} bytes", kMaxBytes);
    record.files.push_back(std::move(file));
  }
  return Status();
}

}  // namespace

int64_t AdapterRecord::bytes() const {
  int64_t sum = 0;
  for (const File& file : files) sum += file.bytes;
  return sum;
}

std::string AdapterRecord::content() const {
  std::vector<std::string> lines;
  for (const File& file : files) lines.push_back(fmt::format("{} {} {}\n", file.name, file.bytes, file.sha256));
  std::ranges::sort(lines);
  Sha256 hash;
  for (const std::string& line : lines) hash.update(line.data(), line.size());
  return to_hex(hash.finish());
}

std::string versions_key(std::string_view name) { return fmt::format("{}{}/", kAdapters, encode(name)); }
std::string alias_key(std::string_view alias) { return fmt::format("{}{}", kAliases, encode(alias)); }
std::string alias_in(std::string_view key) { return decode(key.substr(std::min(kAliases.size(), key.size()))); }

std::string adapter_key(std::string_view name, int64_t version) {
  return fmt::format("{}{}", versions_key(name), version);
}

int64_t version_in(std::string_view key) {
  const auto read = read_key(key);
  return read.ok() ? read->second : 0;
}

std::string format_adapter(const AdapterRecord& record) {
  boost::json::object object{{"form", kForm},
                             {"state", kStates[static_cast<size_t>(record.state)]},
                             {"digest", record.digest},
                             {"tenant", record.tenant},
                             {"publisher", record.publisher},
                             {"created", record.created}};
  boost::json::array files;
  for (const AdapterRecord::File& file : record.files)
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  object["files"] = std::move(files);
  return json_text(object);
}

Result<AdapterRecord> parse_adapter(std::string_view key, std::string_view value) {
  LK_ASSIGN_OR_RETURN(const boost::json::object object, read_value(value));
  AdapterRecord record;
  LK_ASSIGN_OR_RETURN(std::tie(record.name, record.version), read_key(key));
  JsonFields fields(object, "it");
  std::string state;
  fields.read_choice("state", state, {std::begin(kStates), std::end(kStates)});
  fields.read_string("digest", record.digest, 0, 64);
  fields.read_string("tenant", record.tenant, 0, 128);
  fields.read_string("publisher", record.publisher, 0, 128);
  fields.read_int("created", record.created, 0, std::numeric_limits<int64_t>::max());
  if (const boost::json::array* files = fields.array("files", kMaxFiles))
    LK_RETURN_IF_ERROR(read_files(*files, record));
  if (fields.failed()) return data_loss("{}", fields.status().message());
  if (state.empty()) return data_loss("it has no state");
  record.state = static_cast<AdapterRecord::State>(std::ranges::find(kStates, state) - std::begin(kStates));
  if (record.state == AdapterRecord::State::kReady && (!is_sha256(record.digest) || record.files.empty()))
    return data_loss("it has no digest, or no files");
  if (!record.tenant.empty() && !is_valid_name(record.tenant)) return data_loss("its tenant is no name");
  return record;
}

std::string format_alias(std::string_view target) {
  return json_text(boost::json::object{{"form", kForm}, {"target", target}});
}

Result<std::string> parse_alias(std::string_view key, std::string_view value) {
  LK_ASSIGN_OR_RETURN(const boost::json::object object, read_value(value));
  if (key != alias_key(alias_in(key)) || !is_adapter_name(alias_in(key))) return data_loss("no name of an alias");
  JsonFields fields(object, "it");
  std::string target;
  fields.read_string("target", target, 0, 160);
  if (fields.failed()) return data_loss("{}", fields.status().message());
  if (!target.empty() && !is_adapter_name(target.substr(0, target.find('@'))))
    return data_loss("its target is no name");
  return target;
}

bool is_possible(const AdapterRecord::File& file) { return (file.bytes == 0) == (file.sha256 == kSumOfNothing); }

bool is_sha256(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace lk
