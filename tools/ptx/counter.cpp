#include "counter.h"

#include <algorithm>
#include <numeric>
#include <sstream>

namespace ptx {

namespace {

constexpr unsigned kSectorBytes = 32;
constexpr unsigned kBanks = 32;
constexpr size_t kMostBarriers = 64;  // whose clocks are kept

// Passes of a warp's access through the banks of shared memory, and those that conflicts add. Words
// of 8 or 16 bytes go by halves or quarters of a warp.
std::pair<uint64_t, uint64_t> pass_banks(const uint64_t* addresses, Mask lanes, unsigned bytes) {
  const unsigned words = std::max(1u, bytes / 4), together = kLanes / words;
  uint64_t wavefronts = 0, conflicts = 0;
  for (unsigned first = 0; first < kLanes; first += together) {
    const Mask part =
        lanes & ((together == kLanes ? kAllLanes : (Mask(1) << together) - 1) << first);
    if (part == 0) continue;
    // The different words of each bank: the last one, and for each the one before.
    std::array<uint64_t, kLanes> all{};
    std::array<int, kLanes> before{};
    std::array<int, kBanks> last, in_bank{};
    last.fill(-1);
    int count = 0;
    each_lane(part, [&](int l) {
      for (unsigned k = 0; k < words; ++k) {
        const uint64_t word = addresses[l] / 4 + k;
        const size_t bank = word % kBanks;
        int i = last[bank];
        while (i >= 0 && all[size_t(i)] != word) i = before[size_t(i)];
        if (i >= 0) continue;
        all[size_t(count)] = word, before[size_t(count)] = last[bank];
        last[bank] = count++;
        ++in_bank[bank];
      }
    });
    const int most = *std::max_element(in_bank.begin(), in_bank.end());
    wavefronts += uint64_t(most);
    conflicts += uint64_t(most - 1);
  }
  return {wavefronts, conflicts};
}

}  // namespace

void Chain::join(const Chain& other) {
  instructions = std::max(instructions, other.instructions);
  loads = std::max(loads, other.loads);
  ready = latest(ready, other.ready);
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

Counter::Traffic Counter::count_sectors(const uint64_t* addresses, const unsigned* bytes,
                                        Mask lanes) {
  std::vector<uint64_t> sectors;
  Traffic traffic;
  each_lane(lanes, [&](int l) {
    traffic.bytes += bytes[l];
    const uint64_t end = (addresses[l] + bytes[l] + kSectorBytes - 1) / kSectorBytes;
    for (uint64_t s = addresses[l] / kSectorBytes; s < end; ++s) sectors.push_back(s);
  });
  std::sort(sectors.begin(), sectors.end());
  sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
  for (uint64_t s : sectors) traffic.is_new |= touched_.insert(s).second;
  traffic.clocks = std::max<uint64_t>(1, (sectors.size() + 3) / 4);
  ++global_requests_;
  sectors_ += sectors.size();
  global_bytes_ += traffic.bytes;
  return traffic;
}

Counter::Traffic Counter::count_banks(const uint64_t* addresses, Mask lanes, unsigned bytes) {
  const auto [wavefronts, conflicts] = pass_banks(addresses, lanes, bytes);
  ++shared_requests_;
  wavefronts_ += wavefronts;
  bank_conflicts_ += conflicts;
  Traffic traffic;
  traffic.clocks = wavefronts;
  return traffic;
}

// A copy reads global memory, except in lanes that only write zeros, and writes shared memory.
Counter::Traffic Counter::count_copy(const Warp& warp, const Instruction& i, Mask lanes) {
  uint64_t from[kLanes] = {}, to[kLanes] = {};
  unsigned bytes[kLanes] = {};
  Mask reads = 0;
  each_lane(lanes, [&](int l) {
    to[l] = lane_address(warp, i, l);
    from[l] = warp.at<uint64_t>(i.source[1])[l] + uint64_t(i.extra);
    bytes[l] = i.option ? warp.at<uint32_t>(i.source[2])[l] : i.bytes;
    if (bytes[l] > 0) reads |= Mask(1) << l;
  });
  Traffic traffic;
  if (reads != 0) traffic = count_sectors(from, bytes, reads);
  traffic.clocks = std::max(traffic.clocks, pass_banks(to, lanes, i.bytes).first);
  return traffic;
}

// The space that is accessed, and every lane's address in it.
Space Counter::count_access(Warp& warp, const Instruction& i, Mask lanes, uint64_t* addresses,
                            Traffic& traffic) {
  each_lane(lanes, [&](int l) { addresses[l] = lane_address(warp, i, l); });
  Space space = i.space;
  if (space == Space::cluster) return count_remote(warp, lanes, addresses, i, traffic);
  if (space == Space::generic) {
    const uint64_t window = addresses[first_lane(lanes)] & kWindowMask;
    space = window == kSharedWindow  ? Space::shared
            : window == kLocalWindow ? Space::local
            : window == kParamWindow ? Space::param
                                     : Space::global;
    each_lane(lanes, [&](int l) { addresses[l] -= window; });
    ++generic_;
    if (space == Space::shared && addresses[first_lane(lanes)] >> kRankShift)
      return count_remote(warp, lanes, addresses, i, traffic);
  }
  const unsigned bytes = unsigned(i.bytes) * i.vector;
  if (space == Space::global) {
    std::array<unsigned, kLanes> each;
    each.fill(bytes);
    traffic = count_sectors(addresses, each.data(), lanes);
  }
  if (space == Space::shared) traffic = count_banks(addresses, lanes, bytes);
  return space;
}

// Shared memory of the cluster: it takes as long as what is in the second-level cache.
Space Counter::count_remote(const Warp& warp, Mask lanes, uint64_t* addresses, const Instruction& i,
                            Traffic& traffic) {
  const uint64_t cluster = warp.block->id / warp.block->launch->shape.cluster_size();
  traffic.bytes = uint64_t(__builtin_popcount(lanes)) * i.bytes * i.vector;
  traffic.clocks = std::max<uint64_t>(1, traffic.bytes / 128);
  each_lane(lanes, [&](int l) { addresses[l] += kSharedWindow + (cluster << 32); });
  return Space::global;
}

// One more load is under way.
void Counter::send(WarpState& state, uint64_t bytes) {
  state.sent.emplace_back(++state.loads, bytes);
  state.in_flight += bytes;
  most_in_flight_ = std::max(most_in_flight_, state.in_flight);
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

// The bytes in flight of cp.async: those of a group land when it is waited for.
void Counter::follow_copies(WarpState& state, const Instruction& i, uint64_t bytes) {
  auto& groups = state.copy_groups;
  if (i.async == Async::copy && bytes > 0) {
    send(state, bytes);
    state.open_copies = state.loads;
  } else if (i.async == Async::commit || (i.async == Async::wait && i.option)) {
    groups.push_back(state.open_copies);
    state.open_copies = 0;
  }
  if (i.async != Async::wait) return;
  const size_t keep = std::min(groups.size(), i.option ? size_t(0) : size_t(i.offset));
  uint64_t landed = 0;
  for (auto group = groups.begin(); group != groups.end() - ptrdiff_t(keep); ++group)
    landed = std::max(landed, *group);
  groups.erase(groups.begin(), groups.end() - ptrdiff_t(keep));
  wait_for(state, landed);
}

// When the instruction's result is ready, of one that these lanes execute.
Clocks Counter::tick(Warp& warp, const Instruction& i, Mask lanes, Space space, Kind kind,
                     const Traffic& traffic, const Clocks& sources) {
  WarpState& state = warps_[&warp];
  WarpClock& clock = state.clock;
  if (i.leads_block && i.control != Control::collective && !state.was_collective)
    clock.end_basic_block();
  state.was_collective = i.control == Control::collective;
  WarpClock::Step step;
  step.issue = cost_of(kind).issue;
  step.latency = cost_of(kind).latency;
  step.sources = sources;
  const bool jumps = i.control == Control::branch || i.control == Control::branch_index ||
                     i.control == Control::call || i.control == Control::leave;
  step.ends_block =
      jumps || kind == Kind::barrier || kind == Kind::cluster_barrier || kind == Kind::fence;
  if (i.async == Async::copy) {
    step.stores = step.is_shared = true;
  } else if (space == Space::global || space == Space::shared) {
    step.loads = i.is_read, step.stores = i.is_write, step.is_shared = space == Space::shared;
  }
  if (lanes == 0) {
    step.issue = std::min<uint64_t>(step.issue, 1);
    step.latency = 0;
  } else if (traffic.clocks > 0) {
    step.issue = traffic.clocks;
    const bool is_near = space == Space::global && i.is_read && !traffic.is_new;
    if (is_near || (i.async == Async::copy && !traffic.is_new))
      step.latency = second_level_latency();
    if (kind == Kind::atomic && step.is_shared) step.latency = cost_of(Kind::load_shared).latency;
    if (step.latency > 0) step.latency += traffic.clocks - 1;
    access_clocks_ += traffic.clocks;
  } else if (kind == Kind::shuffle) {
    ++access_clocks_;
  }
  step.stalls = lanes != 0 && (jumps || kind == Kind::fence);
  if (i.async == Async::wait) {
    step.sources = latest(sources, clock.land(i.option ? 0 : uint64_t(i.offset), i.option));
    step.ends_block = true;
  }
  if (i.async == Async::commit || i.async == Async::wait) step.latency = 0;
  issue_[size_t(kind)] += step.issue;
  const Clocks ready = clock.issue(step);
  if (i.async == Async::copy && lanes != 0) clock.copy(ready);
  if (i.async == Async::commit) clock.commit();
  return ready;
}

void Counter::pass_barrier(const std::vector<std::pair<Warp*, AtBarrier>>& there) {
  Clocks all{};
  for (const auto& [warp, at] : there) all = latest(all, warps_[warp].clock.now());
  for (uint64_t& clock : all) clock += cost_of(Kind::barrier).latency;
  if (there.front().first->block->id == 0 && barriers_.size() < kMostBarriers)
    barriers_.push_back(all);
  for (const auto& [warp, at] : there)
    if (at.instruction->barrier != Barrier::arrive) warps_[warp].clock.wait_until(all);
}

void Counter::arrive(Warp& warp) {
  WarpState& state = warps_[&warp];
  state.arrival = latest(state.arrival, state.clock.now());
}

void Counter::complete_cluster(const Cluster& cluster) {
  Clocks all{};
  const auto each = [&](auto f) {
    for (const Block* b : cluster.blocks)
      if (b)
        for (const auto& w : b->warps) f(warps_[w.get()]);
  };
  each([&](WarpState& state) { all = latest(all, state.arrival); });
  for (uint64_t& clock : all) clock += cost_of(Kind::cluster_barrier).latency;
  each([&](WarpState& state) { state.meeting = all; });
}

void Counter::pass_cluster(Warp& warp) {
  WarpState& state = warps_[&warp];
  state.clock.wait_until(state.meeting);
}

void Counter::end_block(const Block& block) {
  Clocks end{};
  for (const auto& warp : block.warps) {
    WarpClock& clock = warps_[warp.get()].clock;
    clock.end_basic_block();
    end = latest(end, clock.now());
    warps_.erase(warp.get());
  }
  blocks_.erase(&block);
  if (block.id == 0) first_block_ = end;
  longest_block_ = latest(longest_block_, end);
}

// Blocks that wait for each other do so by atomic operations on a counter: a load of it is ready a
// way to the second-level cache and back after the last of them.
void Counter::follow_arrivals(WarpState& state, const Instruction& i, Mask lanes, Space space,
                              Kind kind, const uint64_t* addresses, Chain& chain) {
  if (i.control == Control::sleep && state.waits) state.clock = state.waiting;
  if (space != Space::global || !i.is_read) return;
  if (kind == Kind::atomic) {
    each_lane(lanes, [&](int l) {
      Clocks& last = arrivals_[addresses[l]];
      last = latest(last, chain.ready);
    });
    state.waiting = state.clock;
    state.waits = true;
  } else if (!arrivals_.empty()) {
    each_lane(lanes, [&](int l) {
      const auto found = arrivals_.find(addresses[l]);
      if (found == arrivals_.end()) return;
      Clocks seen = found->second;
      for (uint64_t& clock : seen) clock += second_level_latency();
      chain.ready = latest(chain.ready, seen);
    });
  }
}

// f(chain) of every word that an access touches; of a read, where nothing was written none.
template <class Function>
void Counter::each_word(const Warp& warp, Mask lanes, Space space, const uint64_t* addresses,
                        unsigned bytes, bool is_write, Function f) {
  const auto visit = [&](Chains& chains, uint64_t key) {
    if (is_write) return f(chains[key]);
    const auto found = chains.find(key);
    if (found != chains.end()) f(found->second);
  };
  BlockState* block = space == Space::global ? nullptr : &blocks_[warp.block];
  each_lane(lanes, [&](int l) {
    for (unsigned k = 0; k < bytes; k += 4) {
      const uint64_t word = (addresses[l] + k) / 4;
      if (space == Space::global) {
        visit(memory_, word);
      } else if (space == Space::local) {
        visit(block->local, uint64_t(warp.thread(l)) << 32 | word);
      } else if (word < block->shared.size()) {
        f(block->shared[size_t(word)]);
      } else if (is_write) {
        block->shared.resize(size_t(word) + 1);
        f(block->shared[size_t(word)]);
      }
    }
  });
}

void Counter::follow_chain(Warp& warp, const Instruction& i, Mask lanes, Space space, Kind kind,
                           const uint64_t* addresses, const Traffic& traffic) {
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
  if (i.guarded) needs(i.guard);
  if (lanes == 0) {
    tick(warp, i, lanes, space, kind, traffic, chain.ready);
    return;
  }
  for (size_t k = 0; k < i.sources; ++k) needs(i.source[k]);
  const bool is_parameter = space == Space::param || space == Space::kernel_param;
  const unsigned bytes = unsigned(i.bytes) * i.vector;
  const auto each_word_of = [&](bool is_write, auto f) {
    if (is_parameter) {
      if (space == Space::param) f(state.parameters[i.offset]);
    } else {
      each_word(warp, lanes, space, addresses, bytes, is_write, f);
    }
  };
  if (i.is_read) each_word_of(false, [&](Chain& c) { chain.join(c); });
  const bool is_load = i.is_read && (space == Space::global || space == Space::shared);
  chain.instructions += 1;
  chain.loads += is_load;
  chain.ready = tick(warp, i, lanes, space, kind, traffic, chain.ready);
  follow_arrivals(flight, i, lanes, space, kind, addresses, chain);
  Chain stored = chain;
  // A warp reads memory after it has written there.
  if (!is_parameter) stored.ready = {};
  if (i.is_write) each_word_of(true, [&](Chain& c) { c.join(stored); });
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
  if (i.async != Async::none) follow_copies(flight, i, traffic.bytes);
  if (!is_load || i.is_write || space != Space::global) return;
  send(flight, traffic.bytes);
  for (size_t k = 0; k < i.targets; ++k) state.pending[slot(i.target[k])] = flight.loads;
}

void Counter::count(Warp& warp, const Instruction& i, Mask lanes) {
  ++instructions_;
  lanes_ += uint64_t(__builtin_popcount(lanes));
  uint64_t addresses[kLanes] = {};
  Space space = i.space;
  Kind kind = i.kind;
  Traffic traffic;
  if ((i.is_read || i.is_write) && lanes != 0 && space != Space::kernel_param &&
      !(space == Space::param && !i.has_base)) {
    space = count_access(warp, i, lanes, addresses, traffic);
    if (kind == Kind::generic_load || kind == Kind::generic_store)
      kind = memory_kind(space, kind == Kind::generic_load);
  }
  if (i.async == Async::copy && lanes != 0) traffic = count_copy(warp, i, lanes);
  ++kinds_[size_t(kind)];
  follow_chain(warp, i, lanes, space, kind, addresses, traffic);
}

std::string Counter::json(const std::string& kernel, const LaunchShape& shape) const {
  std::ostringstream out;
  out << "{\"kernel\": \"" << kernel << "\"";
  const auto three = [&](const char* name, const std::array<uint32_t, 3>& x) {
    out << ", \"" << name << "\": [" << x[0] << ", " << x[1] << ", " << x[2] << "]";
  };
  three("grid", shape.grid);
  three("block", shape.block);
  out << ", \"clusters\": " << (shape.cluster_size() > 1 ? shape.cluster_size() : 0);
  const auto add = [&](const char* name, uint64_t x) { out << ", \"" << name << "\": " << x; };
  add("shared_bytes", uint64_t(shape.dynamic_shared));
  add("instructions", instructions_);
  add("lane_instructions", lanes_);
  const auto by_kind = [&](const char* name, const auto& counts) {
    out << ", \"" << name << "\": {";
    bool first = true;
    for (size_t k = 0; k < counts.size(); ++k) {
      if (counts[k] == 0) continue;
      out << (first ? "" : ", ") << "\"" << name_of(Kind(k)) << "\": " << counts[k];
      first = false;
    }
    out << "}";
  };
  by_kind("kinds", kinds_);
  add("generic", generic_);
  add("divergent_branches", divergent_branches_);
  add("global_requests", global_requests_);
  add("sectors", sectors_);
  add("distinct_sectors", touched_.size());
  add("global_bytes", global_bytes_);
  add("shared_requests", shared_requests_);
  add("wavefronts", wavefronts_);
  add("bank_conflicts", bank_conflicts_);
  add("most_bytes_in_flight", most_in_flight_);
  add("mean_bytes_in_flight", waits_ == 0 ? 0 : in_flight_at_waits_ / waits_);
  add("waits", waits_);
  add("longest_chain", longest_.instructions);
  add("longest_chain_of_loads", longest_.loads);
  add("block_clocks", longest_block_[kWritten]);
  add("first_block_clocks", first_block_[kWritten]);
  add("moved_block_clocks", longest_block_[kMoved]);
  const auto at_barriers = [&](const char* name, Schedule schedule) {
    out << ", \"" << name << "\": [";
    for (size_t k = 0; k < barriers_.size(); ++k) out << (k ? ", " : "") << barriers_[k][schedule];
    out << "]";
  };
  at_barriers("barrier_clocks", kWritten);
  at_barriers("moved_barrier_clocks", kMoved);
  add("issue_clocks", std::accumulate(issue_.begin(), issue_.end(), uint64_t(0)));
  by_kind("issue", issue_);
  add("access_clocks", access_clocks_);
  out << "}";
  return out.str();
}

}  // namespace ptx
