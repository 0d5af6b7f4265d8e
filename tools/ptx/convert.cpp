// cvt between integers and floats, and cvta between generic addresses and those of a space.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "lanes.h"
#include "number_formats.h"
#include "opcode.h"

namespace ptx {

namespace {

enum Rounding : uint8_t { kNone, kNearest, kZero, kDown, kUp };

// A conversion of one lane's low bytes; the result's low bytes.
using Convert = uint64_t (*)(uint64_t bits, Rounding rounding, bool saturate);

template <class T>
T value_of(uint64_t bits) {
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
// Integers are extended to the register by their sign.
template <class T>
uint64_t bits_of(T x) {
  if constexpr (std::is_integral_v<T>) {
    return uint64_t(std::is_signed_v<T> ? int64_t(x) : int64_t(uint64_t(x)));
  } else {
    uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof x);
    return bits;
  }
}

template <class T>
T to_integral(T x, Rounding rounding) {
  switch (rounding) {
    case kNearest:
      return std::nearbyint(x);
    case kZero:
      return std::trunc(x);
    case kDown:
      return std::floor(x);
    case kUp:
      return std::ceil(x);
    default:
      return x;
  }
}

template <class From, class To>
uint64_t convert(uint64_t bits, Rounding rounding, bool saturate) {
  const From x = value_of<From>(bits);
  if constexpr (std::is_integral_v<From> && std::is_integral_v<To>) {
    if (saturate) {
      using Wide = __int128;
      const Wide least = std::numeric_limits<To>::min(), most = std::numeric_limits<To>::max();
      return bits_of(To(Wide(x) < least ? least : Wide(x) > most ? most : Wide(x)));
    }
    return bits_of(To(x));
  } else if constexpr (std::is_integral_v<To>) {
    if (std::isnan(x))  // PTX ISA, cvt
      return sizeof(From) == 8 || sizeof(To) == 8 ? uint64_t(1) << (8 * sizeof(To) - 1) : 0;
    const From whole = to_integral(x, rounding);
    // The limits as floats: the upper one is exclusive.
    const From least = From(std::numeric_limits<To>::min());
    const From end = std::ldexp(From(1), std::numeric_limits<To>::digits);
    if (whole < least) return bits_of(std::numeric_limits<To>::min());
    if (whole >= end) return bits_of(std::numeric_limits<To>::max());
    return bits_of(To(whole));
  } else if constexpr (std::is_integral_v<From>) {
    return bits_of(To(x));  // to nearest
  } else {
    To y = To(sizeof(From) == sizeof(To) ? to_integral(x, rounding) : x);
    if (saturate) y = y > To(0) ? (y < To(1) ? y : To(1)) : To(0);
    return bits_of(y);
  }
}

uint64_t half_to_float(uint64_t bits, Rounding, bool) { return bits_of(from_half(uint16_t(bits))); }
uint64_t bfloat_to_float(uint64_t bits, Rounding, bool) { return uint64_t(uint32_t(bits) << 16); }
uint64_t float_to_half(uint64_t bits, Rounding, bool) { return to_half(value_of<float>(bits)); }
uint64_t float_to_bfloat(uint64_t bits, Rounding, bool) { return to_bfloat(value_of<float>(bits)); }
uint64_t float_to_tf32(uint64_t bits, Rounding, bool) { return to_tf32(uint32_t(bits)); }

template <class From>
Convert convert_from(Type to) {
  switch (to) {
    case Type::u8:
      return &convert<From, uint8_t>;
    case Type::s8:
      return &convert<From, int8_t>;
    case Type::u16:
      return &convert<From, uint16_t>;
    case Type::s16:
      return &convert<From, int16_t>;
    case Type::u32:
      return &convert<From, uint32_t>;
    case Type::s32:
      return &convert<From, int32_t>;
    case Type::u64:
      return &convert<From, uint64_t>;
    case Type::s64:
      return &convert<From, int64_t>;
    case Type::f32:
      return &convert<From, float>;
    case Type::f64:
      return &convert<From, double>;
    default:
      return nullptr;
  }
}

Convert conversion(Type to, Type from) {
  switch (from) {
    case Type::u8:
      return convert_from<uint8_t>(to);
    case Type::s8:
      return convert_from<int8_t>(to);
    case Type::u16:
      return convert_from<uint16_t>(to);
    case Type::s16:
      return convert_from<int16_t>(to);
    case Type::u32:
      return convert_from<uint32_t>(to);
    case Type::s32:
      return convert_from<int32_t>(to);
    case Type::u64:
      return convert_from<uint64_t>(to);
    case Type::s64:
      return convert_from<int64_t>(to);
    case Type::f16:
      return to == Type::f32 ? &half_to_float : nullptr;
    case Type::bf16:
      return to == Type::f32 ? &bfloat_to_float : nullptr;
    case Type::f32:
      if (to == Type::f16) return &float_to_half;
      if (to == Type::bf16) return &float_to_bfloat;
      if (to == Type::tf32) return &float_to_tf32;
      return convert_from<float>(to);
    case Type::f64:
      return convert_from<double>(to);
    default:
      return nullptr;
  }
}

template <class From, class To>
struct Widen {  // where registers are as wide as the types and nothing is rounded to an integer
  To operator()(From x) const { return To(x); }
};

// The common ones as loops over whole registers.
Handler fast_handler(Type to, Type from) {
  struct Known {
    Type to, from;
    Handler handler;
  };
  static const Known known[] = {
      {Type::s64, Type::s32, &Apply1<int64_t, Widen<int32_t, int64_t>, int32_t>::run},
      {Type::u64, Type::u32, &Apply1<uint64_t, Widen<uint32_t, uint64_t>, uint32_t>::run},
      {Type::u32, Type::u64, &Apply1<uint32_t, Widen<uint64_t, uint32_t>, uint64_t>::run},
      {Type::f64, Type::f32, &Apply1<double, Widen<float, double>, float>::run},
      {Type::f32, Type::f64, &Apply1<float, Widen<double, float>, double>::run},
      {Type::f64, Type::s32, &Apply1<double, Widen<int32_t, double>, int32_t>::run},
      {Type::f32, Type::s32, &Apply1<float, Widen<int32_t, float>, int32_t>::run},
  };
  for (const Known& k : known)
    if (k.to == to && k.from == from) return k.handler;
  return nullptr;
}

// The others lane by lane; an instruction's offset is the index of its conversion. Option: the
// rounding, and 16 to saturate.
std::vector<Convert>& table() {
  static std::vector<Convert> all;
  return all;
}
void run_table(Warp& w, const Instruction& i, Mask m) {
  const Convert f = table()[size_t(i.offset)];
  const auto rounding = Rounding(i.option & 15);
  each_lane(m, [&](int l) {
    const uint64_t x = f(raw_lane(w, i.source[0], i.source_width, l), rounding, i.option & 16);
    set_raw_lane(w, i.target[0], i.target_width, l, x);
  });
}

void cvt(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  build.expect_operands(s, 2, 2);
  const Type from = opcode.take_type(), to = opcode.take_type();
  const Convert f = conversion(to, from);
  if (!f) return;
  const bool integers = !is_float(from) && !is_float(to) && from != Type::f16 && from != Type::bf16;
  const bool narrows = bytes_of(to) < bytes_of(from) || to == Type::tf32;
  const int whole = opcode.take_one({"rni", "rzi", "rmi", "rpi"});
  const bool nearest = opcode.take("rn"), away = to == Type::tf32 && opcode.take("rna");
  if (to == Type::tf32 && !away) build.fail("cvt to .tf32 without .rna");
  // A float that becomes a narrower one or comes from an integer is rounded to nearest.
  const bool must_round = (is_float(from) && narrows && !integers && whole < 0) ||
                          (!is_float(from) && is_float(to) && bytes_of(from) != 2 && whole < 0 &&
                           from != Type::f16 && from != Type::bf16);
  if (is_float(from) && !is_float(to) && to != Type::f16 && to != Type::bf16 && to != Type::tf32 &&
      whole < 0)
    build.fail("cvt from a float to an integer without a rounding");
  if (must_round && !nearest && !away && !integers) build.fail("cvt without .rn");
  const bool saturate = opcode.take("sat");
  i.kind = Kind::convert;
  i.passes_bytes = integers;
  i.option = uint8_t((whole + 1) | (saturate ? 16 : 0));
  const Operand &target = s.operands[0], &source = s.operands[1];
  const int target_width = build.width(target), source_width = build.width(source);
  i.target_width = uint8_t(target_width > 0 ? target_width : std::max(2, bytes_of(to)));
  i.source_width = uint8_t(source_width > 0 ? source_width : std::max(2, bytes_of(from)));
  if (i.target_width < bytes_of(to) || i.source_width < bytes_of(from))
    build.fail("a register narrower than its type");
  const auto bits = [](int width) {
    return width == 2 ? Type::b16 : width == 4 ? Type::b32 : Type::b64;
  };
  build.add_target(i, target, i.target_width);
  build.add_source(i, source, bits(i.source_width));
  const bool exact = i.target_width == bytes_of(to) && i.source_width == bytes_of(from);
  if (exact && whole < 0 && !saturate) i.handler = fast_handler(to, from);
  if (i.handler) return;
  i.offset = int64_t(table().size());
  table().push_back(f);
  i.handler = &run_table;
}

struct ToGeneric {
  static void run(Warp& w, const Instruction& i, Mask m) {
    const uint64_t window = uint64_t(i.offset);
    map1<uint64_t, uint64_t>(w, i, m, [=](uint64_t a) { return a + window; });
  }
};
void from_generic(Warp& w, const Instruction& i, Mask m) {
  const uint64_t window = uint64_t(i.offset);
  uint64_t* d = w.at<uint64_t>(i.target[0]);
  const uint64_t* a = w.at<uint64_t>(i.source[0]);
  each_lane(m, [&](int l) {
    if ((a[l] & kWindowMask) != window)
      fault(w, i, l, "address of another space", "cvta.to of an address outside the space");
    d[l] = a[l] - window;
  });
}

void cvta(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  build.expect_operands(s, 2, 2);
  const bool to = opcode.take("to");
  const int space = opcode.take_one({"global", "shared", "local", "param", "const"});
  if (space < 0 || opcode.take_type() != Type::u64) return;
  const uint64_t windows[] = {0, kSharedWindow, kLocalWindow, kParamWindow, 0};
  i.kind = Kind::move;
  i.offset = int64_t(windows[space]);
  build.add_target(i, s.operands[0], 8);
  build.add_source(i, s.operands[1], Type::u64);
  i.handler = to ? &from_generic : &ToGeneric::run;
}

template <uint64_t kWindow>
void is_space(Warp& w, const Instruction& i, Mask m) {
  const uint64_t* a = w.at<uint64_t>(i.source[0]);
  Mask found = 0;
  for (int l = 0; l < kLanes; ++l) found |= Mask((a[l] & kWindowMask) == kWindow) << l;
  set_predicate(w, i.target[0], m, found);
}

}  // namespace

void find_convert(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  if (opcode.base() == "cvt") return cvt(opcode, s, build, i);
  if (opcode.base() == "cvta") return cvta(opcode, s, build, i);
  if (opcode.base() != "isspacep") return;
  build.expect_operands(s, 2, 2);
  build.add_target(i, s.operands[0], 0);
  build.add_source(i, s.operands[1], Type::u64);
  i.kind = Kind::compare;
  if (opcode.take("global")) i.handler = &is_space<0>;
  if (opcode.take("shared")) i.handler = &is_space<kSharedWindow>;
  if (opcode.take("local")) i.handler = &is_space<kLocalWindow>;
}

}  // namespace ptx
