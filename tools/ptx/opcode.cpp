#include "opcode.h"

namespace ptx {

namespace {

struct Named {
  const char* name;
  Type type;
  int bytes;
};
const Named kTypes[] = {
    {"pred", Type::pred, 1}, {"b8", Type::b8, 1},   {"u8", Type::u8, 1},
    {"s8", Type::s8, 1},     {"b16", Type::b16, 2}, {"u16", Type::u16, 2},
    {"s16", Type::s16, 2},   {"b32", Type::b32, 4}, {"u32", Type::u32, 4},
    {"s32", Type::s32, 4},   {"b64", Type::b64, 8}, {"u64", Type::u64, 8},
    {"s64", Type::s64, 8},   {"f16", Type::f16, 2}, {"bf16", Type::bf16, 2},
    {"f32", Type::f32, 4},   {"f64", Type::f64, 8}, {"tf32", Type::tf32, 4},
};

const char* const kKinds[] = {
    "integer 32",      "integer 64",   "float32",       "float64",      "special",    "division",
    "compare",         "logic",        "convert",       "move",         "branch",     "call",
    "global load",     "global store", "shared load",   "shared store", "local load", "local store",
    "parameter",       "generic load", "generic store", "atomic",       "fence",      "barrier",
    "cluster barrier", "shuffle",      "matrix",        "async copy",   "other"};

}  // namespace

const char* name_of(Kind kind) { return kKinds[size_t(kind)]; }

Type type_named(const std::string& name) {
  for (const Named& t : kTypes)
    if (name == t.name) return t.type;
  return Type::none;
}

int bytes_of(Type type) {
  for (const Named& t : kTypes)
    if (type == t.type) return t.bytes;
  return 0;
}

Opcode::Opcode(const std::string& text) : text_(text) {
  size_t begin = 0;
  bool is_base = true;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find('.', begin), text.size());
    // .L2::128B and the like keep their colons.
    std::string part = text.substr(begin, end - begin);
    if (is_base) {
      base_ = std::move(part);
    } else {
      rest_.push_back(std::move(part));
    }
    is_base = false;
    begin = end + 1;
  }
}

bool Opcode::take(const std::string& modifier) {
  const auto at = std::find(rest_.begin(), rest_.end(), modifier);
  if (at == rest_.end()) return false;
  rest_.erase(at);
  return true;
}

int Opcode::take_one(std::initializer_list<const char*> modifiers) {
  int index = 0;
  for (const char* m : modifiers) {
    if (take(m)) return index;
    ++index;
  }
  return -1;
}

Type Opcode::take_type() {
  for (size_t i = rest_.size(); i-- > 0;) {
    const Type type = type_named(rest_[i]);
    if (type == Type::none) continue;
    rest_.erase(rest_.begin() + ptrdiff_t(i));
    return type;
  }
  return Type::none;
}

}  // namespace ptx
