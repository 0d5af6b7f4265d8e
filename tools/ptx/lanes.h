// Loops over the lanes of a warp that handlers are made of. Lanes that are not in the mask keep
// what they have; the loops are written so that a compiler makes vector instructions of them.
#pragma once

#include "warp.h"

namespace ptx {

template <class D, class A, class F>
void map1(Warp& w, const Instruction& i, Mask m, F f) {
  D* d = w.at<D>(i.target[0]);
  const A* a = w.at<A>(i.source[0]);
  if (m == kAllLanes) {
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) d[l] = f(a[l]);
  } else {
    each_lane(m, [&](int l) { d[l] = f(a[l]); });
  }
}

template <class D, class A, class B, class F>
void map2(Warp& w, const Instruction& i, Mask m, F f) {
  D* d = w.at<D>(i.target[0]);
  const A* a = w.at<A>(i.source[0]);
  const B* b = w.at<B>(i.source[1]);
  if (m == kAllLanes) {
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) d[l] = f(a[l], b[l]);
  } else {
    each_lane(m, [&](int l) { d[l] = f(a[l], b[l]); });
  }
}

template <class D, class A, class B, class C, class F>
void map3(Warp& w, const Instruction& i, Mask m, F f) {
  D* d = w.at<D>(i.target[0]);
  const A* a = w.at<A>(i.source[0]);
  const B* b = w.at<B>(i.source[1]);
  const C* c = w.at<C>(i.source[2]);
  if (m == kAllLanes) {
#pragma GCC ivdep
    for (int l = 0; l < kLanes; ++l) d[l] = f(a[l], b[l], c[l]);
  } else {
    each_lane(m, [&](int l) { d[l] = f(a[l], b[l], c[l]); });
  }
}

// A handler that applies an operation without state: Apply2<int, Add>::run.
template <class D, class F, class A = D>
struct Apply1 {
  static void run(Warp& w, const Instruction& i, Mask m) { map1<D, A>(w, i, m, F()); }
};
template <class D, class F, class A = D, class B = A>
struct Apply2 {
  static void run(Warp& w, const Instruction& i, Mask m) { map2<D, A, B>(w, i, m, F()); }
};
template <class D, class F, class A = D, class B = A, class C = D>
struct Apply3 {
  static void run(Warp& w, const Instruction& i, Mask m) { map3<D, A, B, C>(w, i, m, F()); }
};

// Predicates are one bit for each lane.
inline void set_predicate(Warp& w, uint32_t place, Mask m, Mask bits) {
  Mask& p = w.predicate(place);
  p = (p & ~m) | (bits & m);
}
// The predicate that is source k, negated if the operand is.
inline Mask predicate_of(const Warp& w, const Instruction& i, int k) {
  const Mask p = w.predicate(i.source[size_t(k)]);
  return i.flip >> k & 1 ? ~p : p;
}

// A source of more than one width: the low bytes of the register count.
inline uint64_t raw_lane(const Warp& w, uint32_t place, int width, int lane) {
  const uint8_t* at = w.registers + place + size_t(lane) * size_t(width);
  switch (width) {
    case 2:
      return *reinterpret_cast<const uint16_t*>(at);
    case 4:
      return *reinterpret_cast<const uint32_t*>(at);
    default:
      return *reinterpret_cast<const uint64_t*>(at);
  }
}
inline void set_raw_lane(Warp& w, uint32_t place, int width, int lane, uint64_t bits) {
  uint8_t* at = w.registers + place + size_t(lane) * size_t(width);
  switch (width) {
    case 2:
      *reinterpret_cast<uint16_t*>(at) = uint16_t(bits);
      break;
    case 4:
      *reinterpret_cast<uint32_t*>(at) = uint32_t(bits);
      break;
    default:
      *reinterpret_cast<uint64_t*>(at) = bits;
  }
}

}  // namespace ptx
