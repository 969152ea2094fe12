// SPDX-License-Identifier: Apache-2.0
// PTX as read: instructions with their operands resolved.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "simt/ptx.h"

namespace simt::ptx {

constexpr uint32_t kSharedWindow = 1u << 20;  // variable i has the shared addresses from (i + 1) * kSharedWindow

struct Type {
  char kind = 'b';  // b, u, s, f, h (bf16), p
  int bits = 32;
};
struct Operand {
  enum class Kind : uint8_t { kRegister, kImmediate, kSpecial, kMemory, kList, kLabel } kind = Kind::kImmediate;
  int reg = -1;        // kRegister; base of kMemory or -1
  uint64_t value = 0;  // kImmediate; offset of kMemory; index of kSpecial
  std::vector<Operand> list;
  std::string text;
};
struct Instruction {
  std::string name;  // up to the first dot
  std::vector<std::string> suffixes;
  std::vector<Operand> operands;
  Type type;  // of the last suffix that is one
  Type from;  // cvt: the source's
  int vector = 1, predicate = -1;
  bool negated = false;
  std::string space;
  size_t target = 0;  // bra
  std::string where;
  int line = 0;
  bool has(std::string_view s) const { return std::find(suffixes.begin(), suffixes.end(), s) != suffixes.end(); }
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::map<std::string, uint64_t> params;              // offsets
  std::vector<std::pair<std::string, size_t>> shared;  // size 0: the dynamic one
  std::map<std::string, int> registers;
  std::map<std::string, size_t> labels;
};

struct Module::Impl {
  std::vector<Kernel> kernels;
};

}  // namespace simt::ptx
