// SPDX-License-Identifier: Apache-2.0
#include "lk/train/tensorboard_events.h"

#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include <boost/crc.hpp>

#include "lk/base/file.h"

namespace lk {
namespace {

template <class T>
void append_little_endian(std::string& out, T value) {
  static_assert(std::endian::native == std::endian::little);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

uint32_t masked_crc(std::string_view bytes) {
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;  // Castagnoli
  crc.process_bytes(bytes.data(), bytes.size());
  const uint32_t sum = crc.checksum();
  return ((sum >> 15) | (sum << 17)) + 0xa282ead8u;
}

// Protocol buffer fields: a key of number and wire type, then the value.
constexpr int kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;
void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
void append_key(std::string& out, int field, int wire_type) { out += static_cast<char>(field << 3 | wire_type); }
void append_bytes(std::string& out, int field, std::string_view bytes) {
  append_key(out, field, kBytes);
  append_varint(out, bytes.size());
  out += bytes;
}

// Event {double wall_time = 1; int64 step = 2; ...}
std::string event_head(double wall_time, int64_t step) {
  std::string event;
  append_key(event, 1, kFixed64);
  append_little_endian(event, wall_time);
  append_key(event, 2, kVarint);
  append_varint(event, static_cast<uint64_t>(step));
  return event;
}

}  // namespace

Result<TensorboardEvents> TensorboardEvents::create(const std::string& directory, int64_t first_step,
                                                    double wall_time) {
  LK_RETURN_IF_ERROR(make_directories(directory));
  static std::atomic<int> count{0};  // read in the order of names
  char host[256] = "localhost";
  ::gethostname(host, sizeof host - 1);
  TensorboardEvents events;
  events.path_ = join_path(directory, fmt::format("events.out.tfevents.{:010}.{}.{}.{:06}",
                                                  static_cast<int64_t>(wall_time), host, ::getpid(), count++));
  events.file_.reset(std::fopen(events.path_.c_str(), "wbe"));
  if (events.file_ == nullptr) return io_error("cannot create {}: {}", events.path_, std::strerror(errno));
  std::string version = event_head(wall_time, 0);
  append_bytes(version, 3, "brain.Event:2");  // file_version
  LK_RETURN_IF_ERROR(events.write_record(version));
  if (first_step > 0) {
    std::string restart = event_head(wall_time, first_step);
    append_bytes(restart, 7, "\x08\x01");  // session_log {status = 1: START}
    LK_RETURN_IF_ERROR(events.write_record(restart));
  }
  return events;
}

Status TensorboardEvents::add(int64_t step, double wall_time,
                              const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, scalar] : scalars) {
    std::string value;  // Summary.Value {string tag = 1; float simple_value = 2}
    append_bytes(value, 1, tag);
    append_key(value, 2, kFixed32);
    append_little_endian(value, static_cast<float>(scalar));
    append_bytes(summary, 1, value);
  }
  std::string event = event_head(wall_time, step);
  append_bytes(event, 5, summary);
  return write_record(event);
}

Status TensorboardEvents::write_record(std::string_view event) {
  std::string record;
  append_little_endian(record, static_cast<uint64_t>(event.size()));
  append_little_endian(record, masked_crc(record));
  record += event;
  append_little_endian(record, masked_crc(event));
  if (std::fwrite(record.data(), 1, record.size(), file_.get()) != record.size() || std::fflush(file_.get()) != 0)
    return io_error("cannot write {}: {}", path_, std::strerror(errno));
  return Status();
}

}  // namespace lk
