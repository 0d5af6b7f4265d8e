// atom, red, fences.
#include <cstring>
#include <type_traits>

#include "lanes.h"
#include "opcode.h"

namespace ptx {

namespace {

enum class Update : uint8_t {
  add,
  min,
  max,
  bit_and,
  bit_or,
  bit_xor,
  exchange,
  swap,
  increment,
  decrement
};

template <class T>
T updated(Update how, T old, T operand, T other) {
  if constexpr (std::is_floating_point_v<T>) {
    return how == Update::add ? old + operand : operand;
  } else {
    using U = std::make_unsigned_t<T>;
    switch (how) {
      case Update::add:
        return T(U(old) + U(operand));
      case Update::min:
        return old < operand ? old : operand;
      case Update::max:
        return old > operand ? old : operand;
      case Update::bit_and:
        return T(old & operand);
      case Update::bit_or:
        return T(old | operand);
      case Update::bit_xor:
        return T(old ^ operand);
      case Update::exchange:
        return operand;
      case Update::swap:
        return old == operand ? other : old;
      case Update::increment:
        return old >= operand ? T(0) : T(old + 1);
      case Update::decrement:
        return old == 0 || old > operand ? operand : T(old - 1);
    }
  }
  return old;
}

// The lanes one after another; option: the update, and 64 if nobody asks for the old value.
template <class T>
void update(Warp& w, const Instruction& i, Mask m) {
  Access access(w, i, m, sizeof(T), true, true);
  const auto how = Update(i.option & 63);
  const T* operand = w.at<T>(i.source[i.has_base]);
  const T* other = how == Update::swap ? w.at<T>(i.source[i.has_base + 1u]) : operand;
  T old[kLanes];
  each_lane(m, [&](int l) {
    std::memcpy(&old[l], access[l], sizeof(T));
    const T now = updated(how, old[l], operand[l], other[l]);
    std::memcpy(access[l], &now, sizeof(T));
  });
  access.commit();
  if (!(i.option & 64)) each_lane(m, [&](int l) { w.at<T>(i.target[0])[l] = old[l]; });
}

void run_fence(Warp& w, const Instruction& i, Mask m) {
  Block& b = *w.block;
  const bool device = i.scope == Scope::device;
  if (device && b.launch->resident > 1) {
    b.launch->weak.flush(b.buffer, b.id);
    b.launch->weak.acquire(b.buffer);
  }
  each_lane(m, [&](int l) { fence(w, l, device); });
}

void atomic(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  const bool keeps = opcode.base() == "atom";
  i.kind = Kind::atomic;
  i.space = take_space(opcode);
  i.order = Order::relaxed;
  take_order(opcode, i, build);
  const int how =
      opcode.take_one({"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"});
  const Type t = opcode.take_type();
  if (how < 0 || bytes_of(t) < 4) return;
  if (is_float(t) && Update(how) != Update::add) return;
  const bool has_two = Update(how) == Update::swap;
  const size_t count = size_t(keeps) + 2 + size_t(has_two);
  build.expect_operands(s, count, count);
  if (keeps) build.add_target(i, s.operands[0], bytes_of(t));
  build.address(s.operands[keeps], i);
  build.add_source(i, s.operands[size_t(keeps) + 1], t);
  if (has_two) build.add_source(i, s.operands[size_t(keeps) + 2], t);
  i.bytes = uint8_t(bytes_of(t));
  i.option = uint8_t(how | (keeps ? 0 : 64));
  i.is_read = i.is_write = true;
  const auto set = [&](auto x) { i.handler = &update<decltype(x)>; };
  if (with_float(t, set)) return;
  with_integer(t, [&](auto x) {
    using T = decltype(x);
    if constexpr (sizeof(T) >= 4) i.handler = &update<T>;
  });
}

}  // namespace

Space take_space(Opcode& opcode) {
  if (opcode.take("global") || opcode.take("const")) return Space::global;
  if (opcode.take("shared") || opcode.take("shared::cta")) return Space::shared;
  if (opcode.take("shared::cluster")) return Space::cluster;
  if (opcode.take("local")) return Space::local;
  if (opcode.take("param") || opcode.take("param::entry") || opcode.take("param::func"))
    return Space::param;
  return Space::generic;
}

void take_order(Opcode& opcode, Instruction& i, Builder& build) {
  if (opcode.take("weak")) return;
  if (opcode.take("volatile")) {
    i.order = Order::relaxed;
    return;
  }
  const int order = opcode.take_one({"relaxed", "acquire", "release", "acq_rel"});
  if (order >= 0) i.order = Order(int(Order::relaxed) + order);
  const int scope = opcode.take_one({"cta", "gpu", "sys"});
  if (scope >= 0) i.scope = scope == 0 ? Scope::block : Scope::device;
  if (order >= 0 && scope < 0) build.fail("an order without a scope");
}

void find_atomic(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  const std::string& base = opcode.base();
  if (base == "atom" || base == "red") return atomic(opcode, s, build, i);
  if (base != "membar" && base != "fence") return;
  i.kind = Kind::fence;
  build.expect_operands(s, 0, 0);
  const bool known = base == "membar" || opcode.take_one({"sc", "acq_rel"}) >= 0;
  const int scope = opcode.take_one({"cta", "gl", "gpu", "sys"});
  if (!known || scope < 0) return;
  i.scope = scope == 0 ? Scope::block : Scope::device;
  i.handler = &run_fence;
}

}  // namespace ptx
