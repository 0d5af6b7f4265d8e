// add, sub, mul, mad, fma, div, rem, min, max, abs, neg, sqrt, rcp of integers and floats.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "lanes.h"
#include "opcode.h"

namespace ptx {

namespace {

// Integers wrap around: the arithmetic is that of unsigned numbers.
template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T, bool = std::is_floating_point_v<T>>
struct Wrap {
  using type = Unsigned<T>;
};
template <class T>
struct Wrap<T, true> {
  using type = T;
};
// uint16_t operands become int: their products must not overflow.
template <class T>
using Wide =
    std::conditional_t<std::is_floating_point_v<T>, T,
                       std::conditional_t<(sizeof(T) < 4), uint32_t, typename Wrap<T>::type>>;

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return T(Wide<T>(a) + Wide<T>(b));
  }
};
struct Sub {
  template <class T>
  T operator()(T a, T b) const {
    return T(Wide<T>(a) - Wide<T>(b));
  }
};
struct Mul {
  template <class T>
  T operator()(T a, T b) const {
    return T(Wide<T>(a) * Wide<T>(b));
  }
};
struct MulAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    return T(Wide<T>(a) * Wide<T>(b) + Wide<T>(c));
  }
};
struct Fma {
  float operator()(float a, float b, float c) const { return __builtin_fmaf(a, b, c); }
  double operator()(double a, double b, double c) const { return __builtin_fma(a, b, c); }
};
struct Div {
  float operator()(float a, float b) const { return a / b; }
  double operator()(double a, double b) const { return a / b; }
};
// With one NaN the other operand; -0 is less than +0.
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      if (a == b) return std::signbit(a) ? a : b;
      return a != a ? b : (b != b ? a : (a < b ? a : b));
    } else {
      return a < b ? a : b;
    }
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      if (a == b) return std::signbit(a) ? b : a;
      return a != a ? b : (b != b ? a : (a > b ? a : b));
    } else {
      return a > b ? a : b;
    }
  }
};
struct Abs {
  template <class T>
  T operator()(T a) const {
    if constexpr (std::is_floating_point_v<T>) {
      return std::fabs(a);
    } else {
      return a < 0 ? T(0 - Wide<T>(a)) : a;
    }
  }
};
struct Neg {
  template <class T>
  T operator()(T a) const {
    if constexpr (std::is_floating_point_v<T>) {
      return -a;
    } else {
      return T(0 - Wide<T>(a));
    }
  }
};
struct Sqrt {
  float operator()(float a) const { return std::sqrt(a); }
  double operator()(double a) const { return std::sqrt(a); }
};
struct Rcp {
  template <class T>
  T operator()(T a) const {
    return T(1) / a;
  }
};
struct Copysign {  // the magnitude of b with the sign of a
  template <class T>
  T operator()(T a, T b) const {
    return std::copysign(b, a);
  }
};

double upper_half(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  bits &= 0xffffffff00000000u;
  if ((bits >> 52 & 0x7ff) == 0) bits &= uint64_t(1) << 63;  // .ftz
  std::memcpy(&x, &bits, 8);
  return x;
}
// rcp.approx.ftz.f64 reads and gives the upper 32 bits.
struct RcpApprox {
  double operator()(double a) const { return upper_half(1.0 / upper_half(a)); }
};

// What the approximations of float32 may give, by the errors that the PTX ISA allows: the exact
// result rounded and, as the bits of x have it, moved by one unit of its last place or not.
float approximate(double exact, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const auto result = float(exact);
  if (!std::isnormal(result)) return result;
  bits = (bits ^ bits >> 15) * 0x9e3779b1u;
  const uint32_t choice = bits >> 16 & 3;
  if (choice == 0) return std::nextafter(result, 0.0f);
  return choice == 1 ? std::nextafter(result, 2.0f * result) : result;
}
float without_subnormals(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}
template <bool kFlushes>
struct RcpApprox32 {
  float operator()(float a) const {
    if (!kFlushes) return approximate(1.0 / double(a), a);
    return without_subnormals(approximate(1.0 / double(without_subnormals(a)), a));
  }
};
template <bool kFlushes>
struct RsqrtApprox {
  float operator()(float a) const {
    const double x = kFlushes ? without_subnormals(a) : a;
    return approximate(1.0 / std::sqrt(x), a);
  }
};

template <class T>
struct MulHigh {
  T operator()(T a, T b) const {
    using W =
        std::conditional_t<sizeof(T) == 8,
                           std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                           std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
    return T(W(a) * W(b) >> (8 * sizeof(T)));
  }
};
template <class T>
struct MadHigh {
  T operator()(T a, T b, T c) const { return Add()(MulHigh<T>()(a, b), c); }
};
template <class T>
struct Twice;  // the type of mul.wide's results
template <>
struct Twice<int16_t> {
  using type = int32_t;
};
template <>
struct Twice<uint16_t> {
  using type = uint32_t;
};
template <>
struct Twice<int32_t> {
  using type = int64_t;
};
template <>
struct Twice<uint32_t> {
  using type = uint64_t;
};
template <class W>
struct MulWide {
  template <class T>
  W operator()(T a, T b) const {
    return W(a) * W(b);
  }
};
template <class W>
struct MadWide {
  template <class T>
  W operator()(T a, T b, W c) const {
    return Add()(W(W(a) * W(b)), c);
  }
};

// Division by zero gives what no program may use: it is reported.
template <class T, bool kRemainder>
void divide(Warp& w, const Instruction& i, Mask m) {
  T* d = w.at<T>(i.target[0]);
  const T *a = w.at<T>(i.source[0]), *b = w.at<T>(i.source[1]);
  each_lane(m, [&](int l) {
    const T x = a[l], y = b[l];
    if (y == 0) {
      report(w, i, l, "division by zero", "an integer is divided by 0");
      d[l] = kRemainder ? x : T(-1);
    } else if (std::is_signed_v<T> && y == T(-1)) {
      d[l] = kRemainder ? T(0) : Neg()(x);
    } else {
      d[l] = kRemainder ? T(x % y) : T(x / y);
    }
  });
}

Kind kind_of(Type t) {
  if (t == Type::f32) return Kind::float32;
  if (t == Type::f64) return Kind::float64;
  return bytes_of(t) == 8 ? Kind::integer64 : Kind::integer32;
}

void operands(const Statement& s, Builder& build, Instruction& i, Type t, size_t count) {
  build.expect_operands(s, count + 1, count + 1);
  build.add_target(i, s.operands[0], bytes_of(t));
  for (size_t k = 1; k <= count; ++k) build.add_source(i, s.operands[k], t);
  i.kind = kind_of(t);
}

template <class F>
void two(const Statement& s, Builder& build, Instruction& i, Type t) {
  operands(s, build, i, t, 2);
  const auto set = [&](auto x) { i.handler = &Apply2<decltype(x), F>::run; };
  if (with_float(t, set)) return;
  if constexpr (!std::is_same_v<F, Div>) with_integer(t, set);
}
template <class F>
void one(const Statement& s, Builder& build, Instruction& i, Type t, bool integers) {
  operands(s, build, i, t, 1);
  const auto set = [&](auto x) { i.handler = &Apply1<decltype(x), F>::run; };
  if constexpr (std::is_same_v<F, Abs> || std::is_same_v<F, Neg>) {
    if (!with_float(t, set) && integers)
      with_integer(t,
                   [&](auto x) { i.handler = &Apply1<std::make_signed_t<decltype(x)>, F>::run; });
  } else {
    with_float(t, set);
  }
}

template <template <class> class F>
void wide(const Statement& s, Builder& build, Instruction& i, Type t, bool adds) {
  const int bytes = bytes_of(t);
  build.expect_operands(s, adds ? 4 : 3, adds ? 4 : 3);
  build.add_target(i, s.operands[0], 2 * bytes);
  build.add_source(i, s.operands[1], t);
  build.add_source(i, s.operands[2], t);
  if (adds) build.add_source(i, s.operands[3], bytes == 2 ? Type::b32 : Type::b64);
  i.kind = bytes == 2 ? Kind::integer32 : Kind::integer64;
  with_integer(t, [&](auto x) {
    using T = decltype(x);
    if constexpr (sizeof(T) < 8) {
      using W = typename Twice<T>::type;
      if constexpr (std::is_same_v<F<W>, MulWide<W>>) {
        i.handler = &Apply2<W, F<W>, T, T>::run;
      } else {
        i.handler = &Apply3<W, F<W>, T, T, W>::run;
      }
    }
  });
}

void multiply(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  const bool adds = opcode.base() == "mad";
  const Type t = opcode.take_type();
  if (is_float(t) && !adds) {
    opcode.take("rn");
    two<Mul>(s, build, i, t);
  } else if (is_float(t)) {
    if (!opcode.take("rn")) return;
    operands(s, build, i, t, 3);
    with_float(t, [&](auto x) { i.handler = &Apply3<decltype(x), Fma>::run; });
  } else if (opcode.take("lo")) {
    operands(s, build, i, t, adds ? 3 : 2);
    with_integer(t, [&](auto x) {
      using T = decltype(x);
      i.handler = adds ? &Apply3<T, MulAdd>::run : &Apply2<T, Mul>::run;
    });
  } else if (opcode.take("hi")) {
    operands(s, build, i, t, adds ? 3 : 2);
    with_integer(t, [&](auto x) {
      using T = decltype(x);
      i.handler = adds ? &Apply3<T, MadHigh<T>>::run : &Apply2<T, MulHigh<T>>::run;
    });
  } else if (opcode.take("wide")) {
    if (adds) {
      wide<MadWide>(s, build, i, t, true);
    } else {
      wide<MulWide>(s, build, i, t, false);
    }
  }
}

}  // namespace

void find_arithmetic(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  const std::string& base = opcode.base();
  if (base == "mul" || base == "mad") return multiply(opcode, s, build, i);
  if (base == "add" || base == "sub") {
    const Type t = opcode.take_type();
    if (is_float(t)) opcode.take("rn");
    return base == "add" ? two<Add>(s, build, i, t) : two<Sub>(s, build, i, t);
  }
  if (base == "min" || base == "max") {
    const Type t = opcode.take_type();
    return base == "min" ? two<Min>(s, build, i, t) : two<Max>(s, build, i, t);
  }
  if (base == "abs") return one<Abs>(s, build, i, opcode.take_type(), true);
  if (base == "neg") return one<Neg>(s, build, i, opcode.take_type(), true);
  if (base == "fma" && opcode.take("rn")) {
    const Type t = opcode.take_type();
    operands(s, build, i, t, 3);
    with_float(t, [&](auto x) { i.handler = &Apply3<decltype(x), Fma>::run; });
  } else if (base == "sqrt" && opcode.take("rn")) {
    one<Sqrt>(s, build, i, opcode.take_type(), false);
    i.kind = Kind::division;
  } else if (base == "rcp" && opcode.take("rn")) {
    one<Rcp>(s, build, i, opcode.take_type(), false);
    i.kind = Kind::division;
  } else if (base == "rcp" && opcode.text() == "rcp.approx.ftz.f64") {
    opcode = Opcode(base);
    one<RcpApprox>(s, build, i, Type::f64, false);
    i.kind = Kind::special;
    i.handler = &Apply1<double, RcpApprox>::run;
  } else if ((base == "rcp" || base == "rsqrt") && opcode.take("approx")) {
    const bool flushes = opcode.take("ftz");
    if (opcode.take_type() != Type::f32) return;
    operands(s, build, i, Type::f32, 1);
    i.kind = Kind::special;
    if (base == "rcp") {
      i.handler = flushes ? &Apply1<float, RcpApprox32<true>>::run
                          : &Apply1<float, RcpApprox32<false>>::run;
    } else {
      i.handler = flushes ? &Apply1<float, RsqrtApprox<true>>::run
                          : &Apply1<float, RsqrtApprox<false>>::run;
    }
  } else if (base == "copysign") {
    const Type t = opcode.take_type();
    operands(s, build, i, t, 2);
    with_float(t, [&](auto x) { i.handler = &Apply2<decltype(x), Copysign>::run; });
  } else if (base == "div" || base == "rem") {
    const bool is_div = base == "div", rounds = opcode.take("rn");
    const Type t = opcode.take_type();
    if (is_float(t)) {
      if (is_div && rounds) two<Div>(s, build, i, t);
      i.kind = Kind::division;
      return;
    }
    operands(s, build, i, t, 2);
    i.kind = Kind::division;
    with_integer(t, [&](auto x) {
      using T = decltype(x);
      i.handler = is_div ? &divide<T, false> : &divide<T, true>;
    });
  }
}

}  // namespace ptx
