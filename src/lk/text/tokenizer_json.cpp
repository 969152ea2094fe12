// SPDX-License-Identifier: Apache-2.0
#include "lk/text/tokenizer_json.h"

#include <boost/json/memory_resource.hpp>
#include <boost/json/stream_parser.hpp>
#include <cstddef>
#include <new>

#include "lk/text/unicode.h"

namespace lk {
namespace {

constexpr size_t kMaxDepth = 32;
// A file of n bytes may take this much memory as a tree: real files take less than 20 n,
// "[0,0,0..." takes more.
constexpr size_t kMemoryPerByte = 40;
constexpr size_t kMaxMemory = size_t{4} << 30;

}  // namespace

// Hands out memory up to a limit, then fails as if there were none.
class ParsedJson::BoundedResource : public boost::json::memory_resource {
 public:
  explicit BoundedResource(size_t limit) : left_(limit) {}

 private:
  void* do_allocate(size_t bytes, size_t alignment) override {
    LK_CHECK(alignment <= alignof(std::max_align_t));
    if (bytes > left_) throw std::bad_alloc();
    left_ -= bytes;
    return ::operator new(bytes);
  }
  // Boost 1.81 gives some blocks back with another alignment than it asked for, so neither is
  // handed on.
  void do_deallocate(void* pointer, size_t bytes, size_t) override {
    left_ += bytes;
    ::operator delete(pointer);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
  size_t left_;
};

Result<ParsedJson> ParsedJson::parse(std::string_view text, const std::string& file) {
  ParsedJson out;
  out.memory_ = std::make_shared<BoundedResource>(std::min(kMaxMemory, (1 << 16) + kMemoryPerByte * text.size()));
  try {
    boost::json::parse_options options;
    options.max_depth = kMaxDepth;
    boost::json::stream_parser parser({}, options);
    parser.reset(out.memory_.get());
    boost::json::error_code error;
    const size_t used = parser.write_some(text.data(), text.size(), error);
    if (error) return data_loss("{}: not valid JSON at byte {}: {}", file, used, error.message());
    if (!parser.done()) {
      return data_loss("{}: the JSON ends too early, after {} bytes: is the file truncated?", file, text.size());
    }
    if (text.substr(used).find_first_not_of(" \t\r\n") != text.npos) {
      return data_loss("{}: more text after the JSON value, at byte {}", file, used);
    }
    out.value_ = std::make_shared<boost::json::value>(parser.release());
  } catch (const std::bad_alloc&) {
    return unsupported("{}: {} bytes of JSON need too much memory", file, text.size());
  } catch (const std::exception& e) {
    return data_loss("{}: not valid JSON: {}", file, e.what());
  }
  return out;
}

}  // namespace lk
