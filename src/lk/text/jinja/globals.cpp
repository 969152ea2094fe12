// SPDX-License-Identifier: Apache-2.0
// The functions of chat templates: range, dict, namespace, raise_exception, strftime_now.
#include <algorithm>
#include <ctime>
#include <functional>

#include "lk/text/jinja/eval.h"

namespace lk::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // jinja2's sandbox has the same limit

struct Function : Object {
  using Body = std::function<Value(Runtime&, const Arguments&)>;
  explicit Function(Body body_in) : Object(Kind::kFunction), body(std::move(body_in)) {}
  Value call(Runtime& runtime, const Arguments& arguments) override {
    runtime.step();
    return body(runtime, arguments);
  }
  Body body;
};

Value make_range(Runtime& runtime, const Arguments& arguments) {
  if (!arguments.named.empty()) fail("range() takes no named arguments");
  const size_t count = arguments.positional.size();
  if (count < 1 || count > 3) fail("range() takes 1 to 3 arguments, got {}", count);
  int64_t numbers[3] = {0, 0, 1};
  for (size_t idx = 0; idx < count; ++idx) {
    require_defined(arguments.positional[idx]);
    if (!arguments.positional[idx].is_integral()) fail("range() needs integers");
    numbers[count == 1 ? 1 : idx] = arguments.positional[idx].integer();
  }
  const auto [start, stop, step] = numbers;
  if (step == 0) fail("range() needs a step other than zero");
  SequencePtr out = runtime.sequence(SequenceKind::kRange);
  out->range_start = start;
  out->range_stop = stop;
  out->range_step = step;
  for (int64_t x = start; step > 0 ? x < stop : x > stop;) {
    if (out->items().size() >= kMaxRange) fail_limit("range() of more than {} items", kMaxRange);
    runtime.step();
    out->push(integer(x));
    if (__builtin_add_overflow(x, step, &x)) break;
  }
  return Value::Data(std::move(out));
}

// dict(mapping or pairs, name=value...), into `out`.
void fill_dict(Runtime& runtime, const Arguments& arguments, Dict& out) {
  if (arguments.positional.size() > 1) fail("dict() takes one mapping and named arguments");
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    if (source.is_dict()) {
      for (const auto& [key, value] : source.dict().items()) {
        runtime.step();
        out.set(key, value);
      }
    } else {
      const SequencePtr pairs = runtime.to_list(source);
      for (const Value& pair : pairs->items()) {
        const SequencePtr entry = runtime.to_list(pair);
        if (entry->items().size() != 2) fail("dict() needs pairs of a key and a value");
        out.set(entry->items()[0], entry->items()[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) out.set(runtime.string(name), value);
}

Value make_dict(Runtime& runtime, const Arguments& arguments) {
  DictPtr out = runtime.dict();
  fill_dict(runtime, arguments, *out);
  return Value::Data(std::move(out));
}

Value raise_exception(Runtime& runtime, const Arguments& arguments) {
  const auto bound = arguments.bind("raise_exception", {"message"}, 1);
  throw TemplateError{StatusCode::kInvalidArgument, runtime.str(*bound[0]), 0, true};
}

// glibc pads to any width asked for, so only plain directives pass.
std::string checked_time_format(std::string_view format) {
  if (format.size() > 1024) fail_limit("strftime_now: the format is longer than 1024 bytes");
  std::string out;
  for (size_t pos = 0; pos < format.size(); ++pos) {
    if (format[pos] != '%') {
      if (format[pos] == '\0') fail("strftime_now: the format holds a zero byte");
      out += format[pos];
      continue;
    }
    std::string directive = "%";
    if (pos + 1 < format.size() && format[pos + 1] == '-') directive += format[++pos];
    const char kind = pos + 1 < format.size() ? format[++pos] : '\0';
    static constexpr std::string_view kKinds = "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyY%";
    if (kind == 'f') {
      out += "000000";  // microseconds, below the resolution of prompts
    } else if (kind == 'z' || kind == 'Z') {
      continue;  // Python's naive datetime.now() has no zone
    } else if (kind != '\0' && kKinds.find(kind) != std::string_view::npos) {
      out += directive + kind;
    } else {
      fail_unsupported("strftime_now: the directive %{} is not supported", kind == '\0' ? ' ' : kind);
    }
  }
  return out;
}

// The local time, or the UTC time of the variable strftime_now_unix (seconds), for reproducible
// prompts.
Value strftime_now(const Dict& variables, Runtime& runtime, const Arguments& arguments) {
  const auto bound = arguments.bind("strftime_now", {"format"}, 1);
  if (!bound[0]->is_string()) fail("strftime_now needs a format string");
  const std::string format = checked_time_format(bound[0]->text());
  std::tm parts{};
  const Value* fixed = variables.find("strftime_now_unix");
  if (fixed != nullptr && fixed->is_integral()) {
    const std::time_t seconds = fixed->integer();
    if (gmtime_r(&seconds, &parts) == nullptr) fail("strftime_now_unix is out of range");
  } else {
    const std::time_t seconds = std::time(nullptr);
    localtime_r(&seconds, &parts);
  }
  std::string out(format.size() * 40 + 64, '\0');  // the longest directive, %c, is 24 bytes
  out.resize(std::strftime(out.data(), out.size(), format.c_str(), &parts));
  return runtime.string(std::move(out));
}

}  // namespace

ObjectPtr find_global(Evaluator& evaluator, const Dict& variables, std::string_view name) {
  if (name == "range") return std::make_shared<Function>(make_range);
  if (name == "dict") return std::make_shared<Function>(make_dict);
  if (name == "raise_exception") return std::make_shared<Function>(raise_exception);
  if (name == "strftime_now") {
    return std::make_shared<Function>([&variables](Runtime& runtime, const Arguments& arguments) {
      return strftime_now(variables, runtime, arguments);
    });
  }
  if (name == "namespace") {
    return std::make_shared<Function>([&evaluator](Runtime& runtime, const Arguments& arguments) {
      auto object = std::make_shared<Namespace>(runtime.meter());
      fill_dict(runtime, arguments, object->attributes);
      for (const auto& [key, value] : object->attributes.items()) {
        if (key.is_string() && key.text().starts_with('_')) fail("namespace attributes cannot begin with _");
      }
      evaluator.adopt(object);
      return Value(Value::Data(ObjectPtr(std::move(object))));
    });
  }
  if (name == "cycler" || name == "joiner" || name == "lipsum") {
    fail_unsupported("the function {}() is not supported in chat templates", name);
  }
  return nullptr;
}

}  // namespace lk::jinja
