// SPDX-License-Identifier: Apache-2.0
// Text of PTX to programs.
#include <cctype>
#include <cstring>
#include <fstream>
#include <sstream>

#include "simt/host.h"
#include "simt/ptx_program.h"

namespace simt::ptx {
namespace {

bool parse_type(const std::string& s, Type& type) {
  if (s == "pred") return type = {'p', 1}, true;
  if (s == "bf16") return type = {'h', 16}, true;
  if (s == "bf16x2") return type = {'H', 32}, true;
  if (s.size() < 2 || !std::strchr("busf", s[0]) || s.find_first_not_of("0123456789", 1) != std::string::npos)
    return false;
  type = {s[0], std::stoi(s.substr(1))};
  return true;
}
std::vector<std::string> split(const std::string& s, char at) {  // outside brackets
  std::vector<std::string> parts{""};
  int depth = 0;
  for (const char c : s) {
    if (std::strchr("[{(", c) && c) ++depth;
    if (std::strchr("]})", c) && c) --depth;
    if (c == at && depth == 0)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  for (auto& p : parts) {
    p.erase(0, p.find_first_not_of(" \t\n"));
    p.erase(p.find_last_not_of(" \t\n") + 1);
  }
  return parts;
}

const char* const kSpecials[] = {"%tid.x",   "%tid.y",   "%tid.z",    "%ntid.x",   "%ntid.y",   "%ntid.z", "%ctaid.x",
                                 "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid"};

struct Parser {
  Kernel& kernel;

  int reg(const std::string& name) {
    return kernel.registers.try_emplace(name, static_cast<int>(kernel.registers.size())).first->second;
  }

  Operand operand(const std::string& s) {
    Operand o;
    o.text = s;
    if (s[0] == '{' || s[0] == '[') {
      const auto inner = s.substr(1, s.rfind(s[0] == '{' ? '}' : ']') - 1);
      if (s[0] == '{') {
        o.kind = Operand::Kind::kList;
        for (const auto& part : split(inner, ',')) o.list.push_back(operand(part));
        return o;
      }
      const size_t plus = inner.find('+');
      const Operand base = operand(split(inner.substr(0, plus), ' ')[0]);
      o.kind = Operand::Kind::kMemory;
      o.reg = base.kind == Operand::Kind::kRegister ? base.reg : -1;
      o.value =
          base.value + (plus == std::string::npos ? 0 : static_cast<uint64_t>(std::stoll(inner.substr(plus + 1))));
      return o;
    }
    for (size_t i = 0; i < std::size(kSpecials); ++i)
      if (s == kSpecials[i]) return o.kind = Operand::Kind::kSpecial, o.value = i, o;
    if (s.starts_with("0f") || s.starts_with("0d")) return o.value = std::stoull(s.substr(2), nullptr, 16), o;
    if (std::isdigit(s[0]) || s[0] == '-')
      return o.value = s[0] == '-' ? static_cast<uint64_t>(std::stoll(s, nullptr, 0)) : std::stoull(s, nullptr, 0), o;
    if (s[0] == '%' || kernel.registers.count(s)) return o.kind = Operand::Kind::kRegister, o.reg = reg(s), o;
    if (const auto it = kernel.params.find(s); it != kernel.params.end()) return o.value = it->second, o;
    for (size_t i = 0; i < kernel.shared.size(); ++i)
      if (kernel.shared[i].first == s) return o.value = (i + 1) * kSharedWindow, o;
    o.kind = Operand::Kind::kLabel;
    return o;
  }

  void statement(std::string s, const std::string& where, int line) {
    if (s.starts_with(".reg")) {
      for (auto name : split(s.substr(s.find_first_of(" \t", 5)), ','))
        if (name.find('<') == std::string::npos) reg(name);
      return;
    }
    if (s.starts_with(".shared")) {
      shared(s);
      return;
    }
    if (s[0] == '.') return;
    Instruction i;
    i.where = where;
    i.line = line;
    if (s[0] == '@') {
      i.negated = s[1] == '!';
      const size_t end = s.find_first_of(" \t");
      i.predicate = reg(s.substr(i.negated ? 2 : 1, end - (i.negated ? 2 : 1)));
      s.erase(0, s.find_first_not_of(" \t", end));
    }
    const size_t end = s.find_first_of(" \t{");
    auto parts = split(s.substr(0, end), '.');
    i.name = parts[0];
    std::vector<Type> types;
    for (size_t k = 1; k < parts.size(); ++k) {
      if (parts[k].empty()) continue;
      const auto name = parts[k].substr(0, parts[k].find(':'));
      Type type;
      if (name == "v2" || name == "v4")
        i.vector = name[1] - '0';
      else if (parse_type(name, type))
        types.push_back(type);
      else if (name == "global" || name == "shared" || name == "param" || name == "local")
        i.space = name;
      i.suffixes.push_back(name);
    }
    if (!types.empty()) i.type = i.from = types.back();
    if (types.size() > 1) i.type = types[types.size() - 2];
    if (i.name == "mma" || i.name == "shfl") i.type = types[0];
    if (end != std::string::npos)
      for (const auto& part : split(s.substr(end), ','))
        if (!part.empty()) {
          const size_t bar = part.find('|');  // shfl writes d|p
          i.operands.push_back(operand(part.substr(0, bar)));
        }
    kernel.code.push_back(std::move(i));
  }

  void shared(const std::string& s) {
    const size_t open = s.find('[');
    const size_t begin = s.find_last_of(" \t", open) + 1;
    const auto count = open == std::string::npos ? "1" : s.substr(open + 1, s.find(']') - open - 1);
    kernel.shared.emplace_back(s.substr(begin, open - begin), count.empty() ? 0 : std::stoull(count));
  }
};

uint64_t parameter(Kernel& kernel, const std::string& line, uint64_t offset) {  // the end of it
  std::istringstream words(line);
  std::string word, name;
  uint64_t align = 1, size = 1;
  while (words >> word) {
    Type type;
    if (word == ".align")
      words >> align;
    else if (parse_type(word.substr(1), type))
      size = static_cast<uint64_t>(type.bits) / 8;
    else if (word[0] != '.')
      name = word.substr(0, word.find_first_of(",)"));
  }
  align = std::max(align, size);
  offset = (offset + align - 1) / align * align;
  if (const size_t open = name.find('['); open != std::string::npos) {
    size *= std::stoull(name.substr(open + 1));
    name.resize(open);
  }
  kernel.params[name] = offset;
  return offset + size;
}

}  // namespace

Module::~Module() = default;

Module::Module(const std::string& path) : impl_(std::make_unique<Impl>()) {
  std::ifstream in(path);
  if (!in) throw Fault("cannot read " + path);
  std::vector<std::string> lines;
  std::map<std::string, std::string> files;
  for (std::string line; std::getline(in, line);) {
    line = line.substr(0, line.find("//"));
    std::istringstream words(line);
    std::string directive, index, name;
    if (words >> directive >> index >> name && directive == ".file")
      files[index] = name.substr(name.find_last_of("/\"", name.size() - 2) + 1, std::string::npos);
    lines.push_back(line);
  }
  std::vector<std::pair<std::string, size_t>> module_shared;
  Kernel* kernel = nullptr;
  bool header = false;
  uint64_t params_end = 0;
  std::string pending, where = path;
  for (size_t number = 1; number <= lines.size(); ++number) {
    const std::string& line = lines[number - 1];
    std::istringstream words(line);
    std::string first, file, row;
    words >> first >> file >> row;
    if (first == ".loc") {
      where = files[file].substr(0, files[file].find('"')) + ":" + row;
    } else if (const size_t entry = line.find(".entry"); entry != std::string::npos) {
      kernel = &impl_->kernels.emplace_back();
      kernel->shared = module_shared;
      kernel->name = line.substr(entry + 7, line.find_first_of("( \t", entry + 7) - entry - 7);
      header = true;
      params_end = 0;
    } else if (!kernel) {
      if (line.find(".shared") == std::string::npos) continue;
      Kernel scratch;
      Parser{scratch}.shared(line);
      module_shared.push_back(scratch.shared[0]);
    } else if (header) {
      header = first != "{";
      if (first == ".param") params_end = parameter(*kernel, line, params_end);
    } else {
      for (const char c : line + " ") {  // braces that are no operand's open and close scopes: names are unique without
        const bool open = pending.find_first_not_of(" \t") != std::string::npos;
        if (!open && (c == '{' || c == '}' || c == ' ' || c == '\t')) continue;
        if (c == ';') {
          Parser{*kernel}.statement(split(pending, ';')[0], where, static_cast<int>(number));
        } else if (c == ':' && pending.find_first_of(" \t.") == std::string::npos) {
          kernel->labels[pending] = kernel->code.size();
        } else {
          pending += c;
          continue;
        }
        pending.clear();
      }
    }
  }
}

}  // namespace simt::ptx
