// Bits, shifts, moves and selections.
#include <type_traits>

#include "lanes.h"
#include "opcode.h"

namespace ptx {

namespace {

struct And {
  template <class T>
  T operator()(T a, T b) const {
    return T(a & b);
  }
};
struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return T(a | b);
  }
};
struct Xor {
  template <class T>
  T operator()(T a, T b) const {
    return T(a ^ b);
  }
};
struct Not {
  template <class T>
  T operator()(T a) const {
    return T(~a);
  }
};
struct Same {
  template <class T>
  T operator()(T a) const {
    return a;
  }
};
// Shifts by the width or more give 0, or the sign.
struct ShiftLeft {
  template <class T>
  T operator()(T a, uint32_t n) const {
    return n >= 8 * sizeof(T) ? T(0) : T(std::make_unsigned_t<T>(a) << (n % (8 * sizeof(T))));
  }
};
struct ShiftRight {
  template <class T>
  T operator()(T a, uint32_t n) const {
    constexpr uint32_t most = 8 * sizeof(T) - 1;
    if (std::is_signed_v<T>) return T(a >> (n > most ? most : n));
    return n > most ? T(0) : T(a >> n);
  }
};
template <bool kLeft, bool kClamp>
struct Funnel {  // of {b, a}
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    const uint32_t n = kClamp ? (c < 32 ? c : 32) : c % 32;
    const uint64_t both = uint64_t(b) << 32 | a;
    return kLeft ? uint32_t(both << n >> 32) : uint32_t(both >> n);
  }
};
struct Popc {
  template <class T>
  uint32_t operator()(T a) const {
    return uint32_t(__builtin_popcountll(a));
  }
};
struct Clz {
  template <class T>
  uint32_t operator()(T a) const {
    return a == 0 ? uint32_t(8 * sizeof(T))
                  : uint32_t(__builtin_clzll(a)) - uint32_t(64 - 8 * sizeof(T));
  }
};
struct Reverse {
  template <class T>
  T operator()(T a) const {
    T r = 0;
    for (size_t k = 0; k < 8 * sizeof(T); ++k) r = T(r << 1 | (a >> k & 1));
    return r;
  }
};
// The position of the most significant bit that differs from the sign; ~0 if none does.
struct FindBit {
  template <class T>
  uint32_t operator()(T a) const {
    using U = std::make_unsigned_t<T>;
    const U x = std::is_signed_v<T> && a < 0 ? U(~a) : U(a);
    return x == 0 ? ~uint32_t(0) : uint32_t(63 - __builtin_clzll(x));
  }
};
struct Extract {  // bfe: n bits from position p on; beyond the last bit there are 0 or the sign
  template <class T>
  T operator()(T a, uint32_t position, uint32_t length) const {
    using U = std::make_unsigned_t<T>;
    const uint32_t p = position & 255, n = length & 255, bits = 8 * sizeof(T);
    if (n == 0) return T(0);
    T x = ShiftRight()(a, p);
    if (n < bits) x = T(T(U(x) << (bits - n)) >> (bits - n));
    return x;
  }
};
template <class T>
void insert_bits(Warp& w, const Instruction& i, Mask m) {  // bfi
  T* d = w.at<T>(i.target[0]);
  const T *a = w.at<T>(i.source[0]), *b = w.at<T>(i.source[1]);
  const uint32_t *c = w.at<uint32_t>(i.source[2]), *e = w.at<uint32_t>(i.source[3]);
  each_lane(m, [&](int l) {
    const uint32_t p = c[l] & 255, n = e[l] & 255, bits = 8 * sizeof(T);
    T keep = n >= bits ? T(~T(0)) : T((T(1) << n) - 1);
    keep = p >= bits ? T(0) : T(keep << p);
    d[l] = T((b[l] & ~keep) | ((p >= bits ? T(0) : T(a[l] << p)) & keep));
  });
}
void lookup3(Warp& w, const Instruction& i, Mask m) {  // lop3
  uint32_t* d = w.at<uint32_t>(i.target[0]);
  const uint32_t *a = w.at<uint32_t>(i.source[0]), *b = w.at<uint32_t>(i.source[1]),
                 *c = w.at<uint32_t>(i.source[2]), *table = w.at<uint32_t>(i.source[3]);
  each_lane(m, [&](int l) {
    uint32_t x = 0;
    for (unsigned k = 0; k < 8; ++k) {
      if (!(table[l] >> k & 1)) continue;
      x |= (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
    }
    d[l] = x;
  });
}
struct Permute {  // prmt
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t selector) const {
    const uint64_t both = uint64_t(b) << 32 | a;
    uint32_t x = 0;
    for (int k = 0; k < 4; ++k) {
      const uint32_t s = selector >> (4 * k) & 15;
      uint32_t byte = uint32_t(both >> (8 * (s & 7))) & 255;
      if (s & 8) byte = byte & 128 ? 255 : 0;
      x |= byte << (8 * k);
    }
    return x;
  }
};

template <class F>
void predicates(Warp& w, const Instruction& i, Mask m) {
  set_predicate(w, i.target[0], m, F()(predicate_of(w, i, 0), predicate_of(w, i, 1)));
}
template <bool kNot>
void predicate(Warp& w, const Instruction& i, Mask m) {
  const Mask p = predicate_of(w, i, 0);
  set_predicate(w, i.target[0], m, kNot ? ~p : p);
}

template <class T>
void select(Warp& w, const Instruction& i, Mask m) {
  T* d = w.at<T>(i.target[0]);
  const T *a = w.at<T>(i.source[0]), *b = w.at<T>(i.source[1]);
  const Mask p = predicate_of(w, i, 2);
  if (m == kAllLanes) {
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) d[l] = p >> l & 1 ? a[l] : b[l];
  } else {
    each_lane(m, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
  }
}

// Special registers and the places of memory: the option is from Decoder::special.
template <class T>
void move_special(Warp& w, const Instruction& i, Mask m) {
  T* d = w.at<T>(i.target[0]);
  const Block& b = *w.block;
  const auto& dim = b.launch->shape.block;
  each_lane(m, [&](int l) {
    const uint32_t thread = w.thread(l);
    const uint32_t tid[3] = {thread % dim[0], thread / dim[0] % dim[1], thread / dim[0] / dim[1]};
    uint64_t x = 0;
    switch (i.option) {
      case 0:
      case 1:
      case 2:
        x = tid[i.option];
        break;
      case 3:
      case 4:
      case 5:
        x = dim[i.option - 3u];
        break;
      case 6:
      case 7:
      case 8:
        x = b.index[i.option - 6u];
        break;
      case 9:
      case 10:
      case 11:
        x = b.launch->shape.grid[i.option - 9u];
        break;
      case 12:
        x = uint64_t(l);
        break;
      case 13:
        x = uint64_t(w.index);
        break;
      case 14:
        x = b.warps.size();
        break;
      case 15:
        x = uint64_t(1) << l;
        break;
      case 16:
        x = (uint64_t(1) << l) - 1;
        break;
      case 17:
        x = (uint64_t(2) << l) - 1;
        break;
      case 18:
        x = uint32_t(~((uint64_t(2) << l) - 1));
        break;
      case 19:
        x = uint32_t(~((uint64_t(1) << l) - 1));
        break;
      case 20:
        x = b.rank;
        break;
      case 21:
        x = b.launch->shape.cluster_size();
        break;
      case 22:
      case 23:
      case 24:
        x = b.index[i.option - 22u] % b.launch->shape.cluster[i.option - 22u];
        break;
      case 25:
      case 26:
      case 27:
        x = b.launch->shape.cluster[i.option - 25u];
        break;
      case 100:
        x = dynamic_shared(*b.launch) + uint64_t(i.offset);
        break;
      default:
        x = uint64_t(w.current.frame->local_base + i.offset);
    }
    d[l] = T(x);
  });
}

// mov.b64 %rd, {%r1, %r2} and back.
void pack(Warp& w, const Instruction& i, Mask m) {
  const int part = i.bytes / i.vector;
  each_lane(m, [&](int l) {
    uint64_t x = 0;
    for (int k = 0; k < i.vector; ++k)
      x |= raw_lane(w, i.source[size_t(k)], part, l) << (8 * part * k);
    set_raw_lane(w, i.target[0], i.bytes, l, x);
  });
}
void unpack(Warp& w, const Instruction& i, Mask m) {
  const int part = i.bytes / i.vector;
  each_lane(m, [&](int l) {
    const uint64_t x = raw_lane(w, i.source[0], i.bytes, l);
    for (int k = 0; k < i.vector; ++k)
      set_raw_lane(w, i.target[size_t(k)], part, l, x >> (8 * part * k));
  });
}

Type bits_of(int bytes) { return bytes == 2 ? Type::b16 : bytes == 4 ? Type::b32 : Type::b64; }

template <class F>
void unsigned_handler(Instruction& i, Type t) {
  with_integer(t, [&](auto x) { i.handler = &Apply2<std::make_unsigned_t<decltype(x)>, F>::run; });
}

void move(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  const Type t = opcode.take_type();
  build.expect_operands(s, 2, 2);
  i.kind = Kind::move;
  i.passes_bytes = t != Type::pred;
  if (t == Type::pred) {
    build.add_target(i, s.operands[0], 0);
    build.add_source(i, s.operands[1], t);
    i.handler = &predicate<false>;
    return;
  }
  const int bytes = bytes_of(t);
  const Operand &to = s.operands[0], &from = s.operands[1];
  i.bytes = uint8_t(bytes);
  if (to.kind == Operand::vector || from.kind == Operand::vector) {
    const bool packs = from.kind == Operand::vector;
    const auto& parts = packs ? from.parts : to.parts;
    i.vector = uint8_t(parts.size());
    if (bytes / int(parts.size()) < 2) return;
    const Type part = bits_of(bytes / int(parts.size()));
    if (packs) {
      build.add_target(i, to, bytes);
      for (const Operand& o : parts) build.add_source(i, o, part);
    } else {
      for (const Operand& o : parts) build.add_target(i, o, bytes_of(part));
      build.add_source(i, from, bits_of(bytes));
    }
    i.handler = packs ? &pack : &unpack;
    return;
  }
  build.add_target(i, to, bytes);
  const bool is_special = build.special(from, i);
  if (!is_special) build.add_source(i, from, t);
  if (bytes == 2) i.handler = is_special ? &move_special<uint16_t> : &Apply1<uint16_t, Same>::run;
  if (bytes == 4) i.handler = is_special ? &move_special<uint32_t> : &Apply1<uint32_t, Same>::run;
  if (bytes == 8) i.handler = is_special ? &move_special<uint64_t> : &Apply1<uint64_t, Same>::run;
}

template <class F>
void binary(const Statement& s, Builder& build, Instruction& i, Type t) {
  build.expect_operands(s, 3, 3);
  build.add_target(i, s.operands[0], t == Type::pred ? 0 : bytes_of(t));
  build.add_source(i, s.operands[1], t);
  build.add_source(i, s.operands[2], t);
  if (t == Type::pred) {
    i.handler = &predicates<F>;
  } else {
    unsigned_handler<F>(i, t);
  }
}

// Targets of `to` bytes, then sources of these types.
void operands(const Statement& s, Builder& build, Instruction& i, int to,
              std::initializer_list<Type> types) {
  build.expect_operands(s, types.size() + 1, types.size() + 1);
  build.add_target(i, s.operands[0], to);
  size_t k = 1;
  for (Type t : types) build.add_source(i, s.operands[k++], t);
}

template <class F>
void to_word(Instruction& i, Type t) {
  with_integer(t, [&](auto x) {
    using T = decltype(x);
    if constexpr (sizeof(T) >= 4) i.handler = &Apply1<uint32_t, F, T>::run;
  });
}

}  // namespace

void find_logic(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  const std::string& base = opcode.base();
  const auto set = [&](Handler handler) { i.handler = handler; };
  if (base == "mov") return move(opcode, s, build, i);
  i.kind = Kind::logic;
  if (base == "and") return binary<And>(s, build, i, opcode.take_type());
  if (base == "or") return binary<Or>(s, build, i, opcode.take_type());
  if (base == "xor") return binary<Xor>(s, build, i, opcode.take_type());
  if (base == "not") {
    const Type t = opcode.take_type();
    operands(s, build, i, t == Type::pred ? 0 : bytes_of(t), {t});
    if (t == Type::pred) return set(&predicate<true>);
    with_integer(t, [&](auto x) { i.handler = &Apply1<decltype(x), Not>::run; });
  } else if (base == "shl" || base == "shr") {
    const Type t = opcode.take_type();
    operands(s, build, i, bytes_of(t), {t, Type::u32});
    with_integer(t, [&](auto x) {
      using T = decltype(x);
      i.handler = base == "shl" ? &Apply2<T, ShiftLeft, T, uint32_t>::run
                                : &Apply2<T, ShiftRight, T, uint32_t>::run;
    });
  } else if (base == "shf") {
    const int left = opcode.take_one({"l", "r"}), wraps = opcode.take_one({"clamp", "wrap"});
    if (left < 0 || wraps < 0 || opcode.take_type() != Type::b32) return;
    operands(s, build, i, 4, {Type::b32, Type::b32, Type::u32});
    using U = uint32_t;
    if (left == 0)
      set(wraps ? &Apply3<U, Funnel<true, false>>::run : &Apply3<U, Funnel<true, true>>::run);
    if (left == 1)
      set(wraps ? &Apply3<U, Funnel<false, false>>::run : &Apply3<U, Funnel<false, true>>::run);
  } else if (base == "selp") {
    const Type t = opcode.take_type();
    operands(s, build, i, bytes_of(t), {t, t, Type::pred});
    if (bytes_of(t) == 2) set(&select<uint16_t>);
    if (bytes_of(t) == 4) set(&select<uint32_t>);
    if (bytes_of(t) == 8) set(&select<uint64_t>);
  } else if (base == "prmt") {
    if (opcode.take_type() != Type::b32) return;
    operands(s, build, i, 4, {Type::b32, Type::b32, Type::b32});
    i.passes_bytes = true;
    set(&Apply3<uint32_t, Permute>::run);
  } else if (base == "lop3") {
    if (opcode.take_type() != Type::b32) return;
    operands(s, build, i, 4, {Type::b32, Type::b32, Type::b32, Type::b32});
    set(&lookup3);
  } else if (base == "bfe") {
    const Type t = opcode.take_type();
    operands(s, build, i, bytes_of(t), {t, Type::u32, Type::u32});
    i.passes_bytes = true;
    with_integer(t, [&](auto x) {
      using T = decltype(x);
      if constexpr (sizeof(T) >= 4) i.handler = &Apply3<T, Extract, T, uint32_t, uint32_t>::run;
    });
  } else if (base == "bfi") {
    const Type t = opcode.take_type();
    operands(s, build, i, bytes_of(t), {t, t, Type::u32, Type::u32});
    if (t == Type::b32) set(&insert_bits<uint32_t>);
    if (t == Type::b64) set(&insert_bits<uint64_t>);
  } else if (base == "brev") {
    const Type t = opcode.take_type();
    operands(s, build, i, bytes_of(t), {t});
    if (t == Type::b32) set(&Apply1<uint32_t, Reverse>::run);
    if (t == Type::b64) set(&Apply1<uint64_t, Reverse>::run);
  } else if (base == "popc" || base == "clz" || base == "bfind") {
    const Type t = opcode.take_type();
    operands(s, build, i, 4, {t});
    if (base == "popc") return to_word<Popc>(i, t);
    if (base == "clz") return to_word<Clz>(i, t);
    to_word<FindBit>(i, t);
  }
}

}  // namespace ptx
