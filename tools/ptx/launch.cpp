// Blocks of a launch: their barriers, and the order in which their warps run.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "counter.h"
#include "warp.h"

namespace ptx {

namespace {

constexpr int kPatience = 2000;  // turns of all warps in which all sleep and nothing is written
constexpr uint64_t kPatientInstructions = 50'000'000;  // of a block, in which nothing is written

std::unique_ptr<Block> make_block(Launch& launch, uint32_t id) {
  auto b = std::make_unique<Block>();
  const auto& grid = launch.shape.grid;
  b->launch = &launch;
  b->id = b->order.id = id;
  // Blocks of the same x and y are next to each other: they may wait for each other; or those of a
  // cluster.
  b->index = {id / grid[2] % grid[0], id / grid[2] / grid[0], id % grid[2]};
  const auto& of = launch.shape.cluster;
  const uint32_t size = launch.shape.cluster_size(), cluster = id / size;
  if (size > 1) {
    b->rank = id % size;
    const std::array<uint32_t, 3> at{cluster % (grid[0] / of[0]),
                                     cluster / (grid[0] / of[0]) % (grid[1] / of[1]),
                                     cluster / (grid[0] / of[0]) / (grid[1] / of[1])};
    const std::array<uint32_t, 3> in{b->rank % of[0], b->rank / of[0] % of[1],
                                     b->rank / of[0] / of[1]};
    for (size_t k = 0; k < 3; ++k) b->index[k] = at[k] * of[k] + in[k];
  }
  const auto& dim = launch.shape.block;
  b->threads = dim[0] * dim[1] * dim[2];
  const size_t bytes = size_t(dynamic_shared(launch)) + size_t(launch.shape.dynamic_shared);
  b->shared.assign(bytes, 0xff);  // NaN
  b->shared_shadow.reset(bytes);
  for (uint32_t first = 0; first < b->threads; first += kLanes) {
    auto w = std::make_unique<Warp>();
    w->block = b.get();
    w->index = int(first / kLanes);
    const uint32_t count = std::min<uint32_t>(kLanes, b->threads - first);
    w->exists = count == kLanes ? kAllLanes : (Mask(1) << count) - 1;
    start(*w, *launch.code);
    b->warps.push_back(std::move(w));
  }
  return b;
}

// What bar.red gives: for all threads that are at the barrier.
void reduce(const std::vector<std::pair<Warp*, AtBarrier>>& there) {
  uint32_t yes = 0, threads = 0;
  const auto at_frame = [](Warp& w, const AtBarrier& at) {
    w.registers = at.group.frame->registers;
    return at.instruction;
  };
  for (const auto& [w, at] : there) {
    const Instruction& i = *at_frame(*w, at);
    Mask p = w->predicate(i.source[size_t(i.sources - 1)]);
    if (i.option & 2) p = ~p;
    yes += uint32_t(__builtin_popcount(p & at.group.lanes));
    threads += uint32_t(__builtin_popcount(at.group.lanes));
  }
  for (const auto& [w, at] : there) {
    const Instruction& i = *at_frame(*w, at);
    if (i.barrier == Barrier::count) {
      each_lane(at.group.lanes, [&](int l) { w->at<uint32_t>(i.target[0])[l] = yes; });
    } else {
      Mask& p = w->predicate(i.target[0]);
      const bool is = i.barrier == Barrier::any ? yes > 0 : yes == threads;
      p = is ? p | at.group.lanes : p & ~at.group.lanes;
    }
  }
}

// A barrier of some threads of the block orders those alone.
void order_some(Block& b, const std::vector<std::pair<Warp*, AtBarrier>>& there) {
  View view;
  for (const auto& [w, at] : there)
    each_lane(at.group.lanes, [&, w = w](int l) {
      const auto own = b.order.threads.find(w->thread(l));
      if (own != b.order.threads.end()) view.join(own->second.known);
      view.add({b.id, b.order.time, uint16_t(w->thread(l))});
    });
  ++b.order.time;
  for (const auto& [w, at] : there)
    if (at.instruction->barrier != Barrier::arrive)
      each_lane(at.group.lanes,
                [&, w = w](int l) { b.order.threads[w->thread(l)].known.join(view); });
}

// What must hold of those that meet at a barrier.
void check(const std::vector<std::pair<Warp*, AtBarrier>>& there) {
  const AtBarrier& first = there.front().second;
  const auto complain = [](Warp& w, const AtBarrier& at, const char* kind,
                           const std::string& what) {
    const Group before = w.current;
    w.current = at.group;
    report(w, *at.instruction, first_lane(at.group.lanes), kind, what);
    w.current = before;
  };
  for (size_t k = 0; k < there.size(); ++k) {
    const auto& [w, at] = there[k];
    if ((at.instruction->barrier <= Barrier::arrive) !=
            (first.instruction->barrier <= Barrier::arrive) ||
        (at.instruction->barrier > Barrier::arrive &&
         at.instruction->barrier != first.instruction->barrier))
      complain(*w, at, "different kinds of barrier meet",
               "others are at line " + std::to_string(first.instruction->line));
    if (k == 0 || there[k - 1].first != w) continue;
    const AtBarrier& other = there[k - 1].second;
    if (at.instruction->aligned &&
        (other.group.at != at.group.at || other.group.frame != at.group.frame))
      complain(*w, at, "barrier in a diverged warp",
               "other lanes are at line " + std::to_string(other.instruction->line));
  }
}

void release(Block& b, const std::vector<std::pair<Warp*, AtBarrier>>& there, int number) {
  check(there);
  if (there.front().second.instruction->barrier > Barrier::arrive) reduce(there);
  const bool all = std::all_of(there.begin(), there.end(), [](const auto& x) {
    return x.second.expects == 0 && x.second.instruction->barrier != Barrier::arrive;
  });
  if (Counter* counter = b.launch->counter) counter->pass_barrier(there);
  ++b.barriers;
  const int left_out = b.launch->options.skip_barrier;
  // A barrier that is left out and has a result is waited for, but orders nothing.
  if (left_out < 0 || there.front().first->barriers - 1 != left_out) {
    if (all) {
      b.order.barrier();
    } else {
      order_some(b, there);
    }
  }
  for (auto& w : b.warps) {
    auto& waits = w->at_barrier;
    for (const AtBarrier& at : waits)
      if (at.number == number && at.instruction->barrier != Barrier::arrive)
        w->waiting.push_back({at.group.frame, at.group.at + 1, at.group.lanes});
    waits.erase(std::remove_if(waits.begin(), waits.end(),
                               [&](const AtBarrier& at) { return at.number == number; }),
                waits.end());
  }
}

class Scheduler {
 public:
  explicit Scheduler(Launch& launch) : launch_(launch), random_(launch.options.seed) {
    for (int k = 0; k < 3; ++k) next_random();
  }

  void run_all() {
    const uint32_t blocks = launch_.blocks();
    const uint32_t size = launch_.shape.cluster_size();  // a cluster after the other
    const bool together = launch_.shape.cooperative || size > 1;
    launch_.resident = launch_.shape.cooperative ? int(blocks) : int(size);
    std::vector<std::unique_ptr<Block>> active, ended;
    uint32_t started = 0;
    int idle = 0;  // turns without progress
    const auto may_start = [&] {
      return together && started < blocks && (launch_.shape.cooperative || started % size != 0);
    };
    while (started < blocks || !active.empty()) {
      if (active.empty() || (is_stuck_ && may_start())) {
        active.push_back(make_block(launch_, next_block(started++, size)));
        join_cluster(*active.back(), size);
        idle = 0;
      }
      is_stuck_ = true;
      is_asleep_ = is_interrupted_ = false;
      if (random_ != 0) shuffle(active);
      for (auto& block : active) run_block(*block, together);
      for (auto& block : active) {
        if (block->finished_warps < int(block->warps.size())) continue;
        for (const auto& w : block->warps)
          launch_.totals.most_barriers = std::max(launch_.totals.most_barriers, w->barriers);
        if (launch_.counter) launch_.counter->end_block(*block);
        end_in_cluster(*block);
        if (block->cluster) block->cluster->blocks[block->rank] = nullptr;
        if (launch_.resident > 1) {
          block->warps.clear();
          ended.push_back(std::move(block));
        }
        block.reset();
        progress();
      }
      active.erase(std::remove(active.begin(), active.end(), nullptr), active.end());
      for (auto& cluster : clusters_)
        while (pass_cluster_barrier(*cluster)) progress();
      let_go(ended, active.empty() && started == blocks);
      const bool waits = is_stuck_ && !may_start() && !active.empty();
      idle = waits ? idle + 1 : 0;
      if (waits && !is_asleep_ && !is_interrupted_ && ended.empty())
        deadlock(active, "barrier that is never reached");
      if (waits && !is_interrupted_ && idle > kPatience)
        deadlock(active, "threads that wait for ever");
    }
  }

 private:
  // The block that starts as the `index`-th: those of a cluster in any order.
  uint32_t next_block(uint32_t index, uint32_t size) {
    if (size == 1) return index;
    if (index % size == 0) {
      order_.resize(size);
      std::iota(order_.begin(), order_.end(), index);
      if (random_ != 0) shuffle(order_);
    }
    return order_[index % size];
  }
  void join_cluster(Block& b, uint32_t size) {
    if (size == 1) return;
    if (b.id / size != cluster_) {
      cluster_ = b.id / size;
      if (!launch_.shape.cooperative) clusters_.clear();
      clusters_.push_back(std::make_unique<Cluster>());
      clusters_.back()->blocks.assign(size, nullptr);
      clusters_.back()->size = size;
      clusters_.back()->missing = size;
    }
    b.cluster = clusters_.back().get();
    b.cluster->blocks[b.rank] = &b;
    --b.cluster->missing;
  }
  void next_random() {
    random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
  }
  template <class T>
  void shuffle(std::vector<T>& all) {
    for (size_t k = all.size(); k > 1; --k) {
      next_random();
      std::swap(all[k - 1], all[size_t(random_ >> 16) % k]);
    }
  }
  void progress() {
    is_stuck_ = false;
    last_progress_ = launch_.totals.instructions;
  }

  // What ended blocks wrote reaches the memory, soon or, by chance, a little later.
  void let_go(std::vector<std::unique_ptr<Block>>& ended, bool all) {
    for (auto& block : ended) {
      next_random();
      if (!all && random_ != 0 && (random_ >> 30) % 4 != 0) continue;
      launch_.weak.flush(block->buffer, block->id);
      block.reset();
    }
    ended.erase(std::remove(ended.begin(), ended.end(), nullptr), ended.end());
  }

  // Gives each of a block's warps its turn; again and again, until all wait, sleep or have ended,
  // where no other block waits for a turn.
  void run_block(Block& b, bool others) {
    std::vector<size_t> order(b.warps.size());
    std::iota(order.begin(), order.end(), size_t(0));
    for (bool goes_on = true; goes_on;) {
      goes_on = false;
      if (random_ != 0) shuffle(order);
      for (size_t index : order) {
        Warp& w = *b.warps[index];
        if (w.living() == 0) continue;
        int quantum = launch_.options.quantum;
        if (random_ != 0) {
          next_random();
          quantum = 1 + int(uint64_t(random_ >> 16) % uint64_t(quantum));
        }
        w.has_stored = false;
        const Progress p = run(w, quantum);
        if (w.living() == 0) ++b.finished_warps;
        if (w.has_stored || w.living() == 0) progress();
        if (p == Progress::slept) is_asleep_ = true;
        if (p == Progress::interrupted) is_interrupted_ = goes_on = true;
      }
      while (pass_barriers(b)) {
        goes_on = true;
        progress();
      }
      if (launch_.totals.instructions - last_progress_ > kPatientInstructions)
        deadlock_of(b, "threads that wait for ever");
      if (others) break;
    }
    const bool waits = is_asleep_ || !is_interrupted_;
    if (launch_.resident > 1 && waits) launch_.weak.drain(b.buffer, b.id);
  }

  [[noreturn]] void deadlock(const std::vector<std::unique_ptr<Block>>& active, const char* kind) {
    for (const auto& b : active) {
      for (const auto& w : b->warps)
        if (w->living() != 0) deadlock_of(*b, kind);
    }
    throw Fault(kind);
  }
  [[noreturn]] void deadlock_of(Block& b, const char* kind) {
    std::string what;
    Warp* culprit = nullptr;
    Group group;
    for (const auto& w : b.warps) {
      what += "\n    " + state_of(*w);
      if (culprit || w->living() == 0) continue;
      culprit = w.get();
      group = !w->at_collective.empty() ? w->at_collective.front()
              : !w->at_barrier.empty()  ? w->at_barrier.front().group
              : !w->at_cluster.empty()  ? w->at_cluster.front()
              : !w->waiting.empty()     ? w->waiting.front()
                                        : w->current;
    }
    if (!culprit->at_collective.empty()) kind = "mask names lanes that never come";
    culprit->current = group;
    fault(*culprit, group.frame->code->instructions[size_t(group.at)], first_lane(group.lanes),
          kind, what);
  }

  Launch& launch_;
  std::vector<std::unique_ptr<Cluster>> clusters_;  // that run
  uint32_t cluster_ = ~uint32_t(0);                 // the last of them
  std::vector<uint32_t> order_;                     // in which its blocks start
  uint64_t random_;
  uint64_t last_progress_ = 0;   // instructions until something was written or a barrier passed
  bool is_stuck_ = false;        // nothing has gone on in this turn
  bool is_asleep_ = false;       // a warp sleeps, so that it may
  bool is_interrupted_ = false;  // a warp has had its turn and could go on
};

}  // namespace

bool pass_barriers(Block& b) {
  for (int number = 0; number < 16; ++number) {
    std::vector<std::pair<Warp*, AtBarrier>> there;
    int lanes = 0, expects = 0, living = 0;
    for (const auto& w : b.warps) {
      living += __builtin_popcount(w->living());
      for (const AtBarrier& at : w->at_barrier) {
        if (at.number != number) continue;
        there.emplace_back(w.get(), at);
        lanes += __builtin_popcount(at.group.lanes);
        expects = std::max(expects, at.expects);
      }
    }
    if (there.empty()) {
      if (number == 0 && living == 0) return false;
      continue;
    }
    const int all = expects > 0 ? expects : int(b.threads);
    if (lanes < all && !(expects == 0 && lanes == living)) continue;
    if (lanes < all) {
      Warp& w = *there.front().first;
      w.current = there.front().second.group;
      const Instruction& i = *there.front().second.instruction;
      report(w, i, first_lane(w.current.lanes), "barrier after threads have ended",
             std::to_string(b.threads - uint32_t(living)) + " of " + std::to_string(b.threads) +
                 " threads never reach it");
      w.current = Group();
    }
    release(b, there, number);
    return true;
  }
  return false;
}

Totals launch_kernel(Module& module, const std::string& kernel, const LaunchShape& shape,
                     const std::vector<uint8_t>& parameters, const Options& options,
                     Findings& findings, GlobalMemory* memory, Counter* counter) {
  Launch launch;
  launch.code = &code_of(module, kernel);
  if (!launch.code->function->is_entry) throw Unsupported(kernel + " is no kernel");
  if (int64_t(parameters.size()) != launch.code->kernel_parameter_bytes)
    throw Fault(kernel + " takes " + std::to_string(launch.code->kernel_parameter_bytes) +
                " bytes of parameters, not " + std::to_string(parameters.size()));
  const auto& dim = shape.block;
  const uint64_t threads = uint64_t(dim[0]) * dim[1] * dim[2];
  const int most = launch.code->function->most_threads;
  if (threads == 0 || threads > 1024 || (most > 0 && threads > uint64_t(most)))
    throw Fault(kernel + ": a block of " + std::to_string(threads) + " threads" +
                (most > 0 ? ", at most " + std::to_string(most) : ""));
  for (size_t k = 0; k < 3; ++k)
    if (shape.cluster[k] == 0 || shape.grid[k] % shape.cluster[k] != 0)
      throw Fault(kernel + ": a grid that is no multiple of its clusters");
  for (auto& [name, code] : module.codes) code->free_frames.clear();
  for (auto& [name, code] : module.codes)  // also those that a fault has left
    for (auto& frame : code->frames) code->free_frames.push_back(frame.get());
  launch.shape = shape;
  launch.options = options;
  launch.parameters = parameters;
  launch.findings = &findings;
  launch.memory = memory;
  launch.counter = counter;
  launch.weak = WeakMemory(options.seed + 1);
  Scheduler(launch).run_all();
  return launch.totals;
}

}  // namespace ptx
