// SPDX-License-Identifier: Apache-2.0
// Runs programs of PTX, one Machine for each thread, on the emulator's fibers.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "simt/host.h"
#include "simt/ptx_program.h"

namespace simt::ptx {
namespace {

struct Launch {
  const Kernel* kernel;
  size_t dynamic_shared;
};
Launch now;
const Instruction* last = nullptr;  // executed by any thread

struct Machine {  // one thread
  explicit Machine(const std::byte* p) : params(p) {}
  const Kernel& kernel = *now.kernel;
  const std::byte* params;
  std::vector<uint64_t> values = std::vector<uint64_t>(kernel.registers.size());
  std::vector<bool> set = std::vector<bool>(kernel.registers.size());
  std::vector<std::byte*> shared;
  const Instruction* at = nullptr;

  uint64_t raw(const Operand& o) const {
    if (o.kind == Operand::Kind::kRegister) {
      if (!set[static_cast<size_t>(o.reg)]) fail("read of register " + o.text + ", never set", at);
      return values[static_cast<size_t>(o.reg)];
    }
    if (o.kind == Operand::Kind::kSpecial) {
      const uint3 t = threadIdx, n = blockDim, b = blockIdx, m = gridDim;
      const unsigned all[] = {
          t.x, t.y, t.z, n.x, n.y, n.z, b.x, b.y, b.z, m.x, m.y, m.z, static_cast<unsigned>(lane_index())};
      return all[o.value];
    }
    if (o.kind != Operand::Kind::kImmediate) fail("unsupported operand " + o.text, at);
    return o.value;
  }
  static uint64_t cut(uint64_t v, int bits) { return bits >= 64 ? v : v & ((uint64_t{1} << bits) - 1); }
  uint64_t bits(const Operand& o, Type t) const { return cut(raw(o), t.bits); }
  int64_t number(const Operand& o, Type t) const {  // an integer
    const uint64_t v = bits(o, t);
    return t.kind == 's' && t.bits < 64 && v >> (t.bits - 1) ? static_cast<int64_t>(v | ~uint64_t{0} << t.bits)
                                                             : static_cast<int64_t>(v);
  }
  double real(const Operand& o, Type t) const {
    const uint64_t v = raw(o);
    if (t.kind == 'h') return std::bit_cast<float>(static_cast<uint32_t>(v) << 16);
    return t.bits == 64 ? std::bit_cast<double>(v) : std::bit_cast<float>(static_cast<uint32_t>(v));
  }
  void put(const Operand& o, uint64_t v) {
    if (o.text == "_") return;
    if (o.kind != Operand::Kind::kRegister) fail("unsupported destination " + o.text, at);
    values[static_cast<size_t>(o.reg)] = v;
    set[static_cast<size_t>(o.reg)] = true;
  }
  void put_real(const Operand& o, double v, Type t) {
    if (t.bits == 64)
      put(o, std::bit_cast<uint64_t>(v));
    else
      put(o, std::bit_cast<uint32_t>(static_cast<float>(v)));
  }

  std::byte* shared_pointer(uint64_t address) const {
    const uint64_t variable = address / kSharedWindow - 1;
    if (variable >= shared.size()) fail(fmt::format("shared address {:#x}", address), at);
    return shared[variable] + address % kSharedWindow;
  }
  uint64_t shared_address(uint64_t generic) const {
    const auto* p = reinterpret_cast<const std::byte*>(generic);
    for (size_t i = 0; i < shared.size(); ++i) {
      const size_t size = kernel.shared[i].second ? kernel.shared[i].second : now.dynamic_shared;
      if (p >= shared[i] && p <= shared[i] + size)
        return (i + 1) * kSharedWindow + static_cast<uint64_t>(p - shared[i]);
    }
    fail("cvta.to.shared of a pointer elsewhere", at);
  }
  void* pointer(const Operand& o) const {  // of a memory operand
    uint64_t address = o.value;
    if (o.reg >= 0) {
      if (!set[static_cast<size_t>(o.reg)]) fail("address in a register never set: " + o.text, at);
      address += values[static_cast<size_t>(o.reg)];
    }
    if (at->space == "shared" || at->name == "ldmatrix")
      return shared_pointer(at->type.bits == 64 ? address : address & 0xffffffff);
    return reinterpret_cast<void*>(address);
  }

  void move(const Instruction& i) {
    const Operand &to = i.operands[0], &from = i.operands[1];
    if (from.kind == Operand::Kind::kList || to.kind == Operand::Kind::kList) {
      const auto& list = from.kind == Operand::Kind::kList ? from.list : to.list;
      const int part = i.type.bits / static_cast<int>(list.size());
      uint64_t v = from.kind == Operand::Kind::kList ? 0 : raw(from);
      for (size_t k = 0; k < list.size(); ++k) {
        if (from.kind == Operand::Kind::kList)
          v |= cut(raw(list[k]), part) << static_cast<int>(k) * part;
        else
          put(list[k], cut(v >> static_cast<int>(k) * part, part));
      }
      if (from.kind == Operand::Kind::kList) put(to, v);
      return;
    }
    put(to, cut(raw(from), i.type.bits));
  }

  void load_store(const Instruction& i) {
    const bool load = i.name == "ld";
    const Operand &memory = i.operands[load ? 0 + 1 : 0], &value = i.operands[load ? 0 : 1];
    const auto width = static_cast<size_t>(i.type.bits) / 8, bytes = width * static_cast<size_t>(i.vector);
    std::byte* p;
    if (i.space == "param") {
      p = const_cast<std::byte*>(params) + memory.value;
    } else {
      p = static_cast<std::byte*>(pointer(memory));
      if (reinterpret_cast<uintptr_t>(p) % bytes) fail(fmt::format("misaligned {}-byte {}", bytes, i.name), at);
      check(p, bytes, load ? Kind::kRead : Kind::kWrite, at);
    }
    for (int k = 0; k < i.vector; ++k, p += width) {
      const Operand& o = value.kind == Operand::Kind::kList ? value.list[static_cast<size_t>(k)] : value;
      if (load) {
        uint64_t v = 0;
        std::memcpy(&v, p, width);
        if (i.type.kind == 's' && i.type.bits < 64 && v >> (i.type.bits - 1)) v |= ~uint64_t{0} << i.type.bits;
        put(o, v);
      } else {
        const uint64_t v = raw(o);
        std::memcpy(p, &v, width);
      }
    }
  }

  void convert(const Instruction& i) {
    const Operand& to = i.operands[0];
    if (i.type.kind == 'H') {
      put(to, pack_bf16(static_cast<float>(real(i.operands[2], {'f', 32})),
                        static_cast<float>(real(i.operands[1], {'f', 32}))));
    } else if (i.type.kind == 'h') {
      put(to, pack_bf16(static_cast<float>(real(i.operands[1], i.from)), 0) & 0xffff);
    } else if (i.from.kind == 'f' || i.from.kind == 'h') {
      const double v = real(i.operands[1], i.from);
      if (i.type.kind == 'f')
        put_real(to,
                 i.has("rzi")   ? std::trunc(v)
                 : i.has("rni") ? std::nearbyint(v)
                 : i.has("rmi") ? std::floor(v)
                                : v,
                 i.type);
      else
        put(to, cut(static_cast<uint64_t>(static_cast<int64_t>(i.has("rni")   ? std::nearbyint(v)
                                                               : i.has("rmi") ? std::floor(v)
                                                                              : std::trunc(v))),
                    i.type.bits));
    } else if (i.type.kind == 'f') {
      const int64_t v = number(i.operands[1], i.from);
      put_real(to, i.from.kind == 's' ? static_cast<double>(v) : static_cast<double>(static_cast<uint64_t>(v)), i.type);
    } else {
      put(to, static_cast<uint64_t>(number(i.operands[1], i.from)));
    }
  }

  void set_predicate(const Instruction& i) {
    const std::string& op = i.suffixes[0];
    const auto compare = [&](auto a, auto b) {
      if (op.starts_with("eq")) return a == b;
      if (op.starts_with("ne")) return a != b;
      if (op.starts_with("lt") || op == "lo") return a < b;
      if (op.starts_with("le") || op == "ls") return a <= b;
      if (op.starts_with("gt") || op == "hi") return a > b;
      if (op.starts_with("ge") || op == "hs") return a >= b;
      fail("unsupported comparison " + op, at);
    };
    bool result;
    if (i.type.kind == 'f') {
      const double a = real(i.operands[1], i.type), b = real(i.operands[2], i.type);
      const bool unordered = op.size() == 3;
      result = std::isnan(a) || std::isnan(b) ? unordered : compare(a, b);
    } else if (i.type.kind == 's') {
      result = compare(number(i.operands[1], i.type), number(i.operands[2], i.type));
    } else {
      result = compare(bits(i.operands[1], i.type), bits(i.operands[2], i.type));
    }
    if (i.has("and")) result = result && raw(i.operands[3]);
    if (i.has("or")) result = result || raw(i.operands[3]);
    put(i.operands[0], result);
  }

  bool integer(const Instruction& i) {
    const auto& o = i.operands;
    const Type t = i.type;
    const auto a = [&] { return number(o[1], t); };
    const auto b = [&] { return number(o[2], t); };
    const auto wide = [&] { return static_cast<__int128>(a()) * b(); };
    const bool is_signed = t.kind == 's';
    __int128 v;
    Type out = t;
    if (i.name == "add")
      v = static_cast<__int128>(a()) + b();
    else if (i.name == "sub")
      v = static_cast<__int128>(a()) - b();
    else if (i.name == "mul" || i.name == "mad") {
      v = wide();
      if (i.has("hi")) v >>= t.bits;
      if (i.has("wide")) out.bits *= 2;
      if (i.name == "mad") v += number(o[3], out);
    } else if (i.name == "div" || i.name == "rem") {
      if (b() == 0) fail("division by zero", at);
      const bool div = i.name == "div";
      if (is_signed)
        v = div ? a() / b() : a() % b();
      else
        v = static_cast<__int128>(div ? bits(o[1], t) / bits(o[2], t) : bits(o[1], t) % bits(o[2], t));
    } else if (i.name == "min" || i.name == "max") {
      const bool less = is_signed ? a() < b() : bits(o[1], t) < bits(o[2], t);
      v = (i.name == "min") == less ? a() : b();
    } else if (i.name == "neg")
      v = -static_cast<__int128>(a());
    else if (i.name == "abs")
      v = std::abs(a());
    else if (i.name == "and")
      v = a() & b();
    else if (i.name == "or")
      v = a() | b();
    else if (i.name == "xor")
      v = a() ^ b();
    else if (i.name == "not")
      v = ~a();
    else if (i.name == "shl") {
      const uint64_t n = bits(o[2], {'u', 32});
      v = n >= static_cast<uint64_t>(t.bits) ? 0 : static_cast<__int128>(bits(o[1], t) << n);
    } else if (i.name == "shr") {
      const uint64_t n = std::min<uint64_t>(bits(o[2], {'u', 32}), static_cast<uint64_t>(t.bits));
      v = is_signed                            ? a() >> std::min<uint64_t>(n, 63)
          : n >= static_cast<uint64_t>(t.bits) ? 0
                                               : static_cast<__int128>(bits(o[1], t) >> n);
    } else if (i.name == "bfi") {
      const uint64_t at_bit = raw(o[3]) & 0xff, n = raw(o[4]) & 0xff;
      const uint64_t mask = n >= 64 || at_bit >= 64 ? fail("unsupported bfi", at),
                     0                              : ((uint64_t{1} << n) - 1) << at_bit;
      v = static_cast<__int128>((raw(o[2]) & ~mask) | (raw(o[1]) << at_bit & mask));
    } else if (i.name == "prmt") {
      v = __byte_perm(static_cast<unsigned>(raw(o[1])), static_cast<unsigned>(raw(o[2])),
                      static_cast<unsigned>(raw(o[3])));
    } else {
      return false;
    }
    put(o[0], t.kind == 'p' ? static_cast<uint64_t>(v & 1) : cut(static_cast<uint64_t>(v), out.bits));
    return true;
  }

  bool floating(
      const Instruction& i) {  // f32 operations are computed in f64: exact for + - *, one rounding more for fma
    const auto& o = i.operands;
    const auto a = [&] { return real(o[1], i.type); };
    const auto b = [&] { return real(o[2], i.type); };
    double v;
    if (i.name == "add")
      v = a() + b();
    else if (i.name == "sub")
      v = a() - b();
    else if (i.name == "mul")
      v = a() * b();
    else if (i.name == "fma")
      v = i.type.bits == 32
              ? std::fma(static_cast<float>(a()), static_cast<float>(b()), static_cast<float>(real(o[3], i.type)))
              : std::fma(a(), b(), real(o[3], i.type));
    else if (i.name == "div")
      v = a() / b();
    else if (i.name == "min")
      v = std::fmin(a(), b());
    else if (i.name == "max")
      v = std::fmax(a(), b());
    else if (i.name == "neg")
      v = -a();
    else if (i.name == "abs")
      v = std::fabs(a());
    else if (i.name == "ex2")
      v = std::exp2(a());
    else if (i.name == "lg2")
      v = std::log2(a());
    else if (i.name == "rcp")
      v = 1 / a();
    else if (i.name == "sqrt")
      v = std::sqrt(a());
    else if (i.name == "rsqrt")
      v = 1 / std::sqrt(a());
    else
      return false;
    put_real(o[0], v, i.type);
    return true;
  }

  void tensor(const Instruction& i, const Site& site) {
    const auto& o = i.operands;
    if (!i.has("m16n8k16") || !i.has("row") || !i.has("col") || i.type.kind != 'f' || !i.has("bf16") ||
        i.from.kind != 'f')
      fail("unsupported mma", at);
    float d[4];
    uint32_t a[4], b[2];
    for (size_t k = 0; k < 4; ++k) a[k] = static_cast<uint32_t>(raw(o[1].list[k]));
    for (size_t k = 0; k < 2; ++k) b[k] = static_cast<uint32_t>(raw(o[2].list[k]));
    for (size_t k = 0; k < 4; ++k) d[k] = static_cast<float>(real(o[3].list[k], {'f', 32}));
    mma_bf16(d, a, b, site);
    for (size_t k = 0; k < 4; ++k) put_real(o[0].list[k], d[k], {'f', 32});
  }

  void run() {
    for (const auto& [name, size] : kernel.shared)
      shared.push_back(static_cast<std::byte*>(size ? shared_variable(name.c_str(), size) : dynamic_shared()));
    for (size_t pc = 0; pc < kernel.code.size(); ++pc) {
      const Instruction& i = kernel.code[pc];
      at = last = &i;
      if (i.predicate >= 0) {
        if (!set[static_cast<size_t>(i.predicate)]) fail("predicate never set", at);
        if ((values[static_cast<size_t>(i.predicate)] != 0) == i.negated) continue;
      }
      Site site;
      site.file = i.where.c_str();
      site.line = static_cast<unsigned>(i.line);
      const auto& o = i.operands;
      if (i.name == "bra") {
        pc = kernel.labels.at(o[0].text) - 1;
      } else if (i.name == "ret" || i.name == "exit") {
        return;
      } else if (i.name == "mov") {
        move(i);
      } else if (i.name == "ld" || i.name == "st") {
        load_store(i);
      } else if (i.name == "cvta") {
        const uint64_t v = raw(o[1]);
        put(o[0], i.space != "shared" ? v
                  : i.has("to")       ? shared_address(v)
                                      : reinterpret_cast<uint64_t>(shared_pointer(v)));
      } else if (i.name == "cvt") {
        convert(i);
      } else if (i.name == "setp") {
        set_predicate(i);
      } else if (i.name == "selp") {
        put(o[0], cut(raw(raw(o[3]) ? o[1] : o[2]), i.type.bits));
      } else if (i.name == "mma") {
        tensor(i, site);
      } else if (i.name == "ldmatrix") {
        if (!i.has("x4")) fail("unsupported ldmatrix", at);
        uint32_t d[4];
        (i.has("trans") ? ldmatrix_x4_trans : ldmatrix_x4)(d, pointer(o[1]), site);
        for (size_t k = 0; k < 4; ++k) put(o[0].list[k], d[k]);
      } else if (i.name == "cp") {
        if (i.has("commit_group"))
          cp_async_commit();
        else if (i.has("wait_group"))
          cp_async_wait_group(static_cast<int>(o[0].value));
        else if (i.has("wait_all"))
          cp_async_wait_group(0);
        else
          copy(i);
      } else if (i.name == "shfl") {
        const int lane = lane_index(), b = static_cast<int>(raw(o[2]));
        const int source = i.has("bfly")   ? lane ^ b
                           : i.has("idx")  ? b % 32
                           : i.has("down") ? std::min(lane + b, 31)
                                           : std::max(lane - b, 0);
        if (raw(o[3]) != 31 && raw(o[3]) != 0) fail("shfl within a part of the warp", at);
        put(o[0], shuffle(static_cast<uint32_t>(raw(o[1])), source, site));
      } else if (i.name == "vote") {
        if (!i.has("ballot")) fail("unsupported vote", at);
        put(o[0], ballot(raw(o[1]) != 0, site));
      } else if (i.name == "atom" || i.name == "red") {
        add_atomically(i);
      } else if (i.name == "bar" || i.name == "barrier") {
        if (i.has("warp"))
          __syncwarp(~0u, site);
        else if (raw(o[0]) != 0 || o.size() > 1)
          fail("named barrier", at);
        else
          __syncthreads(site);
      } else if (i.name == "membar" || i.name == "fence" || i.name == "griddepcontrol" || i.name == "prefetch") {
      } else if (!(i.type.kind == 'f' ? floating(i) : integer(i))) {
        fail("unsupported PTX instruction " + i.name, at);
      }
    }
  }

  void add_atomically(const Instruction& i) {
    const bool returns = i.name == "atom";
    const auto& o = i.operands;
    if (!i.has("add") || i.type.bits != 32) fail("unsupported " + i.name, at);
    auto* p = static_cast<uint32_t*>(pointer(o[returns ? 1 : 0]));
    if (reinterpret_cast<uintptr_t>(p) % 4) fail("misaligned " + i.name, at);
    check(p, 4, Kind::kAtomic, at);
    const uint32_t old = *p, value = static_cast<uint32_t>(raw(o[returns ? 2 : 1]));
    *p = i.type.kind == 'f' ? std::bit_cast<uint32_t>(std::bit_cast<float>(old) + std::bit_cast<float>(value))
                            : old + value;
    if (returns) put(o[0], old);
  }

  void copy(const Instruction& i) {
    Instruction in_shared = i, in_global = i;
    in_shared.space = "shared";
    in_global.space = "global";
    const auto& o = i.operands;
    if (raw(o[2]) != 16) fail("cp.async of other than 16 bytes", at);
    at = &in_shared;
    void* to = pointer(o[0]);
    at = &in_global;
    const void* from = pointer(o[1]);
    at = &i;
    const uint64_t read = o.size() > 3 ? raw(o[3]) : 16;
    if (read != 0 && read != 16) fail("cp.async that fills in part", at);
    cp_async_16(to, from, read == 16);
  }
};

std::string describe(const void* pc) {
  const auto& code = now.kernel->code;
  const auto* i = static_cast<const Instruction*>(pc);
  if (code.empty() || i < code.data() || i >= code.data() + code.size()) i = last;  // an address in this file
  return fmt::format("{} (PTX line {})", i->where, i->line);
}

}  // namespace

void Module::launch(const std::string& name, Dim3 grid, Dim3 block, size_t dynamic_shared, const void* params,
                    size_t bytes) const {
  const Kernel* found = nullptr;
  for (const Kernel& k : impl_->kernels) {
    if (k.name.find(name) == std::string::npos) continue;
    if (found) throw Fault("two kernels match " + name);
    found = &k;
  }
  if (!found) throw Fault("no kernel matches " + name);
  now = {found, dynamic_shared};
  describe_pc = describe;
  run_grid(
      grid, block, dynamic_shared,
      [](void (*)(), const void* args) {
        Machine machine(static_cast<const std::byte*>(args));
        machine.run();
      },
      nullptr, params, bytes);
}

}  // namespace simt::ptx
