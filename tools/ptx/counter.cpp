#include "counter.h"

#include <algorithm>
#include <sstream>

namespace ptx {

namespace {

constexpr unsigned kSectorBytes = 32;
constexpr unsigned kBanks = 32;

// Where a lane's bytes are remembered: shared memory is its block's, local memory its thread's.
uint64_t memory_key(const Warp& warp, int lane, Space space, uint64_t address) {
  if (space == Space::global) return address / 4;
  const uint64_t owner =
      space == Space::shared ? warp.block->id : uint64_t(warp.block->id) << 10 | warp.thread(lane);
  return (space == Space::shared ? uint64_t(1) : uint64_t(2)) << 62 | owner << 24 | address / 4;
}

}  // namespace

void Chain::join(const Chain& other) {
  instructions = std::max(instructions, other.instructions);
  loads = std::max(loads, other.loads);
}

const std::vector<int32_t>& Counter::slots_of(const Code& code) {
  auto& found = slots_[&code];
  if (found.empty()) {
    found.assign(code.registers.size() / 4 + 1, -1);
    for (size_t k = 0; k < code.slots.size(); ++k) found[code.slots[k].place / 4] = int32_t(k);
  }
  return found;
}

Counter::FrameState& Counter::state_of(const Frame& frame) {
  FrameState& state = frames_[&frame];
  if (state.serial != frame.serial) {  // another call
    state.serial = frame.serial;
    state.chains.assign(frame.code->slots.size(), Chain());
    state.pending.assign(frame.code->slots.size(), 0);
    state.parameters.clear();
  }
  return state;
}

void Counter::pass(const Frame& from, const Frame& to, const std::vector<Call::Copy>& copies) {
  const auto source = state_of(from).parameters;
  FrameState& target = state_of(to);
  for (const Call::Copy& c : copies)
    for (const auto& [place, chain] : source)
      if (place >= c.from && place < c.from + c.bytes)
        target.parameters[place - c.from + c.to].join(chain);
}

void Counter::count_sectors(const uint64_t* addresses, Mask lanes, unsigned bytes) {
  std::vector<uint64_t> sectors;
  each_lane(lanes, [&](int l) {
    for (uint64_t s = addresses[l] / kSectorBytes; s <= (addresses[l] + bytes - 1) / kSectorBytes;
         ++s)
      sectors.push_back(s);
  });
  std::sort(sectors.begin(), sectors.end());
  sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
  ++global_requests_;
  sectors_ += sectors.size();
  global_bytes_ += uint64_t(bytes) * uint64_t(__builtin_popcount(lanes));
}

// Words of 8 or 16 bytes go by halves or quarters of a warp.
void Counter::count_banks(const uint64_t* addresses, Mask lanes, unsigned bytes) {
  const unsigned words = std::max(1u, bytes / 4), together = kLanes / words;
  ++shared_requests_;
  for (unsigned first = 0; first < kLanes; first += together) {
    const Mask part =
        lanes & ((together == kLanes ? kAllLanes : (Mask(1) << together) - 1) << first);
    if (part == 0) continue;
    std::array<std::vector<uint64_t>, kBanks> in_bank;
    each_lane(part, [&](int l) {
      for (unsigned k = 0; k < words; ++k) {
        const uint64_t word = addresses[l] / 4 + k;
        auto& all = in_bank[word % kBanks];
        if (std::find(all.begin(), all.end(), word) == all.end()) all.push_back(word);
      }
    });
    size_t most = 0;
    for (const auto& all : in_bank) most = std::max(most, all.size());
    wavefronts_ += most;
    bank_conflicts_ += most - 1;
  }
}

// The space that is accessed, and every lane's address in it.
Space Counter::count_access(Warp& warp, const Instruction& i, Mask lanes, uint64_t* addresses) {
  each_lane(lanes, [&](int l) { addresses[l] = lane_address(warp, i, l); });
  Space space = i.space;
  if (space == Space::generic) {
    const uint64_t window = addresses[first_lane(lanes)] & kWindowMask;
    space = window == kSharedWindow  ? Space::shared
            : window == kLocalWindow ? Space::local
            : window == kParamWindow ? Space::param
                                     : Space::global;
    each_lane(lanes, [&](int l) { addresses[l] -= window; });
    ++generic_;
  }
  const unsigned bytes = unsigned(i.bytes) * i.vector;
  if (space == Space::global) count_sectors(addresses, lanes, bytes);
  if (space == Space::shared) count_banks(addresses, lanes, bytes);
  return space;
}

// All loads up to this one have landed.
void Counter::wait_for(WarpState& state, uint64_t load) {
  if (load <= state.landed) return;
  ++waits_;
  in_flight_at_waits_ += state.in_flight;
  while (!state.sent.empty() && state.sent.front().first <= load) {
    state.in_flight -= state.sent.front().second;
    state.sent.erase(state.sent.begin());
  }
  state.landed = load;
}

void Counter::follow_chain(Warp& warp, const Instruction& i, Mask lanes, Space space,
                           const uint64_t* addresses) {
  const Frame& frame = *warp.current.frame;
  FrameState& state = state_of(frame);
  WarpState& flight = warps_[&warp];
  const std::vector<int32_t>& slots = slots_of(*frame.code);
  const auto slot = [&](uint32_t place) { return size_t(slots[place / 4]); };
  Chain chain;
  const auto needs = [&](uint32_t place) {
    chain.join(state.chains[slot(place)]);
    wait_for(flight, state.pending[slot(place)]);
  };
  for (size_t k = 0; k < i.sources; ++k) needs(i.source[k]);
  if (i.guarded) needs(i.guard);
  const bool in_memory = i.is_read || i.is_write;
  const bool is_parameter = space == Space::param || space == Space::kernel_param;
  const unsigned bytes = unsigned(i.bytes) * i.vector;
  const auto each_word = [&](auto f) {
    if (!in_memory) return;
    if (is_parameter) {
      if (space == Space::param) f(state.parameters[i.offset]);
      return;
    }
    each_lane(lanes, [&](int l) {
      for (unsigned k = 0; k < bytes; k += 4)
        f(memory_[memory_key(warp, l, space, addresses[l] + k)]);
    });
  };
  if (i.is_read) each_word([&](Chain& c) { chain.join(c); });
  const bool is_load = i.is_read && (space == Space::global || space == Space::shared);
  chain.instructions += 1;
  chain.loads += is_load;
  if (i.is_write) each_word([&](Chain& c) { c.join(chain); });
  for (size_t k = 0; k < i.targets; ++k) {
    Chain& target = state.chains[slot(i.target[k])];
    // Lanes that stay out keep what they had.
    if (lanes == warp.current.lanes && lanes == warp.living()) {
      target = chain;
    } else {
      target.join(chain);
    }
    state.pending[slot(i.target[k])] = 0;
  }
  longest_.join(chain);
  if (!is_load || i.is_write || space != Space::global) return;
  const uint64_t load = ++flight.loads,
                 size = uint64_t(bytes) * uint64_t(__builtin_popcount(lanes));
  flight.sent.emplace_back(load, size);
  flight.in_flight += size;
  most_in_flight_ = std::max(most_in_flight_, flight.in_flight);
  for (size_t k = 0; k < i.targets; ++k) state.pending[slot(i.target[k])] = load;
}

void Counter::count(Warp& warp, const Instruction& i, Mask lanes) {
  ++instructions_;
  lanes_ += uint64_t(__builtin_popcount(lanes));
  uint64_t addresses[kLanes] = {};
  Space space = i.space;
  Kind kind = i.kind;
  if ((i.is_read || i.is_write) && lanes != 0 && space != Space::kernel_param &&
      !(space == Space::param && !i.has_base)) {
    space = count_access(warp, i, lanes, addresses);
    if (kind == Kind::generic_load || kind == Kind::generic_store)
      kind = memory_kind(space, kind == Kind::generic_load);
  }
  ++kinds_[size_t(kind)];
  if (lanes != 0) follow_chain(warp, i, lanes, space, addresses);
}

std::string Counter::json(const std::string& kernel, const LaunchShape& shape) const {
  std::ostringstream out;
  out << "{\"kernel\": \"" << kernel << "\"";
  const auto three = [&](const char* name, const std::array<uint32_t, 3>& x) {
    out << ", \"" << name << "\": [" << x[0] << ", " << x[1] << ", " << x[2] << "]";
  };
  three("grid", shape.grid);
  three("block", shape.block);
  const auto add = [&](const char* name, uint64_t x) { out << ", \"" << name << "\": " << x; };
  add("shared_bytes", uint64_t(shape.dynamic_shared));
  add("instructions", instructions_);
  add("lane_instructions", lanes_);
  out << ", \"kinds\": {";
  bool first = true;
  for (size_t k = 0; k < kinds_.size(); ++k) {
    if (kinds_[k] == 0) continue;
    out << (first ? "" : ", ") << "\"" << name_of(Kind(k)) << "\": " << kinds_[k];
    first = false;
  }
  out << "}";
  add("generic", generic_);
  add("divergent_branches", divergent_branches_);
  add("global_requests", global_requests_);
  add("sectors", sectors_);
  add("global_bytes", global_bytes_);
  add("shared_requests", shared_requests_);
  add("wavefronts", wavefronts_);
  add("bank_conflicts", bank_conflicts_);
  add("most_bytes_in_flight", most_in_flight_);
  add("mean_bytes_in_flight", waits_ == 0 ? 0 : in_flight_at_waits_ / waits_);
  add("waits", waits_);
  add("longest_chain", longest_.instructions);
  add("longest_chain_of_loads", longest_.loads);
  out << "}";
  return out.str();
}

}  // namespace ptx
