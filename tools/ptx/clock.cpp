#include "clock.h"

namespace ptx {

namespace {

constexpr size_t kKinds = size_t(Kind::count);

std::array<Cost, kKinds> make_costs() {
  std::array<Cost, kKinds> costs{};
#define KANERVA_COST(kind, issue, latency, source) costs[size_t(Kind::kind)] = {issue, latency};
#define KANERVA_CLOCKS(name, clocks, source)
#include "costs.h"
#undef KANERVA_COST
#undef KANERVA_CLOCKS
  return costs;
}

#define KANERVA_COST(kind, issue, latency, source)
#define KANERVA_CLOCKS(name, clocks, source) constexpr uint64_t name = clocks;
#include "costs.h"
#undef KANERVA_COST
#undef KANERVA_CLOCKS

}  // namespace

const Cost& cost_of(Kind kind) {
  static const std::array<Cost, kKinds> costs = make_costs();
  return costs[size_t(kind)];
}
uint64_t second_level_latency() { return second_level; }

Clocks WarpClock::issue(const Step& step) {
  if (step.issue == 0) return step.sources;  // ptxas leaves no instruction of it
  const uint64_t written = std::max(now_, step.sources[kWritten]);
  now_ = written + (step.stalls ? std::max(step.issue, step.latency) : step.issue);

  uint64_t moved = std::max(begin_, step.sources[kMoved]);
  uint64_t &load = last_load_[step.is_shared], &store = last_store_[step.is_shared];
  if (step.loads || step.stores) moved = std::max(moved, store);
  if (step.stores) moved = std::max(moved, load);
  if (step.ends_block) moved = std::max({moved, begin_ + issued_, last_});
  if (step.loads) load = std::max(load, moved + 1);
  if (step.stores) store = std::max(store, moved + 1);
  issued_ += step.issue;
  last_ = std::max(last_, moved + (step.stalls ? std::max(step.issue, step.latency) : step.issue));
  if (step.ends_block) end_basic_block();
  return {written + step.latency, moved + step.latency};
}

void WarpClock::end_basic_block() {
  begin_ = std::max(begin_ + issued_, last_);
  last_ = begin_;
  issued_ = 0;
}

void WarpClock::wait_until(const Clocks& clocks) {
  end_basic_block();
  now_ = std::max(now_, clocks[kWritten]);
  begin_ = last_ = std::max(begin_, clocks[kMoved]);
}

void WarpClock::commit() {
  groups_.push_back(open_);
  open_ = {};
}

Clocks WarpClock::land(uint64_t keep, bool with_open) {
  Clocks ready = with_open ? open_ : Clocks{};
  const size_t count = groups_.size() - std::min(groups_.size(), size_t(keep));
  for (size_t k = 0; k < count; ++k) ready = latest(ready, groups_[k]);
  groups_.erase(groups_.begin(), groups_.begin() + ptrdiff_t(count));
  return ready;
}

}  // namespace ptx
