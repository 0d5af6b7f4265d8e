// Declarations and operands.
#include <cstring>

#include "decoder.h"

namespace ptx {

namespace {

constexpr uint32_t kAlign = 64;

}  // namespace

void Decoder::place_parameters() {
  int64_t place = 0;
  const auto add = [&](const Variable& v, int64_t align) {
    place = round_up(place, align);
    const int64_t found = place;
    place += v.bytes;
    return found;
  };
  for (const Variable& v : function_.results) code_.result_places.push_back(add(v, 16));
  for (const Variable& v : function_.parameters)
    code_.parameter_places.push_back(add(v, function_.is_entry ? v.align : 16));
  if (function_.is_entry) {
    code_.kernel_parameter_bytes = place;
    place = 0;
  }
  code_.parameter_bytes = round_up(place, 16);
}

Register Decoder::allocate(int width) {
  auto& bytes = code_.registers;
  Register r;
  r.width = width;
  if (width == 0) {
    if (next_predicate_ % kAlign == 0) {
      next_predicate_ = uint32_t(bytes.size());
      bytes.resize(bytes.size() + kAlign);
    }
    r.place = next_predicate_;
    next_predicate_ += sizeof(Mask);
  } else {
    r.place = uint32_t(bytes.size());
    bytes.resize(bytes.size() + size_t(round_up(width * kLanes, kAlign)));
  }
  code_.slots.push_back({r.place, uint8_t(width)});
  return r;
}

void Decoder::registers(const std::string& type, const std::string& name, int count, int line) {
  const int width = type == "pred" ? 0 : std::max(2, type_bytes(type, line));
  if (count < 0) {
    scopes_.back().registers[name] = allocate(width);
    return;
  }
  // Places are given to the registers as they are met.
  NameScope::Range range{name, count, {}};
  range.registers.resize(size_t(count), {0, width == 0 ? -2 : -1 - width});
  scopes_.back().ranges.push_back(std::move(range));
}

const Register* Decoder::find_register(const std::string& name) const {
  for (size_t depth = scopes_.size(); depth-- > 0;) {
    const NameScope& scope = scopes_[depth];
    const auto at = scope.registers.find(name);
    if (at != scope.registers.end()) return &at->second;
    for (const NameScope::Range& range : scope.ranges) {
      if (name.compare(0, range.prefix.size(), range.prefix) != 0) continue;
      char* end = nullptr;
      const char* digits = name.c_str() + range.prefix.size();
      const long index = std::strtol(digits, &end, 10);
      if (*digits < '0' || *digits > '9' || *end != 0 || index >= range.count) continue;
      auto& r = const_cast<Register&>(range.registers[size_t(index)]);
      if (r.width < 0) r = const_cast<Decoder*>(this)->allocate(r.width == -2 ? 0 : -1 - r.width);
      return &r;
    }
  }
  return nullptr;
}

void Decoder::variable(const std::string& space, const Variable& v, int line) {
  if (space == "param") {
    code_.parameter_bytes = round_up(code_.parameter_bytes, 16);
    scopes_.back().parameters[v.name] = code_.parameter_bytes;
    code_.parameter_bytes += v.bytes;
  } else if (space == "local") {
    code_.local_bytes = round_up(code_.local_bytes, std::max(16, v.align));
    scopes_.back().locals[v.name] = code_.local_bytes;
    code_.local_bytes += v.bytes;
  } else if (space == "shared") {
    const std::string name = function_.name + "/" + v.name;
    if (module_.shared.find(name) == module_.shared.end()) {
      Variable placed = v;
      placed.offset = round_up(module_.shared_bytes, v.align);
      module_.shared_bytes = placed.offset + v.bytes;
      module_.shared[name] = placed;
    }
    scopes_.back().shared[v.name] = name;
  } else {
    throw Unsupported(module_.name + ", line " + std::to_string(line) + ": a variable in ." +
                      space);
  }
}

uint32_t Decoder::constant(uint64_t bits, int width) {
  if (width > 0 && width < 8) bits &= (uint64_t(1) << (8 * width)) - 1;
  const auto [at, is_new] = constants_.emplace(std::make_pair(bits, width), 0);
  if (!is_new) return at->second;
  const Register r = allocate(width);
  if (width == 0) {
    const Mask mask = bits ? kAllLanes : 0;
    std::copy_n(reinterpret_cast<const uint8_t*>(&mask), sizeof mask, &code_.registers[r.place]);
  } else {
    for (int lane = 0; lane < kLanes; ++lane)
      std::copy_n(reinterpret_cast<const uint8_t*>(&bits), width,
                  &code_.registers[r.place + size_t(lane * width)]);
  }
  return at->second = r.place;
}

uint32_t Decoder::target(const Operand& o, int bytes) {
  if (o.kind == Operand::symbol && o.name == "_") return allocate(bytes).place;
  const Register* r = o.kind == Operand::symbol ? find_register(o.name) : nullptr;
  if (!r) fail("no register: " + o.name);
  if (r->width != bytes)
    fail("register " + o.name + " of " + std::to_string(r->width * 8) + " bits, not " +
         std::to_string(bytes * 8));
  return r->place;
}

uint32_t Decoder::source(const Operand& o, Type type) {
  const int bytes = type == Type::pred ? 0 : std::max(2, bytes_of(type));
  if (o.kind == Operand::number) {
    if (o.width == 8 && type == Type::f32) {
      double wide;
      std::copy_n(reinterpret_cast<const uint8_t*>(&o.bits), 8, reinterpret_cast<uint8_t*>(&wide));
      const float narrow = float(wide);
      uint32_t bits;
      std::copy_n(reinterpret_cast<const uint8_t*>(&narrow), 4, reinterpret_cast<uint8_t*>(&bits));
      return constant(bits, 4);
    }
    if (o.width == 0 && is_float(type))
      fail("an integer where a ." + std::to_string(bytes * 8) + "-bit float belongs");
    return constant(o.bits, bytes);
  }
  if (o.kind == Operand::real) {
    if (!is_float(type)) fail("a float where an integer belongs");
    uint64_t bits = 0;
    const float narrow = float(o.value);
    std::copy_n(type == Type::f32 ? reinterpret_cast<const uint8_t*>(&narrow)
                                  : reinterpret_cast<const uint8_t*>(&o.value),
                bytes, reinterpret_cast<uint8_t*>(&bits));
    return constant(bits, bytes);
  }
  if (o.kind != Operand::symbol) fail("an operand that is no register or number");
  const Register* r = find_register(o.name);
  if (!r) {
    uint64_t address;
    if (symbol_address(o.name, address)) return constant(address + uint64_t(o.offset), bytes);
    fail("unknown operand " + o.name);
  }
  if (r->width != bytes)
    fail("register " + o.name + " of " + std::to_string(r->width * 8) + " bits, not " +
         std::to_string(bytes * 8));
  return r->place;
}

int Decoder::width(const Operand& o) {
  const Register* r = o.kind == Operand::symbol ? find_register(o.name) : nullptr;
  return r ? r->width : -1;
}

bool Decoder::find_parameter(const std::string& name, int64_t& place, bool& of_kernel) const {
  of_kernel = false;
  for (size_t depth = scopes_.size(); depth-- > 0;) {
    const auto at = scopes_[depth].parameters.find(name);
    if (at == scopes_[depth].parameters.end()) continue;
    place = at->second;
    return true;
  }
  for (size_t k = 0; k < function_.results.size(); ++k)
    if (function_.results[k].name == name) return place = code_.result_places[k], true;
  of_kernel = function_.is_entry;
  for (size_t k = 0; k < function_.parameters.size(); ++k)
    if (function_.parameters[k].name == name) return place = code_.parameter_places[k], true;
  return false;
}

// The address in its own space of a variable in shared or global memory or of a kernel's parameter.
bool Decoder::symbol_address(const std::string& name, uint64_t& address) {
  std::string known = name;
  for (const NameScope& scope : scopes_)
    if (scope.shared.count(name)) known = scope.shared.at(name);
  if (const auto at = module_.shared.find(known); at != module_.shared.end())
    return address = uint64_t(at->second.offset), true;
  if (const auto at = module_.storage.find(name); at != module_.storage.end())
    return address = reinterpret_cast<uint64_t>(at->second.data()), true;
  int64_t place;
  bool of_kernel;
  if (find_parameter(name, place, of_kernel) && of_kernel) return address = uint64_t(place), true;
  return false;
}

// mov of a special register, of the place of local memory or of dynamic shared memory: those are
// the warp's.
bool Decoder::special(const Operand& o, Instruction& i) {
  if (o.kind != Operand::symbol) return false;
  static const char* const kNames[] = {"%tid.x",
                                       "%tid.y",
                                       "%tid.z",
                                       "%ntid.x",
                                       "%ntid.y",
                                       "%ntid.z",
                                       "%ctaid.x",
                                       "%ctaid.y",
                                       "%ctaid.z",
                                       "%nctaid.x",
                                       "%nctaid.y",
                                       "%nctaid.z",
                                       "%laneid",
                                       "%warpid",
                                       "%nwarpid",
                                       "%lanemask_eq",
                                       "%lanemask_lt",
                                       "%lanemask_le",
                                       "%lanemask_gt",
                                       "%lanemask_ge",
                                       "%cluster_ctarank",
                                       "%cluster_nctarank",
                                       "%cluster_ctaid.x",
                                       "%cluster_ctaid.y",
                                       "%cluster_ctaid.z",
                                       "%cluster_nctaid.x",
                                       "%cluster_nctaid.y",
                                       "%cluster_nctaid.z"};
  for (size_t k = 0; k < std::size(kNames); ++k)
    if (o.name == kNames[k]) return i.option = uint8_t(k), true;
  for (const std::string& name : module_.dynamic_shared)
    if (o.name == name) return i.option = 100, i.offset = o.offset, true;
  for (size_t depth = scopes_.size(); depth-- > 0;) {
    const auto at = scopes_[depth].locals.find(o.name);
    if (at != scopes_[depth].locals.end())
      return i.option = 101, i.offset = at->second + o.offset, true;
  }
  if (!o.name.empty() && o.name[0] == '%' && !find_register(o.name)) fail("register " + o.name);
  return false;
}

void Decoder::address(const Operand& o, Instruction& i) {
  if (o.kind != Operand::address) fail("an operand that is no address");
  i.offset = o.offset;
  if (o.name.empty()) return;
  if (const Register* r = find_register(o.name)) {
    if (r->width != 8 && r->width != 4)
      fail("an address of " + std::to_string(r->width) + " bytes");
    i.address_width = uint8_t(r->width);
    i.has_base = true;
    i.source[i.sources++] = r->place;
    return;
  }
  int64_t place;
  bool of_kernel;
  if (i.space == Space::param && find_parameter(o.name, place, of_kernel)) {
    i.space = of_kernel ? Space::kernel_param : Space::param;
    i.offset += place;
    return;
  }
  Instruction found;
  Operand symbol = o;
  symbol.kind = Operand::symbol;
  symbol.offset = 0;
  if (special(symbol, found) && found.option >= 100) {
    i.relative = found.option == 100 ? Instruction::to_dynamic_shared : Instruction::to_frame;
    i.offset += found.offset;
    return;
  }
  uint64_t address;
  if (!symbol_address(o.name, address)) fail("unknown address " + o.name);
  i.offset += int64_t(address);
}

void Decoder::statement(const Statement& s) {
  now_ = &s;
  Instruction i;
  i.line = s.line;
  i.location = s.location;
  if (!s.guard.empty()) {
    Operand guard;
    guard.name = s.guard;
    i.guarded = true;
    i.guard_negated = s.guard_negated;
    i.guard = source(guard, Type::pred);
  }
  Opcode opcode(s.opcode);
  control(opcode, s, i);
  for (auto find : {&find_arithmetic, &find_logic, &find_compare, &find_convert, &find_memory,
                    &find_atomic, &find_collective, &find_matrix}) {
    if (i.handler || i.control != Control::none) break;
    find(opcode, s, *this, i);
  }
  if (!i.handler && i.control == Control::none) fail("unknown instruction " + s.opcode);
  if (!opcode.rest().empty()) fail("unknown ." + opcode.rest().front() + " in " + s.opcode);
  if (i.space == Space::kernel_param && !i.has_base &&
      i.offset + i.bytes * i.vector > code_.kernel_parameter_bytes)
    fail("an address outside the parameters");
  code_.instructions.push_back(i);
}

}  // namespace ptx
