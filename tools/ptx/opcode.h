// An instruction's name taken apart, and what builds its decoded form.
#pragma once

#include <algorithm>
#include <functional>

#include "program.h"

namespace ptx {

enum class Type : uint8_t {
  none,
  pred,
  b8,
  u8,
  s8,
  b16,
  u16,
  s16,
  b32,
  u32,
  s32,
  b64,
  u64,
  s64,
  f16,
  bf16,
  f32,
  f64,
  tf32
};

Type type_named(const std::string& name);  // none if it is no type
int bytes_of(Type type);
inline bool is_float(Type t) { return t == Type::f32 || t == Type::f64; }
inline bool is_signed(Type t) {
  return t == Type::s8 || t == Type::s16 || t == Type::s32 || t == Type::s64;
}

class Builder;

// ld.global.v2.f32: the base ld and what follows, of which each must be taken.
class Opcode {
 public:
  explicit Opcode(const std::string& text);
  const std::string& base() const { return base_; }
  const std::string& text() const { return text_; }
  // Whether this modifier is there; then it is dealt with.
  bool take(const std::string& modifier);
  // The first of these that is there, or -1.
  int take_one(std::initializer_list<const char*> modifiers);
  // The last modifier that is a type, or none; then it is dealt with.
  Type take_type();
  bool ends_with(const std::string& modifier) const {
    return !rest_.empty() && rest_.back() == modifier;
  }
  const std::vector<std::string>& rest() const { return rest_; }

 private:
  std::string text_, base_;
  std::vector<std::string> rest_;
};

// Builds instructions of one function.
class Builder {
 public:
  virtual ~Builder() = default;
  // The place of a register that is written, of `bytes` (0: a predicate).
  virtual uint32_t target(const Operand& operand, int bytes) = 0;
  // The place of a register or constant that is read.
  virtual uint32_t source(const Operand& operand, Type type) = 0;
  // The width of a register; -1 where the operand is none.
  virtual int width(const Operand& operand) = 0;
  // An address of this space, into the instruction.
  virtual void address(const Operand& operand, Instruction& i) = 0;
  // A register or symbol whose address is taken by mov; false: an ordinary source.
  virtual bool special(const Operand& operand, Instruction& i) = 0;
  [[noreturn]] virtual void fail(const std::string& what) = 0;

  void add_target(Instruction& i, const Operand& operand, int bytes) {
    const uint32_t place = target(operand, bytes);
    i.target[i.targets++] = place;
  }
  void add_source(Instruction& i, const Operand& operand, Type type) {
    const uint32_t place = source(operand, type);
    if (operand.negated) i.flip |= uint8_t(1u << i.sources);
    i.source[i.sources++] = place;
  }
  void expect_operands(const Statement& s, size_t least, size_t most) {
    if (s.operands.size() < least || s.operands.size() > most)
      fail(std::to_string(s.operands.size()) + " operands");
  }
};

// What memory instructions have in common: their space; how strong they are, and for whom.
Space take_space(Opcode& opcode);
void take_order(Opcode& opcode, Instruction& i, Builder& build);

// Each fills in an instruction, or leaves its handler null if the opcode is none of its own.
void find_arithmetic(Opcode& opcode, const Statement& s, Builder& build, Instruction& i);
void find_logic(Opcode& opcode, const Statement& s, Builder& build, Instruction& i);
void find_compare(Opcode& opcode, const Statement& s, Builder& build, Instruction& i);
void find_convert(Opcode& opcode, const Statement& s, Builder& build, Instruction& i);
void find_memory(Opcode& opcode, const Statement& s, Builder& build, Instruction& i);
void find_atomic(Opcode& opcode, const Statement& s, Builder& build, Instruction& i);
void find_collective(Opcode& opcode, const Statement& s, Builder& build, Instruction& i);
void find_matrix(Opcode& opcode, const Statement& s, Builder& build, Instruction& i);

// Calls f with a value of the C++ type of an integer type: of the signed one only for s8 to s64.
template <class F>
bool with_integer(Type t, F f) {
  switch (t) {
    case Type::b16:
    case Type::u16:
      f(uint16_t());
      return true;
    case Type::s16:
      f(int16_t());
      return true;
    case Type::b32:
    case Type::u32:
      f(uint32_t());
      return true;
    case Type::s32:
      f(int32_t());
      return true;
    case Type::b64:
    case Type::u64:
      f(uint64_t());
      return true;
    case Type::s64:
      f(int64_t());
      return true;
    default:
      return false;
  }
}

template <class F>
bool with_float(Type t, F f) {
  if (t == Type::f32) {
    f(float());
  } else if (t == Type::f64) {
    f(double());
  } else {
    return false;
  }
  return true;
}

}  // namespace ptx
