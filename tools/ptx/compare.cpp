// setp: comparisons, which give a bit for each lane.
#include <cmath>
#include <type_traits>

#include "lanes.h"
#include "opcode.h"

namespace ptx {

namespace {

// false where an operand is a NaN; the u... forms are true there.
struct Eq {
  template <class T>
  bool operator()(T a, T b) const {
    return a == b;
  }
};
struct Ne {
  template <class T>
  bool operator()(T a, T b) const {
    return std::is_floating_point_v<T> ? a < b || a > b : a != b;
  }
};
struct Lt {
  template <class T>
  bool operator()(T a, T b) const {
    return a < b;
  }
};
struct Le {
  template <class T>
  bool operator()(T a, T b) const {
    return a <= b;
  }
};
struct Gt {
  template <class T>
  bool operator()(T a, T b) const {
    return a > b;
  }
};
struct Ge {
  template <class T>
  bool operator()(T a, T b) const {
    return a >= b;
  }
};
template <class F>
struct OrUnordered {
  template <class T>
  bool operator()(T a, T b) const {
    return F()(a, b) || a != a || b != b;
  }
};
struct Num {
  template <class T>
  bool operator()(T a, T b) const {
    return a == a && b == b;
  }
};
struct Nan {
  template <class T>
  bool operator()(T a, T b) const {
    return a != a || b != b;
  }
};

enum Combine : uint8_t { kAlone, kAnd, kOr, kXor };

template <class T, class F>
void compare(Warp& w, const Instruction& i, Mask m) {
  const T *a = w.at<T>(i.source[0]), *b = w.at<T>(i.source[1]);
  Mask found = 0;
  for (int l = 0; l < kLanes; ++l) found |= Mask(F()(a[l], b[l])) << l;
  Mask opposite = ~found;
  if (i.option != kAlone) {
    const Mask with = predicate_of(w, i, 2);
    const auto combined = [&](Mask x) {
      return i.option == kAnd ? x & with : i.option == kOr ? x | with : x ^ with;
    };
    found = combined(found);
    opposite = combined(opposite);
  }
  set_predicate(w, i.target[0], m, found);
  if (i.targets > 1) set_predicate(w, i.target[1], m, opposite);
}

template <class F>
void set_handler(Instruction& i, Type t, bool floats_only = false) {
  const auto set = [&](auto x) { i.handler = &compare<decltype(x), F>; };
  if (!with_float(t, set) && !floats_only) with_integer(t, set);
}

}  // namespace

void find_compare(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  if (opcode.base() != "setp") return;
  i.kind = Kind::compare;
  const Type t = opcode.take_type();
  i.option = uint8_t(opcode.take_one({"and", "or", "xor"}) + 1);
  build.expect_operands(s, i.option ? 4 : 3, i.option ? 4 : 3);
  const Operand& to = s.operands[0];
  if (to.kind == Operand::pair) {
    for (const Operand& part : to.parts) build.add_target(i, part, 0);
  } else {
    build.add_target(i, to, 0);
  }
  build.add_source(i, s.operands[1], t);
  build.add_source(i, s.operands[2], t);
  if (i.option) build.add_source(i, s.operands[3], Type::pred);
  if (opcode.take("eq")) return set_handler<Eq>(i, t);
  if (opcode.take("ne")) return set_handler<Ne>(i, t);
  if (opcode.take("lt") || (!is_float(t) && opcode.take("lo"))) return set_handler<Lt>(i, t);
  if (opcode.take("le") || (!is_float(t) && opcode.take("ls"))) return set_handler<Le>(i, t);
  if (opcode.take("gt") || (!is_float(t) && opcode.take("hi"))) return set_handler<Gt>(i, t);
  if (opcode.take("ge") || (!is_float(t) && opcode.take("hs"))) return set_handler<Ge>(i, t);
  if (opcode.take("equ")) return set_handler<OrUnordered<Eq>>(i, t, true);
  if (opcode.take("neu")) return set_handler<OrUnordered<Ne>>(i, t, true);
  if (opcode.take("ltu")) return set_handler<OrUnordered<Lt>>(i, t, true);
  if (opcode.take("leu")) return set_handler<OrUnordered<Le>>(i, t, true);
  if (opcode.take("gtu")) return set_handler<OrUnordered<Gt>>(i, t, true);
  if (opcode.take("geu")) return set_handler<OrUnordered<Ge>>(i, t, true);
  if (opcode.take("num")) return set_handler<Num>(i, t, true);
  if (opcode.take("nan")) return set_handler<Nan>(i, t, true);
}

}  // namespace ptx
