#include <cstdio>
#include <cstring>

#include "warp.h"

// Of AddressSanitizer, where the program was built with it: global memory is the host's own.
extern "C" __attribute__((weak)) void* __asan_region_is_poisoned(void* begin, size_t size);

namespace ptx {

namespace {

std::string hexadecimal(uint64_t x) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(x));
  return text;
}

std::string describe(const char* verb, unsigned bytes, const std::string& where) {
  return std::string(verb) + " of " + std::to_string(bytes) + " bytes at " + where;
}

std::string describe(const Race& race) {
  std::string text = race.kind;
  text += ": ";
  text += race.with.several ? "several threads" : "thread " + std::to_string(race.with.thread);
  return text + " of block " + std::to_string(race.with.block);
}

Strength strength_of(const Instruction& i) {
  Strength s;
  s.strong = i.order != Order::weak;
  s.device = i.scope == Scope::device;
  s.acquires = i.order == Order::acquire || i.order == Order::acquire_release;
  s.releases = i.order == Order::release || i.order == Order::acquire_release;
  return s;
}

StrongKind strong_kind(bool reads, bool writes) {
  return !writes ? StrongKind::read : reads ? StrongKind::update : StrongKind::write;
}

}  // namespace

Access::Access(Warp& warp, const Instruction& i, Mask lanes, unsigned bytes, bool reads,
               bool writes)
    : warp_(warp), i_(i), bytes_(bytes), reads_(reads), writes_(writes) {
  uint64_t low_bits = 0, windows = 0;
  const uint64_t first = lane_address(warp, i, first_lane(lanes)) & kWindowMask;
  each_lane(lanes, [&](int l) {
    address_[l] = lane_address(warp, i, l);
    low_bits |= address_[l];
    windows |= (address_[l] & kWindowMask) ^ first;
  });
  if (low_bits & (bytes - 1)) {
    each_lane(lanes, [&](int l) {
      if (address_[l] & (bytes - 1))
        fault(warp, i, l, "misaligned access",
              describe(writes ? "a write" : "a read", bytes, hexadecimal(address_[l])));
    });
  }
  if (lanes & warp.arrived) warp.block->went_on = true;
  switch (i.space) {
    case Space::shared:
    case Space::cluster:
      shared(lanes);
      break;
    case Space::local:
      local(lanes);
      break;
    case Space::global:
      global(lanes);
      break;
    case Space::param:
    case Space::kernel_param:
      param(lanes);
      break;
    case Space::generic:
      generic(lanes, windows != 0);
      break;
  }
}

// Lanes by the space that they address.
void Access::generic(Mask lanes, bool mixed) {
  while (lanes != 0) {
    const uint64_t window = address_[first_lane(lanes)] & kWindowMask;
    Mask same = mixed ? 0 : lanes;
    if (mixed)
      each_lane(lanes, [&](int l) { same |= Mask((address_[l] & kWindowMask) == window) << l; });
    lanes &= ~same;
    if (window == 0) {
      global(same);
      continue;
    }
    each_lane(same, [&](int l) { address_[l] -= window; });
    if (window == kSharedWindow) {
      shared(same);
    } else if (window == kLocalWindow) {
      local(same);
    } else if (window == kParamWindow) {
      param(same);
    } else {
      fault(warp_, i_, first_lane(same), "address of no memory",
            hexadecimal(address_[first_lane(same)] + window));
    }
  }
}

void Access::shared(Mask lanes) {
  const bool in_cluster = i_.space != Space::shared && warp_.block->cluster;
  each_lane(lanes, [&](int l) {
    Block* b = warp_.block;
    if (in_cluster || i_.space == Space::cluster) {
      b = &block_of_address(warp_, i_, l, address_[l]);
      address_[l] &= (uint64_t(1) << kRankShift) - 1;
    }
    shared_of(*b, l);
  });
}

// A lane's access to the shared memory of a block.
void Access::shared_of(Block& b, int l) {
  const Strength strength = strength_of(i_);
  const uint64_t at = address_[l], size = b.shared.size();
  if (at + bytes_ > size || at + bytes_ < at)
    fault(
        warp_, i_, l, "access outside shared memory",
        describe(writes_ ? "a write" : "a read", bytes_, "offset " + std::to_string(int64_t(at))) +
            ", the block has " + std::to_string(size));
  bool unwritten = false;
  const Race race = b.shared_shadow.access(warp_, l, at, bytes_, reads_, writes_, strength,
                                           b.launch->options.checks_races, &unwritten);
  if (unwritten)
    report(warp_, i_, l, "uninitialised read of shared memory",
           describe("a read", bytes_, "offset " + std::to_string(at)));
  if (race.kind)
    report(warp_, i_, l, "race in shared memory",
           describe(race) + " at offset " + std::to_string(at));
  if (strength.strong)
    strong_access(warp_, l, at + kSharedWindow + (uint64_t(b.rank) << kRankShift),
                  strong_kind(reads_, writes_), strength);
  where_[l] = &b.shared[at];
}

void Access::local(Mask lanes) {
  const Frame& f = *warp_.current.frame;
  const uint64_t size = uint64_t(f.local_base + f.code->local_bytes);
  each_lane(lanes, [&](int l) {
    const uint64_t at = address_[l];
    if (at + bytes_ > size || at + bytes_ < at)
      fault(warp_, i_, l, "access outside local memory",
            describe(writes_ ? "a write" : "a read", bytes_,
                     "offset " + std::to_string(int64_t(at))) +
                ", the thread has " + std::to_string(size));
    uint8_t* written = &warp_.local_written[l][at];
    if (writes_) {
      std::memset(written, 1, bytes_);
    } else if (!i_.is_copied_only && std::memchr(written, 0, bytes_)) {
      report(warp_, i_, l, "uninitialised read of local memory",
             describe("a read", bytes_, "offset " + std::to_string(at)));
    }
    where_[l] = &warp_.local[l][at];
  });
}

// The kernel's parameters.
void Access::param(Mask lanes) {
  std::vector<uint8_t>& bytes = warp_.block->launch->parameters;
  each_lane(lanes, [&](int l) {
    const uint64_t at = address_[l];
    if (writes_) fault(warp_, i_, l, "write to a kernel's parameters", std::to_string(at));
    if (at + bytes_ > bytes.size() || at + bytes_ < at)
      fault(warp_, i_, l, "access outside a kernel's parameters",
            describe("a read", bytes_, "offset " + std::to_string(int64_t(at))));
    where_[l] = &bytes[at];
  });
}

void Access::global(Mask lanes) {
  Block& b = *warp_.block;
  Launch& launch = *b.launch;
  const Strength strength = strength_of(i_);
  const bool weak = launch.options.weak_memory && launch.resident > 1;
  const bool bounded = launch.memory && launch.memory->is_known();
  if (weak && strength.releases && strength.device) launch.weak.flush(b.buffer, b.id);
  each_lane(lanes, [&](int l) {
    const uint64_t at = address_[l];
    const char* verb = writes_ ? "a write" : "a read";
    if (at < 4096 || (at & kWindowMask))
      fault(warp_, i_, l, "access outside global memory", describe(verb, bytes_, hexadecimal(at)));
    if (bounded) {
      Buffer* buffer = launch.memory->find(at, bytes_);
      if (!buffer)
        fault(warp_, i_, l, "access outside every buffer", describe(verb, bytes_, hexadecimal(at)));
      if (!buffer->written.empty()) {
        uint8_t* written = &buffer->written[at - buffer->begin];
        if (reads_ && std::memchr(written, 0, bytes_))
          report(warp_, i_, l, "uninitialised read of global memory",
                 describe(verb, bytes_, "offset " + std::to_string(at - buffer->begin)));
        if (writes_) std::memset(written, 1, bytes_);
      }
    }
    if (__asan_region_is_poisoned && __asan_region_is_poisoned(reinterpret_cast<void*>(at), bytes_))
      fault(warp_, i_, l, "access outside every buffer", describe(verb, bytes_, hexadecimal(at)));
    if (launch.options.checks_races) {
      const Race race =
          launch.global_shadow.access(warp_, l, at, bytes_, reads_, writes_, strength);
      if (race.kind)
        report(warp_, i_, l, "race in global memory", describe(race) + " at " + hexadecimal(at));
    }
    where_[l] = reinterpret_cast<uint8_t*>(at);
    if (weak) {
      if (reads_ && writes_) {
        launch.weak.settle(b.buffer, b.id, at, bytes_);
        launch.weak.before_write(b.id, at, bytes_);
      } else {
        buffered_ |= Mask(1) << l;
        where_[l] = scratch_[l];
        if (reads_) launch.weak.load(b.buffer, b.id, at, bytes_, scratch_[l]);
      }
    }
    if (strength.strong) strong_access(warp_, l, at, strong_kind(reads_, writes_), strength);
  });
  if (weak && strength.acquires && strength.device) launch.weak.acquire(b.buffer);
}

void Access::commit() {
  warp_.has_stored = true;
  if (buffered_ == 0) return;
  Block& b = *warp_.block;
  each_lane(buffered_, [&](int l) {
    b.launch->weak.store(b.buffer, b.id, address_[l], bytes_, scratch_[l], i_.order != Order::weak);
  });
}

}  // namespace ptx
