// ld, st, cp.async, prefetch.
#include <cstring>
#include <type_traits>

#include "lanes.h"
#include "opcode.h"

namespace ptx {

namespace {

// A lane's place in the parameters of the frame or of the kernel.
uint8_t* parameter(Warp& w, const Instruction& i, int lane) {
  if (i.space == Space::kernel_param) return w.block->launch->parameters.data() + i.offset;
  Frame& f = *w.current.frame;
  return f.parameters.data() + size_t(lane) * size_t(f.code->parameter_bytes) + i.offset;
}

template <class T>
void take(Warp& w, const Instruction& i, int lane, const uint8_t* from) {
  for (int k = 0; k < i.vector; ++k) {
    T x;
    std::memcpy(&x, from + size_t(k) * sizeof(T), sizeof(T));
    if (i.target_width == sizeof(T)) {
      w.at<T>(i.target[size_t(k)])[lane] = x;
    } else {  // extended to the register
      const uint64_t bits = std::is_signed_v<T> ? uint64_t(int64_t(x)) : uint64_t(x);
      set_raw_lane(w, i.target[size_t(k)], i.target_width, lane, bits);
    }
  }
}

template <class T>
void load_parameter(Warp& w, const Instruction& i, Mask m) {
  each_lane(m, [&](int l) { take<T>(w, i, l, parameter(w, i, l)); });
}

template <class T>
void load(Warp& w, const Instruction& i, Mask m) {
  Access access(w, i, m, unsigned(sizeof(T)) * i.vector, true, false);
  each_lane(m, [&](int l) { take<T>(w, i, l, access[l]); });
}

template <class T>
void give(Warp& w, const Instruction& i, int lane, uint8_t* to) {
  for (int k = 0; k < i.vector; ++k) {
    const T x = T(raw_lane(w, i.source[size_t(k + i.has_base)], i.source_width, lane));
    std::memcpy(to + size_t(k) * sizeof(T), &x, sizeof(T));
  }
}

template <class T>
void store_parameter(Warp& w, const Instruction& i, Mask m) {
  each_lane(m, [&](int l) { give<T>(w, i, l, parameter(w, i, l)); });
}

template <class T>
void store(Warp& w, const Instruction& i, Mask m) {
  Access access(w, i, m, unsigned(sizeof(T)) * i.vector, false, true);
  each_lane(m, [&](int l) { give<T>(w, i, l, access[l]); });
  access.commit();
}

template <class T>
Handler handler_of(bool loads, bool is_parameter) {
  if (loads) return is_parameter ? &load_parameter<T> : &load<T>;
  return is_parameter ? &store_parameter<T> : &store<T>;
}

Handler memory_handler(Type t, bool loads, bool is_parameter) {
  switch (t) {
    case Type::b8:
    case Type::u8:
      return handler_of<uint8_t>(loads, is_parameter);
    case Type::s8:
      return handler_of<int8_t>(loads, is_parameter);
    case Type::b16:
    case Type::u16:
      return handler_of<uint16_t>(loads, is_parameter);
    case Type::s16:
      return handler_of<int16_t>(loads, is_parameter);
    case Type::b32:
    case Type::u32:
    case Type::f32:
      return handler_of<uint32_t>(loads, is_parameter);
    case Type::s32:
      return handler_of<int32_t>(loads, is_parameter);
    case Type::b64:
    case Type::u64:
    case Type::s64:
    case Type::f64:
      return handler_of<uint64_t>(loads, is_parameter);
    default:
      return nullptr;
  }
}

void load_or_store(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  const bool loads = opcode.base() == "ld";
  build.expect_operands(s, 2, 2);
  i.space = take_space(opcode);
  take_order(opcode, i, build);
  if (i.order == Order::acquire && !loads) build.fail("st with .acquire");
  if (i.order == Order::release && loads) build.fail("ld with .release");
  opcode.take("nc");
  // Hints for the caches change nothing here.
  opcode.take_one({"ca", "cg", "cs", "lu", "cv", "wb", "wt"});
  opcode.take_one({"L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last",
                   "L1::no_allocate"});
  opcode.take_one({"L2::64B", "L2::128B", "L2::256B"});
  const int vector = opcode.take_one({"v2", "v4"});
  i.vector = vector < 0 ? 1 : vector == 0 ? 2 : 4;
  const Type t = opcode.take_type();
  i.bytes = uint8_t(bytes_of(t));
  if (i.bytes == 0 || i.bytes * i.vector > 16) return;
  const Operand &address = s.operands[loads ? 1 : 0], &data = s.operands[loads ? 0 : 1];
  build.address(address, i);
  // In a register: of a kernel's parameters.
  if (i.has_base && i.space == Space::param && !loads)
    build.fail("a write to .param by a register");
  const std::vector<Operand> one{data};
  const auto& parts = data.kind == Operand::vector ? data.parts : one;
  if (parts.size() != i.vector) build.fail("a vector of another length");
  int width = std::max(2, int(i.bytes));
  for (const Operand& o : parts)
    if (build.width(o) > width) width = build.width(o);  // registers may be wider than the type
  (loads ? i.target_width : i.source_width) = uint8_t(width);
  const Type as = width == 2 ? Type::b16 : width == 4 ? Type::b32 : Type::b64;
  for (const Operand& o : parts) {
    if (loads) {
      build.add_target(i, o, width);
    } else if (is_float(t) && o.kind != Operand::symbol) {
      build.add_source(i, o, t);
    } else {
      build.add_source(i, o, as);
    }
  }
  const bool is_parameter = i.space == Space::param || i.space == Space::kernel_param;
  i.is_read = loads;
  i.is_write = !loads;
  i.kind = memory_kind(i.space, loads);
  i.handler = memory_handler(t, loads, is_parameter && !i.has_base);
}

// What a copy does when it lands.
void land(Warp& w, int lane, const AsyncCopy& c) {
  Instruction read = *c.instruction, write = *c.instruction;
  read.space = Space::global;
  read.has_base = write.has_base = false;
  write.offset = int64_t(c.to);
  const Mask m = Mask(1) << lane;
  uint8_t data[16] = {};
  const int given = c.bytes - c.zeros;
  for (int k = 0; k < given;) {
    const int n = given - k >= 4 ? 4 : 1;
    read.offset = int64_t(c.from) + k;
    Access from(w, read, m, unsigned(n), true, false);
    std::memcpy(data + k, from[lane], size_t(n));
    k += n;
  }
  Access to(w, write, m, unsigned(c.bytes), false, true);
  std::memcpy(to[lane], data, size_t(c.bytes));
  to.commit();
}

void copy_async(Warp& w, const Instruction& i, Mask m) {
  each_lane(m, [&](int l) {
    AsyncCopy copy;
    copy.to = lane_address(w, i, l);
    copy.from = w.at<uint64_t>(i.source[1])[l] + uint64_t(i.extra);
    copy.bytes = i.bytes;
    if (i.option) {  // the bytes of the source; the rest is zero
      const uint32_t given = w.at<uint32_t>(i.source[2])[l];
      if (given > i.bytes) fault(w, i, l, "cp.async of more than its size", std::to_string(given));
      copy.zeros = i.bytes - int(given);
    }
    copy.group = w.committed[l];
    copy.instruction = &i;
    copy.has_landed = w.block->launch->options.early_copies;
    if (copy.has_landed) land(w, l, copy);
    w.copies[l].push_back(copy);
  });
}
void commit_copies(Warp& w, const Instruction&, Mask m) {
  each_lane(m, [&](int l) { ++w.committed[l]; });
}
void wait_copies(Warp& w, const Instruction& i, Mask m) {
  each_lane(m, [&](int l) {
    if (i.option) ++w.committed[l];  // wait_all
    land_copies(w, l, i.option ? 0 : uint64_t(i.offset));
  });
}

void async(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  if (!opcode.take("async")) return;
  i.kind = Kind::asynchronous;
  if (opcode.take("commit_group")) {
    build.expect_operands(s, 0, 0);
    i.async = Async::commit;
    i.handler = &commit_copies;
    return;
  }
  const bool all = opcode.take("wait_all");
  if (all || opcode.take("wait_group")) {
    build.expect_operands(s, all ? 0 : 1, all ? 0 : 1);
    if (!all) i.offset = int64_t(s.operands[0].bits);
    i.option = all;
    i.async = Async::wait;
    i.handler = &wait_copies;
    return;
  }
  opcode.take_one({"ca", "cg"});
  if (!opcode.take("shared") || !opcode.take("global")) return;
  opcode.take_one({"L2::64B", "L2::128B", "L2::256B"});
  build.expect_operands(s, 3, 4);
  i.space = Space::shared;
  build.address(s.operands[0], i);
  if (!i.has_base) build.fail("an address without a register");
  Instruction from;
  from.space = Space::global;
  build.address(s.operands[1], from);
  if (!from.has_base || from.address_width != 8) build.fail("a source without a register");
  i.source[i.sources++] = from.source[0];
  i.extra = int32_t(from.offset);
  i.bytes = uint8_t(s.operands[2].bits);
  if (i.bytes != 4 && i.bytes != 8 && i.bytes != 16) build.fail("a copy of another size");
  i.option = s.operands.size() == 4;
  if (i.option) build.add_source(i, s.operands[3], Type::u32);
  i.async = Async::copy;
  i.handler = &copy_async;
}

// The place in the memory of a block of the cluster for one in the own.
template <class T>
void map_address(Warp& w, const Instruction& i, Mask m) {
  const T window = sizeof(T) == 8 ? T(kSharedWindow) : T(0);
  const uint32_t* ranks = w.at<uint32_t>(i.source[1]);
  each_lane(m, [&](int l) {
    const T from = T(w.at<T>(i.source[0])[l] - window);
    if (ranks[l] >= w.block->launch->shape.cluster_size())
      fault(w, i, l, "address of no block of the cluster", "rank " + std::to_string(ranks[l]));
    if (from >= w.block->shared.size())
      fault(w, i, l, "mapa of what is not in shared memory", std::to_string(uint64_t(from)));
    w.at<T>(i.target[0])[l] = T(window + (T(ranks[l] + 1) << kRankShift) + from);
  });
}

void mapa(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  const bool shared = opcode.take("shared::cluster");
  const Type t = opcode.take_type();
  if (t != Type::u32 && t != Type::u64) return;
  if (shared != (t == Type::u32)) build.fail("an address of another width");
  build.expect_operands(s, 3, 3);
  build.add_target(i, s.operands[0], bytes_of(t));
  build.add_source(i, s.operands[1], t);
  build.add_source(i, s.operands[2], Type::u32);
  i.kind = Kind::logic;
  i.handler = shared ? &map_address<uint32_t> : &map_address<uint64_t>;
}

void nothing(Warp&, const Instruction&, Mask) {}

}  // namespace

Kind memory_kind(Space space, bool loads) {
  switch (space) {
    case Space::global:
    case Space::cluster:  // as far as the second-level cache
      return loads ? Kind::load_global : Kind::store_global;
    case Space::shared:
      return loads ? Kind::load_shared : Kind::store_shared;
    case Space::local:
      return loads ? Kind::load_local : Kind::store_local;
    case Space::generic:
      return loads ? Kind::generic_load : Kind::generic_store;
    default:
      return Kind::parameter;
  }
}

void land_copies(Warp& w, int lane, uint64_t keep) {
  auto& copies = w.copies[lane];
  size_t landed = 0;
  for (const AsyncCopy& c : copies) {
    if (c.group + keep >= w.committed[lane]) break;
    ++landed;
    if (!c.has_landed) land(w, lane, c);
  }
  copies.erase(copies.begin(), copies.begin() + ptrdiff_t(landed));
}

void find_memory(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  const std::string& base = opcode.base();
  if (base == "ld" || base == "st") return load_or_store(opcode, s, build, i);
  if (base == "mapa") return mapa(opcode, s, build, i);
  if (base == "cp") return async(opcode, s, build, i);
  if (base == "prefetch" || base == "prefetchu") {
    opcode.take_one({"global", "local"});
    opcode.take_one({"L1", "L2"});
    i.handler = &nothing;
  }
}

}  // namespace ptx
