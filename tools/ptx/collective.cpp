// What lanes of a warp do together: shfl, vote, match, redux, bar.warp.sync. The loop over
// instructions calls these when all lanes that the instruction names are there.
#include "lanes.h"
#include "opcode.h"

namespace ptx {

namespace {

enum class Shuffle : uint8_t { up, down, butterfly, index };

void shuffle(Warp& w, const Instruction& i, Mask m) {
  const auto how = Shuffle(i.option);
  uint32_t* d = w.at<uint32_t>(i.target[0]);
  const uint32_t *a = w.at<uint32_t>(i.source[1]), *b = w.at<uint32_t>(i.source[2]),
                 *c = w.at<uint32_t>(i.source[3]), *members = w.at<uint32_t>(i.source[0]);
  uint32_t result[kLanes];
  Mask inside = 0;
  each_lane(m, [&](int l) {
    // PTX ISA, shfl.sync: bits 0 to 4 of c are the last lane, bits 8 to 12 mask those of a segment.
    const int distance = int(b[l] & 31), last = int(c[l] & 31), segment = int(c[l] >> 8 & 31);
    const int most = (l & segment) | (last & ~segment), least = l & segment;
    int from = 0;
    bool within = false;
    switch (how) {
      case Shuffle::up:
        from = l - distance, within = from >= most;
        break;
      case Shuffle::down:
        from = l + distance, within = from <= most;
        break;
      case Shuffle::butterfly:
        from = l ^ distance, within = from <= most;
        break;
      case Shuffle::index:
        from = least | (distance & ~segment), within = from <= most;
        break;
    }
    if (!within) from = l;
    if (!(m >> from & 1) || !(members[l] >> from & 1))
      report(w, i, l, "shuffle from a lane that takes no part",
             "lane " + std::to_string(l) + " reads lane " + std::to_string(from));
    result[l] = a[from];
    inside |= Mask(within) << l;
  });
  each_lane(m, [&](int l) { d[l] = result[l]; });
  if (i.targets > 1) set_predicate(w, i.target[1], m, inside);
}

enum class Vote : uint8_t { all, any, uniform, ballot };

void vote(Warp& w, const Instruction& i, Mask m) {
  const uint32_t* members = w.at<uint32_t>(i.source[0]);
  const Mask p = predicate_of(w, i, 1);
  Mask found = 0;
  uint32_t ballot[kLanes];
  each_lane(m, [&](int l) {
    const Mask of = members[l] & m, yes = p & of;
    ballot[l] = yes;
    bool is = false;
    switch (Vote(i.option)) {
      case Vote::all:
        is = yes == of;
        break;
      case Vote::any:
        is = yes != 0;
        break;
      case Vote::uniform:
        is = yes == of || yes == 0;
        break;
      case Vote::ballot:
        break;
    }
    found |= Mask(is) << l;
  });
  if (Vote(i.option) == Vote::ballot) {
    each_lane(m, [&](int l) { w.at<uint32_t>(i.target[0])[l] = ballot[l]; });
  } else {
    set_predicate(w, i.target[0], m, found);
  }
}

template <class T, bool kAll>
void match(Warp& w, const Instruction& i, Mask m) {
  const uint32_t* members = w.at<uint32_t>(i.source[0]);
  const T* a = w.at<T>(i.source[1]);
  Mask same[kLanes], all = 0;
  each_lane(m, [&](int l) {
    same[l] = 0;
    each_lane(members[l] & m, [&](int k) { same[l] |= Mask(a[k] == a[l]) << k; });
    const bool whole = same[l] == (members[l] & m);
    if (kAll && !whole) same[l] = 0;
    all |= Mask(whole) << l;
  });
  each_lane(m, [&](int l) { w.at<uint32_t>(i.target[0])[l] = same[l]; });
  if (i.targets > 1) set_predicate(w, i.target[1], m, all);
}

template <class T>
void reduce(Warp& w, const Instruction& i, Mask m) {
  const uint32_t* members = w.at<uint32_t>(i.source[0]);
  const T* a = w.at<T>(i.source[1]);
  T result[kLanes];
  each_lane(m, [&](int l) {
    bool first = true;
    T x = 0;
    each_lane(members[l] & m, [&](int k) {
      const T y = a[k];
      if (first) {
        x = y;
      } else {
        switch (i.option) {
          case 0:
            x = T(uint32_t(x) + uint32_t(y));
            break;
          case 1:
            x = y < x ? y : x;
            break;
          case 2:
            x = y > x ? y : x;
            break;
          case 3:
            x = T(x & y);
            break;
          case 4:
            x = T(x | y);
            break;
          default:
            x = T(x ^ y);
        }
      }
      first = false;
    });
    result[l] = x;
  });
  each_lane(m, [&](int l) { w.at<T>(i.target[0])[l] = result[l]; });
}

// What lanes wrote before is seen by the others after.
void synchronise(Warp& w, const Instruction& i, Mask m) {
  const uint32_t* members = w.at<uint32_t>(i.source[0]);
  const uint32_t now = ++w.block->order.time;
  if (m == w.exists && (members[first_lane(m)] & m) == m) {
    w.synced = now;
    return;
  }
  if (!w.lane_synced)
    w.lane_synced = std::make_unique<std::array<std::array<uint32_t, kLanes>, kLanes>>();
  each_lane(m, [&](int l) {
    each_lane(members[l] & m, [&](int k) { (*w.lane_synced)[size_t(l)][size_t(k)] = now; });
  });
}

void active(Warp& w, const Instruction& i, Mask m) {
  each_lane(m, [&](int l) { w.at<uint32_t>(i.target[0])[l] = m; });
}

void members(const Operand& o, Builder& build, Instruction& i) {
  i.control = Control::collective;
  i.kind = Kind::shuffle;
  build.add_source(i, o, Type::b32);
}

}  // namespace

void find_collective(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  const std::string& base = opcode.base();
  const auto two_targets = [&](int bytes) {
    const Operand& to = s.operands[0];
    if (to.kind != Operand::pair) return build.add_target(i, to, bytes);
    build.add_target(i, to.parts[0], bytes);
    build.add_target(i, to.parts[1], 0);
  };
  if (base == "activemask") {
    if (opcode.take_type() != Type::b32) return;
    build.expect_operands(s, 1, 1);
    build.add_target(i, s.operands[0], 4);
    i.handler = &active;
  } else if (base == "shfl") {
    const int how = opcode.take_one({"up", "down", "bfly", "idx"});
    if (how < 0 || !opcode.take("sync") || opcode.take_type() != Type::b32) return;
    build.expect_operands(s, 5, 5);
    members(s.operands[4], build, i);
    two_targets(4);
    for (size_t k = 1; k <= 3; ++k) build.add_source(i, s.operands[k], Type::b32);
    i.option = uint8_t(how);
    i.handler = &shuffle;
  } else if (base == "vote") {
    const int how = opcode.take_one({"all", "any", "uni", "ballot"});
    if (how < 0 || !opcode.take("sync")) return;
    opcode.take_type();
    build.expect_operands(s, 3, 3);
    members(s.operands[2], build, i);
    build.add_target(i, s.operands[0], Vote(how) == Vote::ballot ? 4 : 0);
    build.add_source(i, s.operands[1], Type::pred);
    i.option = uint8_t(how);
    i.handler = &vote;
  } else if (base == "match") {
    const int how = opcode.take_one({"any", "all"});
    const Type t = opcode.take_type();
    if (how < 0 || !opcode.take("sync") || bytes_of(t) < 4) return;
    build.expect_operands(s, 3, 3);
    members(s.operands[2], build, i);
    two_targets(4);
    build.add_source(i, s.operands[1], t);
    if (t == Type::b32) i.handler = how ? &match<uint32_t, true> : &match<uint32_t, false>;
    if (t == Type::b64) i.handler = how ? &match<uint64_t, true> : &match<uint64_t, false>;
  } else if (base == "redux") {
    const int how = opcode.take_one({"add", "min", "max", "and", "or", "xor"});
    const Type t = opcode.take_type();
    if (how < 0 || !opcode.take("sync") || bytes_of(t) != 4) return;
    build.expect_operands(s, 3, 3);
    members(s.operands[2], build, i);
    build.add_target(i, s.operands[0], 4);
    build.add_source(i, s.operands[1], t);
    i.option = uint8_t(how);
    i.handler = t == Type::s32 ? &reduce<int32_t> : &reduce<uint32_t>;
  } else if (base == "bar" && opcode.take("warp") && opcode.take("sync")) {
    build.expect_operands(s, 1, 1);
    members(s.operands[0], build, i);
    i.kind = Kind::barrier;
    i.handler = &synchronise;
  }
}

}  // namespace ptx
