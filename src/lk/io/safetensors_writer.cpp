// SPDX-License-Identifier: Apache-2.0
#include "lk/io/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cerrno>
#include <cstring>
#include <set>

#include "lk/base/json_text.h"
#include "lk/base/write_error.h"
#include "lk/io/safetensors.h"

namespace lk {
namespace {

const char* dtype_name(DType dtype) { return dtype == DType::kF32 ? "F32" : dtype == DType::kBF16 ? "BF16" : "F16"; }

std::string quoted(const std::string& text) { return json_text(boost::json::string(text)); }

// Makes the rename durable; failures are ignored because the file itself is already safe.
void sync_parent(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string parent = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  const int fd = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

Result<SafetensorsWriter> SafetensorsWriter::create(const std::string& path, const std::vector<TensorSpec>& tensors,
                                                    const std::map<std::string, std::string>& metadata) {
  std::string header = R"({"__metadata__":{)";
  std::map<std::string, std::string> all = metadata;
  all.emplace("format", "pt");
  const char* separator = "";
  for (const auto& [key, value] : all) {
    header += fmt::format("{}{}:{}", separator, quoted(key), quoted(value));
    separator = ",";
  }
  header += '}';
  std::set<std::string> names;
  int64_t position = 0;
  for (const TensorSpec& tensor : tensors) {
    if (tensor.name == "__metadata__" || !names.insert(tensor.name).second) {
      return invalid_argument("{}: tensor name '{}' is used twice or reserved", path, tensor.name);
    }
    header +=
        fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", quoted(tensor.name),
                    dtype_name(tensor.dtype), fmt::join(tensor.shape, ","), position, position + tensor.num_bytes());
    position += tensor.num_bytes();
  }
  header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');  // data stays aligned, as the format recommends

  SafetensorsWriter writer;
  writer.path_ = path;
  writer.temporary_ = path + fmt::format(".tmp.{}", ::getpid());
  writer.remaining_ = position;
  writer.fd_ = ::open(writer.temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (writer.fd_ < 0) {
    const int error = errno;
    return Status(write_error_code(error),
                  fmt::format("cannot create {}: {}", writer.temporary_, std::strerror(error)));
  }
  const uint64_t header_bytes = header.size();
  LK_RETURN_IF_ERROR(writer.write_all(&header_bytes, sizeof header_bytes));
  LK_RETURN_IF_ERROR(writer.write_all(header.data(), header.size()));
  return writer;
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)),
      remaining_(other.remaining_) {}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

Status SafetensorsWriter::fail(const char* verb) {
  const int error = errno;
  ::close(std::exchange(fd_, -1));
  ::unlink(temporary_.c_str());
  return Status(write_error_code(error),
                fmt::format("cannot {} {}: {}{}", verb, path_, std::strerror(error),
                            error == ENOSPC || error == EDQUOT ? "; free some space and try again" : ""));
}

Status SafetensorsWriter::write_all(const void* data, size_t num_bytes) {
  const auto* bytes = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t put = ::write(fd_, bytes, std::min(num_bytes, size_t{1} << 30));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail("write");
    bytes += put;
    num_bytes -= static_cast<size_t>(put);
  }
  return Status();
}

Status SafetensorsWriter::append(const void* data, int64_t num_bytes) {
  LK_CHECK(fd_ >= 0, "append to a closed writer of {}", path_);
  LK_CHECK(num_bytes <= remaining_, "{} bytes too many for {}", num_bytes - remaining_, path_);
  remaining_ -= num_bytes;
  return write_all(data, static_cast<size_t>(num_bytes));
}

Status SafetensorsWriter::finish() {
  LK_CHECK(fd_ >= 0 && remaining_ == 0, "{} bytes missing in {}", remaining_, path_);
  if (::fsync(fd_) != 0) return fail("sync");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return fail("rename to");
  ::close(std::exchange(fd_, -1));
  sync_parent(path_);
  return Status();
}

Status write_safetensors(const std::string& path, const std::vector<TensorEntry>& tensors,
                         const std::map<std::string, std::string>& metadata) {
  std::vector<TensorSpec> specs;
  specs.reserve(tensors.size());
  for (const auto& [name, view] : tensors) {
    specs.push_back({name, view.dtype(), {view.shape().begin(), view.shape().end()}});
  }
  LK_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::create(path, specs, metadata));
  for (const TensorEntry& tensor : tensors)
    LK_RETURN_IF_ERROR(writer.append(tensor.view.raw(), tensor.view.num_bytes()));
  return writer.finish();
}

}  // namespace lk
